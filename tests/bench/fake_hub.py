"""A local server with the part of the hub's API that `huggingface_hub` needs for a data set."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

SHA = "1" * 40


@contextmanager
def fake_hub(datasets: Mapping[str, Mapping[str, bytes | None]]) -> Iterator[str]:
    """Yield the address of a hub with these data sets: for each `owner/name` the contents of its files by path.

    A file with the content None is listed, but its download fails.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
            if parts[:2] == ["api", "datasets"] and "/".join(parts[2:4]) in datasets:
                files = datasets["/".join(parts[2:4])]
                info = {"id": "/".join(parts[2:4]), "sha": SHA, "siblings": [{"rfilename": name} for name in files]}
                self.send(200, json.dumps(info).encode(), body, "application/json")
            elif (
                parts[0] == "datasets" and (content := datasets["/".join(parts[1:3])]["/".join(parts[5:])]) is not None
            ):
                self.send(200, content, body)
            else:
                self.send(404, b"{}", body, "application/json", {"X-Error-Code": "RepoNotFound"})

        def send(
            self,
            status: int,
            content: bytes,
            body: bool,
            kind: str = "application/octet-stream",
            more: Mapping[str, str] = {},
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", SHA)
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

"""A server in this process that answers with what a function returns: for replies that no library makes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS = {"Content-Type": "text/event-stream"}
MODELS = {"data": [{"id": "some/model"}]}


@dataclass
class Answer:
    """A status, headers, and a body: a JSON value, bytes, or bytes that are sent one after another."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


Reply = Callable[[str, Any], Answer]


def stream(*events: Any) -> Answer:
    """Return a stream of events. A string is sent as it is."""
    texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return Answer(200, (f"data: {text}\n\n".encode() for text in texts), EVENTS)


def chat(*contents: Any, finish: Any = "stop", middle: Any = None, **more: Any) -> list[Any]:
    """Return the events of a chat stream: one per content, then the end."""
    choices = [{"index": 0, "delta": {"content": content}, "finish_reason": middle} for content in contents]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return [*({"choices": [choice], **more} for choice in choices), "[DONE]"]


@contextlib.contextmanager
def raw_server(reply: Reply, port: int = 0, *, lists_models: bool = True) -> Iterator[str]:
    """Serve `reply(path, body)`, and by default a list of one model. Yield the URL of the API."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self.answer(Answer(200, MODELS) if lists_models and self.path == "/v1/models" else reply(self.path, None))

        def do_POST(self) -> None:
            self.answer(reply(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def answer(self, answer: Answer) -> None:
            body, headers = answer.body, {"Content-Type": "application/json", **answer.headers}
            parts: Iterable[bytes] = (
                [body]
                if isinstance(body, bytes)
                else body
                if isinstance(body, Iterator)
                else [json.dumps(body).encode()]
            )
            with contextlib.suppress(OSError):  # the client disconnected
                self.send_response(answer.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in parts:
                    self.wfile.write(part)
                    self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()

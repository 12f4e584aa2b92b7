"""Test the served OpenAPI document with schemathesis: no status 500, and no response that is not in the document.

MRSA_FUZZ_EXAMPLES=1000 makes a long run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from markovian_rsa_mlx.serve import plan

from ..support.fakes import FakeBackend
from .conftest import RSA, Running, Serve

EXAMPLES = os.environ.get("MRSA_FUZZ_EXAMPLES", "25")
KEY = "fuzz-key"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)


@pytest.mark.slow
def test_schemathesis_finds_no_failure(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan, "MAX_TRACES_PER_REQUEST", 32)  # other tests request many traces
    server = serve(FakeBackend(context_length=5_000), api_key=KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    run_id = server.client.post("/v1/chat/completions", json=RSA, headers=headers).json()["rsa_metadata"]["run_id"]
    config = tmp_path / "schemathesis.toml"
    # The header of the events is optional, and schemathesis takes any unknown header for invalid data.
    checks = "".join(f"{check}.enabled = true\n" for check in CHECKS)
    # A body beyond the limit of bytes is rejected with 413, which schemathesis does not expect.
    statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]
    checks += f"negative_data_rejection.expected-statuses = {statuses}\n"
    events = 'include-path = "/v1/runs/{run_id}/events"\nchecks.negative_data_rejection.enabled = false\n'
    config.write_text(
        f'[parameters]\n"path.run_id" = "{run_id}"\n[checks]\nenabled = false\n{checks}[[operations]]\n{events}'
    )
    command = [
        str(Path(sys.executable).parent / "st"), "--config-file", str(config), "run", f"{server.url}/openapi.json",
        "--max-examples", EXAMPLES, "--seed", "7", "--continue-on-failure",
        "--request-timeout", "20", "--no-color", "--warnings", "off",
        "-H", f"Authorization: Bearer {KEY}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = done.stdout[max(0, done.stdout.find("= FAILURES =")) :]
    assert done.returncode == 0, found[:6_000] + found[6_000:][-2_000:] + done.stderr[-2_000:]
    assert not [record for record in caplog.records if record.exc_info]


def test_document_has_the_routes_of_the_api(server: Running) -> None:
    document = server.get("/openapi.json").json()
    routes = {
        (route.path.replace(":path}", "}"), method.lower())  # type: ignore[attr-defined]
        for route in server.app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == {route for route in routes if route[0].startswith("/v1") or route[0].count("/") == 1} - {
        ("/", "get"),
        ("/login", "get"),
        ("/login", "post"),
    }
    body = document["components"]["schemas"]["ChatRequest"]
    assert body["additionalProperties"] is True
    assert {"rsa_t", "rsa_use_pacore", "max_completion_tokens"} <= set(body["properties"])
    assert json.dumps(document).count("#/$defs") == 0

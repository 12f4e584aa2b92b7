"""Chats of real clients over models whose chat templates refuse them as they are, in every protocol."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.run_store import runs_folder

from ..support.fakes import FakeBackend
from ..support.strict_templates import TEMPLATES, Strict
from .conftest import Serve


def chat(*texts: str) -> list[dict[str, Any]]:
    """Return messages with these texts, whose roles are their first letters."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    return [{"role": roles[text[0]], "content": text} for text in texts]


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": chat("s1", "s2", "u2")}),
    ("/v1/chat/completions", {"messages": chat("s1", "u1", "a1", "s2", "u2")}),
    ("/v1/chat/completions", {"messages": chat("s1", "u1", "a1", "u2", "d2")}),
    ("/v1/chat/completions", {"messages": chat("s1", "u1", "u2")}),
    # Claude Code's second turn, and Codex.
    ("/v1/messages", {"max_tokens": 99, "system": "s1", "messages": chat("u1", "s2", "a1", "u2")}),
    ("/v1/responses", {"instructions": "s1", "input": chat("u1", "a1", "d2", "u2")}),
    ("/tokenize", {"messages": chat("s1", "u1", "a1", "s2", "u2")}),
]


@pytest.mark.parametrize("keys", [{}, {"rsa_t": 1, "rsa_n": 2, "rsa_k": 2}], ids=["plain", "run"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_protocol_serves_the_chats_of_clients(serve: Serve, template: str, keys: dict[str, Any]) -> None:
    tokenizer = Strict(template)
    server = serve(FakeBackend(tokenizer=tokenizer))
    for path, body in REQUESTS:
        answer = server.post(path, **body | (keys if path.startswith("/v1") else {}))
        assert answer.status_code == 200, answer.text
        ids = answer.json()["tokens"] if path == "/tokenize" else server.backend.requests[-1].prompt_token_ids
        text = tokenizer.decode(ids)
        system = ("s1", "s2", "d2")
        places = [text.index(name) for name in (*system, "u2") if name in text]
        assert places == sorted(places)
    for trail in runs_folder().glob("*.jsonl"):
        assert verify_file(trail, codec=tokenizer).finished

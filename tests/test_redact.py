"""Secrets in every form that a server may repeat them in."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from markovian_rsa_mlx import redact as module
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.redact import MASK, holds_secret, protect, redact

KEY = 'sk-Ab/c+d"E_1234567890xyz=='


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_secrets", set())
    module._forms.cache_clear()
    yield
    module._forms.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.upper(),
        f"{KEY[:9]}\n {KEY[9:]}",
        " ".join(KEY),
        KEY[:-8],
        quote(KEY, safe=""),
        quote(KEY),
        quote(KEY).lower(),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY).replace("/", "\\/")[1:-1],
        json.dumps(json.dumps(KEY)),
        html.escape(KEY),
        KEY.encode().hex(),
        *(base64.b64encode(f"{before}{KEY}".encode()).decode() for before in ("", "a", "ab", "Bearer ")),
        base64.urlsafe_b64encode(KEY.encode()).decode(),
    ],
)
def test_forms_of_a_key(text: str) -> None:
    assert redact(f"a {text} b") == f"a {text} b"
    protect(KEY)
    struck = redact(f"a {text} b")
    assert MASK in struck
    assert text[4:16] not in struck
    assert text[-6:] not in struck.removesuffix(" b")
    assert struck[:2] + struck[-2:] == "a  b"
    assert holds_secret(text)


@pytest.mark.parametrize("secret", ["sk-live-Zx9/8+7y6w5v4u3t", "abc+defghijklmnop/qrs", "aaaaaaaaaaaa%2F/+\\bbbbbbbb"])
def test_no_part_of_a_secret_is_left_by_a_form_that_begins_alike(secret: str) -> None:
    protect(secret)
    for text in (secret, secret[:-3], quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]):
        assert redact(f"<{text}>") == f"<{MASK}>"
    assert redact(f"{secret} and {secret}{secret}") == f"{MASK} and {MASK}{MASK}"


def test_short_secrets_are_struck_out_as_words() -> None:
    protect("abc")
    assert redact("abc abcd (abc) Abc") == f"{MASK} abcd ({MASK}) Abc"


def test_ordinary_text_stays() -> None:
    for secret in (KEY, "EMPTY", "x", "", None, "model-server"):
        protect(secret)
    text = "an empty list; x = 3; model; the model-serve"
    assert redact(text) == text


def test_long_texts_and_keys_take_no_time() -> None:
    protect("x" * 2_000)
    assert redact("x" * 50_000).startswith(MASK)


def test_errors_hold_no_secret() -> None:
    protect(KEY)
    assert str(ModelError(f"The server sent {KEY}.")) == f"The server sent {MASK}."

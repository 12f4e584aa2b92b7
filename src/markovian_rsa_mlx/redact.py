"""Strike the user's own secrets out of texts that are shown or recorded.

A server may repeat the key that it got, in an error message or in any other text. `protect` registers a secret of this
process, and `redact` strikes out every registered one: as it is, with white space in it, cut off in its second half,
URL-encoded, escaped as HTML or JSON, and in base64.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import quote, quote_plus

MASK = "[redacted]"
#: Shorter secrets are not struck out: they may be ordinary text.
_MIN_LENGTH = 3
#: Secrets of this length and longer are also found in parts and encoded, others only as whole words.
_MIN_ENCODED = 8
#: A part from the beginning counts from this length and from half of the secret.
_MIN_PART = 12
_SPACE_CHARACTERS = " \t\r\n\u200b"
_SPACES = f"[{_SPACE_CHARACTERS}]*"
_secrets: set[str] = set()


def protect(secret: str | None) -> None:
    """Register a secret of this process, to be struck out of every text from now on."""
    if secret is not None and len(secret := secret.strip()) >= _MIN_LENGTH and secret not in _secrets:
        _secrets.add(secret)
        _forms.cache_clear()


def has_secrets() -> bool:
    """Return True if any secret is registered."""
    return bool(_secrets)


def redact(text: str) -> str:
    """Return `text` without the registered secrets in any form."""
    kept, end = [], 0
    for start, stop in sorted(_found_in(text)):
        if start >= end:
            kept += [text[end:start], MASK]
        end = max(end, stop)
    return "".join(kept) + text[end:]


def _found_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield the places of secrets. Several forms of a secret may begin at the same place and end at others."""
    for pattern, rest in _forms():
        end = 0
        while match := pattern.search(text, end):
            end = _end_of(rest, text, match.end())
            yield match.start(), end


def holds_secret(text: str) -> bool:
    """Return True if `redact` would change `text`."""
    return any(pattern.search(text) for pattern, _ in _forms())


@cache
def _forms() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return the patterns of all forms of all secrets, the longest first, each with the rest that may follow."""
    found: list[tuple[re.Pattern[str], str]] = []
    for secret in sorted(_secrets, key=len, reverse=True):
        if len(secret) < _MIN_ENCODED:
            found.append((re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)"), ""))
            continue
        for form in sorted(_encodings(secret), key=len, reverse=True):
            half = max(_MIN_PART, -(-len(form) // 2))
            found.append((re.compile(_SPACES.join(map(re.escape, form[:half])), re.IGNORECASE), form[half:].lower()))
    return tuple(found)


def _end_of(rest: str, text: str, position: int) -> int:
    """Return the position in `text` where `rest` ends, as far as it follows, apart from white space."""
    end = position
    for character in rest:
        while position < len(text) and text[position] in _SPACE_CHARACTERS:
            position += 1
        if text[position : position + 1].lower() != character:
            break
        position = end = position + 1
    return end


def _encodings(secret: str) -> set[str]:
    """Return the texts that stand for a secret in URLs, HTML, JSON and base64."""
    escaped = json.dumps(secret)[1:-1]
    found = {secret, html.escape(secret), escaped, escaped.replace("/", r"\/"), json.dumps(escaped)[1:-1]}
    for encoded in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        found |= {encoded, quote(encoded, safe="")}
    raw = secret.encode()
    for shift in range(3):  # in base64, the text depends on the position within the encoded bytes
        coded = base64.b64encode(bytes(shift) + raw)
        inner = coded[-(-8 * shift // 6) :].rstrip(b"=").decode()
        inner = inner if (shift + len(raw)) % 3 == 0 else inner[:-1]
        found |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return {*found, raw.hex()}

"""Data within a page: JSON, gzip, base64. No text can break out of the base64 alphabet, and the browser unpacks a
group of texts only when one of them is looked at."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Characters of texts in one group: small enough to unpack at once, large enough to compress well.
_GROUP = 400_000
_SURROGATES = re.compile("[\ud800-\udfff]")


def pack_bytes(content: bytes) -> str:
    """gzip in base64; the same content always gives the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def pack(value: Any) -> str:
    """Any JSON value; a lone surrogate, which UTF-8 cannot hold, is escaped. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return pack_bytes(_SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode())


def group(texts: Mapping[str, str]) -> Iterable[dict[str, str]]:
    """The texts in groups, in their order; a long one stands alone."""
    current: dict[str, str] = {}
    size = 0
    for key, text in texts.items():
        if current and size + len(text) > _GROUP:
            yield current
            current, size = {}, 0
        current[key] = text
        size += len(text)
    if current:
        yield current


def element(name: str, packed: str) -> str:
    """A block of data that the browser neither runs nor shows."""
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>'

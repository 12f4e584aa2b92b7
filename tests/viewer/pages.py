"""Read the data blocks of a page as a browser does."""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any

BLOCK = re.compile(r'<script type="application/octet-stream" id="([\w-]+)">([A-Za-z0-9+/=]*)</script>')


def blocks(page: str) -> dict[str, bytes]:
    return {name: gzip.decompress(base64.b64decode(packed)) for name, packed in BLOCK.findall(page)}


def data(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(blocks(page)["run"])
    return found


def texts(page: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, content in blocks(page).items():
        if name.startswith("texts-"):
            found |= json.loads(content)
    return found

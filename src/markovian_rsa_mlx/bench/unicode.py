"""Text that UTF-8 cannot hold: lone surrogates, from JSON escapes and from arguments that were no UTF-8."""

from __future__ import annotations

import re

_SURROGATES = re.compile(r"[\ud800-\udfff]")


def is_sound(text: str) -> bool:
    """Whether UTF-8 can hold `text`."""
    return _SURROGATES.search(text) is None


def mended(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate."""
    return _SURROGATES.sub("\ufffd", text)

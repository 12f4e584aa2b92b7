"""Checking a trail: `audit.verify` with what it needs brought along."""

from __future__ import annotations

from pathlib import Path

from ..method.codec import Codec
from .text import amount


def verify_run(path: Path, codec: Codec | None) -> str:
    """Check a file; gives what was checked in words, raises `VerificationError` naming the line."""
    from ..audit.verify import verify_file
    from ..equivalence import MathEquivalence

    with MathEquivalence() as equivalent:
        verify_file(path, equivalent=equivalent, codec=codec)
    return amount(path.read_bytes().count(b"\n"), "line")


def codec_of(model: str) -> Codec:
    """A model's tokenizer, without its weights."""
    raise NotImplementedError

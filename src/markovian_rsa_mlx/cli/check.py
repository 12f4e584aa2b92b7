"""Checking a trail: `audit.verify` with what it needs brought along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..method.codec import Codec

if TYPE_CHECKING:
    from ..audit.verify import Report


def verify_run(path: Path, codec: Codec | None = None) -> Report:
    """Check a file; raises `VerificationError` naming the first line that does not follow."""
    from ..audit.verify import verify_file
    from ..equivalence import MathEquivalence

    with MathEquivalence() as equivalent:
        return verify_file(path, equivalent=equivalent, codec=codec)


def codec_of(model: str) -> Codec:
    """A model's tokenizer, without its weights. Raises `ModelError`."""
    from .. import reasoner
    from ..backends.mlx.tokenizer import load_codec

    return load_codec(reasoner.model_path() if model == reasoner.MODEL_ID else model)

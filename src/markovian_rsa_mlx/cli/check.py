"""Checking a trail: `audit.verify` with what it needs brought along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..method.codec import Codec
from .hub import TOKENIZER_FILES, fetch_files

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
    from ..backends.mlx.codec import MLXCodec
    from ..backends.mlx.load import local_folder, read_config

    if model == reasoner.MODEL_ID:
        folder = reasoner.model_path()
    else:
        folder = local_folder(model) or fetch_files(model, None, TOKENIZER_FILES)
    config = read_config(folder)
    try:
        from mlx_lm.utils import load_tokenizer

        from ..models import tokenizer_options

        return MLXCodec(load_tokenizer(folder, tokenizer_options(config), eos_token_ids=config.get("eos_token_id")))
    except Exception as error:  # tokenizers fail in many ways; all of them mean this
        raise ModelError(f"The tokenizer in {str(folder)!r} cannot be loaded: {error}.") from error

"""A model's tokenizer alone: the codec of a folder or a hub id, without its weights."""

from __future__ import annotations

from pathlib import Path

from ...errors import ModelError
from ...models import tokenizer_options
from ..files import TOKENIZER_FILES, fetch_files
from .codec import MLXCodec
from .load import local_folder, read_config


def load_codec(model: str | Path) -> MLXCodec:
    """The codec of a folder, or of a hub id whose few tokenizer files are fetched where needed. Raises `ModelError`."""
    from mlx_lm.utils import load_tokenizer

    folder = local_folder(model) or fetch_files(str(model), None, TOKENIZER_FILES)
    config = read_config(folder)
    try:
        return MLXCodec(load_tokenizer(folder, tokenizer_options(config), eos_token_ids=config.get("eos_token_id")))
    except Exception as error:  # tokenizers fail in many ways; all of them mean this
        raise ModelError(f"The tokenizer in {str(folder)!r} cannot be loaded: {error}.") from error

"""Which contents a model's name stands for, told in a moment: small files wholly, weights by samples.

A folder that was copied is the same; one that was converted or trained anew is another, whatever its name and dates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..backends.files import TOKENIZER_FILES
from ..errors import ModelError

#: What an engine reads of a model's folder, and of an adapter's.
_MODEL_FILES: Final = (*TOKENIZER_FILES, "generation_config.json", "chat_template*", "*.model", "model*.safetensors")
_ADAPTER_FILES: Final = ("adapter_config.json", "adapters.safetensors")
#: Files to this size are read wholly; of larger ones the beginning (with the list of tensors), and samples in between.
_WHOLE_BYTES, _HEAD_BYTES = 16 * 2**20, 2**20
_SAMPLES, _SAMPLE_BYTES = 512, 4096


def contents(model: str, revision: str | None = None, adapter: str | None = None) -> str:
    """A short text for what the model is made of; "" for one of the hub that is not on this machine yet.

    A model of the hub is told by its commit. Raises `ModelError` where a file cannot be read.
    """
    folder = Path(model).expanduser()
    told = _digest(folder, _MODEL_FILES) if folder.is_dir() else _commit(model, revision)
    if adapter is None or not told:
        return told
    return f"{told} with {_digest(Path(adapter).expanduser(), _ADAPTER_FILES)}"


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    found = hashlib.sha256()
    try:
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
            size = path.stat().st_size
            found.update(f"{path.name}|{size}|".encode(errors="surrogateescape"))
            for piece in _pieces(path, size):
                found.update(piece)
    except OSError as error:
        raise ModelError(f"A file in {str(folder)!r} cannot be read: {error.strerror}; check its rights.") from error
    return found.hexdigest()[:16]


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            yield file.read()
            return
        yield file.read(_HEAD_BYTES)
        for number in range(1, _SAMPLES + 1):  # the last one ends where the file does
            file.seek((size - _SAMPLE_BYTES) * number // _SAMPLES)
            yield file.read(_SAMPLE_BYTES)


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no id of the hub: loading it says so
        return ""
    return f"commit {Path(found).parent.name[:16]}" if isinstance(found, str) else ""

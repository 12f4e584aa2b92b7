"""Check that a model's weight files are present and complete, by their headers. Must not import MLX."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from ..errors import ModelError

INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's weight files after checking each.

    Raises `ModelError` for the first that is missing or truncated.
    """
    files = sorted(folder.glob("model*.safetensors"))
    for name in _indexed_files(folder):
        if not (folder / name).is_file():
            raise ModelError(
                f"The weights file {name} is missing in {str(folder)!r}. The download is incomplete, run it again."
            )
    if not files:
        raise ModelError(f"There are no model*.safetensors in {str(folder)!r}, and convert supports no other weights.")
    for file in files:
        if (problem := corruption(file)) is not None:
            raise ModelError(
                f"The weights file {file.name} in {str(folder)!r} is corrupt ({problem}). Download it again."
            )
    return files


def corruption(file: Path) -> str | None:
    """Describe how a safetensors file is corrupt, or return None if its size matches its header."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                return f"its header is truncated at {size} bytes"
            header = json.loads(stream.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return "it has no safetensors header"
    expected = 8 + length + int(end)
    return None if size == expected else f"{size} bytes instead of {expected}"


def _indexed_files(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"The file {INDEX} in {str(folder)!r} cannot be read ({error}). Download it again.") from error

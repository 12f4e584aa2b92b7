"""Check a model's weight files by their headers: present, complete, and each tensor in one of them only.

Must not import MLX.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...json_strict import loads

INDEX = "model.safetensors.index.json"
#: Tensors that an error message names at most.
_MAX_NAMED = 3


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's weight files after checking each, and that all files of the index are there.

    Raises `ModelError` for the first that is missing or damaged, and for a tensor that two files have.
    """
    for name in sorted(set(_index(folder).values())):
        if not (folder / name).is_file():
            raise ModelError(
                f"The weights file {name} is missing in {str(folder)!r}. The download is incomplete, run it again."
            )
    file_of = tensors(folder)
    if not file_of:
        raise ModelError(f"There are no model*.safetensors in {str(folder)!r}, and convert supports no other weights.")
    return sorted({folder / file for file in file_of.values()})


def tensors(folder: Path) -> dict[str, str]:
    """Return the file of each tensor of the folder.

    Raises `ModelError` for a damaged file, and for a tensor that two files have.
    """
    file_of: dict[str, str] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        if (problem := corruption(file)) is not None:
            raise ModelError(
                f"The weights file {file.name} in {str(folder)!r} is damaged ({problem}). Delete it and "
                "download it again."
            )
        for name in _header(file)[0]:
            if name in file_of:
                raise ModelError(
                    f"The tensor {name} is in {file_of[name]} and in {file.name} of {str(folder)!r}. The files are of "
                    "two checkpoints; remove those that do not belong to the model."
                )
            file_of[name] = file.name
    return file_of


def corruption(file: Path) -> str | None:
    """Describe how a safetensors file is corrupt, or return None if its size matches its header."""
    size = file.stat().st_size
    try:
        header, start = _header(file)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except _Truncated:
        return f"its header is truncated at {size} bytes"
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return "it has no safetensors header"
    expected = start + int(end)
    return None if size == expected else f"{size} bytes instead of {expected}"


def origin(folder: Path, message: str, parameter_of: Callable[[str], str]) -> str:
    """Return a sentence with the tensors and files of the parameters that an error message names, or "".

    `parameter_of` returns the parameter that a tensor of the files becomes.
    """
    named = set(re.findall(r"[\w.]+\w", message))
    try:
        found = _of_parameters(tensors(folder), named, parameter_of)
        expected = _of_parameters(_index(folder), named, parameter_of)
    except ModelError:
        return ""
    if found:
        return f" That is {found}."
    return f" The index expects {expected}." if expected else ""


def _of_parameters(file_of: dict[str, str], named: Iterable[str], parameter_of: Callable[[str], str]) -> str:
    places = [f"{name} in {file}" for name, file in file_of.items() if parameter_of(name) in named]
    more = f" and {len(places) - _MAX_NAMED} more" if len(places) > _MAX_NAMED else ""
    return ", ".join(places[:_MAX_NAMED]) + more


class _Truncated(Exception):
    """The file is shorter than its header."""


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the entries of a safetensors header by tensor, and the position of the first tensor."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > file.stat().st_size - 8:
            raise _Truncated
        header = dict(loads(stream.read(length).decode()))
    header.pop("__metadata__", None)
    return header, 8 + length


def _index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor by the folder's index, or nothing without one. Raises `ModelError`."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    try:
        return dict(loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"The file {INDEX} in {str(folder)!r} cannot be read ({error}). Download it again.") from error

"""Import the libraries of the extra `bench` where they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import TaskError


def require_extra(name: str) -> ModuleType:
    """Return the module of this name. Raises `TaskError` with the extra that it belongs to."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise TaskError(
            f"{package} is not installed here ({error}). Install the package with its extra bench, "
            "or with [bench,serve] in place of [serve]."
        ) from error

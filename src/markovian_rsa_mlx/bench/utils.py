"""Libraries of the extra `bench`, imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import TaskError


def require_extra(name: str) -> ModuleType:
    """The module of this name; raises `TaskError` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise TaskError(
            f"This needs {package}, which is not installed here ({error}); pip install 'markovian-rsa-mlx[bench]'."
        ) from error

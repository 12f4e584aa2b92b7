"""Settings files beside profiles, for commands that compare several: each under a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from ..config import RSAConfig


def own_settings(files: Sequence[Path], taken: Collection[str]) -> dict[str, RSAConfig]:
    """Settings by the name of their file; by its path where that name is `taken`, or another file's too.

    A file that is given twice counts once. Raises `ConfigError` for a file that holds no settings.
    """
    once = list(dict.fromkeys(files))
    shared = {stem for stem, number in Counter(path.stem for path in once).items() if number > 1}
    return {_name(path, {*taken, *shared}): RSAConfig.from_toml(path) for path in once}


def _name(path: Path, taken: Collection[str]) -> str:
    """A file without a suffix in the working folder has a path like its name."""
    return next((name for name in (path.stem, str(path)) if name not in taken), str(path.absolute()))

"""Name this program in printed commands as the user started it, so that they run as printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

NAME = "mrsa"
_SCRIPTS = (NAME, "markovian-rsa-mlx")
#: A command in a sentence or an example: the name and one of the words that can follow it.
_COMMAND = re.compile(
    r"(?<![\w./~-])mrsa (?=(?:"
    r"(?:solve|resume|serve|demo|view|plan|doctor|tune|models|profiles|convert|runs|bench|export|completion)(?![\w-])"
    r"|--\w))"
)


def program() -> str:
    """Return the words that start this program from the working folder, quoted for a shell.

    The name alone if the shell finds this very file under it, otherwise the path of the script or of the interpreter,
    relative to the working folder where that is shorter.
    """
    started = Path(sys.argv[0])
    if started.name in _SCRIPTS:
        found = shutil.which(started.name)
        if found is not None and _same_file(Path(found), started):
            return started.name
        return shlex.quote(_shortest(started))
    if started.name == "__main__.py" and started.parent.name == "markovian_rsa_mlx":
        return f"{shlex.quote(_shortest(Path(sys.executable)))} -m markovian_rsa_mlx"
    return NAME


def as_started(text: str) -> str:
    """Return `text` with every command of this program written so that it runs as printed."""
    return _COMMAND.sub(lambda _: f"{program()} ", text)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _shortest(path: Path) -> str:
    absolute = os.path.abspath(path)  # noqa: PTH100, since resolving a link would leave the virtual environment
    try:
        relative = os.path.relpath(absolute)
    except ValueError:  # Windows: another drive
        return absolute
    relative = relative if os.sep in relative else os.path.join(os.curdir, relative)  # noqa: PTH118
    return relative if len(relative) < len(absolute) else absolute

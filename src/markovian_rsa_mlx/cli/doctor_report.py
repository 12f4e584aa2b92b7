"""The file of `mrsa doctor --report`: findings and figures to send to others, without private data.

Texts of the findings may quote paths, names of users and of this computer, addresses of servers, and secrets. All of
them are struck out. `benchmarks/doctor_tables.py` makes tables of such files.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..redact import redact
from ..text_files import write_private_text

FORMAT = "mrsa-doctor-1"
DEFAULT_NAME = "mrsa-doctor.json"
#: Names that many computers and accounts have, and that occur in ordinary text.
_COMMON = frozenset(
    {"root", "user", "admin", "runner", "localhost", "home", "local", "mac", "linux", "python", "model"}
)
#: Absolute paths, in a home folder or on a drive too. A slash within a word, as in a hub id, begins none.
_PATH = re.compile(r"(?<![\w/.:-])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"`<>|:;,()\\/]+[/\\])+[^\s'\"`<>|:;,()\\/]*")
#: A quoted path, which may have spaces.
_QUOTED_PATH = re.compile(r"""(['"])(?:[/~.]|[A-Za-z]:\\)[^'"]*\1""")
_URL = re.compile(r"\b[a-z]+://[^\s'\"<>]+|(?<![\w.-])[\w-]+(?:\.[\w-]+)*:\d{2,5}\b(?![\w:])")


def write_report(file: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of `mrsa doctor --json` without private data. Raises `ConfigError` if `file` exists."""
    text = json.dumps({"format": FORMAT, **_scrubbed(facts)}, indent=2) + "\n"
    if file.exists():
        raise ConfigError(f"--report names {str(file)!r}, which exists. Choose another name or remove it.")
    try:
        write_private_text(file, text)
    except OSError as error:
        raise ConfigError(f"--report names {str(file)!r}, which cannot be written ({error.strerror}).") from error


def _scrubbed(facts: Mapping[str, Any]) -> dict[str, Any]:
    model = str(facts["model"])
    is_folder = model.startswith((".", "~", "/")) or "\\" in model or Path(model).expanduser().is_dir()
    known = {model: Path(model).name} if is_folder else {}
    folders = [
        str(folder) for folder in (Path.home(), Path.cwd(), Path(tempfile.gettempdir())) if len(folder.parts) > 1
    ]

    def scrub(value: Any) -> Any:
        if isinstance(value, str):
            return _strike(value, known, folders)
        if isinstance(value, Mapping):
            return {key: scrub(each) for key, each in value.items()}
        return [scrub(each) for each in value] if isinstance(value, list) else value

    return {key: scrub(value) for key, value in facts.items()}


def _strike(text: str, known: Mapping[str, str], folders: Iterable[str]) -> str:
    for private, public in known.items():
        text = text.replace(private, public)
    text = _QUOTED_PATH.sub("<path>", _URL.sub("<url>", redact(text)))
    for folder in folders:  # up to where a path with spaces must have ended
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])[^'\"\n,;()]*", "<path>", text)
    text = _PATH.sub("<path>", text)
    for name in _names():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", "<name>", text, flags=re.IGNORECASE)
    return text


def _names() -> set[str]:
    """Return the names of this user and this computer that are not ordinary words."""
    found = {Path.home().name, platform.node(), platform.node().partition(".")[0]}
    with contextlib.suppress(OSError, KeyError):  # an account without a name
        found.add(getpass.getuser())
    return {name for name in found if len(name) > 2 and name.lower() not in _COMMON}

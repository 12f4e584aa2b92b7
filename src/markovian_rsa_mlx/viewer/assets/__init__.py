"""The page's own files: one template, one style sheet, ES modules by role, and one vendored library (`vendor/`).

The modules are put together here into one script, in the order of their imports, each in a scope of its own; nothing is
built beforehand. For that, imports are static, relative and on one line, there are no cycles, and what is exported is
declared where it is exported.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([a-z_]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function\*?|const|class) (\w+)", re.MULTILINE)


@cache
def asset(name: str) -> str:
    """The text of a file here."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def program(entry: str) -> str:
    """The module `entry` and all that it imports, as one script."""
    done: dict[str, str] = {}
    _collect(entry, done)
    return "\n".join(done.values())


def _collect(name: str, done: dict[str, str]) -> None:
    if name in done:
        return
    source = asset(f"{name}.js")
    for _, needed in _IMPORT.findall(source):
        _collect(needed, done)
    names = ", ".join(exported for _, exported in _EXPORT.findall(source))
    body = _EXPORT.sub(r"\1 \2", _IMPORT.sub(r"const \1 = module_\2;", source))
    done[name] = f"const module_{name} = (() => {{\n{body}return {{ {names} }};\n}})();"

"""The files of the pages: a template, a style sheet, ES modules, and one vendored library (`vendor/`).

`bundle` joins the modules into one script when a page is made, so there is no build step. For this, imports are
relative and on one line, exports are declared where they are defined, and modules have no import cycles.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([a-z_]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function\*?|const|class) (\w+)", re.MULTILINE)


@cache
def asset(name: str) -> str:
    """Return the text of a file in this folder."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def bundle(entry: str) -> str:
    """Return one script of the module `entry` and all modules that it imports, each in its own scope."""
    scripts: dict[str, str] = {}

    def add(name: str) -> None:
        source = asset(f"{name}.js")
        for _, imported in _IMPORT.findall(source):
            if imported not in scripts:
                add(imported)
        names = ", ".join(exported for _, exported in _EXPORT.findall(source))
        body = _EXPORT.sub(r"\1 \2", _IMPORT.sub(r"const \1 = module_\2;", source))
        scripts[name] = f"const module_{name} = (() => {{\n{body}return {{ {names} }};\n}})();"

    add(entry)
    return "\n".join(scripts.values())

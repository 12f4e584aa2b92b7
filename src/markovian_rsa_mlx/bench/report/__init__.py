"""The results of a benchmark as one HTML page, from `results.json` alone.

The page has no script and asks no network: its policy forbids both. Whatever a model, a task or a file said is
escaped. Figures are inline SVG in the page's own colours, light and dark. Knows results; runs nothing.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ... import wording
from .. import caveats
from ..results import Results
from . import words
from .curves import NARROW, WIDE, curves
from .findings import by_importance, findings
from .problems import heat_map, problem_rows


def render(results: Results) -> str:
    """The page, complete."""
    style = _read("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _template().render(
        results=results,
        style=Markup(style),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        findings=findings(results),
        comparisons=by_importance(results),
        plots={"wide": curves(results, WIDE), "narrow": curves(results, NARROW)},
        heat=heat_map(results),
        problems=problem_rows(results),
        words=words,
        caveats=caveats,
        few=caveats.few_problems({row.method: row.problems for row in results.table}),
        wording=wording,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    return environment.from_string(_read("report.html.j2"))


def _printable(value: Any) -> Any:
    return words.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")

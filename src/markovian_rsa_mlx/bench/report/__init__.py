"""The results of a benchmark as one HTML page, from `results.json` alone.

The page has no script and asks no network: its policy forbids both. Whatever a model, a task or a file said is
escaped. Figures are inline SVG in the page's own colours, light and dark. Knows results; runs nothing.

What the results come to, in sentences: which method is best, what it beats, what could not be told apart.

Which methods can be ranked against each other, and on what: the same problems alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ... import formatting as wording
from ...formatting import amount, count, percent
from .. import summary as caveats
from ..results import Comparison, MethodSummary, Results, problem_scores
from ..summary import summarize
from . import labels as words
from .charts import NARROW, WIDE, curves, heat_map, problem_rows
from .labels import interval, points


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


#: Methods that are named one by one.
_MOST_NAMES = 4


def by_importance(results: Results) -> tuple[list[Comparison], list[Comparison]]:
    """The comparisons of the best method; and all others."""
    best = standing(results).best
    name = best.method if best else ""
    own = [c for c in results.comparisons if name in (c.first, c.second)]
    return own, [c for c in results.comparisons if name not in (c.first, c.second)]


def findings(results: Results) -> list[str]:
    """A few sentences, the main one first."""
    found = standing(results)
    best = found.best
    if best is None:
        return ["No problem has the results of all methods." if results.table else "Nothing was measured yet."]
    own, _ = by_importance(results)
    others = {c.first if c.second == best.method else c.second: c for c in own}
    told_apart = {name: c for name, c in others.items() if not c.within_noise}
    beaten = {name: c for name, c in told_apart.items() if (c.second == best.method) == (c.difference.mean > 0)}
    alike = {name: c for name, c in others.items() if c.within_noise}
    where = "" if found.problems == results.problems else f" on the {_problems(found.problems)} that all have"
    told = [
        f"{best.method} scores highest{where}: {percent(best.score.mean)} {interval(best.score)} "
        f"at {count(best.generated_tokens)} generated tokens a problem."
    ]
    told += _beats(best, beaten) + _like(alike)
    told += [
        f"On the {_problems(c.problems)} that both have {name} is better than it."
        for name, c in told_apart.items()
        if name not in beaten
    ]
    told += [
        f"{row.method} is not ranked: it has results on {count(row.problems)} of {_problems(results.problems)}."
        for row in found.aside
    ]
    failed = sum(bool(record.error) for cell in results.cells for record in cell.records)
    if failed:
        what = "1 run failed and is" if failed == 1 else f"{count(failed)} runs failed and are"
        told.append(f"{what} left out; the same command tries again.")
    return told


def _beats(best: MethodSummary, beaten: Mapping[str, Comparison]) -> list[str]:
    if len(beaten) > _MOST_NAMES:
        sizes = sorted(abs(c.difference.mean) for c in beaten.values())
        low, high = (points(size).lstrip("+") for size in (sizes[0], sizes[-1]))
        return [f"It is better than {len(beaten)} others, by {low} to {high} points."]
    return [_beats_one(best, name, comparison) for name, comparison in beaten.items()]


def _beats_one(best: MethodSummary, name: str, comparison: Comparison) -> str:
    found = comparison.difference
    ends = (found.low, found.high) if comparison.second == best.method else (-found.high, -found.low)
    low, high = (points(end) for end in ends)
    return f"It is {points(abs(found.mean)).lstrip('+')} points [{low}, {high}] better than {name}."


def _like(alike: Mapping[str, Comparison]) -> list[str]:
    if not alike:
        return []
    numbers = sorted({c.problems for c in alike.values()})
    where = _problems(numbers[0]) if len(numbers) == 1 else f"{count(numbers[0])} to {_problems(numbers[-1])}"
    few = all(c.too_few for c in alike.values())
    too_few = f": too few to tell (fewer than {next(iter(alike.values())).fewest})" if few else ""
    if len(alike) > _MOST_NAMES:
        named = _listed(list(alike)[:_MOST_NAMES])
        return [f"{len(alike)} others could not be told from it on {where}, among them {named}{too_few}."]
    head = f"{_listed(list(alike))} could not be told from it on {where}"
    needed = {n: c.problems_needed for n, c in alike.items() if c.problems_needed is not None and not c.too_few}
    if too_few or not needed:
        seen = "" if any(c.difference.mean for c in alike.values()) else ": no difference was seen"
        return [f"{head}{too_few or seen}."]
    if len(alike) == 1:
        return [f"{head}: it would take about {count(next(iter(needed.values())))}."]
    return [f"{head}: it would take about {_listed([f'{count(n)} for {name}' for name, n in needed.items()])}."]


def _problems(number: int) -> str:
    return amount(number, "problem")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@dataclass(frozen=True)
class Standing:
    """Rows over the `problems` that all of them have; `aside` are those with too few to be ranked."""

    rows: tuple[MethodSummary, ...]
    problems: int
    aside: tuple[MethodSummary, ...] = ()

    @property
    def best(self) -> MethodSummary | None:
        """The highest score, with fewer tokens where two are alike."""
        return max(self.rows, key=lambda row: (row.score.mean, -row.generated_tokens), default=None)


def standing(results: Results) -> Standing:
    """Methods that can be chosen, which an oracle (pass@N) cannot.

    One that has less than half as many problems as the one with most is set aside, or the others' would not count.
    """
    methods = {method.name: method for method in results.methods if method.score != "any"}
    rows = [row for row in results.table if row.method in methods]
    have = {row.method: problem_scores(results, methods[row.method]).keys() for row in rows}
    most = max(map(len, have.values()), default=0)
    ranked = [row.method for row in rows if 2 * len(have[row.method]) >= most]
    aside = tuple(row for row in rows if row.method not in ranked)
    common = set.intersection(*(set(have[name]) for name in ranked)) if ranked else set()
    if all(len(have[name]) == len(common) for name in ranked):
        return Standing(tuple(row for row in rows if row.method in ranked), len(common), aside)
    cells = [replace(cell, records=tuple(r for r in cell.records if r.index in common)) for cell in results.cells]
    return Standing(summarize([methods[name] for name in ranked], cells), len(common), aside)

"""Render the results of a benchmark as one HTML page, from `results.json` alone, with links to the pages of runs.

The page has no script and loads nothing: its policy forbids both. All text of models, tasks and files is escaped.
Charts are inline SVG in the page's own colours, light and dark. `ranking` compares methods on their common problems,
and `findings` states the result in sentences.
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

from ... import formatting
from ...formatting import amount, count, percent
from .. import summary
from ..results import Comparison, MethodSummary, Results, problem_scores
from ..stats import comparable
from . import labels
from .charts import NARROW, WIDE, curves, heat_map, problem_rows
from .labels import interval, points

#: The largest number of methods that a sentence names one by one.
_MAX_NAMES = 4


def render(results: Results, pages: Mapping[str, str] = {}) -> str:
    """Return the complete page. `pages` are the pages of runs to link to, by audit log."""
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
        problems=problem_rows(results, pages),
        has_pages=bool(pages),
        labels=labels,
        summary=summary,
        few=summary.few_problems({row.method: row.problems for row in results.table}),
        formatting=formatting,
    )


@cache
def _template() -> jinja2.Template:
    def printable(value: Any) -> Any:
        return labels.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=printable
    )
    return environment.from_string(_read("report.html.j2"))


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Ranking:
    """Rows over the `problems` that all of them have. `unranked` rows have too few problems."""

    rows: tuple[MethodSummary, ...]
    problems: int
    unranked: tuple[MethodSummary, ...] = ()

    @property
    def best(self) -> MethodSummary | None:
        """The row with the highest score, and with fewer tokens among equals."""
        return max(self.rows, key=lambda row: (comparable(row.score.mean), -row.generated_tokens), default=None)

    @property
    def leaders(self) -> tuple[MethodSummary, ...]:
        """All rows with the highest score: a tie has no winner."""
        highest = comparable(self.best.score.mean) if self.best else 0.0
        return tuple(row for row in self.rows if comparable(row.score.mean) == highest)


def ranking(results: Results) -> Ranking:
    """Rank the methods that a user can choose. An oracle (pass@N) is not one of them.

    A method with less than half as many problems as the method with most is left out, because otherwise the problems
    of the others would not count.
    """
    methods = {method.name: method for method in results.methods if method.score != "any"}
    rows = [row for row in results.table if row.method in methods]
    have = {row.method: problem_scores(results, methods[row.method]).keys() for row in rows}
    largest = max(map(len, have.values()), default=0)
    ranked = [row.method for row in rows if 2 * len(have[row.method]) >= largest]
    unranked = tuple(row for row in rows if row.method not in ranked)
    common = set.intersection(*(set(have[name]) for name in ranked)) if ranked else set()
    if all(len(have[name]) == len(common) for name in ranked):
        return Ranking(tuple(row for row in rows if row.method in ranked), len(common), unranked)
    cells = [replace(cell, records=tuple(r for r in cell.records if r.index in common)) for cell in results.cells]
    return Ranking(summary.summarize([methods[name] for name in ranked], cells), len(common), unranked)


def by_importance(results: Results) -> tuple[list[Comparison], list[Comparison]]:
    """Return the comparisons of the best method, and all others."""
    best = ranking(results).best
    name = best.method if best else ""
    own = [c for c in results.comparisons if name in (c.first, c.second)]
    return own, [c for c in results.comparisons if name not in (c.first, c.second)]


def findings(results: Results) -> list[str]:
    """Return a few sentences, the main one first."""
    ranked = ranking(results)
    best = ranked.best
    if best is None:
        return ["No problem has the results of all methods." if results.table else "Nothing was measured yet."]
    leaders = [row.method for row in ranked.leaders]
    others = {c.first if c.second == best.method else c.second: c for c in by_importance(results)[0]}
    beaten: dict[str, Comparison] = {}
    better: dict[str, Comparison] = {}
    equal: dict[str, Comparison] = {}
    for name, c in others.items():
        wins = (c.second == best.method) == (c.difference.mean > 0)
        if name not in leaders:
            (equal if c.within_noise else beaten if wins else better)[name] = c
    where = "" if ranked.problems == results.problems else f" on the {_problems(ranked.problems)} that all have"
    cost = f"{count(best.generated_tokens)} generated tokens per problem"
    if len(leaders) == 1:
        sentences = [
            f"{best.method} scores highest{where}: {percent(best.score.mean)} {interval(best.score)} at {cost}."
        ]
    else:
        named = _listed(leaders) if len(leaders) <= _MAX_NAMES else f"{len(leaders)} methods"
        sentences = [
            f"{named} score equally{where}: {percent(best.score.mean)}. The cheapest is {best.method}: {cost}."
        ]
    it = "It" if len(leaders) == 1 else best.method
    if len(beaten) > _MAX_NAMES:
        sizes = sorted(abs(c.difference.mean) for c in beaten.values())
        low, high = (points(size).lstrip("+") for size in (sizes[0], sizes[-1]))
        sentences.append(f"{it} is better than {len(beaten)} others, by {low} to {high} points.")
    else:
        for name, c in beaten.items():
            found = c.difference
            ends = (found.low, found.high) if c.second == best.method else (-found.high, -found.low)
            low, high = (points(end) for end in ends)
            sentences.append(
                f"{it} is {points(abs(found.mean)).lstrip('+')} points [{low}, {high}] better than {name}."
            )
    if equal:
        sentences.append(_not_significant(equal, "it" if len(leaders) == 1 else best.method))
    sentences += [
        f"On the {_problems(c.problems)} that both have {name} is better than {best.method}."
        for name, c in better.items()
    ]
    sentences += [
        f"{row.method} is not ranked: it has results on {count(row.problems)} of {_problems(results.problems)}."
        for row in ranked.unranked
    ]
    failed = sum(bool(record.error) for cell in results.cells for record in cell.records)
    if failed:
        runs = "1 run failed and is" if failed == 1 else f"{count(failed)} runs failed and are"
        sentences.append(f"{runs} left out; the same command tries again.")
    return sentences


def _not_significant(equal: dict[str, Comparison], best: str) -> str:
    """Return a sentence on the methods without a significant difference from `best`."""
    numbers = sorted({c.problems for c in equal.values()})
    where = _problems(numbers[0]) if len(numbers) == 1 else f"{count(numbers[0])} to {_problems(numbers[-1])}"
    few = all(c.too_few for c in equal.values())
    too_few = f": too few problems for any (fewer than {next(iter(equal.values())).fewest})" if few else ""
    if len(equal) > _MAX_NAMES:
        named = _listed(list(equal)[:_MAX_NAMES])
        return (
            f"{len(equal)} others have no significant difference from {best} on {where}, among them {named}{too_few}."
        )
    verb = "has" if len(equal) == 1 else "have"
    head = f"{_listed(list(equal))} {verb} no significant difference from {best} on {where}"
    needed = {n: c.problems_needed for n, c in equal.items() if c.problems_needed is not None and not c.too_few}
    if too_few or not needed:
        identical = "" if any(c.difference.mean for c in equal.values()) else ": the scores are equal"
        return f"{head}{too_few or identical}."
    if len(equal) == 1:
        return f"{head}: it would take about {count(next(iter(needed.values())))}."
    return f"{head}: it would take about {_listed([f'{count(n)} for {name}' for name, n in needed.items()])}."


def _problems(number: int) -> str:
    return amount(number, "problem")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""Two benchmarks side by side: their methods on the problems that both have, and what else differs between them.

Pure but for `read_folder`. Problems are the same where the task and the problem's place and id are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TaskError
from .results import Comparison, Method, Results, problem_scores, results_from_dict
from .stats import Interval, difference, holm_adjust, interval
from .summary import comparison, generated_tokens
from .tasks.options import base_task_name


@dataclass(frozen=True)
class MethodComparison:
    """A method in both, on the problems on which it has a score in both: its scores, what the second's are above the
    first's, and its tokens."""

    method: str
    first: Interval
    second: Interval
    comparison: Comparison  #: of "A" and "B"
    first_tokens: float  #: generated tokens a problem
    second_tokens: float


@dataclass(frozen=True)
class BenchmarkComparison:
    """Two benchmarks. `differing` says what is not the same, a sentence each; `only` which methods one lacks."""

    problems: int  #: that both have
    pairs: tuple[MethodComparison, ...]
    differing: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_folder(path: Path) -> Results:
    """The results in a benchmark's folder, or of a `results.json`. Raises `TaskError`."""
    file = path / "results.json" if path.is_dir() else path
    try:
        return results_from_dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise TaskError(
            f"There are no results in {str(path)!r} ({error.strerror}); give the folder that mrsa bench TASK wrote."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TaskError(f"{str(file)!r} holds no results that can be read: {_cause(error)}.") from error


def compare(first: Results, second: Results) -> BenchmarkComparison:
    """Raises `ConfigError` where nothing can be compared: other problems, or no method in both."""
    both = _common_problems(first, second)
    names = [method.name for method in first.methods if method.name in {other.name for other in second.methods}]
    told = [(name, *pair) for name in names if (pair := _scores(first, second, name, both))[0]]
    if not told:
        raise ConfigError(
            f"The two benchmarks have no method in common that was run on the same problems: "
            f"{_listed(first.methods)} there, {_listed(second.methods)} here."
        )
    differences = [difference(list(a.values()), list(b.values()), comparisons=len(told)) for _, a, b in told]
    adjusted = holm_adjust([each.test.p_value for each in differences])
    return BenchmarkComparison(
        len(both),
        tuple(
            MethodComparison(
                name,
                interval(list(a.values())),
                interval(list(b.values())),
                comparison("A", "B", each, p),
                _tokens(first, name, a.keys()),
                _tokens(second, name, b.keys()),
            )
            for (name, a, b), each, p in zip(told, differences, adjusted, strict=True)
        ),
        tuple(_differing(first, second, names, len(both))),
        tuple(method.name for method in first.methods if method.name not in names),
        tuple(method.name for method in second.methods if method.name not in names),
    )


def _common_problems(first: Results, second: Results) -> set[int]:
    if base_task_name(first.task) != base_task_name(second.task):
        raise ConfigError(
            f"The two benchmarks are of other problems, {first.task!r} and {second.task!r}; "
            "only the same problems can be compared."
        )
    here, there = _ids(first), _ids(second)
    both = {index for index in here.keys() & there.keys() if here[index] == there[index]}
    if not both:
        raise ConfigError(f"The two benchmarks of {first.task!r} have no problem in common; run one on the other's.")
    return both


def _differing(first: Results, second: Results, names: list[str], both: int) -> Iterator[str]:
    if first.task != second.task:
        yield f"how the problems are put: {first.task} and {second.task}"
    for what in ("model", "seed", "epochs", "package_version"):
        here, there = getattr(first, what), getattr(second, what)
        if here != there:
            yield f"{what.replace('_', ' ')}: {here} and {there}"
    for what in sorted(first.engine.keys() | second.engine.keys()):
        if first.engine.get(what) != second.engine.get(what):
            yield f"{what.replace('_', ' ')}: {first.engine.get(what)} and {second.engine.get(what)}"
    for here, there in ((first, "first"), (second, "second")):
        beyond = len(_ids(here)) - both
        if beyond:
            yield f"{beyond} problem{'' if beyond == 1 else 's'} of the {there} that the other lacks, left out"
    for name in names:
        told = _settings(first, second, name)
        if told:
            yield f"settings of {name}: {told}"


def _settings(first: Results, second: Results, name: str) -> str:
    here, there = (results.cell_of(results.method(name)).config for results in (first, second))
    differing = [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]
    return ", ".join(f"{key} {here.get(key)} and {there.get(key)}" for key in sorted(differing))


def _scores(first: Results, second: Results, name: str, indices: set[int]) -> tuple[dict[int, float], dict[int, float]]:
    """The method's scores on those of the problems on which it has one in both, in one order."""
    here, there = (problem_scores(results, results.method(name)) for results in (first, second))
    both = sorted(here.keys() & there.keys() & indices)
    return {index: here[index] for index in both}, {index: there[index] for index in both}


def _tokens(results: Results, name: str, indices: Set[int]) -> float:
    """Generated tokens a problem, on these."""
    method = results.method(name)
    return generated_tokens(method, results.cell_of(method), indices)


def _ids(results: Results) -> dict[int, str]:
    return {record.index: record.problem_id for cell in results.cells for record in cell.records}


def _listed(methods: tuple[Method, ...]) -> str:
    return ", ".join(method.name for method in methods) or "none"


def _cause(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)

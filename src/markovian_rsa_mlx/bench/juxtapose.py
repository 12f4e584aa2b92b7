"""Two benchmarks side by side: their methods on the problems that both have, and what else differs between them.

Pure but for `read_folder`. Problems are the same where the task and the problem's place and id are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TaskError
from .intervals import Interval, interval
from .results import Comparison, Method, Results, problem_scores, results_from_dict
from .statistics import difference, holm, paired
from .tabulate import comparison
from .tasks.options import problems_of


@dataclass(frozen=True)
class Pair:
    """A method in both: its scores on the problems that both have, and what the second's are above the first's."""

    method: str
    first: Interval
    second: Interval
    comparison: Comparison  #: of "A" and "B"
    first_tokens: float  #: generated tokens a problem, over all problems of its benchmark
    second_tokens: float


@dataclass(frozen=True)
class Juxtaposition:
    """Two benchmarks. `differing` says what is not the same, a sentence each; `only` which methods one lacks."""

    problems: int  #: that both have
    pairs: tuple[Pair, ...]
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


def juxtapose(first: Results, second: Results) -> Juxtaposition:
    """Raises `ConfigError` where nothing can be compared: other problems, or no method in both."""
    both = _common_problems(first, second)
    names = [method.name for method in first.methods if method.name in {other.name for other in second.methods}]
    scores = [(name, _scores(first, name, both), _scores(second, name, both)) for name in names]
    told = [(name, a, b) for name, a, b in scores if a.keys() & b.keys()]
    if not told:
        raise ConfigError(
            f"The two benchmarks have no method in common that was run on the same problems: "
            f"{_listed(first.methods)} there, {_listed(second.methods)} here."
        )
    found = [(name, *paired(a, b)) for name, a, b in told]
    differences = [difference(a, b, comparisons=len(found)) for _, a, b in found]
    adjusted = holm([each.test.p_value for each in differences])
    return Juxtaposition(
        len(both),
        tuple(
            Pair(
                name,
                interval(a),
                interval(b),
                comparison("A", "B", each, p),
                _tokens(first, name),
                _tokens(second, name),
            )
            for (name, a, b), each, p in zip(found, differences, adjusted, strict=True)
        ),
        tuple(_differing(first, second, names, len(both))),
        tuple(method.name for method in first.methods if method.name not in names),
        tuple(method.name for method in second.methods if method.name not in names),
    )


def _common_problems(first: Results, second: Results) -> set[int]:
    if problems_of(first.task) != problems_of(second.task):
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


def _scores(results: Results, name: str, indices: set[int]) -> Mapping[int, float]:
    found = problem_scores(results, results.method(name))
    return {index: score for index, score in found.items() if index in indices}


def _tokens(results: Results, name: str) -> float:
    return next((row.generated_tokens for row in results.table if row.method == name), 0.0)


def _ids(results: Results) -> dict[int, str]:
    return {record.index: record.problem_id for cell in results.cells for record in cell.records}


def _listed(methods: tuple[Method, ...]) -> str:
    return ", ".join(method.name for method in methods) or "none"


def _cause(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)

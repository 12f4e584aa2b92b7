"""Compare two benchmarks: their methods on the problems that both have, and all other differences between them.

Two problems are the same if their task, place and id are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, TaskError
from ..formatting import amount
from .results import Comparison, Results, problem_scores, results_from_dict
from .stats import Interval, difference, holm_adjust, interval
from .summary import comparison, mean_generated_tokens
from .tasks.options import base_task_name


@dataclass(frozen=True)
class MethodComparison:
    """One method in both benchmarks, restricted to the problems scored in both."""

    method: str
    first: Interval
    second: Interval
    comparison: Comparison  #: of "A" and "B"
    first_tokens: float  #: generated tokens per problem
    second_tokens: float


@dataclass(frozen=True)
class BenchmarkComparison:
    """Two benchmarks. `differing` holds a phrase for each other difference, `only_...` the methods of one alone."""

    problems: int  #: that both have
    pairs: tuple[MethodComparison, ...]
    differing: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_folder(path: Path) -> Results:
    """Return the results in the folder of a benchmark, or in a `results.json`. Raises `TaskError`."""
    file = path / "results.json" if path.is_dir() else path
    try:
        return results_from_dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise TaskError(
            f"There are no results in {str(path)!r} ({error.strerror}); give a folder that mrsa bench TASK wrote."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise TaskError(f"{str(file)!r} has no readable results: {cause}.") from error


def compare(first: Results, second: Results) -> BenchmarkComparison:
    """Compare two benchmarks. Raises `ConfigError` if they have no problem or no method in common."""
    names_of_second = {method.name for method in second.methods}
    names = [method.name for method in first.methods if method.name in names_of_second]
    common = _common_problems(first, second)
    scores: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    for name in names:
        a, b = (problem_scores(results, results.method(name)) for results in (first, second))
        indices = sorted(a.keys() & b.keys() & common)
        if indices:
            scores[name] = {index: a[index] for index in indices}, {index: b[index] for index in indices}
    if not scores:
        raise ConfigError(
            "The two benchmarks have no method in common that ran on the same problems: "
            f"{', '.join(method.name for method in first.methods)} in the first, "
            f"{', '.join(method.name for method in second.methods)} in the second."
        )
    differences = [difference(list(a.values()), list(b.values()), len(scores)) for a, b in scores.values()]
    adjusted = holm_adjust([each.test.p_value for each in differences])
    pairs = []
    for (name, (a, b)), found, p_adjusted in zip(scores.items(), differences, adjusted, strict=True):
        tokens = [
            mean_generated_tokens(results.method(name), results.cell_of(results.method(name)), a.keys())
            for results in (first, second)
        ]
        pairs.append(
            MethodComparison(
                method=name,
                first=interval(list(a.values())),
                second=interval(list(b.values())),
                comparison=comparison("A", "B", found, p_adjusted),
                first_tokens=tokens[0],
                second_tokens=tokens[1],
            )
        )
    return BenchmarkComparison(
        problems=len(common),
        pairs=tuple(pairs),
        differing=tuple(_differences(first, second, names, len(common))),
        only_first=tuple(method.name for method in first.methods if method.name not in names),
        only_second=tuple(method.name for method in second.methods if method.name not in names),
    )


def _common_problems(first: Results, second: Results) -> set[int]:
    if base_task_name(first.task) != base_task_name(second.task):
        raise ConfigError(
            f"The two benchmarks have different tasks, {first.task!r} and {second.task!r}; "
            "only benchmarks of the same problems can be compared."
        )
    a, b = _problem_ids(first), _problem_ids(second)
    common = {index for index in a.keys() & b.keys() if a[index] == b[index]}
    if not common:
        raise ConfigError(
            f"The two benchmarks of {first.task!r} have no problem in common; run one with the --limit of the other."
        )
    return common


def _problem_ids(results: Results) -> dict[int, str]:
    return {record.index: record.problem_id for variant in results.cells for record in variant.records}


def _differences(first: Results, second: Results, names: list[str], common: int) -> Iterator[str]:
    """Yield a phrase for each difference other than scores."""
    if first.task != second.task:
        yield f"wording of the problems: {first.task} and {second.task}"
    pairs = [(key, getattr(first, key), getattr(second, key)) for key in ("model", "seed", "epochs", "package_version")]
    keys = sorted(first.engine.keys() | second.engine.keys())
    pairs += [(key, first.engine.get(key), second.engine.get(key)) for key in keys]
    yield from (f"{key.replace('_', ' ')}: {a} and {b}" for key, a, b in pairs if a != b)
    for results, place in ((first, "first"), (second, "second")):
        other = len(_problem_ids(results)) - common
        if other:
            yield f"{amount(other, 'problem')} only in the {place}, left out"
    for name in names:
        a, b = (results.cell_of(results.method(name)).config for results in (first, second))
        changed = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        if changed:
            yield f"settings of {name}: " + ", ".join(f"{key} {a.get(key)} and {b.get(key)}" for key in changed)

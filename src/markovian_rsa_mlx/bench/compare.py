"""Compare two benchmarks: their methods on the problems that both have, and all other differences between them.

Two problems are the same if their texts and references are, wherever they are in their tasks. In results that do not
record these, they are the same if their task, place and id are.
"""

from __future__ import annotations

import json
from collections import Counter
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
        pairs_of = [(index, other) for index, other in sorted(common.items()) if index in a and other in b]
        if pairs_of:
            scores[name] = {i: a[i] for i, _ in pairs_of}, {j: b[j] for _, j in pairs_of}
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
            mean_generated_tokens(results.method(name), results.cell_of(results.method(name)), problems.keys())
            for results, problems in ((first, a), (second, b))
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


def _common_problems(first: Results, second: Results) -> dict[int, int]:
    """Return the places of equal problems, in the second benchmark by those in the first."""
    a, b = (_problem_contents(results) for results in (first, second))
    if a is None or b is None:
        if base_task_name(first.task) != base_task_name(second.task):
            raise ConfigError(
                f"The two benchmarks have different tasks, {first.task!r} and {second.task!r}, and one of them is of a "
                "version that did not record its problems; only benchmarks of the same problems can be compared."
            )
        a, b = (_problem_ids(results) for results in (first, second))
    common = {a[key]: b[key] for key in a.keys() & b.keys()}
    if not common:
        raise ConfigError(
            f"The two benchmarks, of {first.task!r} and {second.task!r}, have no problem in common; run one with the "
            "task and the --limit of the other."
        )
    return common


def _problem_ids(results: Results) -> dict[tuple[str, int], int]:
    """Return the place of each problem by its id and place."""
    return {(r.problem_id, r.index): r.index for variant in results.cells for r in variant.records}


def _problem_contents(results: Results) -> dict[tuple[str, int], int] | None:
    """Return the place of each problem by its content, numbered among equal ones, or None if some are unknown."""
    contents = {record.index: record.content for variant in results.cells for record in variant.records}
    if not all(contents.values()):
        return None
    seen: Counter[str] = Counter()
    found = {}
    for index, content in sorted(contents.items()):
        found[content, seen[content]] = index
        seen[content] += 1
    return found


def _differences(first: Results, second: Results, names: list[str], common: int) -> Iterator[str]:
    """Yield a phrase for each difference other than scores."""
    if first.task != second.task:
        same = base_task_name(first.task) == base_task_name(second.task)
        yield f"{'wording of the problems' if same else 'task'}: {first.task} and {second.task}"
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

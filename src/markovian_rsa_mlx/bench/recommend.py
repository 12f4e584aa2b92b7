"""Recommend a method from the results of a benchmark: its cost, how sure that is, and what would settle it.

A pure function of `results.json`. Methods are compared in pairs on the problems that all of them have (see `stats`),
with p-values adjusted for the number of rivals. The methods are of three kinds: one trace, a vote, and reading (each
trace continues itself, or reads others). A recommendation is sure once the best method is better than every method of
another kind; which method of one kind is best may stay open.

One long trace is set against the recommended method, but is not a rival: it needs a longer context than the limit of a
trace (beta) that the benchmark was asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import TaskError
from ..formatting import SYMBOLS, amount, count, percent, percent_range
from .compare import read_folder
from .results import Comparison, Method, Results, problem_scores
from .stats import Interval, comparable, difference, holm_adjust, interval
from .summary import comparison, mean_generated_tokens

Kind = Literal["one trace", "vote", "reading", "long trace"]
#: The kinds of methods that do not read tails.
KINDS: Final[Mapping[str, Kind]] = {
    "single": "one trace",
    "long": "long trace",
    "vote": "vote",
    "vote+posterior": "vote",
    "vote+tournament": "vote",
    "vote-equal": "vote",
}
#: A difference of at most this share does not matter to a user: of two such methods, the cheaper one is recommended.
MARGIN: Final = 0.02
#: The methods that a recommendation compares. Each kind has a method that answers once and one that votes.
COMPARED: Final = (
    *("single", "vote", "vote-equal", "delethink", "delethink:majority", "markovian", "markovian:majority"),
    "long",
)


def kind_of(method: str) -> Kind:
    """Return the kind of a method by its name in results."""
    return KINDS.get(method.split(" ")[0].partition(":")[0], "reading")


@dataclass(frozen=True)
class Recommendation:
    """What to use. `sure` is False if the problems cannot tell yet; `method` is then only the one with the best score.

    `beaten` and `open` are comparisons with the recommended method as `second`: the rivals that are worse, and those
    that may be as good or better. `more_problems` is about the number that would settle the open ones of other kinds,
    or of its own kind if these are all; None if that is unknown or nothing is open. `long` is the comparison with one
    long trace as `first`, if it was measured.
    """

    sentence: str
    sure: bool
    method: str = ""
    kind: Kind = "one trace"
    score: Interval | None = None
    tokens: float = 0.0  #: generated tokens per problem
    problems: int = 0
    beaten: tuple[Comparison, ...] = ()
    open: tuple[Comparison, ...] = ()
    more_problems: int | None = None
    long: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Row:
    """A method with its scores on the common problems and its cost."""

    method: Method
    scores: Sequence[float]
    tokens: float

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def kind(self) -> Kind:
        return kind_of(self.name)

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


def recommend(results: Results) -> Recommendation:
    """Return the recommendation that follows from these results."""
    rows = _rows(results)
    rivals = [row for row in rows if row.kind != "long trace"]
    if len(rivals) < 2:
        missing = "No problem has the results of all methods" if not rivals else f"Only {rivals[0].name} was measured"
        return Recommendation(f"Cannot tell yet: {missing}, and a recommendation compares at least two methods.", False)
    best = max(rivals, key=lambda row: (comparable(row.mean), -row.tokens))
    if best.mean == 0:
        nothing = f"Cannot tell yet: no method was right on any of {amount(len(best.scores), 'problem')}."
        return Recommendation(nothing, False, problems=len(best.scores))
    best = _cheapest_equivalent(best, rivals)
    found = _compare(best, [row for row in rivals if row is not best])
    beaten = tuple(c for c in found if not c.within_noise and c.difference.mean > 0)
    undecided = tuple(c for c in found if c not in beaten and not _is_equivalent(c.difference))
    others = tuple(c for c in undecided if kind_of(c.first) != best.kind)
    has_other_kinds = any(row.kind != best.kind for row in rivals)
    sure = not others if has_other_kinds else not undecided
    of_long = next((row for row in rows if row.kind == "long trace"), None)
    more = _more_problems(others or undecided)
    return Recommendation(
        sentence=_sentence(results, best=best, sure=sure, beaten=beaten, undecided=undecided, more=more)
        + _long_clause(best, of_long),
        sure=sure,
        method=best.name,
        kind=best.kind,
        score=interval(best.scores),
        tokens=best.tokens,
        problems=len(best.scores),
        beaten=beaten,
        open=undecided,
        more_problems=more,
        long=_compare(best, [of_long])[0] if of_long else None,
    )


def _rows(results: Results) -> list[_Row]:
    """Return the methods that a user can choose, on the problems that all have.

    A method with less than half the problems of the largest one is left out.
    """
    scores = {method: problem_scores(results, method) for method in results.methods if method.score != "any"}
    largest = max(map(len, scores.values()), default=0)
    kept = {method: found for method, found in scores.items() if found and 2 * len(found) >= largest}
    common = sorted(set.intersection(*(set(found) for found in kept.values()))) if kept else []
    return [
        _Row(
            method,
            [found[index] for index in common],
            mean_generated_tokens(method, results.cell_of(method), set(common)),
        )
        for method, found in kept.items()
        if common
    ]


def _compare(best: _Row, rivals: Sequence[_Row]) -> list[Comparison]:
    """Return `best` minus each rival, with p-values adjusted for their number."""
    found = [difference(rival.scores, best.scores, comparisons=len(rivals)) for rival in rivals]
    adjusted = holm_adjust([each.test.p_value for each in found])
    return [comparison(rival.name, best.name, each, p) for rival, each, p in zip(rivals, found, adjusted, strict=True)]


def _is_equivalent(difference: Interval) -> bool:
    return difference.low >= -MARGIN and difference.high <= MARGIN


def _cheapest_equivalent(best: _Row, rivals: Sequence[_Row]) -> _Row:
    """Return the cheapest of the methods that are at most `MARGIN` worse than `best`."""
    equal = [row for row in rivals if row is best or _is_equivalent(difference(row.scores, best.scores).interval)]
    return min(equal, key=lambda row: row.tokens)


def _more_problems(undecided: Sequence[Comparison]) -> int | None:
    """Return about how many problems more would settle all of these comparisons, None if that is unknown for one."""
    needed = []
    for one in undecided:
        if one.problems_needed is None:
            return None
        needed.append(max(one.problems_needed, one.fewest) - one.problems)
    return max((number for number in needed if number > 0), default=None)


def _sentence(
    results: Results,
    *,
    best: _Row,
    sure: bool,
    beaten: Sequence[Comparison],
    undecided: Sequence[Comparison],
    more: int | None,
) -> str:
    own = interval(best.scores)
    score = f"{percent(own.mean)} {percent_range(own.low, own.high)} on {amount(len(best.scores), 'problem')}"
    method = f"{best.name} ({settings_text(results, best.method)}; {count(best.tokens)} tokens per problem)"
    settled = f"about {amount(more, 'more problem')} would settle it" if more else "more problems are needed"
    if not sure:
        names = _listed([c.first for c in undecided if kind_of(c.first) != best.kind] or [c.first for c in undecided])
        worse = f" {_listed([c.first for c in beaten])} did worse." if beaten else ""
        return f"Cannot tell yet: {method} leads with {score}, and {names} may be as good; {settled}.{worse}"
    parts = [f"Use {method}: {score}"]
    if beaten:
        closest = min(beaten, key=lambda c: c.difference.mean)
        points = f"{100 * closest.difference.mean:.1f} points"
        ends = percent_range(closest.difference.low, closest.difference.high)
        others = f" and more than {_listed([c.first for c in beaten if c is not closest])}" if len(beaten) > 1 else ""
        parts.append(f", {points} {ends} above {closest.first} (adjusted p = {closest.p_adjusted:.2g}){others}")
    if undecided:
        parts.append(f"; {_listed([c.first for c in undecided])} may be as good, and {settled}")
    return "".join(parts) + "."


def _long_clause(best: _Row, long: _Row | None) -> str:
    """Return a sentence on one long trace, or ""."""
    if long is None:
        return ""
    (found,) = _compare(best, [long])
    score = f"{percent(long.mean)} at {count(long.tokens)} tokens"
    if found.within_noise:
        return f" One long trace may be as good: {score}."
    if found.difference.mean > 0:
        return f" One long trace did worse: {score}."
    return f" One long trace did better: {score}. Raise the token limit of a trace where memory allows it."


def experience(model: str, folders: Iterable[Path]) -> str:
    """Return what benchmarks of a model in these folders say about reading, in a sentence for each task, or ""."""
    sentences = {}
    for folder in folders:
        try:
            results = read_folder(folder)
        except TaskError:
            continue
        rows = [row for row in results.table if row.method.split(" ")[0] == "markovian" and len(row.rounds) > 1]
        if results.model == model and rows:
            first, last = rows[0].rounds[0].mean.mean, rows[0].rounds[-1].mean.mean
            verdict = "says the same" if last < first else "says otherwise" if last > first else "says neither"
            sentences[results.task] = (
                f"The benchmark of {results.task} {verdict}: the mean candidate was right in {percent(first)} of round "
                f"0 and {percent(last)} of round {rows[0].rounds[-1].round}, on {amount(rows[0].problems, 'problem')}."
            )
    return " ".join(sentences[task] for task in sorted(sentences))


def settings_text(results: Results, method: Method) -> str:
    """Return the settings of a method as one would type them, by the symbols of the literature."""
    config = results.cell_of(method).config
    if not config["rounds"]:
        traces = "1 trace" if method.one_trace else f"{_value(config['population'])} traces"
        return f"{traces} of at most {count(config['final_tokens'])} tokens"
    names = ("population", "aggregation_size", "rounds", "thinking_tokens")
    return ", ".join(f"{SYMBOLS[name]} = {_value(config[name])}" for name in names)


def _value(value: object) -> str:
    values = value if isinstance(value, list | tuple) else [value]
    return " -> ".join(count(each) if isinstance(each, int) else str(each) for each in values)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""The methods of a benchmark: each is the one orchestrator with other settings, and a way to score its runs.

All are compared at F = N, so that the mean over final candidates is the paper's score. What cells have in common (a
trace with the same prompt, seed, budget and sampling) is generated once, see `known`.

Which cells a benchmark runs: its methods at one point of settings, or at every point of a grid in a TOML file.

    methods = ["single", "delethink", "markovian"]
    [grid]                           # every combination, by the paper's symbols or by the settings' names
    N = [16]
    C = [1, 4]
    beta = [8_000, 16_000]
    final_tokens = "beta"            # follows beta
    [[point]]                        # or points one by one
    beta = 40_000
    tau = 8_000

Cells that come out alike (a single trace knows no C) are run once.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..config import FIELD_NAMES, FULL, RSAConfig, read_toml
from ..errors import ConfigError
from .results import Method, Score

Change = Callable[[RSAConfig], RSAConfig]


def _parallel(config: RSAConfig) -> RSAConfig:
    """T = 0 with what round 0 of the others has: beta, and the sampling of the rounds before the last."""
    return config.replace(
        rounds=0,
        aggregation_size=1,
        tail_tokens=FULL,
        final_tokens=config.thinking_tokens,
        carry="tail",
        final_temperature=None,
        final_top_p=None,
        final_top_k=None,
        final_min_p=None,
    )


def _equal_budget(config: RSAConfig) -> RSAConfig:
    """As many parallel traces as have the budget of all rounds together: N (T + 1), or more for longer final traces."""
    final = config.population * config.final_tokens / config.thinking_tokens
    return _parallel(config).replace(population=config.population * config.rounds + max(1, round(final)))


@dataclass(frozen=True)
class MethodFamily:
    """A method before its settings. Kinds with one `cell` share its runs."""

    cell: str
    change: Change
    score: Score
    about: str
    one_trace: bool = False
    parallel: bool = False  #: no aggregation, so no selection to choose


METHODS: Final[dict[str, MethodFamily]] = {
    "single": MethodFamily("parallel", _parallel, "mean", "a single trace (expected, from N of them)", True, True),
    "vote": MethodFamily("parallel", _parallel, "vote", "self-consistency: the vote of N parallel traces", False, True),
    "pass": MethodFamily(
        "parallel", _parallel, "any", "pass@N: one of N parallel traces is right (an oracle)", False, True
    ),
    "vote-equal": MethodFamily(
        "parallel-equal",
        _equal_budget,
        "vote",
        "the vote of as many parallel traces as have the budget of all rounds",
        False,
        True,
    ),
    "delethink": MethodFamily(
        "delethink", lambda c: c.replace(aggregation_size=1), "mean", "C = 1: each trace goes on alone"
    ),
    "full-chain": MethodFamily(
        "full-chain", lambda c: c.replace(tail_tokens=FULL), "mean", "tau = beta: RSA on whole traces"
    ),
    "markovian": MethodFamily("markovian", lambda c: c, "mean", "Markovian RSA with the settings as given"),
    "pacore": MethodFamily(
        "pacore", lambda c: c.replace(carry="answer"), "mean", "PaCoRe hybrid: finished answers are carried"
    ),
    "summary": MethodFamily("summary", lambda c: c.replace(carry="summary"), "mean", "each trace's summary is carried"),
}
ALIASES: Final = {
    "pass@n": "pass",
    "best-of-n": "pass",
    "self-consistency": "vote",
    "rsa": "markovian",
    "markovian-rsa": "markovian",
    "c=1": "delethink",
}
DEFAULT_METHODS: Final = ("single", "vote", "pass", "vote-equal", "delethink", "markovian")
#: What `METHOD:SELECTION` scores; without one it is the kind's own.
SELECTIONS: Final[Mapping[str, Score]] = {"single": "chosen", "majority": "vote", "final_aggregation": "chosen"}


@dataclass(frozen=True)
class MethodSpec:
    """A method as asked for: a kind and a selection ("" for the mean over candidates)."""

    kind: str
    selection: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.selection}" if self.selection else self.kind

    @property
    def cell(self) -> str:
        """Single and majority read the same runs; a final aggregation is one trace more, hence a run of its own."""
        cell = METHODS[self.kind].cell
        return f"{cell}:{self.selection}" if self.selection == "final_aggregation" else cell

    @property
    def score(self) -> Score:
        return SELECTIONS[self.selection] if self.selection else METHODS[self.kind].score

    @property
    def one_trace(self) -> bool:
        return METHODS[self.kind].one_trace

    def config(self, base: RSAConfig) -> RSAConfig:
        """The settings of its cell; the seed is each run's own."""
        selection = "final_aggregation" if self.selection == "final_aggregation" else "single"
        changed = METHODS[self.kind].change(base)
        return changed.replace(final_candidates=0, answer_selection=selection, seed=None)


def read_methods(names: Sequence[str]) -> list[MethodSpec]:
    """Methods by name, `METHOD` or `METHOD:SELECTION`, each once. Raises `ConfigError` for an unknown one."""
    return list(dict.fromkeys(_read(name) for name in names))


def _read(text: str) -> MethodSpec:
    name, _, selection = text.strip().partition(":")
    kind = ALIASES.get(name.lower(), name.lower())
    selection = selection.replace("-", "_")
    if kind not in METHODS:
        close = difflib.get_close_matches(kind, [*METHODS, *ALIASES], n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(METHODS)}."
        raise ConfigError(f"There is no method {text.strip()!r}; {hint}")
    if selection and selection not in SELECTIONS:
        raise ConfigError(f"{text.strip()!r} asks for the selection {selection!r}; known are {', '.join(SELECTIONS)}.")
    if selection and METHODS[kind].parallel:
        raise ConfigError(f"{text.strip()!r}: {kind} has nothing to select from; leave :{selection} out.")
    return MethodSpec(kind, selection)


SYMBOLS: Final = {
    "N": "population",
    "C": "aggregation_size",
    "T": "rounds",
    "beta": "thinking_tokens",
    "tau": "tail_tokens",
}
_NAMES: Final = {field: symbol for symbol, field in SYMBOLS.items()} | {"final_tokens": "final"}
#: What a benchmark settles itself, and what does not change a run's outcome.
_NOT_OURS: Final = frozenset(
    {"seed", "final_candidates", "answer_selection", "answer_kind", "concurrency", "memory_limit_gb", "max_retries"}
    | {"token_budget", "time_budget_s"}
)

#: A setting's value that stands in a cell's name as it is.
_PLAIN_VALUE: Final = re.compile(r"[A-Za-z0-9_./-]{1,32}")

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The cells by name with their settings, the methods that read them, and what was left out and why."""

    configs: Mapping[str, RSAConfig]
    methods: tuple[Method, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Points of settings over a base. Of `combinations` those that are not allowed are left out."""

    points: tuple[Point, ...] = ()
    combinations: tuple[Point, ...] = ()
    methods: tuple[str, ...] = ()


def read_grid(path: Path) -> Grid:
    """The grid of a TOML file. Raises `ConfigError`."""
    values = read_toml(path)
    _check_types(values, path)
    unknown = set(values) - {"methods", "grid", "point"}
    axes, singles = values.get("grid", {}), values.get("point", [])
    if unknown:
        raise ConfigError(
            f"The grid {str(path)!r} cannot be used: unknown {', '.join(sorted(unknown))}; it may hold methods, [grid] "
            "and [[point]]."
        )
    lists = {_field(key, path): value if isinstance(value, list) else [value] for key, value in axes.items()}
    empty = [name for name, choices in lists.items() if not choices]
    if empty or not (lists or singles):
        raise ConfigError(f"The grid {str(path)!r} is empty{': ' + ', '.join(empty) if empty else ''}; give values.")
    combinations = (dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values()))
    points = ({_field(key, path): value for key, value in single.items()} for single in singles)
    return Grid(tuple(points), tuple(combinations) if lists else (), tuple(values.get("methods", ())))


def _check_types(values: Mapping[str, Any], path: Path) -> None:
    checks: dict[str, tuple[Callable[[object], bool], str]] = {
        "methods": (lambda v: _is_list(v, str), 'a list of names, as in methods = ["single", "markovian"]'),
        "grid": (lambda v: isinstance(v, dict), "a table, as in [grid] with C = [1, 4] below it"),
        "point": (lambda v: _is_list(v, dict), "tables, each as in [[point]] with C = 4 below it"),
    }
    for name, (accepts, allowed) in checks.items():
        if name in values and not accepts(values[name]):
            raise ConfigError(f"The grid {str(path)!r} sets {name} to {values[name]!r}; allowed: {allowed}.")


def _is_list(value: object, of: type) -> bool:
    return isinstance(value, list) and all(isinstance(entry, of) for entry in value)


def plan(base: RSAConfig, methods: Sequence[str], grid: Grid | None = None) -> Plan:
    """What to run. Raises `ConfigError` for an unknown method, or where nothing is left to run."""
    grid = grid or Grid(points=({},))
    bases, notes = _bases(base, grid)
    configs: dict[str, RSAConfig] = {}
    rows: dict[str, Method] = {}
    for asked in read_methods(methods):
        own = list(dict.fromkeys(asked.config(point) for point in bases))
        for config in own:
            label = _label(config, own)
            cell, name = f"{asked.cell}{label}", f"{asked.name}{label}"
            configs.setdefault(cell, config)
            rows.setdefault(name, Method(name, cell, asked.score, asked.one_trace))
    return Plan(configs, tuple(rows.values()), tuple(notes))


def _bases(base: RSAConfig, grid: Grid) -> tuple[list[RSAConfig], list[str]]:
    bases, notes = [], []
    for point in grid.combinations:
        try:
            bases.append(_at(base, point))
        except ConfigError as error:
            notes.append(f"{_told(point)} is left out: {error}")
    bases += [_at(base, point) for point in grid.points]
    if not bases:
        raise ConfigError(f"No point of the grid is allowed; the first: {notes[0]}")
    return bases, notes


def _at(base: RSAConfig, point: Point) -> RSAConfig:
    changes = dict(point)
    if changes.get("final_tokens") == "beta":
        changes["final_tokens"] = changes.get("thinking_tokens", base.thinking_tokens)
    return base.replace(**changes)


def _label(config: RSAConfig, others: Iterable[RSAConfig]) -> str:
    """What tells this cell from the others of its kind: " N=16 beta=8000"; "" where it is the only one."""
    others = list(others)
    varying = [name for name in FIELD_NAMES if len({getattr(other, name) for other in others}) > 1]
    if all(other.final_tokens == other.thinking_tokens for other in others) and "final_tokens" in varying:
        varying.remove("final_tokens")
    return "".join(f" {_NAMES.get(name, name)}={_shown(getattr(config, name))}" for name in varying)


def _shown(value: object) -> str:
    """A value within a name; a text is shortened, and told from others by a digest."""
    text = str(value)
    if _PLAIN_VALUE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:6]
    words = re.sub(r"[^\w.]+", "-", text).strip("-")
    return f"{words[:16]}~{digest}"


def _told(point: Point) -> str:
    return " ".join(f"{_NAMES.get(name, name)}={_shown(value)}" for name, value in point.items())


def _field(key: str, path: Path) -> str:
    field = SYMBOLS.get(key, key)
    if field not in FIELD_NAMES or field in _NOT_OURS:
        raise ConfigError(
            f"The grid {str(path)!r} sets {key!r}; a grid may set {', '.join(SYMBOLS)} and the method's other settings."
        )
    return field

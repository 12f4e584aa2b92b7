"""Which cells a benchmark runs: its methods at one point of settings, or at every point of a grid in a TOML file.

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

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..config import FIELD_NAMES, RSAConfig, read_toml
from ..errors import ConfigError
from .methods import read_methods
from .results import Method

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

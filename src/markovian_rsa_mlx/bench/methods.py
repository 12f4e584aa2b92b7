"""The methods of a benchmark and the variants to run: each variant is the one orchestrator with other settings.

All are compared at F = N, so that the mean over final candidates is the score of the paper. Variants share the
generations that they have in common (see `generation_cache`). A grid runs every method at several points:

    methods = ["single", "delethink", "markovian"]
    [grid]                           # every combination, by the symbols of the paper or the names of settings
    N = [16]
    C = [1, 4]
    beta = [8_000, 16_000]
    final_tokens = "beta"            # follows beta
    [[point]]                        # or single points
    beta = 40_000
    tau = 8_000

Variants with equal settings (C does not matter to a single trace) are run once.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..config import FIELD_NAMES, FULL, RSAConfig, read_toml
from ..errors import ConfigError
from ..formatting import SYMBOLS as SYMBOL_OF_SETTING

if TYPE_CHECKING:  # help texts need this module, and the classes of results take time to load
    from .results import Method, Score


def _parallel(config: RSAConfig) -> RSAConfig:
    """Return T = 0 with the settings of round 0 of the others: beta, and the sampling of rounds before the last."""
    return config.replace(
        rounds=0,
        population=config.populations[0],
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
    """Return as many parallel traces as the token limits of all rounds allow: N (T + 1) if all rounds are alike."""
    *early, last = config.populations
    final = last * config.final_tokens / config.thinking_tokens
    return _parallel(config).replace(population=sum(early) + max(1, round(final)))


def _long(config: RSAConfig) -> RSAConfig:
    """Return traces as long as all rounds of one chain together."""
    return _parallel(config).replace(final_tokens=config.rounds * config.thinking_tokens + config.final_tokens)


@dataclass(frozen=True)
class MethodFamily:
    """A method before its settings. Families with one `variant` share its runs."""

    variant: str
    change: Callable[[RSAConfig], RSAConfig]
    score: Score = "mean"
    one_trace: bool = False
    parallel: bool = False  #: without aggregation, so without a choice of the selection


METHODS: Final[dict[str, MethodFamily]] = {
    # One trace: its expected score is the mean over N of them.
    "single": MethodFamily("parallel", _parallel, one_trace=True, parallel=True),
    # One trace that may think as long as a chain of C = 1: needs a longer context.
    "long": MethodFamily("long", _long, one_trace=True, parallel=True),
    # Self-consistency, and pass@N (an oracle).
    "vote": MethodFamily("parallel", _parallel, "vote", parallel=True),
    "pass": MethodFamily("parallel", _parallel, "any", parallel=True),
    # The vote ends once it is decided.
    "vote+posterior": MethodFamily(
        "posterior", lambda config: _parallel(config).replace(early_stop="posterior"), "vote", parallel=True
    ),
    # The same traces, and judgements of pairs in the place of the vote.
    "vote+tournament": MethodFamily(
        "parallel:tournament",
        lambda config: _parallel(config).replace(tail_tokens=config.tail_tokens, answer_selection="tournament"),
        "chosen",
        parallel=True,
    ),
    "vote-equal": MethodFamily("parallel-equal", _equal_budget, "vote", parallel=True),
    # C = 1: each trace continues by itself.
    "delethink": MethodFamily("delethink", lambda config: config.replace(aggregation_size=1)),
    # tau = beta: RSA on whole traces.
    "full-chain": MethodFamily("full-chain", lambda config: config.replace(tail_tokens=FULL)),
    "markovian": MethodFamily("markovian", lambda config: config),
    # Traces whose parents agree are not generated.
    "markovian+agreement": MethodFamily("agreement", lambda config: config.replace(early_stop="agreement")),
    # PaCoRe hybrid: finished answers are carried forward.
    "pacore": MethodFamily("pacore", lambda config: config.replace(carry="answer")),
    "summary": MethodFamily("summary", lambda config: config.replace(carry="summary")),
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
#: The score of `METHOD:SELECTION`.
SELECTIONS: Final[Mapping[str, Score]] = {
    "single": "chosen",
    "majority": "vote",
    "final_aggregation": "chosen",
    "tournament": "chosen",
}
#: Selections that generate more than the final candidates, so that they need runs of their own.
_OWN_RUNS: Final = frozenset({"final_aggregation", "tournament"})


@dataclass(frozen=True)
class MethodSpec:
    """A method as requested: a family and a selection ("" for the family's own score)."""

    family: str
    selection: str = ""

    @property
    def name(self) -> str:
        return f"{self.family}:{self.selection}" if self.selection else self.family

    @property
    def variant(self) -> str:
        """The runs to read. Single and majority share runs; selections that generate more have their own."""
        variant = METHODS[self.family].variant
        return f"{variant}:{self.selection}" if self.selection in _OWN_RUNS else variant

    def config(self, base: RSAConfig) -> RSAConfig:
        """Return the settings of its variant, without the seed."""
        changed = METHODS[self.family].change(base.replace(early_stop="off"))
        own = "tournament" if changed.answer_selection == "tournament" else "single"
        voting = "majority" if changed.early_stop == "posterior" else own
        selection = self.selection if self.selection in _OWN_RUNS else voting
        return changed.replace(final_candidates=0, answer_selection=selection, seed=None)


def read_methods(names: Sequence[str]) -> list[MethodSpec]:
    """Return methods by name, `METHOD` or `METHOD:SELECTION`, without repetitions. Raises `ConfigError`."""
    methods: list[MethodSpec] = []
    for text in map(str.strip, names):
        name, _, selection = text.partition(":")
        family = ALIASES.get(name.lower(), name.lower())
        selection = selection.replace("-", "_")
        if family not in METHODS and family.endswith("+tournament") and not selection:
            family, selection = family.removesuffix("+tournament"), "tournament"
        if family not in METHODS:
            close = difflib.get_close_matches(family, [*METHODS, *ALIASES], n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(METHODS)}."
            raise ConfigError(f"There is no method {text!r}; {hint}")
        if selection and selection not in SELECTIONS:
            raise ConfigError(f"{text!r} names an unknown selection {selection!r}; known are {', '.join(SELECTIONS)}.")
        if selection and METHODS[family].parallel:
            raise ConfigError(f"{text!r}: {family} does not aggregate, so it takes no selection; remove :{selection}.")
        methods.append(MethodSpec(family, selection))
    return list(dict.fromkeys(methods))


#: Settings by the symbols of a grid, and the names of settings in the name of a variant.
SYMBOLS: Final = {symbol: name for name, symbol in SYMBOL_OF_SETTING.items() if name != "final_tokens"}
#: Settings that a benchmark decides itself, or that do not change the outcome of a run.
_NOT_IN_GRID: Final = frozenset(
    {"seed", "final_candidates", "answer_selection", "answer_kind", "concurrency", "memory_limit_gb", "max_retries"}
    | {"token_budget", "time_budget_s", "kv_bits", "early_stop", "trace_confidence", "aggregation_adapter"}
)
#: A value that is part of a variant's name unchanged.
_PLAIN_VALUE: Final = re.compile(r"[A-Za-z0-9_./-]{1,32}")

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Points of settings over a base. Invalid `combinations` are left out; invalid `points` are errors."""

    points: tuple[Point, ...] = ()
    combinations: tuple[Point, ...] = ()
    methods: tuple[str, ...] = ()


def read_grid(path: Path) -> Grid:
    """Read the grid in a TOML file. Raises `ConfigError`."""
    values = read_toml(path)

    def is_list(value: object, kind: type) -> bool:
        return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)

    rules: dict[str, tuple[Callable[[object], bool], str]] = {
        "methods": (lambda v: is_list(v, str), 'a list of names, as in methods = ["single", "markovian"]'),
        "grid": (lambda v: isinstance(v, dict), "a table, as in [grid] with C = [1, 4] below it"),
        "point": (lambda v: is_list(v, dict), "tables, each as in [[point]] with C = 4 below it"),
    }
    for name, (accepts, allowed) in rules.items():
        if name in values and not accepts(values[name]):
            raise ConfigError(f"The grid {str(path)!r}: {name} must be {allowed} (got {values[name]!r}).")
    unknown = sorted(set(values) - {"methods", "grid", "point"})
    if unknown:
        raise ConfigError(
            f"The grid {str(path)!r} contains unknown {', '.join(unknown)}; allowed are methods, [grid] and [[point]]."
        )

    def setting(key: str) -> str:
        name = SYMBOLS.get(key, key)
        if name not in FIELD_NAMES or name in _NOT_IN_GRID:
            raise ConfigError(
                f"The grid {str(path)!r} cannot set {key!r}; it can set {', '.join(SYMBOLS)} and the method's other "
                "settings."
            )
        return name

    axes, points = values.get("grid", {}), values.get("point", [])
    lists = {setting(key): value if isinstance(value, list) else [value] for key, value in axes.items()}
    empty = [name for name, choices in lists.items() if not choices]
    if empty or not (lists or points):
        raise ConfigError(f"The grid {str(path)!r} is empty{': ' + ', '.join(empty) if empty else ''}; add values.")
    combinations = (dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values()))
    return Grid(
        points=tuple({setting(key): value for key, value in point.items()} for point in points),
        combinations=tuple(combinations) if lists else (),
        methods=tuple(values.get("methods", ())),
    )


@dataclass(frozen=True)
class Plan:
    """The settings of the variants by name, the methods that read them, and notes on points that are left out."""

    configs: Mapping[str, RSAConfig]
    methods: tuple[Method, ...]
    notes: tuple[str, ...] = ()


def plan(base: RSAConfig, methods: Sequence[str], grid: Grid | None = None) -> Plan:
    """Return the variants to run. Raises `ConfigError` for an unknown method, or if no point of the grid is valid."""
    grid = grid or Grid(points=({},))
    bases, notes = [], []
    for point in grid.combinations:
        try:
            bases.append(_at(base, point))
        except ConfigError as error:
            values = " ".join(f"{SYMBOL_OF_SETTING.get(key, key)}={_value_text(value)}" for key, value in point.items())
            notes.append(f"{values} is left out: {error}")
    bases += [_at(base, point) for point in grid.points]
    if not bases:
        raise ConfigError(f"No point of the grid is valid. The first: {notes[0]}")
    from .results import Method

    configs: dict[str, RSAConfig] = {}
    rows: dict[str, Method] = {}
    for spec in read_methods(methods):
        family = METHODS[spec.family]
        score = SELECTIONS[spec.selection] if spec.selection else family.score
        own = list(dict.fromkeys(_without_unused(spec.config(point), base, family) for point in bases))
        # The settings that distinguish a variant from the others of its family name it, as in " N=16 beta=8000".
        varying = [key for key in FIELD_NAMES if len({getattr(config, key) for config in own}) > 1]
        if "final_tokens" in varying and all(config.final_tokens == config.thinking_tokens for config in own):
            varying.remove("final_tokens")
        for config in own:
            label = "".join(
                f" {SYMBOL_OF_SETTING.get(key, key)}={_value_text(getattr(config, key))}" for key in varying
            )
            variant, name = f"{spec.variant}{label}", f"{spec.name}{label}"
            configs.setdefault(variant, config)
            rows.setdefault(name, Method(name, variant, score, family.one_trace))
    return Plan(configs, tuple(rows.values()), tuple(notes))


def _at(base: RSAConfig, point: Point) -> RSAConfig:
    changes = dict(point)
    if changes.get("final_tokens") == "beta":
        changes["final_tokens"] = changes.get("thinking_tokens", base.thinking_tokens)
    return base.replace(**changes)


def _without_unused(config: RSAConfig, base: RSAConfig, family: MethodFamily) -> RSAConfig:
    """Return settings with those of `base` where they have no effect, so that equal runs have equal settings."""
    aggregates = config.answer_selection == "final_aggregation"
    is_unused = {
        "stop_confidence": config.early_stop != "posterior",
        "template": family.parallel,
        "tail_order": config.aggregation_size == 1 and not aggregates,
        "summary_prompt": config.carry != "summary",
    }
    return config.replace(**{name: getattr(base, name) for name, unused in is_unused.items() if unused})


def _value_text(value: object) -> str:
    """Return a value as part of a name. A long or unusual text is shortened, and a digest keeps it unique."""
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if _PLAIN_VALUE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:6]
    words = re.sub(r"[^\w.]+", "-", text).strip("-")
    return f"{words[:16]}~{digest}"

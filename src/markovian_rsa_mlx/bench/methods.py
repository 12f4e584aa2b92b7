"""The methods of a benchmark: each is the one orchestrator with other settings, and a way to score its runs.

All are compared at F = N, so that the mean over final candidates is the paper's score. What cells have in common (a
trace with the same prompt, seed, budget and sampling) is generated once, see `known`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..config import FULL, RSAConfig
from ..errors import ConfigError
from .results import Score

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


def _equal(config: RSAConfig) -> RSAConfig:
    """As many parallel traces as have the budget of all rounds together: N (T + 1), or more for longer final traces."""
    final = config.population * config.final_tokens / config.thinking_tokens
    return _parallel(config).replace(population=config.population * config.rounds + max(1, round(final)))


@dataclass(frozen=True)
class Kind:
    """A method before its settings. Kinds with one `cell` share its runs."""

    cell: str
    change: Change
    score: Score
    about: str
    one_trace: bool = False
    parallel: bool = False  #: no aggregation, so no selection to choose


KINDS: Final[dict[str, Kind]] = {
    "single": Kind("parallel", _parallel, "mean", "a single trace (expected, from N of them)", True, True),
    "vote": Kind("parallel", _parallel, "vote", "self-consistency: the vote of N parallel traces", False, True),
    "pass": Kind("parallel", _parallel, "any", "pass@N: one of N parallel traces is right (an oracle)", False, True),
    "vote-equal": Kind(
        "parallel-equal",
        _equal,
        "vote",
        "the vote of as many parallel traces as have the budget of all rounds",
        False,
        True,
    ),
    "delethink": Kind("delethink", lambda c: c.replace(aggregation_size=1), "mean", "C = 1: each trace goes on alone"),
    "full-chain": Kind("full-chain", lambda c: c.replace(tail_tokens=FULL), "mean", "tau = beta: RSA on whole traces"),
    "markovian": Kind("markovian", lambda c: c, "mean", "Markovian RSA with the settings as given"),
    "pacore": Kind(
        "pacore", lambda c: c.replace(carry="answer"), "mean", "PaCoRe hybrid: finished answers are carried"
    ),
    "summary": Kind("summary", lambda c: c.replace(carry="summary"), "mean", "each trace's summary is carried"),
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
class Asked:
    """A method as asked for: a kind and a selection ("" for the mean over candidates)."""

    kind: str
    selection: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.selection}" if self.selection else self.kind

    @property
    def cell(self) -> str:
        """Single and majority read the same runs; a final aggregation is one trace more, hence a run of its own."""
        cell = KINDS[self.kind].cell
        return f"{cell}:{self.selection}" if self.selection == "final_aggregation" else cell

    @property
    def score(self) -> Score:
        return SELECTIONS[self.selection] if self.selection else KINDS[self.kind].score

    @property
    def one_trace(self) -> bool:
        return KINDS[self.kind].one_trace

    def config(self, base: RSAConfig) -> RSAConfig:
        """The settings of its cell; the seed is each run's own."""
        selection = "final_aggregation" if self.selection == "final_aggregation" else "single"
        changed = KINDS[self.kind].change(base)
        return changed.replace(final_candidates=0, answer_selection=selection, seed=None)


def read_methods(names: Sequence[str]) -> list[Asked]:
    """Methods by name, `METHOD` or `METHOD:SELECTION`, each once. Raises `ConfigError` for an unknown one."""
    return list(dict.fromkeys(_read(name) for name in names))


def _read(text: str) -> Asked:
    name, _, selection = text.strip().partition(":")
    kind = ALIASES.get(name.lower(), name.lower())
    selection = selection.replace("-", "_")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, [*KINDS, *ALIASES], n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(KINDS)}."
        raise ConfigError(f"There is no method {text.strip()!r}; {hint}")
    if selection and selection not in SELECTIONS:
        raise ConfigError(f"{text.strip()!r} asks for the selection {selection!r}; known are {', '.join(SELECTIONS)}.")
    if selection and KINDS[kind].parallel:
        raise ConfigError(f"{text.strip()!r}: {kind} has nothing to select from; leave :{selection} out.")
    return Asked(kind, selection)

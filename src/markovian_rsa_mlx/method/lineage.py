"""Draw the lineage of a run: the seed and the parents of every trace, before the first token.

Version 1. All draws come from SHA-256 of texts that hold the run's seed and the trace's place (t, i). They do not
depend on pruning, on F, on the order of execution or on the text of a trace. So the ancestors of the final candidates
are known from the start, and only they need to be generated.

Seeds are a keyed permutation of the 31-bit numbers, applied to the number of the trace. So no two traces, attempts or
summaries of a run share a seed.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..config import RSAConfig
from .tail_order import order_to_share

LINEAGE_VERSION = 1
SEED_LIMIT = 2**31
#: Places that fit below 2^31: rounds 0..1001, indices 0..9999, attempts 0..106, trace or summary.
_ROUNDS, _INDICES, MAX_ATTEMPTS = 1_002, 10_000, 107
#: The attempts whose seeds belong to judgements, in a run that has any (see `method.tournament`).
JUDGEMENT_ATTEMPTS = range(101, MAX_ATTEMPTS)
#: A reader of an audit file does not derive the traces of a larger run: only those that the file mentions are listed.
MAX_LISTED_TRACES = 4_000
#: Nor those of a run with more parents to draw. One draw takes about a microsecond.
_MAX_LISTED_DRAWS = 50 * MAX_LISTED_TRACES
_TRACE_ID = re.compile(r"r(\d+)-(\d{2,})")

Purpose = Literal["trace", "summary"]
TailOrder = Literal["drawn", "shared"]


@dataclass(frozen=True, order=True)
class TraceKey:
    """Round t and index i of a trace; `str` gives its id, `r{t}-{i:02d}`."""

    round: int
    index: int

    def __str__(self) -> str:
        return f"r{self.round}-{self.index:02d}"

    @classmethod
    def parse(cls, trace_id: str) -> TraceKey:
        """Return the key of a trace id. Raise ValueError for anything else."""
        match = _TRACE_ID.fullmatch(trace_id)
        key = cls(int(match[1]), int(match[2])) if match else None
        if key is None or str(key) != trace_id:
            raise ValueError(f"{trace_id!r} is not a trace id")
        return key


def trace_seed(run_seed: int, key: TraceKey, attempt: int = 0, purpose: Purpose = "trace") -> int:
    """Return the seed of one attempt at a trace (or at its summary): distinct within a run, below 2^31."""
    if not (key.round < _ROUNDS and key.index < _INDICES and attempt < MAX_ATTEMPTS):
        raise ValueError(f"{key} attempt {attempt} is outside the seed space")
    number = (attempt * 2 + (purpose == "summary")) * _ROUNDS + key.round
    place = number * _INDICES + key.index
    while True:  # cycle walking: permute 32 bits until the result has 31
        place = _permute(run_seed, place)
        if place < SEED_LIMIT:
            return place


def attempts_per_trace(config: RSAConfig) -> int:
    """Return the number of attempts at one trace over all sessions whose seeds nothing else of the run has."""
    return JUDGEMENT_ATTEMPTS.start if config.answer_selection == "tournament" else MAX_ATTEMPTS


def draw_parents(run_seed: int, key: TraceKey, population: int, count: int) -> tuple[TraceKey, ...]:
    """Draw the ordered parents of a trace of round t >= 1: `count` distinct traces of round t - 1, uniformly.

    With `count` 1 a trace continues its own chain (index i reads index i).
    """
    if count == 1:
        return (TraceKey(key.round - 1, key.index),)
    pool: dict[int, int] = {}  # the places of range(population) whose number changed
    for place in range(count):  # the first steps of a Fisher-Yates shuffle
        word = _hash64(f"parents|{run_seed}|{key.round}|{key.index}|{place}")
        other = place + word % (population - place)
        pool[place], pool[other] = pool.get(other, other), pool.get(place, place)
    return tuple(TraceKey(key.round - 1, pool[place]) for place in range(count))


@functools.lru_cache(maxsize=64)
def _parents_in_shared_order(
    run_seed: int, round_index: int, readers: int, population: int, count: int
) -> tuple[tuple[TraceKey, ...], ...]:
    """Return the drawn parents of all traces of a round, each in the order that shares prefixes with the others.

    The round has `readers` traces, the one before it `population`.
    """
    keys = [TraceKey(round_index, index) for index in range(readers)]
    draws = [[parent.index for parent in draw_parents(run_seed, key, population, count)] for key in keys]
    return tuple(tuple(TraceKey(round_index - 1, index) for index in order) for order in order_to_share(draws))


@dataclass(frozen=True)
class Lineage:
    """The parents of every trace of one run. `population` is N, `finals` F, `rounds` T, `aggregation_size` C.

    N may be one number or T + 1 of them, which do not increase: the parents of a trace are drawn from the N of the
    round before its own.

    With `tail_order` "shared", the parents of a trace are the drawn ones in the order of `order_to_share` over all N
    traces of its round, so that it does not depend on F either.
    """

    seed: int
    population: int | tuple[int, ...]
    aggregation_size: int
    rounds: int
    final_count: int
    final_aggregation: bool = False
    tail_order: TailOrder = "drawn"

    @classmethod
    def of(cls, config: RSAConfig, seed: int) -> Lineage:
        """Return the lineage of a run with these settings."""
        return cls(
            seed,
            config.population,
            config.aggregation_size,
            config.rounds,
            config.final_count,
            config.answer_selection == "final_aggregation",
            config.tail_order,
        )

    def population_at(self, round_index: int) -> int:
        """Return N of a round from 0 to T."""
        return self.population[round_index] if isinstance(self.population, tuple) else self.population

    @property
    def finals(self) -> tuple[TraceKey, ...]:
        """The final candidates: the first F traces of round T."""
        return tuple(TraceKey(self.rounds, index) for index in range(self.final_count))

    @property
    def aggregator(self) -> TraceKey | None:
        """The one trace of round T + 1 that aggregates the final candidates, or None."""
        return TraceKey(self.rounds + 1, 0) if self.final_aggregation else None

    @property
    def max_parents(self) -> int:
        """The maximum number of tails in one prompt of this run; 0 without aggregation."""
        last = min(self.aggregation_size, self.final_count) if self.final_aggregation else 0
        return max(self.aggregation_size if self.rounds else 0, last)

    def parents(self, key: TraceKey) -> tuple[TraceKey, ...]:
        """Return the ordered parents of a trace, none in round 0."""
        if key == self.aggregator:
            return self.finals[: min(self.aggregation_size, self.final_count)]
        if key.round == 0:
            return ()
        population = self.population_at(key.round - 1)
        if self.tail_order == "drawn":
            return draw_parents(self.seed, key, population, self.aggregation_size)
        readers = self.population_at(key.round)
        return _parents_in_shared_order(self.seed, key.round, readers, population, self.aggregation_size)[key.index]

    def max_traces_and_draws(self) -> tuple[int, int]:
        """Return upper bounds of the needed traces and of the parents drawn for them, without drawing."""
        most = self._most_needed()
        readers = (n if self.tail_order == "drawn" else self.population_at(t) for t, n in enumerate(most) if t)
        return sum(most) + (self.aggregator is not None), sum(readers) * self.aggregation_size

    def max_at_once(self) -> int:
        """Return an upper bound of the traces that are generated at the same time, without drawing.

        With a trace of a round in progress, C traces of each round before it are finished. With C = 1 the needed traces
        are F chains.
        """
        if self.aggregation_size == 1:
            return self.final_count
        at_most, unfinished = 0, 0
        for count in (*self._most_needed(), *([1] if self.final_aggregation else [])):
            at_most = max(at_most, unfinished + count)
            unfinished += count - min(self.aggregation_size, count)
        return at_most

    def _most_needed(self) -> list[int]:
        """Return upper bounds of the needed traces of each round from 0 to T, without drawing."""
        most = [self.final_count]
        for t in range(self.rounds, 0, -1):
            most.append(min(most[-1] * self.aggregation_size, self.population_at(t - 1)))
        return most[::-1]

    @property
    def is_listable(self) -> bool:
        """Whether a reader of an audit file can derive and list all traces of the run quickly."""
        traces, draws = self.max_traces_and_draws()
        return traces <= MAX_LISTED_TRACES and draws <= _MAX_LISTED_DRAWS

    def needed(self) -> dict[int, tuple[TraceKey, ...]]:
        """Return the traces to generate, by round: the final candidates and their ancestors, in index order."""
        wanted = {self.rounds: set(self.finals)}
        for t in range(self.rounds, 0, -1):
            wanted[t - 1] = {parent for key in wanted[t] for parent in self.parents(key)}
        if self.aggregator is not None:
            wanted[self.rounds + 1] = {self.aggregator}
        return {t: tuple(sorted(wanted[t])) for t in sorted(wanted)}

    def common_parents(self, parents: Sequence[TraceKey], other: TraceKey) -> int:
        """Return with how many of these ordered parents those of another trace begin."""
        pairs = enumerate(zip(parents, self.parents(other), strict=False))
        return next((place for place, (one, two) in pairs if one != two), min(len(parents), len(self.parents(other))))

    def children(self, needed: Mapping[int, Sequence[TraceKey]]) -> dict[TraceKey, list[TraceKey]]:
        """Return for each of the `needed` traces those that read it, in index order."""
        children: dict[TraceKey, list[TraceKey]] = {key: [] for keys in needed.values() for key in keys}
        for key in list(children):
            for parent in self.parents(key):
                children[parent].append(key)
        return children


def _hash64(text: str) -> int:
    digest = hashlib.sha256(f"mrsa-lineage-{LINEAGE_VERSION}|{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _permute(run_seed: int, value: int) -> int:
    """A four-round Feistel network on 32 bits, keyed by the run's seed."""
    left, right = value >> 16, value & 0xFFFF
    for step in range(4):
        left, right = right, left ^ (_hash64(f"seed|{run_seed}|{step}|{right}") & 0xFFFF)
    return left << 16 | right

"""The workload of one run: its generations, what each waits for, how much it reads and writes.

Which part of a prompt an engine need not read again: the MLX engine's store of prompt beginnings, in lengths.

The same rules as `backends.mlx.prefix`, over prompts that are given as pieces instead of token ids.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..config import RSAConfig
from ..method.lineage import Lineage, TraceKey
from .lengths import Lengths


@dataclass(frozen=True)
class Schedule:
    """`pruned`: only ancestors of the final candidates. `barrier`: a round waits for all of the one before."""

    pruned: bool = True
    barrier: bool = False

    def __str__(self) -> str:
        return f"{'round barrier' if self.barrier else 'overlap'}, {'pruned' if self.pruned else 'all traces'}"


#: From what a loop over rounds does to what this package does.
SCHEDULES: Final = tuple(Schedule(pruned, barrier) for barrier in (True, False) for pruned in (False, True))


@dataclass(frozen=True)
class Generation:
    """One request to an engine: a trace, or the summary of one."""

    name: str
    round: int
    waits_for: tuple[str, ...]
    prompt: Pieces
    generated: int
    max_tokens: int

    @cached_property
    def prompt_tokens(self) -> int:
        return sum(tokens for _, tokens in self.prompt)

    @cached_property
    def read(self) -> Pieces:
        """What an engine reads before the first step: the prompt without its last token."""
        return cut(self.prompt, self.prompt_tokens - 1)

    @cached_property
    def final_length(self) -> int:
        """The longest it can get, prompt included: what an engine must have room for."""
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True)
class PromptShape:
    """Lengths of a run's static texts, in tokens.

    `first` is round 0's prompt, of which `head` tokens also begin every aggregation prompt (the chat's frame and the
    question); `segments[k - 1]` are the k + 1 static pieces of a prompt with k tails; `summary` the two around a
    trace's reasoning.
    """

    first: int
    head: int
    segments: Sequence[tuple[int, ...]] = ()
    summary: tuple[int, int] = (0, 0)

    @classmethod
    def of_ids(
        cls,
        prompt: Sequence[int],
        segments: Sequence[Sequence[Sequence[int]]],
        summary: Sequence[Sequence[int]] = (),
    ) -> PromptShape:
        """The shape of the prompts that a run's setup holds."""
        head = _common(prompt, segments[-1][0]) if segments else 0
        before, after = (len(ids) for ids in summary) if summary else (0, 0)
        return cls(len(prompt), head, tuple(tuple(map(len, pieces)) for pieces in segments), (before, after))

    def with_question(self, tokens: int) -> PromptShape:
        """The same with a question that many tokens longer (or shorter), which all prompts show first."""
        grown = tuple((pieces[0] + tokens, *pieces[1:]) for pieces in self.segments)
        before, after = self.summary
        return PromptShape(self.first + tokens, self.head + tokens, grown, (before + tokens if before else 0, after))

    def round_zero(self, run: int) -> Pieces:
        """Round 0's prompt; `run` tells problems apart, which share nothing."""
        return ((f"head {run}", self.head), (f"question {run}", self.first - self.head))

    def aggregation(self, run: int, tails: Sequence[tuple[TraceKey, int]]) -> Pieces:
        """The prompt that shows these tails (whose, tokens)."""
        before, *rest = self.segments[len(tails) - 1]
        pieces = [(f"head {run}", self.head), (f"template {run}", before - self.head)]
        for place, ((key, tokens), after) in enumerate(zip(tails, rest, strict=True)):
            pieces += [(f"tail {run} {key}", tokens), (f"segment {place}", after)]
        return tuple(pieces)

    def summarising(self, run: int, key: TraceKey, tokens: int) -> Pieces:
        """The prompt that shows `tokens` of a trace's reasoning."""
        before, after = self.summary
        return ((f"summary {run}", before), (f"notes {run} {key}", tokens), ("summary end", after))


def workload(
    config: RSAConfig, seed: int, shape: PromptShape, lengths: Lengths, schedule: Schedule = Schedule()
) -> list[Generation]:
    """All generations of a run with this seed, in the order in which an orchestrator asks for them.

    A summary (carry `summary`) is taken to use all of its budget, tau.
    """
    lineage = Lineage.of(config, seed)
    keys = _demanded(lineage) if schedule.pruned else _all(lineage)
    drawn = {key: lengths.of(seed, key, config.max_tokens(key.round)) for key in keys}
    summaries = {key: f"{key} summary" for key in keys if config.carry == "summary" and _is_read(lineage, key)}
    found: list[Generation] = []
    for key in sorted(keys, key=lambda key: key.round):
        parents = lineage.parents(key)
        carried = [
            (p, config.tail_limit if p in summaries else min(config.tail_limit, drawn[p].reasoning)) for p in parents
        ]
        prompt = shape.aggregation(seed, carried) if parents else shape.round_zero(seed)
        waits_for = tuple(summaries.get(p, str(p)) for p in parents)
        if schedule.barrier:
            waits_for = tuple(task.name for task in found if task.round == key.round - 1)
        found.append(
            Generation(str(key), key.round, waits_for, prompt, drawn[key].generated, config.max_tokens(key.round))
        )
        if key in summaries:
            notes = shape.summarising(seed, key, min(config.thinking_tokens, drawn[key].reasoning))
            tau = config.tail_limit
            found.append(Generation(summaries[key], key.round, (str(key),), notes, tau, tau))
    return found


def _demanded(lineage: Lineage) -> list[TraceKey]:
    """The needed traces as they are asked for: the finals, their parents, the parents of these."""
    wanted = [*lineage.finals, *([lineage.aggregator] if lineage.aggregator else [])]
    return _with_ancestors(wanted, lineage)


def _all(lineage: Lineage) -> list[TraceKey]:
    """N traces in every round before the last, and all final candidates."""
    early = [TraceKey(t, i) for t in range(lineage.rounds) for i in range(lineage.population)]
    return [*early, *lineage.finals, *([lineage.aggregator] if lineage.aggregator else [])]


def _with_ancestors(wanted: Iterable[TraceKey], lineage: Lineage) -> list[TraceKey]:
    found = dict.fromkeys(wanted)
    queue = list(found)
    for key in queue:  # grows while it is walked
        for parent in lineage.parents(key):
            if parent not in found:
                found[parent] = None
                queue.append(parent)
    return queue


def _is_read(lineage: Lineage, key: TraceKey) -> bool:
    """Whether the trace carries anything on: it has children, at least potentially."""
    return key.round < lineage.rounds or (lineage.aggregator is not None and key in lineage.parents(lineage.aggregator))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


#: A prompt as what it is made of, (what, tokens) each. Prompts share a beginning as far as their pieces are equal.
Pieces = tuple[tuple[str, int], ...]

#: As the engine has them; a test compares.
MIN_SHARED_TOKENS, MAX_PREFIXES, RECENT_PROMPTS = 16, 4, 32


class Prefixes:
    """The few most recently used beginnings; `size` says how many bytes one of so many tokens holds."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.max_bytes = 0
        self._size = size
        self._entries: OrderedDict[Pieces, int] = OrderedDict()
        self._recent: deque[Pieces] = deque(maxlen=RECENT_PROMPTS)
        self.nbytes = 0

    def begin(self, prompt: Pieces, queued: Iterable[Pieces]) -> tuple[int, int]:
        """(tokens that are there already, length at which a copy is kept or 0) for a prompt about to be read."""
        known = 0
        best: Pieces | None = None
        for prefix, length in self._entries.items():
            if known < length <= shared(prompt, prefix):
                known, best = length, prefix
        if best is not None:
            self._entries.move_to_end(best)
        fork = self._fork_point(prompt, queued, known)
        self._recent.append(prompt)
        return known, fork

    def put(self, prompt: Pieces, length: int) -> None:
        """Keep the first `length` tokens of a prompt."""
        if self._size(length) > self.max_bytes:
            return
        self._entries[cut(prompt, length)] = length
        self._weigh()
        while len(self._entries) > MAX_PREFIXES or self.nbytes > self.max_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        if not self._entries:
            return False
        self._entries.popitem(last=False)
        self._weigh()
        return True

    def _weigh(self) -> None:
        self.nbytes = sum(map(self._size, self._entries.values()))

    def _fork_point(self, prompt: Pieces, queued: Iterable[Pieces], past: int) -> int:
        lengths = sorted(
            (length for other in (*queued, *self._recent) if (length := shared(prompt, other)) > past), reverse=True
        )
        saved = {length: (length - past) * rank for rank, length in enumerate(lengths, start=1)}
        best = max(saved, key=saved.__getitem__, default=0)
        return best if best - past >= MIN_SHARED_TOKENS else 0


def shared(one: Pieces, other: Pieces) -> int:
    """How many leading tokens two prompts have in common."""
    total = 0
    for (what, tokens), (other_what, other_tokens) in zip(one, other, strict=False):
        if what != other_what:
            break
        total += min(tokens, other_tokens)
        if tokens != other_tokens:
            break
    return total


def cut(prompt: Pieces, length: int) -> Pieces:
    """The first `length` tokens."""
    kept = []
    for what, tokens in prompt:
        if length <= 0:
            break
        kept.append((what, min(tokens, length)))
        length -= tokens
    return tuple(kept)

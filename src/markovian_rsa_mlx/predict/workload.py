"""List the generations of a run: what each waits for, how much it reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..config import RSAConfig
from ..method.lineage import Lineage, TraceKey
from .lengths import Lengths

#: A prompt as its parts, (name, tokens) each. Prompts have a beginning in common as far as their parts are equal.
Pieces = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Schedule:
    """With `pruned`, only ancestors of the final candidates are generated. With `barrier`, rounds do not overlap."""

    pruned: bool = True
    barrier: bool = False

    def __str__(self) -> str:
        return f"{'round barrier' if self.barrier else 'overlap'}, {'pruned' if self.pruned else 'all traces'}"


#: From a plain loop over rounds to the schedule of this package.
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
        """The prompt without its last token, which an engine reads before the first step."""
        return cut(self.prompt, self.prompt_tokens - 1)

    @cached_property
    def final_length(self) -> int:
        """The largest possible length, prompt included."""
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True)
class PromptShape:
    """Lengths of a run's static texts, in tokens.

    `first` is the prompt of round 0. Its first `head` tokens (chat template and question) also begin every aggregation
    prompt. `segments[k - 1]` are the k + 1 static parts of a prompt with k tails, `summary` the two parts around a
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
        """Return the shape of the prompts that a run's setup holds."""
        head = 0
        if segments:
            pairs = zip(prompt, segments[-1][0], strict=False)
            shorter = min(len(prompt), len(segments[-1][0]))
            head = next((place for place, (one, other) in enumerate(pairs) if one != other), shorter)
        before, after = (len(ids) for ids in summary) if summary else (0, 0)
        return cls(len(prompt), head, tuple(tuple(map(len, pieces)) for pieces in segments), (before, after))

    def with_question(self, tokens: int) -> PromptShape:
        """Return the shape for a question that is longer by `tokens` (or shorter). All prompts begin with it."""
        grown = tuple((pieces[0] + tokens, *pieces[1:]) for pieces in self.segments)
        before, after = self.summary
        return PromptShape(self.first + tokens, self.head + tokens, grown, (before + tokens if before else 0, after))

    def round_zero(self, run: int) -> Pieces:
        """Return the prompt of round 0. Different runs have no prompt in common."""
        return ((f"head {run}", self.head), (f"question {run}", self.first - self.head))

    def aggregation(self, run: int, tails: Sequence[tuple[TraceKey, int]]) -> Pieces:
        """Return the prompt that shows tails of these traces, with these numbers of tokens."""
        before, *rest = self.segments[len(tails) - 1]
        pieces = [(f"head {run}", self.head), (f"template {run}", before - self.head)]
        for place, ((key, tokens), after) in enumerate(zip(tails, rest, strict=True)):
            pieces += [(f"tail {run} {key}", tokens), (f"segment {place}", after)]
        return tuple(pieces)


def workload(
    config: RSAConfig, seed: int, shape: PromptShape, lengths: Lengths, schedule: Schedule = Schedule()
) -> list[Generation]:
    """Return all generations of a run with this seed, in the order in which a runner requests them.

    A summary (carry `summary`) is assumed to use all of its max_tokens, tau.
    """
    lineage = Lineage.of(config, seed)
    targets = [*lineage.finals, *([lineage.aggregator] if lineage.aggregator else [])]
    if schedule.pruned:
        keys, seen = targets, set(targets)
        for key in keys:  # grows during the loop: the parents of the targets, their parents, ...
            missing = [parent for parent in lineage.parents(key) if parent not in seen]
            keys += missing
            seen.update(missing)
    else:
        keys = [TraceKey(t, i) for t in range(lineage.rounds) for i in range(lineage.population)] + targets
    read_by_aggregator = lineage.parents(lineage.aggregator) if lineage.aggregator else ()
    summaries = {
        key: f"{key} summary"
        for key in keys
        if config.carry == "summary" and (key.round < lineage.rounds or key in read_by_aggregator)
    }
    drawn = {key: lengths.of(seed, key, config.max_tokens(key.round)) for key in keys}
    tau = config.tail_limit
    found: list[Generation] = []
    for key in sorted(keys, key=lambda key: key.round):
        parents = lineage.parents(key)
        carried = [(p, tau if p in summaries else min(tau, drawn[p].reasoning)) for p in parents]
        prompt = shape.aggregation(seed, carried) if parents else shape.round_zero(seed)
        waits_for = tuple(summaries.get(p, str(p)) for p in parents)
        if schedule.barrier:
            waits_for = tuple(generation.name for generation in found if generation.round == key.round - 1)
        found.append(
            Generation(str(key), key.round, waits_for, prompt, drawn[key].generated, config.max_tokens(key.round))
        )
        if key in summaries:
            shown = min(config.thinking_tokens, drawn[key].reasoning)
            before, after = shape.summary
            prompt = ((f"summary {seed}", before), (f"notes {seed} {key}", shown), ("summary end", after))
            found.append(Generation(summaries[key], key.round, (str(key),), prompt, tau, tau))
    return found


def shared_tokens(one: Pieces, other: Pieces) -> int:
    """Return how many leading tokens two prompts have in common."""
    total = 0
    for (name, tokens), (other_name, other_tokens) in zip(one, other, strict=False):
        if name != other_name:
            break
        total += min(tokens, other_tokens)
        if tokens != other_tokens:
            break
    return total


def cut(prompt: Pieces, length: int) -> Pieces:
    """Return the first `length` tokens."""
    kept = []
    for name, tokens in prompt:
        if length <= 0:
            break
        kept.append((name, min(tokens, length)))
        length -= tokens
    return tuple(kept)

"""List the generations of a run: what each waits for, how much it reads and writes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..config import RSAConfig
from ..method.lineage import Lineage, TraceKey
from ..method.tournament import swiss_rounds
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
    """One request to an engine: a trace, the summary of one, or a judgement."""

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
    trace's reasoning, `judge` the three parts around the two attempts of a judgement.
    """

    first: int
    head: int
    segments: Sequence[tuple[int, ...]] = ()
    summary: tuple[int, int] = (0, 0)
    judge: tuple[int, ...] = ()

    @classmethod
    def of_ids(
        cls,
        prompt: Sequence[int],
        segments: Sequence[Sequence[Sequence[int]]],
        summary: Sequence[Sequence[int]] = (),
        judge: Sequence[Sequence[int]] = (),
    ) -> PromptShape:
        """Return the shape of the prompts that a run's setup holds."""
        head = 0
        if segments:
            pairs = zip(prompt, segments[-1][0], strict=False)
            shorter = min(len(prompt), len(segments[-1][0]))
            head = next((place for place, (one, other) in enumerate(pairs) if one != other), shorter)
        before, after = (len(ids) for ids in summary) if summary else (0, 0)
        lengths = tuple(tuple(map(len, pieces)) for pieces in segments)
        return cls(len(prompt), head, lengths, (before, after), tuple(map(len, judge)))

    def with_question(self, tokens: int) -> PromptShape:
        """Return the shape for a question that is longer by `tokens` (or shorter). All prompts begin with it."""
        grown = tuple((pieces[0] + tokens, *pieces[1:]) for pieces in self.segments)
        before, after = self.summary
        judge = (self.judge[0] + tokens, *self.judge[1:]) if self.judge else ()
        summary = (before + tokens if before else 0, after)
        return PromptShape(self.first + tokens, self.head + tokens, grown, summary, judge)

    def round_zero(self, run: int) -> Pieces:
        """Return the prompt of round 0. Different runs have no prompt in common."""
        return ((f"head {run}", self.head), (f"question {run}", self.first - self.head))

    def aggregation(self, run: int, tails: Sequence[tuple[TraceKey, int]]) -> Pieces:
        """Return the prompt that shows tails of these traces, with these numbers of tokens."""
        return self._around(run, "template", self.segments[len(tails) - 1], tails)

    def judgement(self, run: int, tails: Sequence[tuple[TraceKey, int]]) -> Pieces:
        """Return the prompt that asks for a comparison of two traces."""
        return self._around(run, "judge", self.judge, tails)

    def _around(
        self, run: int, template: str, segments: Sequence[int], tails: Sequence[tuple[TraceKey, int]]
    ) -> Pieces:
        before, *rest = segments
        pieces = [(f"head {run}", self.head), (f"{template} {run}", before - self.head)]
        for place, ((key, tokens), after) in enumerate(zip(tails, rest, strict=True)):
            pieces += [(f"tail {run} {key}", tokens), (f"segment {place}", after)]
        return tuple(pieces)


def workload(
    config: RSAConfig, seed: int, *, shape: PromptShape, lengths: Lengths, schedule: Schedule = Schedule()
) -> list[Generation]:
    """Return all generations of a run with this seed, in the order in which a runner requests them.

    A summary (carry `summary`) is assumed to use all of its max_tokens, tau. A tournament is assumed to have all its
    pairs, decided by their tails.
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
        keys = [TraceKey(t, i) for t in range(lineage.rounds) for i in range(lineage.population_at(t))] + targets
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
    if config.answer_selection == "tournament":
        found += _judgements(
            config, seed, shape=shape, lengths=lengths, reasoning={key: drawn[key].reasoning for key in lineage.finals}
        )
    return found


def _judgements(
    config: RSAConfig, seed: int, *, shape: PromptShape, lengths: Lengths, reasoning: Mapping[TraceKey, int]
) -> list[Generation]:
    """Return the judgements of a tournament. The pairs of a round, drawn at random, wait for all of the round before.

    A judgement is as long as a trace of the last round.
    """
    found: list[Generation] = []
    waits_for = tuple(map(str, reasoning))
    rng = random.Random(f"judgements {seed}")
    for round_index in range(swiss_rounds(len(reasoning))):
        order = rng.sample(sorted(reasoning), len(reasoning))
        names: list[str] = []
        for pair in zip(order[::2], order[1::2], strict=False):
            for shown in (pair, pair[::-1]):
                key = TraceKey(config.rounds + 2 + round_index, len(names))
                prompt = shape.judgement(seed, [(each, min(config.tail_limit, reasoning[each])) for each in shown])
                length = lengths.of(seed, key, config.final_tokens).generated
                names.append(f"judgement {key}")
                found.append(Generation(names[-1], config.rounds + 1, waits_for, prompt, length, config.final_tokens))
        waits_for = tuple(names)
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

"""Choose among candidates by comparisons in pairs: Swiss rounds, drawn from the run's seed and the results so far.

The model itself is the judge (arXiv:2603.04304). In each round, candidates with as many points meet that have not met
before and whose answers differ. The judge sees the two in both orders, and a pair is a draw unless both verdicts agree.
First it sees their tails; a pair that is a draw then is judged once more, by more of their answers, if they have more.

The points of an answer are those of all candidates that give it. So a judge that knows nothing leaves the choice to the
vote, and where no answer repeats, the judge alone decides.

Everything here is a function of the seed, the candidates and the verdicts. `run.judging` asks, `audit.verify` checks.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .answers import AnswerKind, find_answer, normalise, voting_levels
from .lineage import JUDGEMENT_ATTEMPTS, TraceKey, trace_seed
from .selection import Candidate

#: Attempts at one judgement: three of each order fill the attempts of the seed space that judgements have.
MAX_JUDGE_ATTEMPTS = len(JUDGEMENT_ATTEMPTS) // 2
#: Judgements whose seeds share a round of the seed space.
_INDICES = 10_000

Verdict = Literal["A", "B", ""]
Order = Literal[0, 1]
_ORDERS: tuple[Order, Order] = (0, 1)
_LETTER = re.compile(
    r"(?:\\(?:text|mathrm|mathbf|textbf)\s*\{)?\s*\(?\s*(?:attempt\s+)?([ab])\s*\)?\s*\}?", re.IGNORECASE
)


@dataclass(frozen=True)
class Question:
    """One judgement to ask for: of the `number`th pair of the run (from 0) in a Swiss round (from 1).

    `pair` are the ids of the two traces as the prompt shows them, A and B; `order` is 1 for the swapped order. `full`:
    the prompt shows more than the tails.
    """

    number: int
    round: int
    pair: tuple[str, str]
    order: Order
    full: bool

    def __str__(self) -> str:
        return f"j{self.number:02d}{'f' if self.full else ''}-{self.order}"

    def seed(self, run_seed: int, attempt: int) -> int:
        """Return the seed of an attempt at this judgement: distinct from all others of the run, below 2^31.

        Raise ValueError outside of the seed space.
        """
        place = 2 * self.number + self.full
        key = TraceKey(place // _INDICES, place % _INDICES)
        if not 0 <= attempt < MAX_JUDGE_ATTEMPTS:
            raise ValueError(f"{self} attempt {attempt} is outside the seed space")
        return trace_seed(run_seed, key, JUDGEMENT_ATTEMPTS[2 * attempt + self.order])

    def winner(self, verdict: Verdict) -> str | None:
        """Return the trace that the verdict names, or None."""
        return None if verdict == "" else self.pair["AB".index(verdict)]


@dataclass
class _Pair:
    """A pair in progress: its candidates' places, and the winners that its judgements named so far, by order.

    `more`: its candidates have more to show than their tails.
    """

    number: int
    round: int
    places: tuple[int, int]
    by_tails: dict[int, str | None] = field(default_factory=dict)
    in_full: dict[int, str | None] = field(default_factory=dict)
    more: bool = False

    @property
    def is_close(self) -> bool:
        """Whether the tails left the pair a draw, and there is more to see."""
        return len(self.by_tails) == 2 and _agreed(self.by_tails) is None and self.more

    @property
    def is_decided(self) -> bool:
        return len(self.by_tails) == 2 and (len(self.in_full) == 2 or not self.is_close)


def entrants(candidates: Sequence[Candidate], kind: AnswerKind) -> list[Candidate]:
    """Return the candidates that are judged: those that finished with an answer that would vote, or with a text."""
    answered = [c for c in candidates if c.finished and normalise(c.answer)]
    if kind == "open":
        return answered
    levels = voting_levels([candidate.level for candidate in answered])
    return [candidate for candidate in answered if candidate.level in levels]


def swiss_rounds(count: int) -> int:
    """Return the number of rounds that `count` candidates play."""
    return math.ceil(math.log2(count)) if count > 1 else 0


def max_judgements(count: int) -> int:
    """Return how many judgements `count` candidates can need: all pairs in both orders, by tails and in full."""
    return 4 * swiss_rounds(count) * (count // 2)


def longest_shown(tail_limit: int, final_tokens: int) -> int:
    """Return the most tokens that a judgement shows, of both candidates."""
    return 2 * max(tail_limit, full_limit(tail_limit, final_tokens))


def full_limit(tail_limit: int, final_tokens: int) -> int:
    """Return how many tokens of an answer a judgement in full shows, at most.

    Two of them are as long as four tails, the prompt of an aggregation with C = 4.
    """
    return min(2 * tail_limit, final_tokens)


def shown_sections(kind: AnswerKind) -> tuple[Literal["thinking", "answer"], Literal["thinking", "answer"]]:
    """Return which section of a trace a judge sees the end of, and which one if that is blank."""
    return ("answer", "thinking") if kind == "open" else ("thinking", "answer")


def has_more(shown: Sequence[str], answers: Sequence[str]) -> bool:
    """Return whether the answer section of a candidate is more than the text that a judge was shown."""
    return any(text.split() != answer.split() for text, answer in zip(shown, answers, strict=True))


def read_verdict(answer: str) -> Verdict:
    """Return the attempt that the answer section of a judgement names, "" if it names none."""
    found = find_answer(answer, "text")
    match = _LETTER.fullmatch(found.text.strip()) if found.level in ("boxed", "announced") else None
    if match is None:
        return ""
    return "A" if match[1] in "aA" else "B"


class Tournament:
    """The rounds of one run. `open_questions` are the next ones to ask; `add` takes a verdict."""

    def __init__(self, run_seed: int, candidates: Sequence[Candidate], kind: AnswerKind) -> None:
        self.candidates, self.kind = tuple(entrants(candidates, kind)), kind
        self.rounds = swiss_rounds(len(self.candidates))
        self.points = {candidate.trace_id: 0.0 for candidate in self.candidates}
        self._ids = list(self.points)
        self._seed = run_seed
        self._groups = [self._group(candidate) for candidate in self.candidates]
        self._met: set[tuple[int, int]] = set()
        self._pairs: list[_Pair] = []
        self._round = self._paired = 0
        self._next_round()

    def _group(self, candidate: Candidate) -> str:
        """Return the same text for candidates with the same answer, which a judge could not tell apart."""
        if self.kind in ("open", "json") or candidate.level == "call":
            return f"{candidate.level} {candidate.answer}"
        return normalise(candidate.answer)

    def open_questions(self) -> list[Question]:
        """Return the questions of the current round whose verdicts are missing, in order. Empty at the end."""
        return [
            self._question(pair, order, full)
            for pair in self._pairs
            for full in ((False, True) if pair.is_close else (False,))
            for order in _ORDERS
            if order not in (pair.in_full if full else pair.by_tails)
        ]

    def add(self, question: Question, verdict: Verdict, *, more: bool) -> None:
        """Add the verdict on an open question. `more`: the two have more to show than was shown (see `has_more`)."""
        pair = next(pair for pair in self._pairs if pair.number == question.number)
        (pair.in_full if question.full else pair.by_tails)[question.order] = question.winner(verdict)
        pair.more = pair.more or more
        if all(pair.is_decided for pair in self._pairs):
            self._score()
            self._next_round()

    def _question(self, pair: _Pair, order: Order, full: bool) -> Question:
        one, other = (self._ids[place] for place in pair.places)
        return Question(pair.number, pair.round, (other, one) if order else (one, other), order, full)

    def _score(self) -> None:
        """Give one point for a win, and a half to each for a draw or for a round without a partner."""
        gained = dict.fromkeys(self._ids, 0.5)
        for pair in self._pairs:
            won = _agreed(pair.in_full or pair.by_tails)
            if won is not None:
                gained |= {self._ids[place]: float(self._ids[place] == won) for place in pair.places}
        for trace_id, points in gained.items():
            self.points[trace_id] += points

    def _next_round(self) -> None:
        """Pair the candidates of the next round. Without any pair, no further round would have one."""
        self._pairs = []
        if self._round == self.rounds:
            return
        self._round += 1
        order = [(-self.points[trace_id], self._draw(trace_id), place) for place, trace_id in enumerate(self._ids)]
        free = [place for _, _, place in sorted(order)]
        while len({self._groups[place] for place in free}) > 1:
            one, *others = free
            partner = next((other for other in others if self._may_meet(one, other)), None)
            free = [place for place in others if place != partner]
            if partner is not None:
                self._met.add((min(one, partner), max(one, partner)))
                self._pairs.append(_Pair(self._paired, self._round, (one, partner)))
                self._paired += 1

    def _may_meet(self, one: int, other: int) -> bool:
        return self._groups[one] != self._groups[other] and (min(one, other), max(one, other)) not in self._met

    def _draw(self, trace_id: str) -> int:
        """Return a number that orders candidates with as many points, drawn for this round."""
        text = f"mrsa-tournament-1|{self._seed}|{self._round}|{trace_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _agreed(winners: Mapping[int, str | None]) -> str | None:
    """Return the trace that both orders named, or None."""
    return winners[0] if winners[0] == winners[1] else None

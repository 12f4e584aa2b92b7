"""From a run's traces to its answer: the selection, the free vote, the best so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..audit.events import SelectionEvent
from ..config import RSAConfig
from ..method.answers import extract_answer
from ..method.codec import Codec
from ..method.lineage import Lineage, TraceKey
from ..method.selection import Candidate, Equivalent, Vote, choose, vote
from .traces import Outcome


class Conclusion:
    """Chooses among the outcomes of one run. Equivalence may be slow: call it off the event loop."""

    def __init__(self, run_id: str, config: RSAConfig, lineage: Lineage, codec: Codec, equivalent: Equivalent) -> None:
        self._run_id, self._config, self._lineage = run_id, config, lineage
        self._codec, self._equivalent = codec, equivalent

    def text(self, outcome: Outcome) -> str:
        """The part after the thinking; the whole text of a model without markers."""
        return self._codec.decode(outcome.split.answer_ids).strip()

    def candidate(self, outcome: Outcome) -> Candidate:
        return Candidate(str(outcome.key), extract_answer(self.text(outcome), self._config.answer_kind))

    def select(self, outcomes: Mapping[TraceKey, Outcome]) -> SelectionEvent | None:
        """The selection over the final candidates; None where none is left."""
        finals = [self.candidate(outcomes[key]) for key in self._lineage.finals if key in outcomes]
        if not finals:
            return None
        last = self._lineage.last
        aggregated = self.candidate(outcomes[last]) if last is not None and last in outcomes else None
        chosen, tally = choose(self._config.answer_selection, finals, aggregated, self._equivalent)
        return SelectionEvent(
            self._run_id,
            self._config.answer_selection,
            [c.trace_id for c in finals],
            [c.answer for c in finals],
            [[c.trace_id for c in members] for members in tally.classes],
            list(tally.tally),
            tally.tie,
            chosen.trace_id,
            chosen.answer,
            self._config.answer_kind,
            self.round_zero(outcomes),
        )

    def round_zero(self, outcomes: Mapping[TraceKey, Outcome]) -> dict[str, Any]:
        """The vote over the round-0 traces that were generated: their number, the answer, its votes."""
        candidates = [self.candidate(outcomes[key]) for key in sorted(outcomes) if key.round == 0]
        tally = vote(candidates, self._equivalent)
        answer = tally.winner.answer if tally.winner else ""
        return {"traces": len(candidates), "answer": answer, "votes": max(tally.tally, default=0)}

    def best_so_far(self, outcomes: Mapping[TraceKey, Outcome]) -> tuple[Candidate | None, Vote]:
        """A vote in the latest round in which anyone has an answer; for runs that were stopped."""
        for t in sorted({key.round for key in outcomes}, reverse=True):
            candidates = [self.candidate(outcomes[key]) for key in sorted(outcomes) if key.round == t]
            tally = vote(candidates, self._equivalent)
            if tally.winner is not None:
                return tally.winner, tally
        return None, Vote(())


def answered_tally(
    classes: Sequence[Sequence[str]], trace_ids: Sequence[str], answers: Sequence[str]
) -> list[tuple[str, int]]:
    """(answer of the first member, votes) of each class."""
    by_id = dict(zip(trace_ids, answers, strict=True))
    return [(by_id[members[0]], len(members)) for members in classes]

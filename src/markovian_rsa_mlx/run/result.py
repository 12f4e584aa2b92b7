"""What a run hands back.

From a run's traces to its answer: the selection, the free vote, the best so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audit.events import Event, SelectionEvent
from ..config import RSAConfig
from ..method.answers import extract_answer
from ..method.lineage import Lineage, TraceKey
from ..method.selection import Candidate, Equivalent, Vote, choose, vote
from ..tokenizer import Tokenizer
from .runner import Trace


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run, or of as much of it as there is.

    `text` is the chosen trace's part after the thinking (None: no candidate yet), `answer` what was
    extracted from it ("" for none). `tally` holds (answer, votes) over the final candidates, in the order of
    the classes; `round_zero` the free vote over the round-0 traces that were generated. Times in seconds,
    memory in bytes.
    """

    run_id: str
    text: str | None
    answer: str
    final_trace_id: str | None
    seed: int
    tally: list[tuple[str, int]]
    round_zero: dict[str, Any]
    generated_tokens: int
    elapsed_s: float
    peak_memory_bytes: int
    audit_path: Path | None
    resumed: bool
    warnings: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class Conclusion:
    """Chooses among the outcomes of one run. Equivalence may be slow: call it off the event loop."""

    def __init__(
        self, run_id: str, config: RSAConfig, lineage: Lineage, tokenizer: Tokenizer, equivalent: Equivalent
    ) -> None:
        self._run_id, self._config, self._lineage = run_id, config, lineage
        self._tokenizer, self._equivalent = tokenizer, equivalent

    def text(self, outcome: Trace) -> str:
        """The part after the thinking; the whole text of a model without markers."""
        return self._tokenizer.decode(outcome.parsed.answer_ids).strip()

    def candidate(self, outcome: Trace) -> Candidate:
        return Candidate(str(outcome.key), extract_answer(self.text(outcome), self._config.answer_kind))

    def select(self, outcomes: Mapping[TraceKey, Trace]) -> SelectionEvent | None:
        """The selection over the final candidates; None where none is left."""
        finals = [self.candidate(outcomes[key]) for key in self._lineage.finals if key in outcomes]
        if not finals:
            return None
        last = self._lineage.aggregator
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

    def round_zero(self, outcomes: Mapping[TraceKey, Trace]) -> dict[str, Any]:
        """The vote over the round-0 traces that were generated: their number, the answer, its votes."""
        candidates = [self.candidate(outcomes[key]) for key in sorted(outcomes) if key.round == 0]
        tally = vote(candidates, self._equivalent)
        answer = tally.winner.answer if tally.winner else ""
        return {"traces": len(candidates), "answer": answer, "votes": max(tally.tally, default=0)}

    def best_so_far(self, outcomes: Mapping[TraceKey, Trace]) -> tuple[Candidate | None, Vote]:
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

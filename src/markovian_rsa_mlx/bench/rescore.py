"""Score the finished runs of a benchmark again by today's rules, from the audit logs alone, and list what changes.

Needs the task for its references or verifier, but neither a model nor a server. Figures other than answers and scores
follow from the same logs as before, so they stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..audit import RunState, read_events
from ..errors import AuditError, ConfigError
from ..formatting import amount
from ..method.answers import ANSWER_RULES, AnswerKind, find_answer
from ..method.selection import Equivalent
from .results import Change, Results, RoundRecord, RunRecord, TraceRecord
from .scoring import MAX_ANSWER, ProblemScores
from .summary import comparisons, notice, summarize
from .tasks.base import Problem, Task
from .tasks.options import base_task_name


def rescore(
    results: Results, folder: Path, *, task: Task, problems: Sequence[Problem], equivalent: Equivalent
) -> Results:
    """Return the results by today's rules, with the changes.

    Runs without a readable audit log keep their scores, and a warning counts them. Raises `ConfigError` if the task has
    other problems, and `AuditError` if no audit log can be read.
    """
    by_index = {problem.index: problem for problem in problems}
    found = {(v.name, r.index, r.epoch): r for v in results.cells for r in v.records}
    # A file that has moved has another name, and the same digest after "@".
    names = [base_task_name(name).rpartition("@")[2] for name in (task.name, results.task)]
    same_task = names[0] == names[1]
    for record in found.values():
        if not same_task or record.index not in by_index or by_index[record.index].problem_id != record.problem_id:
            raise ConfigError(
                f"The task {task.name!r} does not have the problems of {results.task!r} in {folder}; name the task "
                "as it was when the benchmark ran."
            )
    changes: list[Change] = []
    unread: list[AuditError] = []
    for index, epoch in dict.fromkeys(place[1:] for place in found):
        problem, runs = by_index[index], {}
        for variant in results.cells:
            place = (variant.name, index, epoch)
            if place in found and not found[place].error:
                try:
                    runs[place] = found[place], read_finished(folder / found[place].trail)
                except AuditError as error:
                    unread.append(error)
        scores = ProblemScores(problem, task, equivalent)
        for _, state in runs.values():
            scores.cache.add_run(state)
        for place, (record, state) in runs.items():
            known = replace(record, reference=problem.reference, content=problem.content)
            found[place] = measured = scores.measure(known, state)
            earlier = _EarlierScores(record, results.answer_rules, state=state, kind=task.answer_kind, scores=scores)
            changes += earlier.changes(place[0], measured)
    if unread and len(unread) == sum(not record.error for record in found.values()):
        raise unread[0]
    kept = (
        f"{amount(len(unread), 'run')} could not be scored again and keep the earlier scores: {unread[0]}"
        if unread
        else ""
    )
    cells = tuple(
        replace(variant, records=tuple(found[variant.name, r.index, r.epoch] for r in variant.records))
        for variant in results.cells
    )
    return replace(
        results,
        cells=cells,
        table=summarize(results.methods, cells),
        comparisons=comparisons(results.methods, cells),
        notice=notice(results.methods, cells),
        answer_rules=ANSWER_RULES,
        changes=tuple(changes),
        warnings=(*results.warnings, *([kept] if kept else [])),
    )


def read_finished(trail: Path) -> RunState:
    """Read the audit log of a finished run. Raises `AuditError`."""
    state = RunState(read_events(trail))
    if not state.finished:
        raise AuditError(f"{trail} holds an unfinished run; continue the benchmark before it is scored again.")
    return state


class _EarlierScores:
    """The answers and scores of one run by the rules of its results."""

    def __init__(
        self, record: RunRecord, rules: int, *, state: RunState, kind: AnswerKind, scores: ProblemScores
    ) -> None:
        self._record, self._rules, self._state, self._kind, self._scores = record, rules, state, kind, scores

    def changes(self, cell: str, now: RunRecord) -> Iterator[Change]:
        """Yield the traces, and where only a round's number of right traces is known the rounds, that changed.

        The last change is that of the run's own answer.
        """

        def change(trace_id: str, *values: Any) -> Change:
            return Change(cell, now.problem_id, now.epoch, trace_id, *values)

        traces = iter(now.traces)
        for entry, earlier_entry in zip(now.rounds, self._record.rounds, strict=True):
            of_round = list(islice(traces, entry.traces))
            earlier = self._traces(of_round, earlier_entry)
            for trace, (answer, correct) in zip(of_round, earlier, strict=True):
                if answer != trace.answer or correct not in (None, trace.correct):
                    reason = _reason(answer, trace)
                    yield change(trace.trace_id, answer, trace.answer, correct, trace.correct, reason)
            if entry.mean != earlier_entry.mean and any(correct is None for _, correct in earlier):
                yield change(
                    f"round {entry.round}", "", "", earlier_entry.mean, entry.mean, "answers are compared again"
                )
        before = self._record
        if (before.answer[:MAX_ANSWER], before.correct) != (now.answer[:MAX_ANSWER], now.correct):
            answers = before.answer[:MAX_ANSWER], now.answer[:MAX_ANSWER]
            yield change("", *answers, before.correct, now.correct, "the answer that the run chose")

    def _traces(self, of_round: Sequence[TraceRecord], earlier: RoundRecord) -> list[tuple[str, float | None]]:
        """Return the earlier answer and score of each trace of a round.

        Results of the first version do not record them. The answers follow from the texts by the rules of that time.
        The scores follow from the number of right traces, if all or no traces were right, or if today's scores have
        the same number.
        """
        recorded = {trace.trace_id: trace for trace in self._record.traces}
        if recorded:
            return [(recorded[trace.trace_id].answer, recorded[trace.trace_id].correct) for trace in of_round]
        texts = [self._state.answer_text(self._state.trace(trace.trace_id)) for trace in of_round]
        answers = [find_answer(text, self._kind, rules=self._rules).text for text in texts]
        today = [float(self._scores.is_correct(answer)) for answer in answers]
        scores: list[float | None] = [None if answer else 0.0 for answer in answers]
        if earlier.mean in (0.0, 1.0):
            scores = [earlier.mean if answer else 0.0 for answer in answers]
        elif round(earlier.mean * earlier.traces) == sum(today):
            scores = [*today]
        return [(answer[:MAX_ANSWER], score) for answer, score in zip(answers, scores, strict=True)]


def _reason(earlier_answer: str, trace: TraceRecord) -> str:
    if earlier_answer == trace.answer:
        return (
            "equal to the reference" if trace.correct else "could not be compared" if trace.undecided else "not equal"
        )
    if not trace.answer:
        return "no answer is found"
    return f"{'another' if earlier_answer else 'an'} answer is found ({trace.level})"

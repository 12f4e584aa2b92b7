"""`mrsa runs show`: a run's story as text, from its file alone. What is there is told, what is missing is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..audit.verify.figures import check_stats
from ..audit.verify.ledger import Broken
from ..method.answers import extract_answer
from ..models.routing_report import describe
from ..progress import Row, tally
from ..store import is_being_written
from ..viewer.reading import Trail
from .story_gaps import gaps, problems
from .story_lineage import descent_lines, lineage_lines
from .story_settings import settings_line
from .text import amount, clean, count, duration, one_line, size
from .told import told_by

#: Rows of a round, and lines of a question or tail, that are shown unless all are asked for.
_ROWS, _LINES = 12, 6
#: What the states of a run under way mean once its file is all there is.
_STATES: dict[str, str] = {"running": "interrupted", "waiting": "not begun"}
_NOT_RECORDED = "not recorded"


def tell(path: Path, trail: Trail, full: bool, model_stats: bool = False) -> str:
    """The whole story, and at its end what is wrong with the file and what it lacks."""
    return "\n".join(_Story(path, trail, full, model_stats).lines())


class _Story:
    def __init__(self, path: Path, trail: Trail, full: bool, model_stats: bool) -> None:
        self.path, self.trail, self.full, self.model_stats = path, trail, full, model_stats
        self.told = told_by(trail)
        self.history = self.told.history
        self.running = not self.history.finished and is_being_written(path)

    def lines(self) -> Iterator[str]:
        yield from self._heading()
        yield from self._rounds()
        yield from self._choice()
        yield from descent_lines(self.told)
        yield from lineage_lines(self.told)
        yield from self._tails()
        yield from self._mishaps()
        if self.model_stats:
            yield from self._model_stats()
        yield from problems(self.trail, self.full)
        yield from gaps(self.told, self.running)

    def _heading(self) -> Iterator[str]:
        start, setup = self.history.start, self.history.setup
        state = "finished" if self.history.finished else "running" if self.running else "unfinished"
        yield f"Run {_known(start.run_id if start else self.trail.run_id)}, {state}: {self.path}"
        if start is not None:
            begun = f"{_when(start.created_at)} UTC" if start.created_at else _NOT_RECORDED
            yield f"begun      {begun}, {self._sittings()}"
            engine = f", {one_line(f'{setup.engine} {setup.engine_version}, {setup.dtype}', 200)}" if setup else ""
            yield f"model      {_known(start.model_id)}, quantization {_known(start.quantization)}{engine}"
            yield f"settings   {settings_line(self.told)}"
        end = self.history.end
        memory = f", peak memory {size(end.peak_memory_bytes)}" if end and end.peak_memory_bytes else ""
        tokens = end.total_generated_tokens if end else self.history.generated_tokens
        yield f"cost       {amount(tokens, 'token')} in {duration(self.history.elapsed_s)}{memory}"
        if start is not None:
            yield "question"
            yield from self._block(start.prompt)

    def _sittings(self) -> str:
        resumes = len(self.history.resumes)
        return f"resumed {amount(resumes, 'time')}" if resumes else "in one sitting"

    def _rounds(self) -> Iterator[str]:
        for number, rows in self.told.rounds:
            ended = [row for row in rows if self.told.ended(row)]
            votes = ", ".join(f"{one_line(answer, 30)} ×{members}" for answer, members in tally(rows)[:6])
            tokens = amount(sum(row.tokens for row in rows), "token")
            yield f"\nround {number}: {len(ended)} of {amount(len(rows), 'trace')}, {tokens}; {votes or 'no answers'}"
            shown = rows if self.full else rows[:_ROWS]
            yield from (self._row(row) for row in shown)
            if len(shown) < len(rows):
                yield f"  ... and {len(rows) - len(shown)} more (--full)"

    def _row(self, row: Row) -> str:
        state, tokens = _STATES.get(row.state, row.state), count(row.tokens)
        if self.told.unrecorded(row):
            state, tokens = "ended", tokens if row.tokens else "?"
        read = " ".join(one_line(parent) for parent in self.told.parents(row.trace_id))
        answer = f"  answer {one_line(row.answer, 40)}" if row.answer else ""
        reads = f"  reads {read}" if read else ""
        return f"  {one_line(row.trace_id)}  {state:<11} {tokens:>7} tokens{reads}{answer}"

    def _choice(self) -> Iterator[str]:
        if self.history.selection is not None:
            yield from self._selection()
        elif self.history.final is not None:
            yield from self._final()
        else:
            yield "\nNo answer was chosen yet." if not self.history.finished else "\nThe file names no answer."
        if self.history.final is not None:
            yield "text"
            yield from self._block(self.history.final.final_text)

    def _selection(self) -> Iterator[str]:
        selection = self.history.selection
        assert selection is not None
        answers = dict(zip(selection.candidate_trace_ids, selection.answers, strict=False))
        votes = ", ".join(
            f"{one_line(answers.get(members[0], '?'), 30)} ×{votes}"
            for members, votes in zip(selection.classes, selection.tally, strict=False)
            if members
        )
        tie = ", a tie" if selection.tie else ""
        zero = {name: value for name, value in selection.round_zero.items() if isinstance(value, str | int)}
        free = one_line(str(zero.get("answer") or "no answer"))
        votes_of = f"{one_line(str(zero.get('votes', 0)))} of {one_line(str(zero.get('traces', 0)))} traces"
        how = f"of {one_line(selection.chosen_trace_id)} ({selection.answer_selection})"
        yield f"\nanswer     {one_line(selection.answer) or 'none'}, {how}"
        yield f"tally      {votes or 'no answers'}{tie}"
        yield f"round 0    {free}, {votes_of}, a free vote"

    def _final(self) -> Iterator[str]:
        """The choice of a file without a selection: its text, or its trace, has the answer."""
        final = self.history.final
        assert final is not None
        row = self.told.rows.get(final.final_trace_id)
        answer = extract_answer(final.final_text, self.told.config.answer_kind) or (row.answer if row else "")
        how = f"of {one_line(final.final_trace_id)} ({final.answer_selection})"
        yield f"\nanswer     {one_line(answer) or 'none'}, {how}"
        yield f"tally      {_NOT_RECORDED}: there is no selection in the file"

    def _tails(self) -> Iterator[str]:
        for parent in self.told.parents(self.told.chosen or ""):
            past = self.history.traces.get(parent)
            if past is not None and (tail := past.tail) is not None:
                yield f"\ntail of {one_line(parent)}, {amount(tail.tail_tokens, 'token')}, as the winner read it"
                yield from self._block(tail.tail_text, end=True)

    def _mishaps(self) -> Iterator[str]:
        notes = [f"resumed {_when(event.created_at)} UTC" for event in self.history.resumes]
        notes += [
            f"{one_line(retry.trace_id)} tried again: {one_line(retry.message, 160)}" for retry in self.history.retries
        ]
        notes += [f"{one_line(error.stage)}: {one_line(error.message, 200)}" for error in self.history.errors]
        if notes:
            yield "\nmishaps"
            yield from (f"  {note}" for note in notes)

    def _model_stats(self) -> Iterator[str]:
        event = self.history.model_stats
        if event is None:
            yield "\nThe run has no model stats: a run's end writes them, for a model that counts its experts."
            return
        try:
            check_stats(event.stats)
        except Broken as broken:
            yield f"\nThe model stats are damaged: {one_line(str(broken), 200)}."
            return
        yield "\nmodel stats"
        yield from (f"  {line}" for line in describe(event.stats).splitlines())

    def _block(self, text: str, end: bool = False) -> Iterator[str]:
        """A text, indented; its first lines (its last ones if `end`) unless all are asked for."""
        lines = clean(text).strip("\n").split("\n")
        if self.full or len(lines) <= _LINES:
            yield from (f"  | {line}" for line in lines)
            return
        left_out = f"  ... {len(lines) - _LINES} more lines (--full)"
        if end:
            yield left_out
        yield from (f"  | {line}" for line in (lines[-_LINES:] if end else lines[:_LINES]))
        if not end:
            yield left_out


def _known(text: str) -> str:
    """A name that a file gives, on one line."""
    return one_line(text, 200) or _NOT_RECORDED


def _when(created_at: str) -> str:
    return one_line(created_at[:19].replace("T", " "))

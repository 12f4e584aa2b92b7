"""`mrsa runs show`: a run's story as text, from its file alone, as far as the file goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..audit.history import RunHistory
from ..audit.verify.figures import check_stats
from ..audit.verify.ledger import Broken
from ..method.answers import normalise
from ..models.routing_report import describe
from ..progress import FINISHED, Progress, Row
from ..store import Reading, is_being_written
from .descent import descent_of
from .text import amount, clean, count, duration, one_line, size

#: Rows of a round, and lines of a question or tail, that are shown unless all are asked for.
_ROWS, _LINES = 12, 6


def tell(path: Path, reading: Reading, full: bool, model_stats: bool = False) -> str:
    """The whole story; ends early, and says so, where the file is damaged."""
    return "\n".join(_Story(path, reading, full, model_stats).lines())


class _Story:
    def __init__(self, path: Path, reading: Reading, full: bool, model_stats: bool) -> None:
        self.path, self.reading, self.full, self.model_stats = path, reading, full, model_stats
        self.problem = reading.problem
        self.history = RunHistory()
        self.progress: Progress | None = None
        for number, event in enumerate(reading.events, start=1):
            try:
                self.history.add(event)
            except ValueError as error:
                self.problem = f"line {number}: {error}"
                break
            if self.progress is None and self.history.start is not None:
                self.progress = Progress(self.history.start.config, lambda: 0.0)
            if self.progress is not None:
                self.progress.handle(event)

    def lines(self) -> Iterator[str]:
        if self.progress is None or self.history.start is None:
            yield f"{self.path}: damaged, {self.problem or 'it holds no run_start'}."
            return
        yield from self._heading()
        yield from self._rounds(self.progress)
        yield from self._choice()
        yield from self._lineage(self.progress)
        yield from self._mishaps()
        if self.model_stats:
            yield from self._model_stats()
        if self.problem:
            word = "The last line is torn, as a crash leaves it" if self.reading.torn else "The file is damaged"
            yield f"\n{word}: {clean(self.problem)}."

    def _heading(self) -> Iterator[str]:
        start, setup, config = self.history.start, self.history.setup, None
        assert start is not None
        config = start.config
        state = "finished" if self.history.finished else "unfinished"
        if not self.history.finished and is_being_written(self.path):
            state = "running"
        yield f"Run {clean(start.run_id)}, {state}: {self.path}"
        yield f"begun      {start.created_at[:19].replace('T', ' ')} UTC, {self._sittings()}"
        engine = f", {setup.engine} {setup.engine_version}, {setup.dtype}" if setup else ""
        yield f"model      {clean(start.model_id)}, quantization {clean(start.quantization)}{clean(engine)}"
        seed = f", seed {setup.seed}" if setup else ""
        yield (
            f"settings   T={config.rounds} N={config.population} C={config.aggregation_size} "
            f"beta={count(config.thinking_tokens)} tau={count(config.tail_limit)} final={count(config.final_tokens)} "
            f"F={config.final_count}, carry {config.carry}, {config.answer_selection}{seed}"
        )
        peak = self.history.end.peak_memory_bytes if self.history.end else 0
        memory = f", peak memory {size(peak)}" if peak else ""
        tokens = amount(self.history.generated_tokens, "token")
        yield f"cost       {tokens} in {duration(self.history.elapsed_s)}{memory}"
        yield "question"
        yield from self._block(start.prompt)

    def _sittings(self) -> str:
        resumes = len(self.history.resumes)
        return f"resumed {amount(resumes, 'time')}" if resumes else "in one sitting"

    def _rounds(self, progress: Progress) -> Iterator[str]:
        for number, rows in progress.rounds():
            ended = [row for row in rows if row.state in FINISHED]
            votes = ", ".join(f"{one_line(answer, 30)} ×{members}" for answer, members in progress.tally(number)[:6])
            tokens = amount(sum(row.tokens for row in rows), "token")
            yield f"\nround {number}: {len(ended)} of {amount(len(rows), 'trace')}, {tokens}; {votes or 'no answers'}"
            shown = rows if self.full else rows[:_ROWS]
            yield from (self._row(progress, row) for row in shown)
            if len(shown) < len(rows):
                yield f"  ... and {len(rows) - len(shown)} more (--full)"

    def _row(self, progress: Progress, row: Row) -> str:
        state = progress.state(row)
        state_shown = "interrupted" if state == "running" else "not begun" if state in ("waiting", "queued") else state
        past = self.history.traces.get(row.trace_id)
        read = " ".join(past.parent_ids if past else [])
        answer = f"  answer {one_line(row.answer, 40)}" if row.answer else ""
        reads = f"  reads {read}" if read else ""
        return f"  {row.trace_id}  {state_shown:<11} {count(row.tokens):>7} tokens{reads}{answer}"

    def _choice(self) -> Iterator[str]:
        selection, final = self.history.selection, self.history.final
        if selection is None:
            yield "\nNo answer was chosen yet."
            return
        tally = ", ".join(
            f"{one_line(self._answer_of(members[0]), 30)} ×{votes}"
            for members, votes in zip(selection.classes, selection.tally, strict=False)
            if members
        )
        tie = ", a tie" if selection.tie else ""
        zero = selection.round_zero
        free = one_line(str(zero.get("answer") or "no answer"))
        how = f"of {selection.chosen_trace_id} ({selection.answer_selection})"
        yield f"\nanswer     {one_line(selection.answer) or 'none'}, {how}"
        yield f"tally      {tally or 'no answers'}{tie}"
        yield f"round 0    {free}, {zero.get('votes', 0)} of {zero.get('traces', 0)} traces, a free vote"
        if final is not None:
            yield "text"
            yield from self._block(final.final_text)

    def _answer_of(self, trace_id: str) -> str:
        assert self.history.selection is not None
        answers = dict(zip(self.history.selection.candidate_trace_ids, self.history.selection.answers, strict=False))
        return answers.get(trace_id, "?")

    def _lineage(self, progress: Progress) -> Iterator[str]:
        if self.history.selection is None or self.history.selection.chosen_trace_id not in progress.rows:
            return
        generation = [self.history.selection.chosen_trace_id]
        yield from self._descent(progress, generation[0])
        if self._parents(generation[0]):
            yield "\nlineage of the winner"
        seen = set(generation)
        while generation:
            parents: list[str] = []
            for trace_id in generation:
                read = self._parents(trace_id)
                if read:
                    said = ", ".join(f"{parent} ({self._said(progress, parent)})" for parent in read)
                    yield f"  {trace_id} read {said}"
                parents += [parent for parent in read if parent not in parents]
            generation = [parent for parent in parents if parent not in seen]  # a damaged trail can lead in circles
            seen.update(generation)
        for parent in self._parents(self.history.selection.chosen_trace_id):
            past = self.history.traces.get(parent)
            if past is not None and (tail := past.tail) is not None:
                yield f"\ntail of {parent}, {amount(tail.tail_tokens, 'token')}, as the winner read it"
                yield from self._block(tail.tail_text, end=True)

    def _descent(self, progress: Progress, winner: str) -> Iterator[str]:
        keys = self._answer_keys(progress)
        descent = descent_of(winner, self._parents, keys)
        if descent is None or len({row.round for row in progress.rows.values()}) < 2:
            return
        yield "\nhow it came about"
        found, *readers = descent.chain
        yield f"  {found} found it" + ("" if not self._parents(found) else ", though no tail that it read had it")
        yield from (f"  {reader} read that tail and answered the same" for reader in readers)
        if descent.found_anew:
            yield f"  found anew by {', '.join(descent.found_anew)}"
        if descent.lost:
            said = ", ".join(f"{trace_id} ({self._said(progress, trace_id)})" for trace_id in descent.lost)
            yield f"  read in a tail and not taken over by {said}"

    def _answer_keys(self, progress: Progress) -> dict[str, str]:
        """What is equal for equal answers: the selection's classes decide, elsewhere the normalised text."""
        keys = {row.trace_id: normalise(row.answer) for row in progress.rows.values() if row.state in FINISHED}
        classes = self.history.selection.classes if self.history.selection else []
        same = {keys.get(t, ""): keys.get(members[0], "") for members in classes for t in members}
        return {trace_id: same.get(key, key) for trace_id, key in keys.items()}

    def _parents(self, trace_id: str) -> list[str]:
        past = self.history.traces.get(trace_id)
        return past.parent_ids if past else []

    def _said(self, progress: Progress, trace_id: str) -> str:
        row = progress.rows.get(trace_id)
        return one_line(row.answer, 12) if row is not None and row.answer else "no answer"

    def _mishaps(self) -> Iterator[str]:
        notes = [f"resumed {event.created_at[:19].replace('T', ' ')} UTC" for event in self.history.resumes]
        notes += [f"{retry.trace_id} tried again: {one_line(retry.message, 160)}" for retry in self.history.retries]
        notes += [f"{error.stage}: {one_line(error.message, 200)}" for error in self.history.errors]
        if notes:
            yield "\nmishaps"
            yield from (f"  {clean(note)}" for note in notes)

    def _model_stats(self) -> Iterator[str]:
        event = self.history.model_stats
        if event is None:
            yield "\nThe run has no model stats: a run's end writes them, for a model that counts its experts."
            return
        try:
            check_stats(event.stats)
        except Broken as broken:
            yield f"\nThe model stats are damaged: {clean(str(broken))}."
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

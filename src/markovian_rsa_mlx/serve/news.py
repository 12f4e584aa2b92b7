"""The rounds of a run told in lines, for a client that shows them while it waits."""

from __future__ import annotations

import time

from ..audit.events import GenerationStartEvent, TraceCompleteEvent, _BaseEvent
from ..progress import FINISHED, Progress, Row

#: Seconds between two lines about one round.
_PAUSE_S = 0.5
_MOST_ANSWERS, _LONGEST_ANSWER = 5, 80


class News:
    """A line where there is something to tell: a round begins, traces are done, how the vote stands."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._told_s = 0.0

    def line(self, event: _BaseEvent, progress: Progress) -> str:
        """What to say of this event, which `progress` has taken in already; "" for nothing."""
        if isinstance(event, GenerationStartEvent) and event.round not in self._begun:
            self._begun.add(event.round)
            return f"Round {event.round} of {progress.config.rounds}: {amount(len(_rows(progress, event.round)))}"
        if isinstance(event, TraceCompleteEvent):
            return self._done(event.round, progress)
        return ""

    def _done(self, round_number: int, progress: Progress) -> str:
        rows = _rows(progress, round_number)
        done, now = sum(row.state in FINISHED for row in rows), time.monotonic()
        if len(rows) == 1 or (done < len(rows) and now - self._told_s < _PAUSE_S):
            return ""
        self._told_s = now
        tally = progress.tally(round_number)[:_MOST_ANSWERS]
        votes = ", ".join(f"{_on_one_line(answer)} ({count})" for answer, count in tally)
        return f"Round {round_number}: {done} of {amount(len(rows))} done" + (f"; votes: {votes}" if votes else "")


def _on_one_line(answer: str) -> str:
    """An answer is the model's text: of any length, with any line breaks."""
    line = " ".join(answer.split())
    return line if len(line) <= _LONGEST_ANSWER else line[: _LONGEST_ANSWER - 3] + "..."


def amount(count: int) -> str:
    """`1 trace`, `8 traces`."""
    return f"{count} trace{'' if count == 1 else 's'}"


def _rows(progress: Progress, round_number: int) -> list[Row]:
    return next((rows for number, rows in progress.rounds() if number == round_number), [])

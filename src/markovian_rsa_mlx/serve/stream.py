"""A streamed completion: what happens in a run, as chunks.

A choice that is certain from the start is told while it is generated; the others when they are chosen. What the
rounds are doing goes out as reasoning, as comments, or not at all.

The rounds of a run told in lines, for a client that shows them while it waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sse_starlette import ServerSentEvent

from ..audit.events import Event, GenerationStartEvent, TraceCompleteEvent, TraceRetryEvent
from ..errors import BackendError
from ..progress import FINISHED, Progress, TraceStatus
from ..tokenizer import ChatMessage, Tokenizer
from .errors import RequestError
from .incremental_text import LiveTrace
from .plan import Plan
from .response import CompletionBuilder, completion_id
from .run_manager import ActiveRun, RunManager, wait_for_result
from .schemas import Chunk, ChunkChoice, Delta
from .sse import object_event


@dataclass(frozen=True)
class StreamItem:
    """Something to tell: text of one choice, or a comment."""

    index: int = 0
    reasoning: str = ""
    content: str = ""
    comment: str = ""


class StreamingListener:
    """Turns a run's events and tokens into pieces; see `active.Watcher`."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self.pieces: asyncio.Queue[StreamItem | RequestError | None] = asyncio.Queue()  #: None: the run is over
        self._plan, self._tokenizer = plan, tokenizer
        # Some chat templates have no switch for the thinking: then the model may well think all the same.
        self._uncertain = not plan.config.enable_thinking and _is_unheeded(tokenizer, plan.chat)
        self._live = {trace_id: self._fresh() for trace_id in plan.live}
        self._news = ProgressText() if plan.rsa else None

    def event(self, event: Event, progress: Progress) -> None:
        if self._news is not None and (line := self._news.line(event, progress)):
            self._tell_news(line)
        trace_id = getattr(event, "trace_id", None)
        if trace_id not in self._live:
            return
        if isinstance(event, TraceCompleteEvent) and event.finish_reason != "error":
            self._tell(trace_id, *self._live[trace_id].end())
        elif isinstance(event, TraceRetryEvent) and event.purpose == "trace":
            self._start_over(trace_id)

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        if trace_id in self._live:
            self._tell(trace_id, *self._live[trace_id].add(ids))

    @property
    def answered(self) -> bool:
        """Whether a piece of an answer has gone out."""
        return any(trace.answered for trace in self._live.values())

    def told_live(self, trace_id: str) -> bool:
        """Whether this trace's text has gone out already."""
        return trace_id in self._live

    def _fresh(self) -> LiveTrace:
        return LiveTrace(self._tokenizer, self._plan.config.enable_thinking, self._uncertain)

    def _start_over(self, trace_id: str) -> None:
        if self._live[trace_id].answered:
            failed = "The engine failed in the middle of the answer, which cannot be taken back; ask again."
            self.pieces.put_nowait(RequestError(502, failed, BackendError.kind))
        self._live[trace_id] = self._fresh()

    def _tell(self, trace_id: str, reasoning: str, content: str) -> None:
        if reasoning or content:
            self.pieces.put_nowait(StreamItem(self._plan.live[trace_id], reasoning, content))

    def _tell_news(self, line: str) -> None:
        match self._plan.asked.rsa_progress or "reasoning":
            case "reasoning":
                self.pieces.put_nowait(StreamItem(reasoning=line + "\n"))
            case "comments":
                self.pieces.put_nowait(StreamItem(comment=line))


class ChatStream:
    """The chunks of one run, from its first piece to its usage."""

    def __init__(self, service: RunManager, plan: Plan, run: ActiveRun, watcher: StreamingListener) -> None:
        self._service, self._plan, self._run, self._watcher = service, plan, run, watcher
        self._created = int(time.time())
        self._begun: set[int] = set()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events; an error is one of them, and then there is no [DONE]."""
        async for piece in self._pieces():
            yield self._of_piece(piece)
        answer = CompletionBuilder(
            self._plan, await wait_for_result(self._run), self._service.backend.tokenizer, self._service.model_name
        )
        answer.check()
        if answer.stopped and self._watcher.answered:
            raise RequestError(503, "A budget stopped the run in the middle of the answer.", "stopped")
        for event in self._conclusion(answer):
            yield event
        yield ServerSentEvent("[DONE]", sep="\n")

    async def _pieces(self) -> AsyncIterator[StreamItem]:
        """What the watcher hears until the run is over."""
        pieces = self._watcher.pieces
        self._run.task.add_done_callback(lambda _: pieces.put_nowait(None))
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, RequestError):
                raise piece
            yield piece

    def _of_piece(self, piece: StreamItem) -> ServerSentEvent:
        if piece.comment:
            return ServerSentEvent(comment=piece.comment, sep="\n")
        return self._delta(piece.index, piece.reasoning, piece.content)

    def _conclusion(self, answer: CompletionBuilder) -> list[ServerSentEvent]:
        events, ids = [], answer.choice_ids()
        for index, trace_id in enumerate(ids):
            spoken = answer.spoken(trace_id)
            if not self._watcher.told_live(trace_id) and (spoken.reasoning or spoken.content):
                events.append(self._delta(index, spoken.reasoning or "", spoken.content))
            end = ChunkChoice(index=index, delta=self._opened(index), finish_reason=spoken.finish_reason)
            extras = answer.extras() if index == len(ids) - 1 else {}
            events.append(self._chunk([end], **extras))
        options = self._plan.asked.stream_options
        if options is not None and options.include_usage:
            events.append(self._chunk([], usage=answer.usage()))
        return events

    def _delta(self, index: int, reasoning: str, content: str) -> ServerSentEvent:
        delta = self._opened(index)
        if reasoning:
            delta.reasoning = delta.reasoning_content = reasoning
        if content:
            delta.content = content
        return self._chunk([ChunkChoice(index=index, delta=delta, finish_reason=None)])

    def _opened(self, index: int) -> Delta:
        """A choice's first delta names its role."""
        first = index not in self._begun
        self._begun.add(index)
        return Delta(role="assistant") if first else Delta()

    def _chunk(self, choices: list[ChunkChoice], **extras: Any) -> ServerSentEvent:
        chunk = Chunk(
            id=completion_id(self._run.run_id),
            object="chat.completion.chunk",
            created=self._created,
            model=self._service.model_name,
            choices=choices,
            **extras,
        )
        return object_event(chunk.to_json())


def _is_unheeded(tokenizer: Tokenizer, chat: Sequence[ChatMessage]) -> bool:
    """Whether the model is asked the same with thinking and without."""
    return tokenizer.render_chat(chat, True) == tokenizer.render_chat(chat, False)


#: Seconds between two lines about one round.
_PAUSE_S = 0.5
_MOST_ANSWERS, _LONGEST_ANSWER = 5, 80


class ProgressText:
    """A line where there is something to tell: a round begins, traces are done, how the vote stands."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._told_s = 0.0

    def line(self, event: Event, progress: Progress) -> str:
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


def _rows(progress: Progress, round_number: int) -> list[TraceStatus]:
    return next((rows for number, rows in progress.rounds() if number == round_number), [])

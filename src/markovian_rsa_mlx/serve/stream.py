"""Stream a run as chunks of a completion.

A trace that is certain to become a choice is streamed while it is generated; other choices follow when they are
selected. The progress of the rounds is sent as reasoning, as comments or not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sse_starlette import ServerSentEvent

from ..audit import RunState
from ..audit.events import Event, GenerationStartEvent, TraceCompleteEvent, TraceRetryEvent
from ..audit.state import ENDED
from ..errors import BackendError
from ..formatting import amount, shortened
from ..tokenizer import Tokenizer
from .errors import RequestError
from .incremental_text import LiveTrace
from .plan import Plan
from .response import CompletionBuilder, completion_id
from .run_manager import ActiveRun, RunManager, wait_for_result
from .schemas import Chunk, ChunkChoice, Delta
from .sse import json_event

#: Minimum time between two progress lines about one round.
_PROGRESS_INTERVAL_S = 0.5
_MAX_ANSWERS, _MAX_ANSWER_CHARACTERS = 5, 80


@dataclass(frozen=True)
class StreamItem:
    """Text of one choice, or a comment."""

    index: int = 0
    reasoning: str = ""
    content: str = ""
    comment: str = ""


class StreamingListener:
    """Turns the events and tokens of a run into stream items; see `run_manager.RunListener`."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer) -> None:
        self.items: asyncio.Queue[StreamItem | RequestError | None] = asyncio.Queue()  #: None: the run has ended
        self._plan, self._tokenizer = plan, tokenizer
        # Where the chat template ignores the thinking flag, the model may think although the request forbids it.
        render, thinking = tokenizer.render_chat, plan.config.enable_thinking
        self._uncertain = not thinking and render(plan.chat, True) == render(plan.chat, False)
        self._live = {trace_id: self._new_trace() for trace_id in plan.live}
        self._progress = ProgressText() if plan.rsa else None

    @property
    def answered(self) -> bool:
        """Whether a part of an answer was sent."""
        return any(trace.answered for trace in self._live.values())

    def event(self, event: Event, state: RunState) -> None:
        """Queue the progress text and the end of a streamed trace."""
        if self._progress is not None and (line := self._progress.line(event, state)):
            mode = self._plan.request.rsa_progress or "reasoning"
            if mode == "reasoning":
                self.items.put_nowait(StreamItem(reasoning=line + "\n"))
            elif mode == "comments":
                self.items.put_nowait(StreamItem(comment=line))
        trace_id = getattr(event, "trace_id", None)
        if trace_id not in self._live:
            return
        if isinstance(event, TraceCompleteEvent) and event.finish_reason != "error":
            self._put(trace_id, *self._live[trace_id].end())
        elif isinstance(event, TraceRetryEvent) and event.purpose == "trace":
            if self._live[trace_id].answered:
                message = "The engine failed in the middle of the answer, which cannot be taken back. Send it again."
                self.items.put_nowait(RequestError(502, message, BackendError.kind))
            self._live[trace_id] = self._new_trace()

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        """Queue the text of new tokens of a streamed trace."""
        if trace_id in self._live:
            self._put(trace_id, *self._live[trace_id].add(ids))

    def _new_trace(self) -> LiveTrace:
        return LiveTrace(self._tokenizer, self._plan.config.enable_thinking, self._uncertain)

    def _put(self, trace_id: str, reasoning: str, content: str) -> None:
        if reasoning or content:
            self.items.put_nowait(StreamItem(self._plan.live[trace_id], reasoning, content))


@dataclass
class ChatStream:
    """The chunks of one run, from its first text to its usage."""

    manager: RunManager
    plan: Plan
    run: ActiveRun
    listener: StreamingListener
    _created: int = field(default_factory=lambda: int(time.time()))
    _opened: set[int] = field(default_factory=set)  #: choices whose first delta was sent

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield the chunks and [DONE]. Raise `RequestError` where the run fails or the answer broke off."""
        items = self.listener.items
        self.run.task.add_done_callback(lambda _: items.put_nowait(None))
        while (item := await items.get()) is not None:
            if isinstance(item, RequestError):
                raise item
            if item.comment:
                yield ServerSentEvent(comment=item.comment, sep="\n")
            else:
                yield self._text(item.index, item.reasoning, item.content)
        result = await wait_for_result(self.run)
        completion = CompletionBuilder(self.plan, result, self.manager.engine.tokenizer, self.manager.model_name)
        completion.check()
        if completion.stopped and self.listener.answered:
            raise RequestError(503, "A limit stopped the run in the middle of the answer.", "stopped")
        for index, trace_id in enumerate(completion.choice_ids):
            text = completion.choice_text(trace_id)
            if trace_id not in self.plan.live and (text.reasoning or text.content):
                yield self._text(index, text.reasoning or "", text.content)
            end = ChunkChoice(index=index, delta=self._delta(index), finish_reason=text.finish_reason)
            is_last = index == len(completion.choice_ids) - 1
            yield self._chunk([end], **(completion.extras() if is_last else {}))
        options = self.plan.request.stream_options
        if options is not None and options.include_usage:
            yield self._chunk([], usage=completion.usage())
        yield ServerSentEvent("[DONE]", sep="\n")

    def _text(self, index: int, reasoning: str, content: str) -> ServerSentEvent:
        delta = self._delta(index)
        if reasoning:
            delta.reasoning = delta.reasoning_content = reasoning
        if content:
            delta.content = content
        return self._chunk([ChunkChoice(index=index, delta=delta, finish_reason=None)])

    def _delta(self, index: int) -> Delta:
        """Return a delta to fill. The first one of a choice names its role."""
        first = index not in self._opened
        self._opened.add(index)
        return Delta(role="assistant") if first else Delta()

    def _chunk(self, choices: list[ChunkChoice], **extras: Any) -> ServerSentEvent:
        chunk = Chunk(
            id=completion_id(self.run.state.run_id),
            object="chat.completion.chunk",
            created=self._created,
            model=self.manager.model_name,
            choices=choices,
            **extras,
        )
        return json_event(chunk.to_json())


@dataclass
class ProgressText:
    """Lines about the rounds of a run: a round starts, traces are done, the current votes."""

    _started: set[int] = field(default_factory=set)
    _last_s: float = 0.0

    def line(self, event: Event, state: RunState) -> str:
        """Return the line for an event that `state` contains already, or ""."""
        if isinstance(event, GenerationStartEvent) and event.round not in self._started:
            self._started.add(event.round)
            traces = dict(state.rounds())[event.round]
            return f"Round {event.round} of {state.config.rounds}: {amount(len(traces), 'trace')}"
        if not isinstance(event, TraceCompleteEvent):
            return ""
        traces = dict(state.rounds())[event.round]
        done, now = sum(trace.status in ENDED for trace in traces), time.monotonic()
        if len(traces) == 1 or (done < len(traces) and now - self._last_s < _PROGRESS_INTERVAL_S):
            return ""
        self._last_s = now
        votes = ", ".join(
            f"{shortened(answer, _MAX_ANSWER_CHARACTERS)} ({count})"
            for answer, count in state.tally(traces)[:_MAX_ANSWERS]
        )
        return f"Round {event.round}: {done} of {amount(len(traces), 'trace')} done" + (votes and f"; votes: {votes}")

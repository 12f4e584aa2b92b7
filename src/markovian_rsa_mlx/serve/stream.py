"""Turn the events and tokens of a run in progress into text for a stream.

A trace that is certain to become a choice is streamed while it is generated. The progress of the rounds is sent as
reasoning, as comments or not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..audit import RunState
from ..audit.events import Event, GenerationStartEvent, TraceCompleteEvent, TraceRetryEvent
from ..audit.state import ENDED
from ..errors import BackendError
from ..formatting import amount, shortened
from ..method.prompts import chat_frame
from ..tokenizer import Tokenizer
from ..tools import Tools, show_marks
from .errors import RequestError
from .incremental_text import LiveTrace
from .plan import Plan

#: Minimum time between two progress lines about one round.
_PROGRESS_INTERVAL_S = 0.5
_MAX_ANSWERS, _MAX_ANSWER_CHARACTERS = 5, 80


@dataclass(frozen=True)
class StreamItem:
    """Text of one choice, or a comment. `content` has tool calls as the model writes them.

    If `undivided`, it is the whole answer, of a trace that was given out as reasoning before.
    """

    index: int = 0
    reasoning: str = ""
    content: str = ""
    comment: str = ""
    undivided: bool = False


class StreamingListener:
    """Turns the events and tokens of a run into stream items. Its methods run on the event loop's thread."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, tools: Tools | None = None) -> None:
        self.items: asyncio.Queue[StreamItem | RequestError | None] = asyncio.Queue()  #: None: the run has ended
        self._plan, self._new_trace = plan, live_traces(plan, tokenizer, tools)
        self._live = {trace_id: self._new_trace() for trace_id in plan.live}
        self._progress = ProgressText() if plan.rsa else None

    @property
    def answered(self) -> bool:
        """Whether a part of an answer was sent."""
        return any(trace.answered for trace in self._live.values())

    def event(self, event: Event, state: RunState) -> None:
        """Queue the progress text and the end of a streamed trace. `state` contains the event already."""
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
            self._put(trace_id, *self._live[trace_id].end(finished=event.finish_reason == "eos"))
        elif isinstance(event, TraceRetryEvent) and event.purpose == "trace":
            if self._live[trace_id].answered:
                message = "The engine failed in the middle of the answer, which cannot be taken back. Send it again."
                self.items.put_nowait(RequestError(502, message, BackendError.kind))
            self._live[trace_id] = self._new_trace()

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        """Queue the text of new tokens of a streamed trace."""
        if trace_id in self._live:
            self._put(trace_id, *self._live[trace_id].add(ids))

    def _put(self, trace_id: str, reasoning: str, content: str) -> None:
        if reasoning or content:
            undivided = self._live[trace_id].undivided
            self.items.put_nowait(StreamItem(self._plan.live[trace_id], reasoning, content, undivided=undivided))


def live_traces(plan: Plan, tokenizer: Tokenizer, tools: Tools | None = None) -> Callable[[], LiveTrace]:
    """Return what makes the live text of a new trace of a plan. With `tools`, it shows the marks around calls."""
    chat, thinking = plan.chat, plan.config.enable_thinking
    marks = tokenizer.find_marks(plan.config.thinking_marks)
    decode = show_marks(tokenizer.decode, tools.form.tokens) if tools else tokenizer.decode
    suffix = chat_frame(tokenizer, chat.messages, enable_thinking=thinking, tools=chat.tools).suffix if marks else ""
    return lambda: LiveTrace(decode, marks, suffix=suffix, thinking=thinking)


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

"""One trace inside the engine, and the delivery of its progress to the event loop that awaits it.

The worker thread fills a sequence with tokens. Its future and its listener are touched on their event loop alone. One
call into a loop delivers the progress of all its sequences.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from ...confidence import Confidence, ConfidenceMeter
from ..base import (
    DecodingCounts,
    GenerationListener,
    GenerationRequest,
    GenerationResult,
    LogProbListener,
    TokenLogProbs,
)
from .answer_grammar import AnswerGrammar
from .prefix_cache import ADAPTER_MARK, Prefill

#: Progress is sent after this many steps or seconds, whichever comes first, and when a trace ends.
FLUSH_STEPS = 16
FLUSH_SECONDS = 0.1


@dataclass(eq=False)
class Sequence:
    """One trace from its request to its result.

    `tokens` are all its generated ids, those of the request included, and the first `reported` of them are sent.
    While its prompt is read it has a `prefill`. From then until it joins the batch, `caches` hold all its ids but the
    last. `position` counts generated tokens and selects the random numbers of the next draw. It runs ahead of `tokens`
    by the step that is under way. `closes_thinking` becomes True when the batch puts the closing ids of the request's
    `thinking_limit` in the place of draws. `grammar` follows the ids of a request with an `answer_schema`.
    `logprobs` has the values of the ids after those of the request, if it asks for them. `confidence` measures all
    drawn ids if the request wants it. Those of the request are measured while they are read.
    """

    request: GenerationRequest
    eos_ids: frozenset[int]
    listener: GenerationListener
    future: asyncio.Future[GenerationResult]
    tokens: list[int] = field(init=False)
    reported: int = field(init=False)
    position: int = field(init=False)
    started: bool = False
    closes_thinking: bool = False
    grammar: AnswerGrammar | None = None
    logprobs: list[TokenLogProbs] = field(default_factory=list)
    confidence: ConfidenceMeter | None = None
    steps: int = 0
    drafted: int = 0
    prefill: Prefill | None = None
    caches: list[Any] | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.generated_ids)
        self.reported = self.position = len(self.tokens)

    @property
    def context(self) -> tuple[int, ...]:
        """The ids that the model must have seen before the next token."""
        return (*self.request.prompt_token_ids, *self.tokens)

    @property
    def prefix_key(self) -> tuple[int, ...]:
        """`context` as a key of stored prefixes, which the adapter keeps apart: it begins with the mark if it is on."""
        return (ADAPTER_MARK, *self.context) if self.request.adapter else self.context

    @property
    def final_length(self) -> int:
        """The largest possible length, prompt included."""
        return len(self.request.prompt_token_ids) + self.request.max_tokens

    @property
    def decodes_singly(self) -> bool:
        """Whether each of its draws needs the id before it on this side, so that no ids can be guessed ahead."""
        return self.request.answer_schema is not None or self.request.top_logprobs is not None

    @property
    def has_new_tokens(self) -> bool:
        """Whether it has generated a token since the request."""
        return len(self.tokens) > len(self.request.generated_ids)

    @property
    def failure(self) -> str:
        """The reason why the trace cannot continue, or ""."""
        return self.grammar.error if self.grammar is not None and self.finish_reason is None else ""

    @property
    def finish_reason(self) -> Literal["eos", "max_tokens"] | None:
        """Why the trace is complete, or None. An EOS takes precedence over the limit."""
        if self.tokens and self.tokens[-1] in self.eos_ids:
            return "eos"
        return "max_tokens" if len(self.tokens) >= self.request.max_tokens else None

    @property
    def decoding_counts(self) -> DecodingCounts:
        """The steps and guesses since the request. A step gives one token and the right guesses before it."""
        new = len(self.tokens) - len(self.request.generated_ids)
        return DecodingCounts(self.steps, self.drafted, new - self.steps)

    @property
    def score_from(self) -> int | None:
        """The position in `context` from which on log-probabilities are measured while it is read, None for none.

        They are those of the request's own `generated_ids`, of which the engine knows the ids alone.
        """
        wanted = self.request.wants_confidence and self.confidence is None and self.tokens
        return len(self.request.prompt_token_ids) if wanted else None

    def measure(self, logprobs: Iterable[float]) -> None:
        """Take the log-probabilities of all tokens so far, which are those of the request."""
        self.confidence, limit, closing = ConfidenceMeter(), self.request.thinking_limit, range(0)
        if limit is not None and len(self.tokens) > limit.position and limit.is_open(self.tokens[: limit.position]):
            closing = range(limit.position, limit.position + len(limit.closing_ids))
        for index, logprob in enumerate(logprobs):
            if index not in closing:
                self.confidence.add(logprob)

    @property
    def whole_confidence(self) -> Confidence | None:
        """The confidence of the tokens so far, None unless it is wanted."""
        return None if self.confidence is None else self.confidence.result

    def _is_closing(self, index: int) -> bool:
        """Return whether the token at this index is a closing id, which was not drawn."""
        limit = self.request.thinking_limit
        return limit is not None and self.closes_thinking and 0 <= index - limit.position < len(limit.closing_ids)

    def extend(self, tokens: Iterable[int], logprobs: Iterable[float]) -> Literal["eos", "max_tokens"] | None:
        """Append the tokens of one step up to the end of the trace, and return the reason if it ends there.

        `logprobs` are their log-probabilities, which count if the request wants its confidence.
        """
        self.steps += 1
        if self.request.wants_confidence and self.confidence is None:
            self.confidence = ConfidenceMeter()
        for token, logprob in zip(tokens, logprobs, strict=True):
            if self.confidence is not None and not self._is_closing(len(self.tokens)):
                self.confidence.add(logprob)
            self.tokens.append(token)
            if (reason := self.finish_reason) is not None:
                return reason
        return None


class ProgressDispatcher:
    """Collect the progress of sequences on the worker thread and send it to their event loops."""

    def __init__(self) -> None:
        self._pending: dict[asyncio.AbstractEventLoop, list[tuple[Sequence, Callable[[], None]]]] = {}
        self._steps, self._flushed_at = 0, time.monotonic()
        self._urgent = False

    def started(self, sequence: Sequence) -> None:
        if not sequence.started:  # a sequence that starts over after a failure was announced before
            sequence.started = True
            self._add(sequence, sequence.listener.started)

    def first_token(self, sequence: Sequence) -> None:
        """Send the first token of a chat without delay."""
        self._add_tokens(sequence)
        self._urgent = True

    def finished(self, sequence: Sequence) -> None:
        reason = sequence.finish_reason
        assert reason is not None
        result = GenerationResult(tuple(sequence.tokens), reason, sequence.decoding_counts, sequence.whole_confidence)
        self._end(sequence, lambda: sequence.future.set_result(result))

    def failed(self, sequence: Sequence, error: Exception) -> None:
        self._end(sequence, lambda: sequence.future.set_exception(error))

    def flush_if_due(self, decoding: Iterable[Sequence]) -> list[Sequence]:
        """Call after each step. Return as `flush` does."""
        self._steps += 1
        if self._steps >= FLUSH_STEPS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            for sequence in decoding:
                self._add_tokens(sequence)
        elif not self._urgent:
            return []
        return self.flush()

    def flush(self) -> list[Sequence]:
        """Send what is pending. Return the sequences whose event loop is closed, so that nothing can await them."""
        self._steps, self._flushed_at, self._urgent = 0, time.monotonic(), False
        pending, self._pending = self._pending, {}
        orphans = []
        for loop, calls in pending.items():
            try:
                loop.call_soon_threadsafe(_dispatch, calls)
            except RuntimeError:
                orphans += [sequence for sequence, _ in calls]
        return orphans

    def _end(self, sequence: Sequence, call: Callable[[], None]) -> None:
        self._add_tokens(sequence)
        self._add(sequence, call)
        self._urgent = True

    def _add_tokens(self, sequence: Sequence) -> None:
        limit = sequence.request.thinking_limit
        if limit is not None and sequence.closes_thinking and sequence.reported <= limit.position:
            self._add_tokens_up_to(sequence, limit.position)
            end = limit.position + len(limit.closing_ids)
            if len(sequence.tokens) < end:  # the closing ids are sent together
                return
            self._add_logprobs(sequence, end)
            self._add(sequence, lambda: sequence.listener.thinking_closed(limit.closing_ids))
            sequence.reported = end
        self._add_tokens_up_to(sequence, len(sequence.tokens))

    def _add_tokens_up_to(self, sequence: Sequence, end: int) -> None:
        ids = tuple(sequence.tokens[sequence.reported : end])
        self._add_logprobs(sequence, end)
        sequence.reported += len(ids)
        if ids:
            self._add(sequence, lambda: sequence.listener.tokens(ids))

    def _add_logprobs(self, sequence: Sequence, end: int) -> None:
        """Send the values of the ids that are reported next, up to `end`."""
        before = len(sequence.request.generated_ids)
        values = tuple(sequence.logprobs[sequence.reported - before : end - before])
        if values:
            listener = cast(LogProbListener, sequence.listener)
            self._add(sequence, lambda: listener.log_probabilities(values))

    def _add(self, sequence: Sequence, call: Callable[[], None]) -> None:
        self._pending.setdefault(sequence.future.get_loop(), []).append((sequence, call))


def _dispatch(calls: list[tuple[Sequence, Callable[[], None]]]) -> None:
    for sequence, call in calls:
        if sequence.future.done():
            continue
        try:
            call()
        except Exception as error:  # an error of a listener, such as a full disk, belongs to the trace's caller
            sequence.future.set_exception(error)

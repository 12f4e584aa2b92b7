"""Decode a batch of sequences: join, step, leave; draw the next tokens.

A step is one model call and one draw for all rows. It runs one token ahead of what it returns, so that the device works
while the scheduler looks at the last tokens. A step that checks guessed tokens (`speculation`) draws at several
positions of each row and waits for the draws. Sequences that join or leave do not change the tokens of the others, up
to rounding. The random numbers of a sequence are a pure function of (seed, position), the two words of a Threefry key.
Therefore a sequence draws the same noise alone or in a batch, and a resumed one continues where it stopped. No global
random state is read or changed. Closing ids (`ThinkingLimit`) replace draws of their row and leave the others alone,
and so does the grammar of a row (`AnswerSchema`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from ..policy import MAX_POSITIONS
from .adapter import adapter_on
from .distribution import DrawnLogProbs, log_softmax
from .logprobs import StepLogProbs
from .ragged_cache import are_ragged, ragged
from .sampling import draw_tokens
from .sequence import Sequence
from .speculation import Draft, Speculator

#: Steps between two evaluations of the caches' bookkeeping arrays, whose lazy graph would otherwise grow forever.
HOUSEKEEPING_STEPS = 256


class Drawn(NamedTuple):
    """The new tokens of a row, with their log-probabilities if a row of the batch wants its confidence, else zeros."""

    sequence: Sequence
    tokens: list[int]
    logprobs: list[float]


class DecodeBatch:
    """The sequences that decode together. If `batchable` is False, caches cannot be merged and there is one row.

    With a `speculator`, tokens are guessed and checked where that is faster. It changes no token.
    """

    def __init__(self, model: Any, *, batchable: bool, speculator: Speculator | None = None) -> None:
        self._model, self._batchable, self._speculator = model, batchable, speculator
        self._rows: list[Sequence] = []
        self._joining: list[Sequence] = []
        self._caches: list[Any] = []
        self._next: mx.array | None = None
        self._logprobs: DrawnLogProbs | None = None  # of `_next` while it is ahead
        self._is_ahead = False  # whether `_next` are tokens that were not returned yet
        self._values: StepLogProbs | None = None  # of the step under way
        self._steps = 0
        self._begun = 0.0  # the start of the last plain step
        self._clock: float | None = None  # the end of the call before, if its step was like all others

    @property
    def sequences(self) -> list[Sequence]:
        """The rows in order, and those that join with the next step."""
        return [*self._rows, *self._joining]

    @property
    def _wants_confidence(self) -> bool:
        return any(row.request.wants_confidence for row in self._rows)

    @property
    def cache_bytes(self) -> int:
        """The size of the rows' caches."""
        return sum(cache.nbytes for cache in self._caches)

    def join(self, sequences: list[Sequence]) -> None:
        """Add sequences whose caches hold all their ids but the last. They take part from the next step on."""
        if not self._batchable and len(self._rows) + len(self._joining) + len(sequences) > 1:
            raise ValueError("caches that cannot be merged decode one row at a time")
        for sequence in sequences:
            sequence.position = len(sequence.tokens)
            if sequence.grammar is not None:
                sequence.grammar.restart(sequence.tokens)
            del sequence.logprobs[len(sequence.tokens) - len(sequence.request.generated_ids) :]
        self._joining += sequences

    def leave(self, sequences: list[Sequence]) -> None:
        """Remove sequences. A token that is under way for them is discarded."""
        self._joining = [sequence for sequence in self._joining if sequence not in sequences]
        keep = [index for index, row in enumerate(self._rows) if row not in sequences]
        if len(keep) == len(self._rows):
            return
        self._keep_texts([row for row in self._rows if row in sequences])
        if not keep:
            self._free_rows()
        else:
            assert self._next is not None
            self._rows = [self._rows[index] for index in keep]
            self._next = self._next[mx.array(keep)]
            if self._logprobs is not None:
                self._logprobs.keep(keep)
            for cache in self._caches:
                cache.filter(keep)
        self._clock = None

    def clear(self) -> None:
        """Remove all sequences and free their caches."""
        for sequence in self._joining:
            sequence.caches = None
        self._keep_texts(self._rows)
        self._joining = []
        self._free_rows()

    def step(self, max_positions: int = MAX_POSITIONS) -> list[Drawn]:
        """Make a step for all rows, and return the new tokens of rows, in order.

        They are those of the step before, while this one is under way. A step that checks guesses returns its own: one
        token and all right guesses. `max_positions` bounds the logits of such a step. Sequences may end before the
        last token returned for them.
        """
        speculator = self._speculator
        if speculator is not None and max_positions and self._can_guess():
            if self._is_ahead:
                if speculator.is_worth_waiting(self._rows, max_positions):
                    return self._wait()
            else:
                start = time.perf_counter()
                width, drafts = speculator.drafts(self._rows, max_positions)
                if width > 1:
                    checked = self._check(width, drafts)
                    speculator.times.add(len(drafts), width, time.perf_counter() - start)
                    return checked
        return self._run_ahead()

    def _run_ahead(self) -> list[Drawn]:
        """Start a step for all rows, and return the tokens of the step before for the rows that took part in it."""
        start = self._begun = time.perf_counter()
        before, tokens, logprobs = (self._rows, self._next, self._logprobs) if self._is_ahead else ([], None, None)
        if self._joining:
            self._merge_joining()
        if self._rows:
            assert self._next is not None
            logits = self._logits(self._next[:, None])[:, -1, :]
            wants_logprobs = any(row.request.top_logprobs is not None for row in self._rows)
            values = StepLogProbs(log_softmax(logits), self._rows) if wants_logprobs else None
            self._next = draw_tokens(self._bind_answers(logits, tokens), self._rows)
            self._logprobs = DrawnLogProbs(logits, self._next) if self._wants_confidence else None
            mx.async_eval(self._next, *([] if self._logprobs is None else [self._logprobs.array]))  # type: ignore[no-untyped-call]
            self._close_thinking(tokens)
            self._deliver_logprobs(values)
            for row in self._rows:
                row.position += 1
            self._is_ahead = True
            self._count_step()
        drawn = _drawn(before, tokens, logprobs)
        self._measure(start, len(drawn))
        return drawn

    def _logits(self, ids: mx.array) -> mx.array:
        """Return the logits [B, L, V] after ids [B, L], with the adapter in the rows that use it."""
        with adapter_on(self._model, [bool(row.request.adapter) for row in self._rows]):
            logits: mx.array = self._model(ids, cache=self._caches).astype(mx.float32)
        return logits

    def _wait(self) -> list[Drawn]:
        """Return the tokens that are under way without a further step."""
        assert self._next is not None
        self._is_ahead, self._clock = False, None
        logprobs, self._logprobs = self._logprobs, None
        return _drawn(self._rows, self._next, logprobs)

    def _check(self, width: int, drafts: list[Draft]) -> list[Drawn]:
        """Draw at `width` positions of each row, and return the right guesses and the draw that follows them."""
        assert self._speculator is not None
        rows = self._rows
        ids = [[row.tokens[-1], *draft.ids] for row, draft in zip(rows, drafts, strict=True)]
        padded = mx.array([known + [0] * (width - len(known)) for known in ids])
        logits = self._logits(padded)
        chosen = draw_tokens(logits, rows)
        values = DrawnLogProbs(logits.flatten(0, 1), chosen.flatten()) if self._wants_confidence else None
        mx.eval(chosen, *([] if values is None else [values.array]))
        draws = cast(list[list[int]], chosen.tolist())
        chances = [0.0] * chosen.size if values is None else values.read(list(itertools.chain(*draws)))
        right = [_equal_beginning(draft.ids, drawn) for draft, drawn in zip(drafts, draws, strict=True)]
        self._take_back([width - 1 - count for count in right])
        self._next = mx.array([drawn[count] for drawn, count in zip(draws, right, strict=True)], dtype=mx.uint32)
        for row, draft, count in zip(rows, drafts, right, strict=True):
            row.position += count
            row.drafted += len(draft.ids)
            self._speculator.checked(row, draft, count)
        self._close_thinking(None)
        for row in rows:
            row.position += 1
        self._count_step()
        last, starts = cast(list[int], self._next.tolist()), range(0, chosen.size, width)
        return [
            Drawn(row, [*draft.ids[:count], token], chances[start : start + count + 1])
            for row, draft, count, token, start in zip(rows, drafts, right, last, starts, strict=True)
        ]

    def _can_guess(self) -> bool:
        """Whether rows decode that need no more than their own tokens, and their caches can take tokens back."""
        return (
            bool(self._rows)
            and not self._joining
            and not any(row.decodes_singly for row in self._rows)
            and are_ragged(self._caches)
        )

    def _keep_texts(self, leaving: list[Sequence]) -> None:
        """Keep what rows have written as a source of guesses for their siblings."""
        if self._speculator is not None and are_ragged(self._caches):
            self._speculator.leave(leaving)

    def _take_back(self, counts: list[int]) -> None:
        if any(counts):
            for cache in self._caches:
                cache.take_back(counts)

    def _measure(self, start: float, rows: int) -> None:
        """Record the time since the call before, if both were plain steps of the same rows with nothing in between."""
        now = time.perf_counter()
        if self._speculator is not None and rows == len(self._rows) > 0 and self._clock is not None:
            seconds = now - self._clock
            if start - self._clock < 0.1 * seconds:
                self._speculator.times.add(rows, 1, seconds)
        self._clock = now if rows == len(self._rows) else None

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps % HOUSEKEEPING_STEPS == 0:
            mx.eval([array for cache in self._caches for array in bookkeeping_arrays(cache)])
            mx.clear_cache()

    def _free_rows(self) -> None:
        self._rows, self._caches, self._next, self._logprobs = [], [], None, None
        self._is_ahead, self._clock, self._values = False, None, None

    def settle(self) -> None:
        """Wait for the step that is under way, and record its time. Nothing may run ahead of it."""
        if self._next is None:
            return
        mx.eval(self._next)
        if self._speculator is not None and self._is_ahead and self._clock is not None:
            self._speculator.times.add(len(self._rows), 1, time.perf_counter() - self._begun)

    def _bind_answers(self, logits: mx.array, under_way: mx.array | None) -> mx.array:
        """Exclude the ids that the grammars of rows do not allow. The other rows keep their logits, [B, V], bit by bit.

        `under_way` are the tokens of the step before. The model runs while the grammars read those of their rows.
        """
        bound = [(index, row, row.grammar) for index, row in enumerate(self._rows) if row.grammar is not None]
        if not bound:
            return logits
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        drawn = cast(list[int], under_way.tolist()) if under_way is not None else []
        for index, row, grammar in bound:
            for token in row.tokens[grammar.count :]:
                grammar.accept(token)
            if grammar.count < row.position:
                grammar.accept(drawn[index])
        allowed = mx.array(np.stack([grammar.allowed(logits.shape[-1]) for _, _, grammar in bound]))
        rows = mx.array([index for index, _, _ in bound])
        logits = mx.array(logits)  # the given ones stay those of the model
        logits[rows] = mx.where(allowed, logits[rows], -mx.inf)
        return logits

    def _deliver_logprobs(self, values: StepLogProbs | None) -> None:
        """Give the values of the step before to their rows, and keep those of the new step."""
        assert self._next is not None
        if self._values is not None:
            self._values.deliver()
        if values is not None:
            values.draw(self._next)
        self._values = values

    def _close_thinking(self, under_way: mx.array | None) -> None:
        """Put closing ids in the place of the draws of rows whose thinking is still open at their limit.

        A row's `position` is that of its draw. `under_way` are the tokens of the step before. Only a row at its limit
        waits for its own, once.
        """
        assert self._next is not None
        for index, row in enumerate(self._rows):
            limit = row.request.thinking_limit
            if limit is None or not 0 <= (offset := row.position - limit.position) < len(limit.closing_ids):
                continue
            if offset == 0 and not row.closes_thinking:
                ids = list(row.tokens)
                if len(ids) < row.position:
                    assert under_way is not None
                    ids.append(cast(int, under_way[index].item()))
                row.closes_thinking = ids[-1] not in row.eos_ids and limit.is_open(ids)
            if row.closes_thinking:
                self._next[index] = limit.closing_ids[offset]

    def _merge_joining(self) -> None:
        joining = [sequence.caches for sequence in self._joining]
        last = mx.array([sequence.context[-1] for sequence in self._joining])
        if self._batchable:
            caches = [layer[0].merge(list(layer)) for layer in zip(*cast(list[list[Any]], joining), strict=True)]
            if self._speculator is not None:
                caches = ragged(caches)
        else:
            caches = cast(list[Any], joining[0])
        if self._next is None:
            self._caches, self._next = caches, last
        else:
            for ours, theirs in zip(self._caches, caches, strict=True):
                ours.extend(theirs)
            self._next = mx.concatenate([self._next, last])
        for sequence in self._joining:
            sequence.caches = None
        self._rows, self._joining = self.sequences, []


def bookkeeping_arrays(cache: Any) -> Iterator[mx.array]:
    """Yield the offsets, paddings and lengths of a cache: all its arrays of at most one axis."""
    for value in vars(cache).values():
        if isinstance(value, mx.array) and value.ndim <= 1:
            yield value
        elif isinstance(value, (list, tuple)) and not isinstance(value, mx.array):
            for part in value:
                if hasattr(part, "__dict__") and not isinstance(part, mx.array):
                    yield from bookkeeping_arrays(part)


def _equal_beginning(guessed: tuple[int, ...], drawn: list[int]) -> int:
    """Return how many of the guessed tokens are drawn, up to the first that is not."""
    return next((index for index, token in enumerate(guessed) if token != drawn[index]), len(guessed))


def _drawn(rows: list[Sequence], tokens: mx.array | None, logprobs: DrawnLogProbs | None) -> list[Drawn]:
    """Return the tokens of a step that is no longer under way, for its rows."""
    if tokens is None:
        return []
    ids = cast(list[int], tokens.tolist())
    values = [0.0] * len(rows) if logprobs is None else logprobs.read(ids)
    return [Drawn(row, [token], [value]) for row, token, value in zip(rows, ids, values, strict=True)]

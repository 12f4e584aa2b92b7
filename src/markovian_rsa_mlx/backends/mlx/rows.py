"""The rows that decode together: join, step, leave.

A step is one model call for all rows and one draw; it runs one token ahead of what it returns, so the
device works while the loop looks at the last tokens. Rows joining and leaving change no other row's tokens
(up to rounding, see `sampler`). Knows mlx-lm's caches; knows nothing of queues, threads or text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from ...config import Sampling
from .sampler import Draw, draw_tokens

#: Steps between two evaluations of the caches' small arrays, which else grow an endless lazy graph.
HOUSEKEEPING_STEPS = 256


@dataclass(frozen=True)
class Row:
    """A prefilled trace that is ready to decode: the caches hold all its tokens but the last."""

    key: int
    caches: list[Any]
    last_token: int
    position: int
    seed: int
    sampling: Sampling


@dataclass
class _Seat:
    """What is kept of a row in the batch: not its caches, which live on in the batch's."""

    key: int
    position: int
    seed: int
    sampling: Sampling


class DecodeRows:
    """The batch. `batchable` False: the model's caches cannot be merged, and there is one row at a time."""

    def __init__(self, model: Any, *, batchable: bool) -> None:
        self._model, self._batchable = model, batchable
        self._seats: list[_Seat] = []
        self._caches: list[Any] = []
        self._next: mx.array | None = None
        self._joining: list[Row] = []
        self._steps = 0

    def __len__(self) -> int:
        return len(self._seats) + len(self._joining)

    def join(self, rows: Sequence[Row]) -> None:
        """Take these rows in with the next step."""
        if not self._batchable and len(self) + len(rows) > 1:
            raise ValueError("caches that cannot be merged decode one row at a time")
        self._joining.extend(rows)

    def leave(self, keys: Sequence[int]) -> None:
        """Drop these rows; a step that is under way for them is thrown away."""
        gone = set(keys)
        self._joining = [row for row in self._joining if row.key not in gone]
        keep = [index for index, seat in enumerate(self._seats) if seat.key not in gone]
        if len(keep) < len(self._seats):
            self._keep(keep)

    def clear(self) -> None:
        """Drop all rows and their caches."""
        self._seats, self._caches, self._joining, self._next = [], [], [], None

    def step(self) -> list[tuple[int, int]]:
        """Decode one step; returns (key, token) of the rows that had a token under way."""
        before, tokens = [seat.key for seat in self._seats], self._next
        self._take_joining()
        if self._seats:
            self._start_step()
        drawn = [] if tokens is None else cast(list[int], tokens.tolist())
        return list(zip(before, drawn, strict=True))

    def _start_step(self) -> None:
        assert self._next is not None
        logits = self._model(self._next[:, None], cache=self._caches)[:, -1, :].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        self._next = draw_tokens(logprobs, [Draw(seat.seed, seat.position, seat.sampling) for seat in self._seats])
        for seat in self._seats:
            seat.position += 1
        mx.async_eval(self._next)  # type: ignore[no-untyped-call]
        self._steps += 1
        if self._steps % HOUSEKEEPING_STEPS == 0:
            mx.eval([array for cache in self._caches for array in small_arrays(cache)])
            mx.clear_cache()

    def _take_joining(self) -> None:
        if not self._joining:
            return
        rows, self._joining = self._joining, []
        last = mx.array([row.last_token for row in rows])
        if not self._batchable:
            caches = rows[0].caches
        else:
            caches = [layer[0].merge(list(layer)) for layer in zip(*(row.caches for row in rows), strict=True)]
        if self._next is None:
            self._caches, self._next = caches, last
        else:
            for ours, theirs in zip(self._caches, caches, strict=True):
                ours.extend(theirs)
            self._next = mx.concatenate([self._next, last])
        self._seats += [_Seat(row.key, row.position, row.seed, row.sampling) for row in rows]

    def _keep(self, keep: list[int]) -> None:
        if not keep:
            self._seats, self._caches, self._next = [], [], None
            return
        self._seats = [self._seats[index] for index in keep]
        assert self._next is not None
        self._next = self._next[mx.array(keep)]
        for cache in self._caches:
            cache.filter(keep)


def small_arrays(cache: Any) -> Iterator[mx.array]:
    """The bookkeeping arrays of a cache (offsets, paddings, lengths): all its arrays of at most one axis."""
    for value in vars(cache).values():
        if isinstance(value, mx.array) and value.ndim <= 1:
            yield value
        elif isinstance(value, (list, tuple)) and not isinstance(value, mx.array):
            for part in value:
                if hasattr(part, "__dict__") and not isinstance(part, mx.array):
                    yield from small_arrays(part)

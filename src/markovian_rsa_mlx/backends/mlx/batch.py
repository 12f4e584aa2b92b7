"""The rows that decode together: join, step, leave.

A step is one model call for all rows and one draw; it runs one token ahead of what it returns, so the
device works while the loop looks at the last tokens. Rows joining and leaving change no other row's tokens
(up to rounding, see `sampler`). Knows mlx-lm's caches; knows nothing of queues, threads or text.

How the next token of each row is drawn.

The random stream of a trace is a pure function of (seed, position): the two words of a Threefry key. So
a trace draws the same noise alone or among others, and a resumed trace goes on where it stopped. No
global random state is read or changed.

The chance of given tokens under a model and a sampling: one prefill pass. Tells a clone from an accident.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling

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


class DecodeBatch:
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
            mx.eval([array for cache in self._caches for array in bookkeeping_arrays(cache)])
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


def bookkeeping_arrays(cache: Any) -> Iterator[mx.array]:
    """The bookkeeping arrays of a cache (offsets, paddings, lengths): all its arrays of at most one axis."""
    for value in vars(cache).values():
        if isinstance(value, mx.array) and value.ndim <= 1:
            yield value
        elif isinstance(value, (list, tuple)) and not isinstance(value, mx.array):
            for part in value:
                if hasattr(part, "__dict__") and not isinstance(part, mx.array):
                    yield from bookkeeping_arrays(part)


MAX_ENGINE_SEED = 2**32


@dataclass(frozen=True)
class Draw:
    """One row's next draw: the position counts generated tokens, from 0."""

    seed: int
    position: int
    sampling: Sampling


def draw_tokens(logprobs: mx.array, draws: Sequence[Draw]) -> mx.array:
    """One token a row, [b], from log-probabilities [b, V]; row i follows `draws[i]`."""
    groups: dict[Sampling, list[int]] = {}
    for row, draw in enumerate(draws):
        groups.setdefault(draw.sampling, []).append(row)
    if len(groups) == 1:
        return _draw_alike(logprobs, draws)
    # Traces of the final round may have settings of their own and share the batch with earlier rounds.
    parts = [_draw_alike(logprobs[mx.array(rows)], [draws[row] for row in rows]) for rows in groups.values()]
    order = [row for rows in groups.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(parts)[mx.array(back)]


def scaled_logits(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Filtered log-probabilities over the temperature, [b, V]; not normalised. The temperature is above 0."""
    return filter_logprobs(logprobs, sampling) * (1.0 / sampling.temperature)


def filter_logprobs(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """What top-p, min-p and top-k leave, the rest at -inf: in mlx-lm's order, before the temperature."""
    # Not mlx-lm's own functions: they are compiled over the global random state, in and out.
    if 0 < sampling.top_p < 1:
        logprobs = _top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        floor = mx.max(logprobs, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logprobs = mx.where(logprobs < floor, -mx.inf, logprobs)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        logprobs = _top_k(logprobs, sampling.top_k)
    return logprobs


def _draw_alike(logprobs: mx.array, draws: Sequence[Draw]) -> mx.array:
    sampling = draws[0].sampling
    if sampling.temperature == 0:
        return mx.argmax(logprobs, axis=-1)
    keys = mx.array([[draw.seed, draw.position] for draw in draws], dtype=mx.uint32)
    return mx.argmax(scaled_logits(logprobs, sampling) + gumbel(keys, logprobs.shape[-1]), axis=-1)


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Gumbel noise [b, size] for keys [b, 2]; row i depends on key i alone."""

    def one(key: mx.array) -> mx.array:
        return mx.random.gumbel((size,), key=key)

    return mx.vmap(one)(keys)  # bit for bit the rows drawn one by one, several times faster


def _top_p(logprobs: mx.array, top_p: float) -> mx.array:
    ordered = mx.sort(logprobs, axis=-1)
    probabilities = mx.exp(ordered)
    mass_above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = mass_above[..., :1] + probabilities[..., :1]
    dropped = (mass_above >= top_p * total).sum(axis=-1, keepdims=True)
    threshold = mx.take_along_axis(ordered, dropped, axis=-1)
    return mx.where(logprobs < threshold, -mx.inf, logprobs)


def _top_k(logprobs: mx.array, top_k: int) -> mx.array:
    rest = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[..., top_k:]
    return mx.put_along_axis(logprobs, rest, mx.array(-mx.inf, logprobs.dtype), axis=-1)


#: Logits held at once, in elements: a chunk of the trace times the vocabulary.
_LOGITS = 2**24


def sequence_log_probability(model: Any, prompt: Sequence[int], tokens: Sequence[int], sampling: Sampling) -> float:
    """Natural log of the chance to draw exactly `tokens` after `prompt`; temperature 0 gives 0 or -inf."""
    caches = make_prompt_cache(model)
    ids = [*prompt, *tokens]
    total, start, end = 0.0, 0, len(ids) - 1
    chunk = 256
    while start < end:
        stop = min(end, start + chunk)
        logits = model(mx.array([ids[start:stop]]), cache=caches)[0]
        first = max(start, len(prompt) - 1)
        if first < stop:
            chunk = max(1, min(256, _LOGITS // logits.shape[-1]))
            drawn = mx.array(ids[first + 1 : stop + 1])
            total += float(mx.sum(_log_chances(logits[first - start :].astype(mx.float32), drawn, sampling)))
        mx.eval([cache.state for cache in caches])
        start = stop
    return total


def _log_chances(logits: mx.array, drawn: mx.array, sampling: Sampling) -> mx.array:
    if sampling.temperature == 0:
        return mx.where(mx.argmax(logits, axis=-1) == drawn, 0.0, -mx.inf)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    scaled = scaled_logits(logprobs, sampling)
    chances = scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)
    return mx.take_along_axis(chances, drawn[:, None], axis=-1)[:, 0]

"""Decode a batch of sequences: join, step, leave; draw the next tokens; score given tokens.

A step is one model call and one draw for all rows. It runs one token ahead of what it returns, so that the device works
while the scheduler looks at the last tokens. Sequences that join or leave do not change the tokens of the others, up to
rounding. The random numbers of a sequence are a pure function of (seed, position), the two words of a Threefry key.
Therefore a sequence draws the same noise alone or in a batch, and a resumed one continues where it stopped. No global
random state is read or changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...config import Sampling
from .sequence import Sequence

#: Seeds that an engine accepts are below this: a word of the key has 32 bits.
MAX_ENGINE_SEED = 2**32
#: Steps between two evaluations of the caches' bookkeeping arrays, whose lazy graph would otherwise grow forever.
HOUSEKEEPING_STEPS = 256
#: Logits computed at the same time while scoring, in elements: tokens of a chunk times the vocabulary.
_MAX_LOGITS = 2**24


class DecodeBatch:
    """The sequences that decode together. If `batchable` is False, caches cannot be merged and there is one row."""

    def __init__(self, model: Any, *, batchable: bool) -> None:
        self._model, self._batchable = model, batchable
        self._rows: list[Sequence] = []
        self._joining: list[Sequence] = []
        self._caches: list[Any] = []
        self._next: mx.array | None = None
        self._steps = 0

    @property
    def sequences(self) -> list[Sequence]:
        """The rows in order, and those that join with the next step."""
        return [*self._rows, *self._joining]

    def join(self, sequences: list[Sequence]) -> None:
        """Add sequences whose caches hold all their ids but the last. They take part from the next step on."""
        if not self._batchable and len(self._rows) + len(self._joining) + len(sequences) > 1:
            raise ValueError("caches that cannot be merged decode one row at a time")
        for sequence in sequences:
            sequence.position = len(sequence.tokens)
        self._joining += sequences

    def leave(self, sequences: list[Sequence]) -> None:
        """Remove sequences. A token that is under way for them is discarded."""
        self._joining = [sequence for sequence in self._joining if sequence not in sequences]
        keep = [index for index, row in enumerate(self._rows) if row not in sequences]
        if not keep:
            self._rows, self._caches, self._next = [], [], None
        elif len(keep) < len(self._rows):
            assert self._next is not None
            self._rows = [self._rows[index] for index in keep]
            self._next = self._next[mx.array(keep)]
            for cache in self._caches:
                cache.filter(keep)

    def clear(self) -> None:
        """Remove all sequences and free their caches."""
        for sequence in self._joining:
            sequence.caches = None
        self._rows, self._joining, self._caches, self._next = [], [], [], None

    def step(self) -> list[tuple[Sequence, int]]:
        """Start a step for all rows, and return the tokens of the step before for the rows that took part in it."""
        before, tokens = self._rows, self._next
        if self._joining:
            self._merge_joining()
        if self._rows:
            assert self._next is not None
            logits = self._model(self._next[:, None], cache=self._caches)[:, -1, :].astype(mx.float32)
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            self._next = draw_tokens(logprobs, self._rows)
            for row in self._rows:
                row.position += 1
            mx.async_eval(self._next)  # type: ignore[no-untyped-call]
            self._steps += 1
            if self._steps % HOUSEKEEPING_STEPS == 0:
                mx.eval([array for cache in self._caches for array in bookkeeping_arrays(cache)])
                mx.clear_cache()
        drawn = [] if tokens is None else cast(list[int], tokens.tolist())
        return list(zip(before, drawn, strict=True))

    def _merge_joining(self) -> None:
        joining = [sequence.caches for sequence in self._joining]
        last = mx.array([sequence.context[-1] for sequence in self._joining])
        if self._batchable:
            caches = [layer[0].merge(list(layer)) for layer in zip(*cast(list[list[Any]], joining), strict=True)]
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


def draw_tokens(logprobs: mx.array, sequences: list[Sequence]) -> mx.array:
    """Draw one token per row, [B], from log-probabilities [B, V]. Row i follows the request of `sequences[i]`."""
    groups: dict[Sampling, list[int]] = {}
    for row, sequence in enumerate(sequences):
        groups.setdefault(sequence.request.sampling, []).append(row)
    if len(groups) == 1:
        return _draw_alike(logprobs, sequences)
    # Traces of the final round may have their own settings and share the batch with earlier rounds.
    parts = [_draw_alike(logprobs[mx.array(rows)], [sequences[row] for row in rows]) for rows in groups.values()]
    order = [row for rows in groups.values() for row in rows]
    back = sorted(range(len(order)), key=order.__getitem__)
    return mx.concatenate(parts)[mx.array(back)]


def _draw_alike(logprobs: mx.array, sequences: list[Sequence]) -> mx.array:
    sampling = sequences[0].request.sampling
    if sampling.temperature == 0:
        return mx.argmax(logprobs, axis=-1)
    keys = mx.array([[sequence.request.seed, sequence.position] for sequence in sequences], dtype=mx.uint32)
    return mx.argmax(_scaled_logits(logprobs, sampling) + gumbel(keys, logprobs.shape[-1]), axis=-1)


def gumbel(keys: mx.array, size: int) -> mx.array:
    """Return Gumbel noise [B, size] for keys [B, 2]. Row i depends on key i alone."""

    def one(key: mx.array) -> mx.array:
        return mx.random.gumbel((size,), key=key)

    return mx.vmap(one)(keys)  # bit for bit the rows drawn one by one, and several times faster


def _scaled_logits(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Filter, then divide by the temperature, which must be above 0. The result is not normalised."""
    return filter_logprobs(logprobs, sampling) * (1.0 / sampling.temperature)


def filter_logprobs(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Set what top-p, min-p and top-k exclude to -inf, in mlx-lm's order: before the temperature."""
    # Not by mlx-lm's own functions: they are compiled with the global random state as input and output.
    if 0 < sampling.top_p < 1:
        ordered = mx.sort(logprobs, axis=-1)
        probabilities = mx.exp(ordered)
        mass_above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
        total = mass_above[..., :1] + probabilities[..., :1]
        dropped = (mass_above >= sampling.top_p * total).sum(axis=-1, keepdims=True)
        threshold = mx.take_along_axis(ordered, dropped, axis=-1)
        logprobs = mx.where(logprobs < threshold, -mx.inf, logprobs)
    if sampling.min_p > 0:
        floor = mx.max(logprobs, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logprobs = mx.where(logprobs < floor, -mx.inf, logprobs)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        rest = mx.argpartition(-logprobs, kth=sampling.top_k - 1, axis=-1)[..., sampling.top_k :]
        logprobs = mx.put_along_axis(logprobs, rest, mx.array(-mx.inf, logprobs.dtype), axis=-1)
    return logprobs


def sequence_log_probability(model: Any, prompt: tuple[int, ...], tokens: tuple[int, ...], sampling: Sampling) -> float:
    """Return the natural log of the probability to draw exactly `tokens` after `prompt`, by one prefill pass.

    It distinguishes two equal traces by accident from two that share a random stream. Temperature 0 gives 0 or -inf.
    """
    caches = make_prompt_cache(model)
    ids = [*prompt, *tokens]
    total, start, end = 0.0, 0, len(ids) - 1
    chunk = 256
    while start < end:
        stop = min(end, start + chunk)
        logits = model(mx.array([ids[start:stop]]), cache=caches)[0]
        first = max(start, len(prompt) - 1)
        if first < stop:
            chunk = max(1, min(256, _MAX_LOGITS // logits.shape[-1]))
            drawn = mx.array(ids[first + 1 : stop + 1])
            total += float(mx.sum(_log_probabilities(logits[first - start :].astype(mx.float32), drawn, sampling)))
        mx.eval([cache.state for cache in caches])
        start = stop
    return total


def _log_probabilities(logits: mx.array, drawn: mx.array, sampling: Sampling) -> mx.array:
    if sampling.temperature == 0:
        return mx.where(mx.argmax(logits, axis=-1) == drawn, 0.0, -mx.inf)
    scaled = _scaled_logits(logits - mx.logsumexp(logits, axis=-1, keepdims=True), sampling)
    logprobs = scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)
    return mx.take_along_axis(logprobs, drawn[:, None], axis=-1)[:, 0]

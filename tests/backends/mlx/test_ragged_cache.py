"""A ragged cache holds the same tokens as a cache per row."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from markovian_rsa_mlx.backends.mlx.ragged_cache import RaggedKVCache

from .. import tiny_models


def merged(model: Any, rows: list[list[int]]) -> list[RaggedKVCache]:
    caches = []
    for ids in rows:
        cache = make_prompt_cache(model)
        model(mx.array([ids]), cache=cache)
        caches.append(cache)
    return [RaggedKVCache(layer[0].merge(list(layer))) for layer in zip(*caches, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_any_course_of_a_batch_gives_the_logits_of_each_row_alone(seed: int) -> None:
    """Rows append, take back, join and leave, across the steps in which storage grows."""
    model, rng = tiny_models.build("llama"), random.Random(seed)
    rows = [[rng.randrange(300) for _ in range(rng.randint(235, 255))] for _ in range(3)]
    caches, ragged_steps = merged(model, rows), 0
    for step in range(14):
        width = rng.choice([1, 1, 3, 5])
        new = [[rng.randrange(300) for _ in range(width)] for _ in rows]
        ragged_steps += caches[0].is_ragged
        logits = model(mx.array(new), cache=caches)
        for row, (ids, added) in enumerate(zip(rows, new, strict=True)):
            alone = model(mx.array([ids + added]))[0, -width:]
            assert mx.allclose(logits[row], alone, atol=1e-4).item(), (step, row)
        taken = [rng.randrange(width) for _ in rows]
        for cache in caches:
            cache.take_back(taken)
        rows = [[*ids, *added[: width - count]] for ids, added, count in zip(rows, new, taken, strict=True)]
        if step % 5 == 2:
            rows.append([rng.randrange(300) for _ in range(rng.randint(1, 260))])
            for cache, newcomer in zip(caches, merged(model, rows[-1:]), strict=True):
                cache.extend(newcomer)
        if step % 5 == 4:
            keep = sorted(rng.sample(range(len(rows)), len(rows) - 1))
            rows = [rows[index] for index in keep]
            for cache in caches:
                cache.filter(keep)
    assert ragged_steps > 3
    assert caches[0].ends == [len(ids) + int(pad) for ids, pad in zip(rows, caches[0].left_padding, strict=True)]


def test_a_row_that_gains_more_tokens_makes_the_cache_no_longer_than_the_longest_row() -> None:
    model, rng = tiny_models.build("llama"), random.Random(1)
    rows = [[rng.randrange(300) for _ in range(count)] for count in (600, 20)]
    caches = merged(model, rows)
    for _ in range(60):
        new = [[rng.randrange(300) for _ in range(8)] for _ in rows]
        logits = model(mx.array(new), cache=caches)
        for cache in caches:
            cache.take_back([7, 0])
        mx.eval([cache.state for cache in caches])
        rows = [[*rows[0], new[0][0]], [*rows[1], *new[1]]]
        assert caches[0].keys.shape[2] <= len(rows[0]) + 7 + 256  # storage grows by 256
    assert caches[0].ends == [660, 500]
    assert mx.allclose(logits[0, 0], model(mx.array([rows[0]]))[0, -1], atol=1e-4).item()
    assert mx.allclose(logits[1], model(mx.array([rows[1]]))[0, -8:], atol=1e-4).item()


def test_a_window_hides_what_is_too_far_back() -> None:
    model = tiny_models.build("llama")
    caches = merged(model, [[1, 2, 3, 4], [1, 2]])
    model(mx.array([[5], [3]]), cache=caches)  # storage grows, so that the padding of the second row stays
    cache = caches[0]
    cache.take_back([2, 0])
    mask = cache.make_mask(2, window_size=2)
    assert mask[:, 0].astype(mx.int32).tolist() == [
        [[0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]],
        [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]],
    ]


def test_a_token_that_sees_all_positions_needs_no_mask() -> None:
    model = tiny_models.build("llama")
    cache = merged(model, [[1, 2, 3], [4, 5, 6]])[0]
    assert cache.make_mask(1) is None
    assert cache.make_mask(2) is not None  # the first token must not see the second
    assert cache.make_mask(1, return_array=True) is not None
    assert cache.make_mask(1, window_size=2) is not None
    cache.extend(merged(model, [[7]])[0])
    assert cache.make_mask(1)[:, 0, 0].tolist() == [[True] * 4, [True] * 4, [False, False, True, True]]
    cache.filter([0, 1])
    assert cache.make_mask(1) is None
    cache.take_back([1, 0])
    assert cache.make_mask(1)[:, 0, 0].tolist() == [[True, True, True, False], [True] * 4]
    cache.filter([0])
    assert cache.make_mask(1) is None

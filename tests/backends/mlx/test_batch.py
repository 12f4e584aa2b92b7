"""Drawing tokens: seeded Gumbel noise over mlx-lm's filters."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from markovian_rsa_mlx.backends.mlx.sampling import draw_tokens, filter_logits, gumbel
from markovian_rsa_mlx.config import Sampling

from ..traces import sequence


def logprobs(rows: int, size: int, seed: int = 0) -> mx.array:
    logits = 2.5 * mx.random.normal((rows, size), key=mx.random.key(seed))
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_p=0.8),
        Sampling(top_p=0.05),
        Sampling(top_k=7),
        Sampling(min_p=0.1),
        Sampling(top_p=0.9, min_p=0.02, top_k=5),
        Sampling(temperature=0.5, top_p=0.7, top_k=40),
    ],
)
def test_filters_equal_those_of_mlx_lm(sampling: Sampling) -> None:
    given = logprobs(6, 101)
    theirs = given  # in the order of mlx_lm.sample_utils.make_sampler
    if sampling.top_p < 1:
        theirs = apply_top_p(theirs, sampling.top_p)
    if sampling.min_p:
        theirs = apply_min_p(theirs, sampling.min_p)
    if sampling.top_k:
        theirs = apply_top_k(theirs, sampling.top_k)
    ours = filter_logits(given, sampling)
    assert mx.array_equal(ours, theirs).item()
    assert (ours == -mx.inf).any().item()


@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=0.8), Sampling(top_p=0.8, min_p=0.02, top_k=20), Sampling(top_k=7)]
)
def test_a_constant_added_to_a_row_changes_no_filter(sampling: Sampling) -> None:
    given = logprobs(6, 101)
    shifted = filter_logits(given + mx.array([[0.0], [1.0], [-30.0], [90.0], [200.0], [-500.0]]), sampling)
    assert mx.array_equal(mx.isinf(filter_logits(given, sampling)), mx.isinf(shifted)).item()


def test_tokens_as_likely_as_the_last_one_kept_stay() -> None:
    given = mx.array([[3.0, 1.0, 2.0, 2.0, 2.0]])
    assert filter_logits(given, Sampling(top_k=2)).tolist() == [[3.0, -math.inf, 2.0, 2.0, 2.0]]


def test_a_top_k_above_the_vocabulary_filters_nothing() -> None:
    given = logprobs(2, 11)
    assert mx.array_equal(filter_logits(given, Sampling(top_k=500)), given).item()


def test_noise_of_a_row_depends_on_its_key_alone() -> None:
    keys = mx.array([[5, 0], [5, 1], [9, 0]], dtype=mx.uint32)
    together = gumbel(keys, 33)
    for row in range(3):
        alone = mx.random.gumbel((33,), key=keys[row])
        assert mx.array_equal(together[row], alone).item()
    assert not mx.array_equal(together[0], together[1]).item()


def test_frequencies_follow_the_probabilities_at_a_temperature() -> None:
    chances = mx.array([[0.5, 0.3, 0.15, 0.05]])
    temperature, draws = 0.7, 4000
    rows = mx.broadcast_to(mx.log(chances), (draws, 4))
    tokens = draw_tokens(rows, [sequence(3, position, sampling=Sampling(temperature)) for position in range(draws)])
    counts = Counter(tokens.tolist())
    weights = [p ** (1 / temperature) for p in chances[0].tolist()]
    for token, weight in enumerate(weights):
        expected = weight / sum(weights)
        assert counts[token] / draws == pytest.approx(expected, abs=4 * math.sqrt(expected / draws))


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-37, 1e-38, 1e-40, 1e-310, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9, "top_k": 3, "min_p": 0.01}])
def test_a_tiny_temperature_draws_the_likeliest_token(temperature: float, filters: dict[str, Any]) -> None:
    rows = mx.array([[1.0, 2.0, 40.0, 50.0, -3.0], [-9.0, -8.5, -700.0, -8.25, -mx.inf], [0.0, 3e4, 2.5e4, 1.0, 9.0]])
    sampling = Sampling(temperature, **filters)
    assert draw_tokens(rows, [sequence(row, row, sampling=sampling) for row in range(3)]).tolist() == [3, 3, 1]


def test_temperature_zero_draws_the_likeliest_token() -> None:
    given = logprobs(5, 40)
    tokens = draw_tokens(given, [sequence(row, row, sampling=Sampling(temperature=0)) for row in range(5)])
    assert tokens.tolist() == mx.argmax(given, axis=-1).tolist()


def test_mixed_settings_return_tokens_in_row_order() -> None:
    given = logprobs(4, 40)
    rows = [sequence(row, 3, sampling=Sampling(temperature=0 if row % 2 else 1.0)) for row in range(4)]
    one_by_one = [draw_tokens(given[row : row + 1], [rows[row]]).item() for row in range(4)]
    assert draw_tokens(given, rows).tolist() == one_by_one


def test_drawing_does_not_change_the_global_random_state() -> None:
    mx.random.seed(4)
    before = mx.random.state[0].tolist()
    draw_tokens(logprobs(2, 9), [sequence(seed, 1, sampling=Sampling(top_p=0.5)) for seed in (1, 2)])
    assert mx.random.state[0].tolist() == before

"""Several sequences in mlx-lm's own batches and caches, compared with each one alone."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

from markovian_rsa_mlx.models import cca

from .tiny_zaya import BASE
from .zaya_models import NEW_TOKENS, batched, greedy, of_case

CLOSE = 1e-5
LENGTHS = [1, 50, 2, 17, 33, 3, 8, 41, 5]
MODELS = ["skips", "wide-kernels", "sliding", "sliding-wide-odd"]


def prompts() -> list[list[int]]:
    random = np.random.RandomState(3)
    return [random.randint(0, BASE["vocab_size"], length).tolist() for length in LENGTHS]


@cache
def alone(case: str, number: int) -> tuple[list[int], np.ndarray]:
    return greedy(of_case(case), prompts()[number], NEW_TOKENS)


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("step", [2, 3, 4, 2048])
def test_nine_prompts_in_a_batch_equal_each_one_alone(case: str, step: int) -> None:
    model, texts = of_case(case), prompts()
    together = batched(model, [texts[:4], texts[4:6], texts[6:]], step)
    for number, (tokens, logprobs) in enumerate(together):
        expected_tokens, expected = alone(case, number)
        assert tokens == expected_tokens, LENGTHS[number]
        assert np.abs(logprobs - expected).max() < CLOSE, LENGTHS[number]


def test_ignoring_the_lengths_of_the_rows_changes_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: were the state taken from the end of the padded chunk, the test above would fail."""
    taken = cca._last_rows
    monkeypatch.setattr(cca, "_last_rows", lambda joined, rows, lengths: taken(joined, rows, None))
    model, texts = of_case("skips"), prompts()
    together = batched(model, [texts[:4]], 2048)
    worst = [np.abs(logprobs - alone("skips", number)[1]).max() for number, (_, logprobs) in enumerate(together)]
    assert max(worst) > 0.01


@pytest.mark.parametrize("case", MODELS)
def test_rows_with_and_without_a_past_join_and_leave(case: str) -> None:
    """Caches with 6, 0 and 4 tokens of history, merged; then one row leaves and another comes."""
    model, texts = of_case(case), [prompt[:10] for prompt in prompts() if len(prompt) >= 10]
    pasts, rests = [6, 0, 4], texts[:3]
    caches = []
    for past, prompt in zip(pasts, rests, strict=True):
        cache = make_prompt_cache(model)
        if past:
            model(mx.array([prompt[:past]]), cache)
        caches.append(cache)
    generator = BatchGenerator(model, max_tokens=NEW_TOKENS, prefill_step_size=3)
    uids = generator.insert([prompt[past:] for past, prompt in zip(pasts, rests, strict=True)], caches=caches)
    found: dict[int, list[int]] = {uid: [] for uid in uids}
    for step in range(40):
        if step == 5:
            generator.remove([uids[0]])
            uids += generator.insert([texts[3]])
            found[uids[-1]] = []
        for response in generator.next()[1]:
            found[response.uid].append(int(response.token))
    generator.close()
    for uid, prompt in zip(uids, [*rests, texts[3]], strict=True):
        expected = greedy(model, prompt, NEW_TOKENS)[0]
        assert found[uid] == expected[: len(found[uid])]
        assert len(found[uid]) == NEW_TOKENS or uid == uids[0]


@pytest.mark.parametrize("case", MODELS)
def test_a_prefix_is_forked_and_stays_intact(case: str) -> None:
    model, prompt = of_case(case), prompts()[1]
    prefix = make_prompt_cache(model)
    model(mx.array([prompt[:30]]), prefix)
    mx.eval([cache.state for cache in prefix])
    ends = [prompt[30:], [5, 9], [7]]
    for _ in range(2):
        generator = BatchGenerator(model, max_tokens=NEW_TOKENS)
        uids = generator.insert(ends, caches=[copy.deepcopy(prefix) for _ in ends])
        found: dict[int, list[int]] = {uid: [] for uid in uids}
        while any(len(tokens) < NEW_TOKENS for tokens in found.values()):
            for response in generator.next()[1]:
                found[response.uid].append(int(response.token))
        generator.close()
        for uid, end in zip(uids, ends, strict=True):
            assert found[uid] == greedy(model, prompt[:30] + end, NEW_TOKENS)[0]


@pytest.mark.parametrize("case", MODELS)
def test_a_saved_cache_continues_where_it_stopped(case: str, tmp_path: Path) -> None:
    model, prompt = of_case(case), prompts()[1]
    cache = make_prompt_cache(model)
    model(mx.array([prompt[:30]]), cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    again = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    rest = mx.array([prompt[30:]])
    assert np.abs(np.array(model(rest, again)) - np.array(model(rest, cache))).max() == 0

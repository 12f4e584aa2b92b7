"""Guessed tokens are kept exactly when they are the draws, so that guessing changes no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, reasoner
from markovian_rsa_mlx.audit.state import RunState
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest, ThinkingLimit
from markovian_rsa_mlx.backends.mlx import MLXEngine, batch
from markovian_rsa_mlx.backends.mlx.speculation import (
    MAX_MATCH,
    Draft,
    HitRates,
    RunTexts,
    Speculator,
    StepTimes,
    drafts_allowed,
)
from markovian_rsa_mlx.backends.policy import WIDTHS
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.errors import RunStoppedError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.reasoner import puzzles

from .. import tiny_models
from ..traces import PROMPT, request, run, sequence

Ids = tuple[int, ...]


@pytest.fixture
def guessing(engine: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> MLXEngine:
    """An engine that takes every step with guesses for as fast as one without."""
    monkeypatch.setattr(StepTimes, "relative", lambda *_: 1.0)
    return engine


def without_guesses(engine: MLXEngine, requests: Sequence[GenerationRequest]) -> list[Ids]:
    engine.speculate = False
    try:
        return run(engine, requests)
    finally:
        engine.speculate = True


class Oracle:
    """Guesses that are right except for one token in about four. `checked` counts drafts by their right tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, requests: Sequence[GenerationRequest], traces: list[Ids]):
        self.checked: dict[int, int] = {}
        self.texts = [[*each.prompt_token_ids, *ids] for each, ids in zip(requests, traces, strict=True)]
        learn = Speculator.checked

        def checked(speculator: Speculator, row: Any, draft: Draft, right: int) -> None:
            if draft.ids:
                self.checked[right] = self.checked.get(right, 0) + 1
            learn(speculator, row, draft, right)

        monkeypatch.setattr(Speculator, "checked", checked)
        monkeypatch.setattr(RunTexts, "continuation", lambda _, text, most: (self.guess(text)[:most], 9))
        monkeypatch.setattr(HitRates, "chance", lambda *_: 0.9)

    def guess(self, text: list[int]) -> Ids:
        whole = next((whole for whole in self.texts if whole[: len(text)] == text), text)
        rng = random.Random(len(text))
        guessed = [token if rng.random() < 0.75 else token ^ 1 for token in whole[len(text) :]]
        return (*guessed, 5, 5, 5)[: rng.randint(2, 20)]  # goes on behind the end


SAMPLINGS = [Sampling(), Sampling(temperature=0), Sampling(0.6, 0.9, 20, 0.02)]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_guesses_change_no_trace(guessing: MLXEngine, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    requests = [
        request(
            seed=70 + i, prompt=(PROMPT * 3)[: 5 + 9 * i], max_tokens=9 + 17 * i, sampling=SAMPLINGS[i % len(SAMPLINGS)]
        )
        for i in range(rows)
    ]
    expected = without_guesses(guessing, requests)
    oracle = Oracle(monkeypatch, requests, expected)
    assert run(guessing, requests) == expected
    assert 0 in oracle.checked
    assert max(oracle.checked) > 2


def test_guesses_change_no_trace_with_a_quantized_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(StepTimes, "relative", lambda *_: 1.0)
    engine = MLXEngine.from_pretrained(tiny_models.write(tmp_path / "llama", head_dim=32), kv_bits=8)
    try:
        requests = [request(seed=i, prompt=(PROMPT * 3)[: 5 + 9 * i], max_tokens=9 + 9 * i) for i in range(5)]
        expected = without_guesses(engine, requests)
        oracle = Oracle(monkeypatch, requests, expected)
        assert run(engine, requests) == expected
        assert max(oracle.checked) > 2
    finally:
        engine.close()


def test_rows_that_join_and_leave_change_no_trace(guessing: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(seed=i, max_tokens=10 + 7 * (i % 4)) for i in range(9)]
    expected = without_guesses(guessing, requests)
    oracle = Oracle(monkeypatch, requests, expected)
    guessing.limit(3, None)
    assert run(guessing, requests) == expected
    assert sum(oracle.checked.values()) > 5


def test_a_trace_ends_at_an_eos_among_the_guesses(guessing: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = without_guesses(guessing, [request(seed=3, max_tokens=30)])
    ends = replace(request(seed=3, max_tokens=30))
    monkeypatch.setattr(guessing.tokenizer, "eos_ids", frozenset({plain[17]}))
    expected = plain[: plain.index(plain[17]) + 1]
    Oracle(monkeypatch, [ends], [plain])
    assert run(guessing, [ends]) == [expected]


@pytest.mark.parametrize("done", [0, 4, 10, 13])
def test_closing_ids_keep_their_place(guessing: MLXEngine, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    limit = ThinkingLimit(10, (7, 8, 9), lambda ids: True)
    requests = [request(seed, max_tokens=30, thinking_limit=limit) for seed in (4, 5)]
    expected = without_guesses(guessing, requests)
    assert all(ids[10:13] == (7, 8, 9) for ids in expected)
    oracle = Oracle(monkeypatch, requests, expected)
    resumed = [replace(each, generated_ids=ids[:done]) for each, ids in zip(requests, expected, strict=True)]
    assert run(guessing, resumed) == expected
    assert max(oracle.checked) > 1


def test_a_failed_step_changes_no_trace(guessing: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(seed=i, max_tokens=25) for i in range(4)]
    expected = without_guesses(guessing, requests)
    Oracle(monkeypatch, requests, expected)
    draw, steps = batch.draw_tokens, 0

    def failing_once(logprobs: mx.array, sequences: Any) -> mx.array:
        nonlocal steps
        steps += logprobs.ndim == 3
        if logprobs.ndim == 3 and steps == 3:
            raise MemoryError("full")
        return draw(logprobs, sequences)

    monkeypatch.setattr(batch, "draw_tokens", failing_once)
    assert run(guessing, requests) == expected
    assert steps >= 3


@pytest.mark.parametrize("kind", ["gemma3_text", "mamba2"])
def test_models_whose_caches_cannot_take_back_tokens_are_not_guessed(
    engine_of: Callable[[str], MLXEngine], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine = engine_of(kind)
    monkeypatch.setattr(StepTimes, "relative", lambda *_: 1.0)
    expected = without_guesses(engine, [request(seed=1, max_tokens=30)])
    oracle = Oracle(monkeypatch, [request(seed=1, max_tokens=30)], expected)
    assert run(engine, [request(seed=1, max_tokens=30)]) == expected
    assert not oracle.checked


def test_memory_bounds_the_positions_of_a_step(guessing: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(seed=1, max_tokens=40)]
    expected = without_guesses(guessing, requests)
    oracle = Oracle(monkeypatch, requests, expected)
    required = guessing.memory_estimate_bytes(1, len(PROMPT) + 40)
    per_position = guessing.admission.footprint.step_bytes(1)
    for spare, most in ((0, None), (2, 2), (3, 3)):
        oracle.checked.clear()
        guessing.limit(None, required + spare * per_position)
        assert run(guessing, requests) == expected
        assert max(oracle.checked, default=None) == most


def recorded_ids(config: RSAConfig, orchestrator: MarkovianRSAOrchestrator, seed: int) -> dict[str, list[int]]:
    result = orchestrator.run(puzzles.demo_puzzle(seed).question, config.replace(seed=seed))
    return {event.trace_id: event.token_ids for event in result.events if event.EVENT_NAME == "trace_complete"}


@pytest.mark.parametrize(
    ("runs", "population"), [pytest.param(5, 4, id="five"), pytest.param(50, 16, id="fifty", marks=pytest.mark.slow)]
)
def test_runs_of_the_embedded_model_are_equal_token_for_token(
    monkeypatch: pytest.MonkeyPatch, runs: int, population: int
) -> None:
    monkeypatch.setattr(StepTimes, "relative", lambda self, rows, width: 1 + 0.05 * rows * (width - 1))
    engine = MLXEngine.from_pretrained(reasoner.model_path())
    config = RSAConfig.embedded().replace(population=population, aggregation_size=3, rounds=2, final_candidates=1)
    with MarkovianRSAOrchestrator(engine) as orchestrator:
        for seed in range(runs):
            found = []
            for speculate in (True, False):
                engine.speculate = speculate
                found.append(recorded_ids(config, orchestrator, seed))
            assert found[0] == found[1], seed


def test_a_stopped_run_is_the_same_when_it_is_resumed_without_guesses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(StepTimes, "relative", lambda *_: 1.0)
    config = RSAConfig.embedded().replace(population=4, aggregation_size=3, rounds=2, final_candidates=1, seed=3)
    question, path = puzzles.demo_puzzle(3).question, tmp_path / "run.jsonl"
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator:
        assert isinstance(orchestrator.engine, MLXEngine)
        whole = orchestrator.run(question, config)
        with pytest.raises(RunStoppedError):
            orchestrator.run(question, config.replace(token_budget=whole.generated_tokens * 3 // 4), audit_path=path)
        orchestrator.engine.speculate = False
        resumed = orchestrator.run(question, config, audit_path=path)
    assert resumed.text == whole.text
    assert resumed.generated_tokens == whole.generated_tokens
    assert RunState(whole.events).accepted > 0
    assert verify_file(path, equivalent=equal_text).finished


class TestRunTexts:
    @given(st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=4), st.integers(1, 6))
    @settings(deadline=None)
    def test_the_latest_of_the_longest_matches_counts(self, texts: list[list[int]], most: int) -> None:
        run_texts, written = RunTexts(), []
        for ids in texts:
            written.append(run_texts.add_prompt(tuple(ids[:5])))
            run_texts.extend(written[-1], ids[5:])
        text = written[-1]
        ids, match = run_texts.continuation(text, most)
        if not ids:
            pairs = [tuple(other[i : i + 2]) for other in written for i in range(len(other) - 2)]
            assert len(text) < 2 or tuple(text[-2:]) not in pairs
            return
        assert 2 <= match <= MAX_MATCH
        assert 1 <= len(ids) <= most
        context = text[-match:]
        assert any(
            other[i : i + match] == context and tuple(other[i + match : i + match + most]) == ids
            for other in written
            for i in range(len(other) - match)
        )

    def test_a_longer_match_precedes_a_later_one(self) -> None:
        run_texts = RunTexts()
        run_texts.extend(run_texts.add_prompt((1, 2, 3, 7, 7)), [9, 2, 3, 8, 8])
        assert run_texts.continuation([5, 1, 2, 3], 2) == ((7, 7), 3)
        assert run_texts.continuation([5, 5, 2, 3], 2) == ((8, 8), 2)
        assert run_texts.continuation([3, 2], 2) == ((), 0)

    def test_old_positions_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("markovian_rsa_mlx.backends.mlx.speculation.INDEX_POSITIONS", 15)
        run_texts = RunTexts()
        for start in (100, 200, 300, 400):
            run_texts.add_prompt(tuple(range(start, start + 11)))
            assert run_texts.continuation([start + 1, start + 2], 1) == ((start + 3,), 2)
        assert run_texts.continuation([101, 102], 1) == ((), 0)
        assert run_texts.continuation([301, 302], 1) == ((303,), 2)


class TestDecision:
    def times(self, plain: float, **widths: float) -> StepTimes:
        times = StepTimes()
        for _ in range(4):
            times.add(1, 1, plain)
            for width, seconds in widths.items():
                times.add(1, int(width[1:]), seconds)
        return times

    def test_nothing_is_guessed_before_a_plain_step_was_measured(self) -> None:
        times = StepTimes()
        assert times.relative(1, 2) is None
        times.add(1, 1, 0.1)  # the first may include compilation
        assert times.relative(1, 2) is None
        times.add(1, 1, 0.1)
        assert times.relative(1, 2) is not None

    def test_measured_times_replace_estimates(self) -> None:
        times = self.times(0.1, w4=0.13)
        assert times.relative(1, 4) == pytest.approx(1.3)
        assert times.relative(1, 7) == pytest.approx(1.6)  # a tenth per position
        assert times.relative(2, 4) is None

    def test_times_become_outdated(self) -> None:
        times = self.times(0.1, w4=0.5)
        for _ in range(300):
            times.add(1, 1, 0.1)
        relative = times.relative(1, 4)
        assert relative is not None
        assert relative < 2

    @pytest.mark.parametrize(("seconds", "guesses"), [(0.1, True), (0.5, False)])
    def test_guesses_are_checked_where_that_is_faster(self, seconds: float, guesses: bool) -> None:
        speculator = Speculator()
        speculator.times = self.times(0.1, **{f"w{width}": seconds for width in WIDTHS})
        row = sequence(prompt=(1, 2, 3, 4, 5, 6, 1, 2, 3))
        width, drafts = speculator.drafts([row])
        assert (width > 1) == guesses
        if guesses:
            assert drafts[0].ids == (4, 5, 6, 1, 2, 3)[: width - 1]
            assert speculator.is_worth_waiting([row])
        else:
            assert not speculator.is_worth_waiting([row])

    def test_wrong_guesses_end_the_guessing(self) -> None:
        speculator = Speculator()
        speculator.times = self.times(0.1, w2=0.12)

        def guesses_until_given_up(run_id: str) -> int:
            row = sequence(prompt=(1, 2, 3, 4, 5, 6, 1, 2, 3))
            row.request = replace(row.request, run_id=run_id)
            for guesses in range(20):
                width, drafts = speculator.drafts([row])
                if width == 1:
                    return guesses
                speculator.checked(row, drafts[0], 0)
            raise AssertionError("still guessing")

        first, *siblings = [guesses_until_given_up("one") for _ in range(6)]
        assert first > 1
        assert siblings[-1] < first  # the run has learned it, too
        assert guesses_until_given_up("other") == first

    def test_positions_of_all_rows_are_bounded(self) -> None:
        speculator = Speculator()
        speculator.times = self.times(0.1)
        row = sequence(prompt=(1, 2, 3, 4, 5, 6, 1, 2, 3))
        assert speculator.drafts([row], 3)[0] == 3
        assert speculator.drafts([row], 1)[0] == 1


@pytest.mark.parametrize(
    ("position", "allowed"), [(0, 9), (8, 1), (9, 0), (10, 0), (12, 0), (13, 16), (28, 1), (29, 0), (30, 0)]
)
def test_guesses_end_before_closing_ids_and_the_budget(position: int, allowed: int) -> None:
    limited = sequence(max_tokens=30, thinking_limit=ThinkingLimit(10, (7, 8, 9), lambda ids: True))
    assert drafts_allowed(limited, position) == allowed

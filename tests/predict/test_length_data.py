"""Lengths from earlier trails, and what is said of where lengths come from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner, run_store
from markovian_rsa_mlx.audit.events import TraceCompleteEvent
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.errors import AuditError, BackendError, MarkovianRSAError
from markovian_rsa_mlx.method.lineage import TraceKey
from markovian_rsa_mlx.predict import length_data as samples
from markovian_rsa_mlx.run.generation import CHECKPOINT_TOKENS
from tests.support.bench_harness import FakeTask, bench, order
from tests.support.fakes import FakeBackend, boxed
from tests.support.runs import of_file, run, small


def trail(path: Path, **settings: object) -> Path:
    run(FakeBackend(), small(**settings), path)
    return path


def test_every_finished_trace_is_a_sample(tmp_path: Path) -> None:
    path = trail(tmp_path / "a.jsonl")
    found = samples.from_paths([path])
    traces = of_file(path, TraceCompleteEvent)
    assert found.first == [(t.generated_tokens, False) for t in traces if t.round == 0]
    assert found.later == [(t.generated_tokens, False) for t in traces if t.round > 0]
    assert found.models == {"fake"}
    assert len(found.prompts) == 1


def test_traces_that_the_budget_ended_are_known_as_cut(tmp_path: Path) -> None:
    found = samples.from_paths([trail(tmp_path / "a.jsonl", rounds=0, thinking_tokens=20, final_tokens=3)])
    assert found.first == [(3, True)] * 4
    assumption = samples.sampled(found)
    assert "100% cut by their budget" in assumption.sentence
    assert assumption.lengths.of(0, TraceKey(0, 0), 50).generated > 3


def test_a_folder_is_searched_and_what_is_no_trail_passed_over(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    trail(tmp_path / "a.jsonl")
    trail(tmp_path / "deep" / "b.jsonl", seed=2)
    (tmp_path / "results.jsonl").write_text('{"score": 1}\n')
    (tmp_path / "broken.jsonl").write_bytes(b"\xff\x00")
    found = samples.from_paths([tmp_path])
    assert len(found.prompts) == 2
    assert "2 earlier runs" in samples.sampled(found).sentence


@pytest.mark.parametrize("content", [None, b"", b'{"event": "no_such"}\n', b"\xff\xfe"])
def test_what_holds_no_trace_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AuditError, match=r"x\.jsonl'"):
        samples.from_paths([path])
    with pytest.raises(AuditError, match="holds no trail"):
        samples.from_paths([tmp_path])


def test_only_runs_of_the_same_model_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSA_HOME", str(tmp_path))
    trail(run_store.new_run_path("q"))
    assert samples.from_own_runs("fake").count > 0
    assert samples.from_own_runs("another").count == 0


def test_the_newest_runs_of_the_model_count_whatever_else_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRSA_HOME", str(tmp_path))
    monkeypatch.setattr(samples, "MOST_TRAILS", 2)
    for age, model in enumerate(["another", "another", "another", "fake", "fake", "fake"]):
        path = trail(run_store.new_run_path(f"q{age}"), seed=age)
        path.write_text(path.read_text().replace('"model_id": "fake"', f'"model_id": "{model}"'))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert len(samples.from_own_runs("fake").prompts) == 2


def test_traces_of_a_stopped_run_are_known_to_be_longer(tmp_path: Path) -> None:
    """Two short traces end; six long ones are under way when the budget stops the run."""
    words = {"r0-00": 2, "r0-01": 2}
    backend = FakeBackend(lambda request, rng: boxed(1, "so " * words.get(request.trace_id, 900)))
    settings = {"rounds": 0, "population": 8, "thinking_tokens": 4_000, "final_tokens": 4_000, "final_candidates": 0}
    with contextlib.suppress(MarkovianRSAError):
        run(backend, small(**settings, token_budget=800), tmp_path / "a.jsonl")
    found = samples.from_paths([tmp_path / "a.jsonl"])
    ended = [tokens for tokens, longer in found.first if not longer]
    under_way = [tokens for tokens, longer in found.first if longer]
    assert (len(ended), len(under_way)) == (2, 6)
    assert min(under_way) > max(ended)
    assumption = samples.sampled(found)
    assert "8 traces of 1 earlier run, mean at least" in assumption.sentence
    assert "75% unfinished (where there is room they go on as" in assumption.sentence
    drawn = [assumption.lengths.of(seed, TraceKey(0, 0), 4_000).generated for seed in range(50)]
    assert sum(drawn) / 50 > sum(under_way) / 6


def test_a_run_of_which_nothing_ended_tells_nothing(tmp_path: Path) -> None:
    backend = FakeBackend(lambda request, rng: boxed(1, "so " * 900))
    with contextlib.suppress(MarkovianRSAError):
        run(backend, small(rounds=0, thinking_tokens=4_000, final_tokens=4_000, token_budget=400), tmp_path / "a.jsonl")
    with pytest.raises(AuditError, match="no trail with a finished trace"):
        samples.from_paths([tmp_path / "a.jsonl"])


def test_a_failed_attempt_is_as_long_as_its_last_checkpoint(tmp_path: Path) -> None:
    def break_late(request: GenerationRequest, position: int) -> None:
        if position == {"r0-01": 704, "r0-02": 304}.get(request.trace_id):
            raise BackendError("out of order")

    backend = FakeBackend(lambda request, rng: boxed(1, "so " * 300), on_step=break_late)
    settings = {"rounds": 0, "thinking_tokens": 2_000, "final_tokens": 2_000, "max_retries": 0, "final_candidates": 0}
    run(backend, small(**settings), tmp_path / "a.jsonl")
    lengths = [(tokens, longer) for tokens, longer in samples.from_paths([tmp_path / "a.jsonl"]).first if longer]
    assert sorted(lengths) == [(1, True), (CHECKPOINT_TOKENS, True)]


def test_a_trace_that_several_methods_share_is_one_sample(tmp_path: Path) -> None:
    bench(tmp_path, order(FakeTask(1), ["single", "delethink", "markovian"]))
    found = samples.from_paths([tmp_path])
    assert len(found.first) == 4
    assert len(found.prompts) == 3
    assert samples.from_paths([tmp_path, tmp_path]).count == found.count


def test_a_guess_is_called_a_guess() -> None:
    assert "a guess" in samples.assumed("some/model").sentence
    assert "embedded reasoner" in samples.assumed(reasoner.MODEL_ID).sentence
    assert "sigma 0.5" in samples.given(900, 0.5).sentence

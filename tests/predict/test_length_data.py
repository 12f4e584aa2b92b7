"""Lengths from recorded runs, and the sentences on their source."""

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
from markovian_rsa_mlx.predict import length_data
from tests.support.bench_harness import FakeTask, make_spec, run_bench
from tests.support.fakes import FakeBackend, boxed
from tests.support.runs import of_file, run, small


def recorded(path: Path, **settings: object) -> Path:
    run(FakeBackend(), small(**settings), path)
    return path


def test_every_complete_trace_is_a_sample(tmp_path: Path) -> None:
    path = recorded(tmp_path / "a.jsonl")
    found = length_data.from_paths([path])
    traces = of_file(path, TraceCompleteEvent)
    assert found.lengths(later=False) == [(t.generated_tokens, False) for t in traces if t.round == 0]
    assert found.lengths(later=True) == [(t.generated_tokens, False) for t in traces if t.round > 0]
    assert found.models == {"fake"}
    assert len(found.prompts) == 1


def test_traces_that_max_tokens_ended_are_truncated(tmp_path: Path) -> None:
    found = length_data.from_paths([recorded(tmp_path / "a.jsonl", rounds=0, thinking_tokens=20, final_tokens=3)])
    assert found.lengths(later=False) == [(3, True)] * 4
    assumption = found.length_model()
    assert "100% truncated" in assumption.sentence
    assert assumption.lengths.of(0, TraceKey(0, 0), 50).generated > 3


def test_a_folder_is_searched_and_other_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    recorded(tmp_path / "a.jsonl")
    recorded(tmp_path / "deep" / "b.jsonl", seed=2)
    (tmp_path / "results.jsonl").write_text('{"score": 1}\n')
    (tmp_path / "broken.jsonl").write_bytes(b"\xff\x00")
    found = length_data.from_paths([tmp_path])
    assert len(found.prompts) == 2
    assert "2 earlier runs" in found.length_model().sentence


@pytest.mark.parametrize("content", [None, b"", b'{"event": "no_such"}\n', b"\xff\xfe"])
def test_a_path_without_a_trace_raises(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AuditError, match=r"x\.jsonl'"):
        length_data.from_paths([path])
    with pytest.raises(AuditError, match="no audit log"):
        length_data.from_paths([tmp_path])


def test_runs_of_other_models_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSA_HOME", str(tmp_path))
    recorded(run_store.new_run_path("q"))
    assert length_data.from_own_runs("fake").found
    assert not length_data.from_own_runs("another").found


def test_the_newest_runs_of_the_model_count_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRSA_HOME", str(tmp_path))
    monkeypatch.setattr(length_data, "MAX_RUNS", 2)
    for age, model in enumerate(["another", "another", "another", "fake", "fake", "fake"]):
        path = recorded(run_store.new_run_path(f"q{age}"), seed=age)
        path.write_text(path.read_text().replace('"model_id": "fake"', f'"model_id": "{model}"'))
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert len(length_data.from_own_runs("fake").prompts) == 2


def test_traces_of_a_stopped_run_count_as_longer(tmp_path: Path) -> None:
    """Two short traces end. Six long ones are in progress when the token budget stops the run."""
    words = {"r0-00": 2, "r0-01": 2}
    backend = FakeBackend(lambda request, rng: boxed(1, "so " * words.get(request.trace_id, 900)))
    settings = {"rounds": 0, "population": 8, "thinking_tokens": 4_000, "final_tokens": 4_000, "final_candidates": 0}
    with contextlib.suppress(MarkovianRSAError):
        run(backend, small(**settings, token_budget=800), tmp_path / "a.jsonl")
    found = length_data.from_paths([tmp_path / "a.jsonl"])
    ended = [tokens for tokens, longer in found.lengths(later=False) if not longer]
    in_progress = [tokens for tokens, longer in found.lengths(later=False) if longer]
    assert (len(ended), len(in_progress)) == (2, 6)
    assert min(in_progress) > max(ended)
    assumption = found.length_model()
    assert "8 traces of 1 earlier run, mean at least" in assumption.sentence
    assert "75% unfinished" in assumption.sentence
    drawn = [assumption.lengths.of(seed, TraceKey(0, 0), 4_000).generated for seed in range(50)]
    assert sum(drawn) / 50 > sum(in_progress) / 6


def test_a_run_without_a_complete_trace_raises(tmp_path: Path) -> None:
    backend = FakeBackend(lambda request, rng: boxed(1, "so " * 900))
    with contextlib.suppress(MarkovianRSAError):
        run(backend, small(rounds=0, thinking_tokens=4_000, final_tokens=4_000, token_budget=400), tmp_path / "a.jsonl")
    with pytest.raises(AuditError, match="with a finished trace"):
        length_data.from_paths([tmp_path / "a.jsonl"])


def test_a_failed_attempt_counts_with_all_that_it_generated(tmp_path: Path) -> None:
    def break_late(request: GenerationRequest, position: int) -> None:
        if position == {"r0-01": 704, "r0-02": 304}.get(request.trace_id):
            raise BackendError("out of order")

    backend = FakeBackend(lambda request, rng: boxed(1, "so " * 300), on_step=break_late)
    settings = {"rounds": 0, "thinking_tokens": 2_000, "final_tokens": 2_000, "max_retries": 0, "final_candidates": 0}
    run(backend, small(**settings), tmp_path / "a.jsonl")
    lengths = [
        (tokens, longer)
        for tokens, longer in length_data.from_paths([tmp_path / "a.jsonl"]).lengths(later=False)
        if longer
    ]
    assert sorted(lengths) == [(304, True), (704, True)]


def test_a_trace_shared_by_several_methods_is_one_sample(tmp_path: Path) -> None:
    run_bench(tmp_path, make_spec(FakeTask(1), ["single", "delethink", "markovian"]))
    found = length_data.from_paths([tmp_path])
    assert len(found.lengths(later=False)) == 4
    assert len(found.prompts) == 3
    assert length_data.from_paths([tmp_path, tmp_path]).found == found.found


def test_assumed_lengths_name_their_source() -> None:
    assert "a guess" in length_data.assumed("some/model").sentence
    assert "embedded reasoner" in length_data.assumed(reasoner.MODEL_ID).sentence
    assert "sigma 0.5" in length_data.given(900, 0.5).sentence

"""Lengths from earlier trails, and what is said of where lengths come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner, store
from markovian_rsa_mlx.audit.events import TraceCompleteEvent
from markovian_rsa_mlx.bench.tune import samples
from markovian_rsa_mlx.errors import AuditError
from markovian_rsa_mlx.method.lineage import TraceKey
from tests.fakes import FakeBackend
from tests.runs import of_file, run, small


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
    trail(store.new_run_path("q"))
    assert samples.from_own_runs("fake").count > 0
    assert samples.from_own_runs("another").count == 0


def test_a_guess_is_called_a_guess() -> None:
    assert "a guess" in samples.assumed("some/model").sentence
    assert "embedded reasoner" in samples.assumed(reasoner.MODEL_ID).sentence
    assert "sigma 0.5" in samples.given(900, 0.5).sentence

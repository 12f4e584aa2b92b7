"""A run records the confidence of its traces if the settings ask for it, and the recorded figures are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import RSAConfig
from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.events import TraceCompleteEvent, TraceConfidenceEvent
from markovian_rsa_mlx.audit.state import RunState
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.confidence import Confidence, confidence_of
from markovian_rsa_mlx.errors import RunStoppedError, VerificationError
from markovian_rsa_mlx.export.rows import rows
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import EOS, FakeEngine, SureEngine
from tests.support.runs import cut, line_ends, of_file, run, small

CONFIG = small(rounds=1, population=3, trace_confidence=True)


def of_ids(_: GenerationRequest, ids: Sequence[int]) -> Confidence | None:
    """Be surest of small ids."""
    return confidence_of(-token / 64 for token in ids)


def sure_engine() -> SureEngine:
    return SureEngine(sureness=of_ids)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(sure_engine(), CONFIG, path)
    return path


def test_each_trace_has_its_figures(whole: Path) -> None:
    traces = {event.trace_id: event.token_ids for event in of_file(whole, TraceCompleteEvent)}
    figures = of_file(whole, TraceConfidenceEvent)
    assert [event.trace_id for event in figures] == list(traces)
    for event in figures:
        expected = confidence_of(-token / 64 for token in traces[event.trace_id])
        assert (event.mean_logprob, event.lowest_window_logprob) == pytest.approx(expected)
    verify_file(whole)
    state = RunState(read_events(whole))
    assert [row["mean_logprob"] for row in rows(state)] == [event.mean_logprob for event in figures]


def test_it_is_off_by_default_and_in_older_files(tmp_path: Path) -> None:
    assert not RSAConfig().trace_confidence
    engine, path = sure_engine(), tmp_path / "run.jsonl"
    run(engine, CONFIG.replace(trace_confidence=False), path)
    assert not of_file(path, TraceConfidenceEvent)
    lines = read_lines(path)
    del lines[0]["config"]["trace_confidence"]
    write_lines(path, lines)
    verify_file(path)


def test_an_engine_without_log_probabilities_records_none(tmp_path: Path) -> None:
    run(FakeEngine(), CONFIG, tmp_path / "run.jsonl")
    assert not of_file(tmp_path / "run.jsonl", TraceConfidenceEvent)
    verify_file(tmp_path / "run.jsonl")


def test_a_run_resumes_after_each_line(whole: Path, tmp_path: Path) -> None:
    expected = {event.trace_id: event.mean_logprob for event in of_file(whole, TraceConfidenceEvent)}
    for end in line_ends(whole)[2::3]:
        path = cut(whole, end, tmp_path / f"{end}.jsonl")
        run(sure_engine(), CONFIG, path)
        verify_file(path)
        found = {event.trace_id: event.mean_logprob for event in of_file(path, TraceConfidenceEvent)}
        assert found.items() <= expected.items()
        assert len(found) >= len(expected) - 1  # a session can end between a trace and its figures


@dataclass
class MeasuringEngine(SureEngine):
    """A fake engine that measures recorded traces, too."""

    async def confidence(self, request: GenerationRequest) -> Confidence | None:
        return self.sureness(request, request.generated_ids)


def test_traces_that_are_whole_in_their_checkpoints_are_measured(whole: Path, tmp_path: Path) -> None:
    path, engine = tmp_path / "run.jsonl", MeasuringEngine(sureness=of_ids, chunk=10**6)
    with pytest.raises(RunStoppedError):
        run(engine, CONFIG.replace(token_budget=1), path)
    stopped = RunState(read_events(path))
    assert any(trace.checkpoint_ids[-1:] == [EOS] for trace in stopped.traces.values())
    run(engine, CONFIG, path)
    verify_file(path)
    traces = {event.trace_id for event in of_file(path, TraceCompleteEvent)}
    assert {event.trace_id for event in of_file(path, TraceConfidenceEvent)} == traces


def _drop_trace(lines: list[dict[str, Any]], at: int) -> None:
    lines[at]["trace_id"] = "r0-99"


def _move(lines: list[dict[str, Any]], at: int) -> None:
    lines.insert(at + 2, lines.pop(at))


def _twice(lines: list[dict[str, Any]], at: int) -> None:
    lines.insert(at, lines[at])


FORGERIES: dict[str, Callable[[list[dict[str, Any]], int], Any]] = {
    "above 0": lambda lines, at: lines[at].update(mean_logprob=0.5),
    "too low": lambda lines, at: lines[at].update(mean_logprob=-1e30, lowest_window_logprob=-1e30),
    "unlike the mean": lambda lines, at: lines[at].update(lowest_window_logprob=lines[at]["mean_logprob"] * 1.01),
    "another trace": _drop_trace,
    "later": _move,
    "twice": _twice,
    "not asked for": lambda lines, at: lines[0]["config"].update(trace_confidence=False),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_changed_figure_is_noticed(whole: Path, tmp_path: Path, name: str) -> None:
    lines = read_lines(whole)
    at = next(number for number, line in enumerate(lines) if line["event"] == "trace_confidence")
    FORGERIES[name](lines, at)
    write_lines(tmp_path / "run.jsonl", lines)
    with pytest.raises(VerificationError, match="trace_confidence"):
        verify_file(tmp_path / "run.jsonl")


def test_a_check_lists_possible_figures_as_trusted(whole: Path, tmp_path: Path) -> None:
    lines = read_lines(whole)
    line = next(line for line in lines if line["event"] == "trace_confidence")
    line |= {"mean_logprob": -0.5, "lowest_window_logprob": -0.5}
    write_lines(tmp_path / "run.jsonl", lines)
    report = verify_file(tmp_path / "run.jsonl").to_dict()
    assert any("log-probabilities" in fact for fact in report["trusted"])

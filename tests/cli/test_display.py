"""The live view: true to the run, fitting any terminal, and unmoved by what a model writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from markovian_rsa_mlx.audit import (
    ErrorEvent,
    GenerationStartEvent,
    RunResumedEvent,
    RunSetupEvent,
    RunStartEvent,
    RunState,
    TraceCheckpointEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
    read_events,
)
from markovian_rsa_mlx.cli.display import RunProgress, RunView
from markovian_rsa_mlx.cli.terminal import clean, one_line, show, time_left
from markovian_rsa_mlx.config import RSAConfig

from ..support.fakes import CharacterTokenizer
from .conftest import SMALL, Run

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]x[/red]\u202e\r\x07\x9b31m[link=http://evil]y"
CONFIG = RSAConfig(
    rounds=1, population=3, aggregation_size=2, thinking_tokens=100, tail_tokens=10, final_tokens=50, final_candidates=0
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def setup(tmp_path: Path, mrsa: Run, fake_model: object) -> RunSetupEvent:
    """A true run_setup: seed 7, the fake tokenizer's marks."""
    mrsa("solve", "1+1?", *SMALL, "--audit", str(tmp_path / "run.jsonl"))
    (event,) = (e for e in read_events(tmp_path / "run.jsonl") if isinstance(e, RunSetupEvent))
    return event


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(setup: RunSetupEvent, clock: Clock) -> RunProgress:
    return begun(CONFIG, setup, clock)


def begun(config: RSAConfig, setup: RunSetupEvent, clock: Clock) -> RunProgress:
    start = RunStartEvent("run", "model", "none", config, "1+1?", "2026-01-01")
    return RunProgress(RunState([start, setup], plan_traces=True, decode=CharacterTokenizer().decode), clock)


def states(progress: RunProgress, *trace_ids: str) -> list[str]:
    return [progress.state.status(progress.state.traces[trace_id]) for trace_id in trace_ids]


def votes(progress: RunProgress, number: int) -> list[tuple[str, int]]:
    return progress.state.tally(dict(progress.state.rounds())[number])


def start(trace_id: str, seed: int = 1) -> GenerationStartEvent:
    return GenerationStartEvent("run", int(trace_id[1]), trace_id, seed, 10, 100, [])


def complete(trace_id: str, text: str, reason: Literal["eos", "max_tokens", "error"] = "eos") -> TraceCompleteEvent:
    ids = CharacterTokenizer().encode(text)
    return TraceCompleteEvent("run", int(trace_id[1]), trace_id, text, ids, len(ids), reason, 2.0)


def render(progress: RunProgress, width: int = 100, height: int = 40) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, height=height, force_terminal=True)
    console.print(RunView("model · T=1", progress))
    return console.export_text()


def test_trace_passes_through_its_states(progress: RunProgress, clock: Clock) -> None:
    assert states(progress, "r0-00", "r1-00") == ["queued", "waiting"]
    progress.event(start("r0-00"))
    progress.tokens("r0-00", 30)
    clock.now += 3
    assert "running" in render(progress)
    assert "30/100" in render(progress)
    assert progress.trace_speed(progress.state.traces["r0-00"]) == pytest.approx(10)
    for index in range(3):
        progress.event(complete(f"r0-0{index}", f"so</think>\\boxed{{{index % 2}}}"))
    assert set(states(progress, *progress.state.traces)) == {"done", "queued"}
    assert votes(progress, 0) == [("0", 2), ("1", 1)]
    progress.event(complete("r1-00", "and so on", "max_tokens"))
    progress.event(complete("r1-01", "", "error"))
    shown = render(progress)
    assert "cut off" in shown
    assert "failed" in shown
    assert "0 ×2" in shown


def test_error_is_shown_until_tokens_arrive_again(progress: RunProgress) -> None:
    progress.event(start("r0-00"))
    progress.event(ErrorEvent("run", "upstream", "r0-00: the server is away", recoverable=True))
    assert "the server is away" in render(progress)
    progress.tokens("r0-00", 1)
    assert "away" not in render(progress)
    progress.event(TraceRetryEvent("run", 0, "r0-00", "trace", 1, 2, "hiccup"))
    assert "r0-00: hiccup" in render(progress)


def test_repeated_events_count_once(progress: RunProgress) -> None:
    for _ in range(2):
        progress.event(start("r0-00"))
        progress.event(TraceCheckpointEvent("run", 0, "r0-00", 0, 0, [1] * 40))
        progress.event(complete("r0-01", "so</think>\\boxed{2}"))
    assert progress.state.traces["r0-00"].tokens == 40
    assert progress.state.total_tokens == 40 + progress.state.traces["r0-01"].tokens
    assert votes(progress, 0) == [("2", 1)]


def test_retry_starts_at_zero_and_resume_at_the_checkpoint(progress: RunProgress) -> None:
    progress.event(start("r0-00", seed=1))
    progress.tokens("r0-00", 30)
    progress.event(TraceRetryEvent("run", 0, "r0-00", "trace", 1, 2, "hiccup"))
    progress.event(start("r0-00", seed=2))
    assert progress.state.traces["r0-00"].tokens == 0
    assert "try 2" in render(progress)
    progress.event(TraceCheckpointEvent("run", 0, "r0-00", 1, 0, [1] * 12))
    resumed = {name: 0 for name in RunResumedEvent.__annotations__ if name != "EVENT_NAME"}
    progress.event(RunResumedEvent(**resumed))  # type: ignore[arg-type]
    assert states(progress, "r0-00") == ["queued"]
    progress.event(start("r0-00", seed=2))
    assert progress.state.traces["r0-00"].tokens == 12


def test_less_than_a_second_is_not_zero_seconds() -> None:
    assert [time_left(0.04), time_left(1.2), time_left(9, at_most=True)] == [
        "under 1 s left",
        "about 1.2 s left",
        "at most 9.0 s left",
    ]


def test_time_left_is_an_upper_bound_until_a_trace_has_ended(progress: RunProgress, clock: Clock) -> None:
    progress.event(start("r0-00"))
    clock.now += 1
    progress.tokens("r0-00", 10)
    clock.now += 1
    left = progress.time_left_s()
    assert left is not None
    assert left[1]
    assert "at most" in render(progress)
    progress.event(complete("r0-01", "12345</think>\\boxed{2}"))
    left = progress.time_left_s()
    assert left is not None
    assert not left[1]


@pytest.mark.parametrize(("width", "height"), [(100, 40), (80, 24), (60, 12), (40, 10), (20, 8)])
def test_view_fits_the_terminal(width: int, height: int, setup: RunSetupEvent, clock: Clock) -> None:
    large = RSAConfig(rounds=2, population=16, aggregation_size=4, final_candidates=0)
    progress = begun(large, setup, clock)
    for index in range(16):
        progress.event(start(f"r0-{index:02d}"))
    lines = render(progress, width, height).rstrip("\n").split("\n")
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert any("round 2" in line for line in lines) or height == 40 or width < 40


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_long_answer_leaves_the_other_columns_whole(width: int, setup: RunSetupEvent, clock: Clock) -> None:
    progress = begun(CONFIG.replace(answer_kind="open"), setup, clock)
    progress.event(complete("r0-00", "so</think>" + "The capital of France is Colmar. " * 20))
    lines = render(progress, width).split("\n")
    assert lines[1].split() == ["trace", "state", "tokens", "tok/s", "reads", "answer"]
    row = next(line for line in lines if "Colmar" in line)
    assert row.split()[:2] == ["r0-00", "done"]
    assert row.rstrip().endswith("…")
    assert next(line for line in lines if line.startswith("r1-00")).split()[3:] != []


def test_text_of_a_model_cannot_control_the_terminal(progress: RunProgress) -> None:
    progress.event(complete("r0-00", "so</think>\\boxed{" + HOSTILE + "}"))
    console = Console(file=io.StringIO(), width=100, height=30, force_terminal=True, color_system=None)
    console.print(RunView(HOSTILE, progress))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set("\x07\r\x9b\u202e") & set(written)
    assert "\x1b[2J" not in written
    assert "\x1b]" not in written
    assert "[red]x[/red]" in written


def test_clean_removes_control_characters_only() -> None:
    assert clean("a\tb\nc é 漢 👍🏽") == "a\tb\nc é 漢 👍🏽"
    assert clean(HOSTILE) == "[red]x[/red][link=http://evil]y"
    assert clean("\x1b[31mred\x1b[0m \x1b(B\x1bM\ud800") == "red "
    assert clean("\x1b]0;never ended, so it hides nothing") == "0;never ended, so it hides nothing"
    assert one_line("a\n  b" * 50, 10) == "a ba ba b…"


def test_show_prints_exact_text_to_a_pipe_and_clean_text_to_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    pipe, terminal = io.StringIO(), Terminal()
    show("a\x1b[31mb", pipe)
    show("a\x1b[31mb", terminal)
    assert (pipe.getvalue(), terminal.getvalue()) == ("a\x1b[31mb\n", "ab\n")

"""kill -9 at any moment: what was finished is kept, and the answer is the unbroken run's."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import is_finished, scan_file
from markovian_rsa_mlx.audit.events import (
    AnswersComparedEvent,
    Event,
    SelectionEvent,
    StoppedEarlyEvent,
    TraceCompleteEvent,
    TraceInheritedEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.method.equality import Verdict
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.run.test_resume import check_nothing_doubled
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import QUESTION, of, of_file, small

# Runs of about a second and a half.
COMMON: dict[str, Any] = {
    "population": 6, "final_candidates": 0, "rounds": 3, "thinking_tokens": 2000, "final_tokens": 2000,
    "concurrency": 2, "answer_selection": "majority",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "off": COMMON,
    "agreement": COMMON | {"early_stop": "agreement"},
    "posterior": COMMON | {"early_stop": "posterior", "rounds": 1, "population": 16},
}
#: Forks of a process that has imported the package: a run starts at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.support.runs", "tests.support.fakes"])
RARE = r"\sin(x)^2", r"1-\cos(x)^2"  # only computer algebra can compare them


class Paced(FakeEngine):
    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        await asyncio.sleep(random.Random(request.seed).uniform(0.02, 0.1))
        return await super().generate(request, listener)


class Moody:
    """An equivalence that another session may find to decide otherwise, as one with a time limit does."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    def __call__(self, first: str, second: str) -> bool:
        return self.compare(first, second) == "same"

    def compare(self, first: str, second: str) -> Verdict:
        verdict: Verdict = "same" if first == second else secrets.choice(("same", "different", "undecided"))
        return self._verdicts.setdefault((first, second), verdict)


def solve(path: str, name: str, seed: int, answers: tuple[str, ...], moody: bool) -> None:
    """Run or resume the run in a file, in a process of its own."""

    def write(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.choice(answers), f"{rng.random()} " * 60)

    equivalent = Moody() if moody else str.__eq__
    with MarkovianRSAOrchestrator(Paced(write), equivalent=equivalent) as orchestrator:
        orchestrator.run(QUESTION, small(**SETTINGS[name] | {"seed": seed}), audit_path=path)


class Run:
    """A run that is started in processes of its own."""

    def __init__(
        self, path: Path, name: str, seed: int, answers: tuple[str, ...] = ("1", "1", "1", "2"), *, moody: bool = False
    ) -> None:
        self.path, self._arguments = path, (str(path), name, seed, answers, moody)

    def finish(self) -> list[Event]:
        process = self._start()
        process.join(120)
        assert process.exitcode == 0
        return scan_file(self.path).events

    def kill_at(self, lines: float) -> bool:
        """Start or resume the run, and kill it once its file has so many lines. Return False if it ended before."""
        process, deadline = self._start(), time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline and self._lines() < lines:
            time.sleep(0.001)
        was_alive = process.is_alive()
        process.kill()
        process.join()
        return was_alive

    def events(self) -> list[Event]:
        return scan_file(self.path).events if self._lines() else []

    def _start(self) -> Any:
        process = PROCESSES.Process(target=solve, args=self._arguments)
        process.start()
        return process

    def _lines(self) -> int:
        return self.path.read_bytes().count(b"\n") if self.path.exists() else 0


def facts(events: list[Event]) -> dict[str, Any]:
    """Return what must never change once it is recorded: the traces, and the decisions about them."""
    found: dict[str, Any] = {event.trace_id: event.token_ids for event in of(events, TraceCompleteEvent)}
    found |= {event.trace_id: (event.from_trace_id, event.answer) for event in of(events, TraceInheritedEvent)}
    found |= {f"{event.trace_id} compared": event.verdicts for event in of(events, AnswersComparedEvent)}
    found |= {
        f"stop {e.round}": (e.counts, e.probability, e.cancelled_trace_ids) for e in of(events, StoppedEarlyEvent)
    }
    return found


def kill_repeatedly(run: Run, lines: int, kills: int, rng: random.Random) -> int:
    """Kill and resume a run at random moments, then finish and verify it. Return the number of kills."""
    kept: dict[str, Any] = {}
    killed = 0
    for kill in range(kills):
        killed += run.kill_at(lines * (kill + rng.random()) / kills)
        now = facts(run.events())
        assert kept.items() <= now.items()  # all that was finished or decided is still there
        kept = now
    if not is_finished(run.events()):
        run.finish()
    check_nothing_doubled(run.events())
    assert kept.items() <= facts(run.events()).items()
    assert verify_file(run.path).finished
    return killed


def check_same(path: Path, unbroken: Path) -> None:
    """Check that two runs decided alike, and that the traces that both have are the same."""
    (ours,), (theirs,) = of_file(path, SelectionEvent), of_file(unbroken, SelectionEvent)
    ours.run_id = theirs.run_id
    assert ours == theirs
    stops = [[(e.counts, e.probability) for e in of_file(each, StoppedEarlyEvent)] for each in (path, unbroken)]
    assert stops[0] == stops[1]
    own, other = facts(scan_file(path).events), facts(scan_file(unbroken).events)
    if stops[0]:  # what is in the engine at the stop is cancelled, and depends on the time
        common = {name for name in own.keys() & other.keys() if not name.startswith("stop")}
        own, other = ({name: each[name] for name in common} for each in (own, other))
    assert own == other


def check_killed(folder: Path, name: str, seeds: range, kills: int) -> list[Event]:
    """Kill runs with several seeds, each this often, and compare them with unbroken ones. Return their events."""
    rng, killed, events = random.Random(9), 0, list[Event]()
    for seed in seeds:
        unbroken = Run(folder / f"unbroken-{seed}.jsonl", name, seed)
        whole = unbroken.finish()
        run = Run(folder / f"killed-{seed}.jsonl", name, seed)
        killed += kill_repeatedly(run, len(whole), kills, rng)
        check_same(run.path, unbroken.path)
        events += run.events()
    assert killed >= 0.75 * kills * len(seeds)
    return events


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments(tmp_path: Path) -> None:
    check_killed(tmp_path, "off", range(1, 2), 8)


@pytest.mark.parametrize("name", ["agreement", "posterior"])
def test_a_run_with_an_early_stop_is_killed(name: str, tmp_path: Path) -> None:
    check_killed(tmp_path, name, range(1, 2), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "event"), [("agreement", TraceInheritedEvent), ("posterior", StoppedEarlyEvent)])
def test_runs_with_an_early_stop_are_killed_20_times(name: str, event: type[Event], tmp_path: Path) -> None:
    assert of(check_killed(tmp_path, name, range(2, 6), 5), event)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agreement", "posterior"])
def test_recorded_comparisons_stand_although_others_would_differ(name: str, tmp_path: Path) -> None:
    rng, found = random.Random(3), list[Event]()
    for seed in range(1, 6):
        run = Run(tmp_path / f"{seed}.jsonl", name, seed, RARE, moody=True)
        kill_repeatedly(run, 120, 4, rng)
        found += of(run.events(), AnswersComparedEvent)
    assert found

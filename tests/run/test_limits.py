"""Stopping a run: budgets, cancellation, Ctrl-C. Always within a step, always resumable, with the best so far."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import RunState, is_finished, read_events
from markovian_rsa_mlx.audit.events import (
    AttemptDiscardedEvent,
    Event,
    TraceCheckpointEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.errors import AuditError, BackendError, RunStoppedError
from markovian_rsa_mlx.orchestrator import RunResult
from markovian_rsa_mlx.run.audit_log import AuditLog
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import QUESTION, of, of_file, orchestrator, run, small


def by_round(request: GenerationRequest, rng: random.Random) -> str:
    return boxed(request.trace_id[:2], "think " * 20)


def partial_of(error: RunStoppedError) -> RunResult:
    assert isinstance(error.partial, RunResult)
    return error.partial


WHOLE = small(final_candidates=0)
NEEDS = run(FakeEngine(by_round), WHOLE).generated_tokens


@pytest.mark.parametrize("budget", [1, 50, NEEDS // 2, NEEDS - 60])
@pytest.mark.parametrize("concurrency", [1, "auto"])
def test_a_token_budget_stops_within_a_step(budget: int, concurrency: int | str, tmp_path: Path) -> None:
    path, chunk = tmp_path / "run.jsonl", 4
    backend = FakeEngine(by_round, chunk=chunk)
    with pytest.raises(RunStoppedError, match="token budget") as caught:
        run(backend, WHOLE.replace(token_budget=budget, concurrency=concurrency), path)
    partial = partial_of(caught.value)
    assert caught.value.reason == "token_budget"
    assert budget <= partial.generated_tokens <= budget + 3 * chunk * (1 if concurrency == 1 else 4)
    assert backend.running == 0
    assert not is_finished(read_events(path))
    resumed = run(FakeEngine(by_round, chunk=chunk), WHOLE, path)
    assert resumed.text == r"\boxed{r2}"
    assert resumed.generated_tokens == NEEDS


def test_nothing_of_what_was_generated_is_lost_by_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(RunStoppedError) as caught:
        run(FakeEngine(by_round, chunk=4), WHOLE.replace(token_budget=NEEDS // 2), path)
    kept = sum(len(e.token_ids) for e in of_file(path, TraceCheckpointEvent)) + sum(
        e.generated_tokens for e in of_file(path, TraceCompleteEvent)
    )
    assert kept == partial_of(caught.value).generated_tokens


def test_a_token_budget_counts_all_sessions(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = WHOLE.replace(token_budget=NEEDS // 2)
    with pytest.raises(RunStoppedError) as first:
        run(FakeEngine(by_round, chunk=4), config, path)
    backend = FakeEngine(by_round, chunk=4)
    with pytest.raises(RunStoppedError) as second:
        run(backend, config, path)
    assert partial_of(second.value).generated_tokens == partial_of(first.value).generated_tokens
    assert not backend.requests


def test_the_best_so_far_is_a_vote_in_the_latest_round_that_answers() -> None:
    with pytest.raises(RunStoppedError) as caught:
        run(FakeEngine(by_round, chunk=4), WHOLE.replace(token_budget=NEEDS * 2 // 3, concurrency=1))
    partial = partial_of(caught.value)
    assert partial.answer in ("r1", "r2")
    assert partial.text == rf"\boxed{{{partial.answer}}}"
    assert partial.tally[0][0] == partial.answer


def test_before_any_answer_there_is_none() -> None:
    with pytest.raises(RunStoppedError) as caught:
        run(FakeEngine(by_round, chunk=4), WHOLE.replace(token_budget=10))
    partial = partial_of(caught.value)
    assert (partial.text, partial.answer, partial.final_trace_id, partial.tally) == (None, "", None, [])


def test_a_session_that_stops_at_once_still_returns_the_best_so_far(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(RunStoppedError) as first:
        run(FakeEngine(by_round), WHOLE.replace(token_budget=NEEDS * 2 // 3, concurrency=1), path)
    with pytest.raises(RunStoppedError) as second:
        run(FakeEngine(by_round), WHOLE.replace(token_budget=1), path)
    assert partial_of(second.value).text == partial_of(first.value).text is not None
    assert partial_of(second.value).tally == partial_of(first.value).tally


def test_a_time_budget_stops_and_counts_all_sessions(tmp_path: Path) -> None:
    class Slow(FakeEngine):
        async def generate(self, request, listener):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.02 if request.trace_id.startswith("r0") else 30)
            return await super().generate(request, listener)

    path, start = tmp_path / "run.jsonl", time.monotonic()
    with pytest.raises(RunStoppedError, match="time budget") as caught:
        run(Slow(by_round), WHOLE.replace(time_budget_s=1.0), path)
    assert time.monotonic() - start < 10
    assert caught.value.reason == "time_budget"
    assert partial_of(caught.value).answer == "r0"
    with pytest.raises(RunStoppedError):
        run(Slow(by_round), WHOLE.replace(time_budget_s=1.0), path)
    assert run(FakeEngine(by_round), WHOLE, path).answer == "r2"


@pytest.mark.parametrize("spare", [0, 1])
def test_a_run_within_its_budgets_is_not_stopped(spare: int) -> None:
    assert run(FakeEngine(by_round), WHOLE.replace(token_budget=NEEDS + spare, time_budget_s=60)).answer == "r2"


class SlowToReturn(FakeEngine):
    """Returns long after the last tokens, as a server may."""

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        result = await super().generate(request, listener)
        await asyncio.sleep(0.05)
        return result


def test_a_run_stopped_after_its_last_token_ends_without_a_higher_budget(tmp_path: Path) -> None:
    path, config = tmp_path / "run.jsonl", small(token_budget=run(FakeEngine(by_round), small()).generated_tokens)
    with pytest.raises(RunStoppedError, match="token budget"):
        run(SlowToReturn(by_round), config, path)
    engine = FakeEngine(by_round)
    assert run(engine, config, path).answer == "r2"
    assert not engine.requests
    assert verify_file(path).finished


def test_tokens_of_failed_attempts_count_against_the_budget_of_later_sessions(tmp_path: Path) -> None:
    def fail(request: GenerationRequest, step: int) -> None:
        if request.trace_id == "r0-01" and step >= 8:
            raise BackendError("no")

    path = tmp_path / "run.jsonl"
    config = WHOLE.replace(token_budget=NEEDS // 2)
    with pytest.raises(RunStoppedError) as stopped:
        run(FakeEngine(by_round, chunk=4, on_step=fail), config, path)
    assert len(of_file(path, TraceRetryEvent)) == config.max_retries
    recorded = RunState(read_events(path))
    assert recorded.spent_tokens == partial_of(stopped.value).generated_tokens
    assert recorded.spent_tokens > recorded.total_tokens
    assert verify_file(path).given_up == 1


@pytest.mark.parametrize("fails", [True, False])
def test_tokens_of_attempts_at_summaries_count_against_the_budget_of_later_sessions(
    fails: bool, tmp_path: Path
) -> None:
    """The first session ends after attempts without a result: two of each summary failed, or the budget stopped one."""

    def fail(request: GenerationRequest, step: int) -> None:
        if "[notes]" in request.prompt_text and step >= 8:
            raise BackendError("no")

    path, config = tmp_path / "run.jsonl", WHOLE.replace(carry="summary", max_retries=1, concurrency=1)
    run(FakeEngine(by_round, chunk=4), config, path)
    budget = sum(e.generated_tokens for e in of_file(path, TraceCompleteEvent) if e.round == 0) + (80 if fails else 10)
    path.unlink()
    with pytest.raises(RunStoppedError) as stopped:
        run(FakeEngine(by_round, chunk=4, on_step=fail if fails else None), config.replace(token_budget=budget), path)
    discarded = of_file(path, AttemptDiscardedEvent)
    assert len(discarded) == (8 if fails else 1)
    assert RunState(read_events(path)).spent_tokens == partial_of(stopped.value).generated_tokens
    verify_file(path)
    result, state = run(FakeEngine(by_round, chunk=4), config, path), RunState(read_events(path))
    assert state.spent_tokens == result.generated_tokens + sum(event.generated_tokens for event in discarded)
    assert verify_file(path).finished


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no checkpoint be written."""
    write = AuditLog.write

    def refuse(log: AuditLog, event: Event) -> None:
        if isinstance(event, TraceCheckpointEvent):
            raise AuditError("The disk is full.")
        write(log, event)

    monkeypatch.setattr(AuditLog, "write", refuse)


def test_checkpoints_that_a_limit_cannot_write_are_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    with pytest.raises(AuditError, match="The disk is full"):
        run(FakeEngine(by_round, chunk=4), WHOLE.replace(token_budget=NEEDS // 2), tmp_path / "run.jsonl")


def test_checkpoints_that_ctrl_c_cannot_write_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch)
    presses = iter([signal.SIGINT])

    def press(request: GenerationRequest, step: int) -> None:
        if request.trace_id == "r1-00" and step and (number := next(presses, None)):
            signal.raise_signal(number)

    with pytest.raises(RunStoppedError, match=r"interrupted.*tokens are lost: The disk is full.*Resume"):
        orchestrator(FakeEngine(by_round, chunk=4, on_step=press)).run(
            QUESTION, WHOLE, audit_path=tmp_path / "run.jsonl"
        )


@pytest.mark.parametrize("steps", [0, 1, 5, 60])
def test_cancelling_leaves_a_resumable_file_and_nothing_running(steps: int, tmp_path: Path) -> None:
    path, backend = tmp_path / "run.jsonl", FakeEngine(by_round, chunk=4)

    async def cancelled() -> None:
        task = asyncio.create_task(orchestrator(backend).asolve(QUESTION, WHOLE, audit_path=path))  # type: ignore[arg-type]
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancelled())
    assert backend.running == 0
    assert run(FakeEngine(by_round, chunk=4), WHOLE, path).generated_tokens == NEEDS


def test_cancelling_one_run_leaves_the_others_alone() -> None:
    async def two() -> str:
        whole = orchestrator(FakeEngine(by_round, chunk=2))
        doomed = asyncio.create_task(whole.asolve(QUESTION, WHOLE))  # type: ignore[arg-type]
        other = asyncio.create_task(whole.asolve(QUESTION, WHOLE))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        doomed.cancel()
        return str(await other)

    assert asyncio.run(two()) == r"\boxed{r2}"


SCRIPT = """
import asyncio, json, sys
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import QUESTION, orchestrator, small
from markovian_rsa_mlx.errors import RunStoppedError

class Slow(FakeEngine):
    async def generate(self, request, listener):
        if not request.trace_id.startswith("r0"):
            print("waiting", flush=True)
            await asyncio.sleep(30)
        return await super().generate(request, listener)

def solve():
    whole = orchestrator(Slow(lambda r, g: boxed(r.trace_id[:2])))
    try:
        whole.solve(QUESTION, small(final_candidates=0), audit_path=sys.argv[1])
    except RunStoppedError as stop:
        print(json.dumps([stop.reason, stop.partial.answer, str(stop)]))

async def notebook():
    solve()

asyncio.run(notebook()) if sys.argv[2] == "notebook" else solve()
"""


@pytest.mark.parametrize("where", ["script", "notebook"])
def test_ctrl_c_stops_with_the_best_so_far(where: str, tmp_path: Path) -> None:
    path, root = tmp_path / "run.jsonl", Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT, str(path), where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        os.kill(process.pid, signal.SIGINT)
        start = time.monotonic()
        lines = process.stdout.read().splitlines()
        errors = process.stderr.read()
        assert process.wait(10) == 0, errors
    assert time.monotonic() - start < 10
    reason, answer, message = json.loads(lines[-1])
    assert (reason, answer) == ("interrupted", "r0")
    assert message.startswith("The run was interrupted after ")
    assert str(path) in message
    assert len(of(read_events(path), TraceCompleteEvent)) == 4
    assert run(FakeEngine(lambda r, g: boxed(r.trace_id[:2])), WHOLE, path).answer == "r2"

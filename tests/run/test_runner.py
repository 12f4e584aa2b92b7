"""The tasks of a run: fatal errors end it immediately, failures do not, and concurrent runs are independent."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import AuditWriter, is_finished, read_events
from markovian_rsa_mlx.audit.events import Event, RoundCompleteEvent, TailExtractedEvent, TraceCompleteEvent
from markovian_rsa_mlx.backends.base import GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.errors import AuditError, BackendError, MemoryLimitError, RunStoppedError
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import QUESTION, cut, line_ends, of, of_file, orchestrator, run, small

WHOLE = small(final_candidates=0)


class SlowEngine(FakeEngine):
    """An engine whose traces need 30 s after their first tokens, except those that `error` is raised for."""

    error: tuple[str, Exception] = ("", Exception())

    def __init__(self) -> None:
        super().__init__()
        self.is_busy = asyncio.Event()  #: set when four traces are running

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        self.requests.append(request)
        self.running += 1
        try:
            listener.started()
            listener.tokens([100])
            if self.running == 4:
                self.is_busy.set()
            if request.trace_id == self.error[0]:
                await asyncio.sleep(0.05)
                raise self.error[1]
            await asyncio.sleep(30)
            raise AssertionError("unreachable")
        finally:
            self.running -= 1


class EngineThatReadsAhead(FakeEngine):
    """Records what it may read ahead, with the number of requests before."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead: list[tuple[str, tuple[int, ...], int]] = []

    def read_ahead(self, run_id: str, trace_id: str, prompt_token_ids: Iterable[int], *, adapter: str = "") -> None:
        self.ahead.append((trace_id, tuple(prompt_token_ids), len(self.requests)))


def test_an_engine_gets_the_beginning_of_a_prompt_before_its_last_parents_end(tmp_path: Path) -> None:
    engine, path = EngineThatReadsAhead(), tmp_path / "run.jsonl"
    config = small(population=8, aggregation_size=4, final_candidates=0)
    run(engine, config, path)
    prompts = {each.trace_id: (each.prompt_token_ids, place) for place, each in enumerate(engine.requests)}
    assert len({trace_id for trace_id, _, _ in engine.ahead}) > 4
    for trace_id, beginning, requests in engine.ahead:
        ids, place = prompts[trace_id]
        assert ids[: len(beginning)] == beginning
        assert 0 < len(beginning) < len(ids)
        assert requests <= place
    again = EngineThatReadsAhead()
    run(again, config, cut(path, line_ends(path)[-3], tmp_path / "again.jsonl"))
    assert not again.ahead, "all prompts are recorded"


def test_nothing_is_read_ahead_for_a_trace_that_may_inherit() -> None:
    engine = EngineThatReadsAhead()
    run(engine, small(population=8, aggregation_size=4, early_stop="agreement", answer_kind="math"))
    assert not engine.ahead


@pytest.mark.parametrize("trace_id", ["r0-00", "r0-03"])
@pytest.mark.parametrize("concurrency", [4, "auto"])
def test_fatal_error_ends_the_run_immediately(trace_id: str, concurrency: int | str, tmp_path: Path) -> None:
    path, engine = tmp_path / "run.jsonl", SlowEngine()
    engine.error = (trace_id, MemoryLimitError("too large"))
    leaked: list[Any] = []

    async def execute() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: leaked.append(context))
        with pytest.raises(MemoryLimitError, match="too large"):
            await orchestrator(engine).arun(QUESTION, WHOLE.replace(concurrency=concurrency), audit_path=path)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    start = time.monotonic()
    asyncio.run(execute())
    assert time.monotonic() - start < 2
    assert engine.running == 0
    assert not leaked
    with AuditWriter(path, "a"):  # the file is closed, so it can be locked again
        assert not is_finished(read_events(path))
    assert run(FakeEngine(), WHOLE, path).text


def test_failed_trace_does_not_cancel_its_siblings() -> None:
    failed_at: list[int] = []

    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r0-01":
            failed_at.append(len(failed_at))
            raise BackendError("no luck")

    result = run(FakeEngine(fail=fail, chunk=1), WHOLE.replace(max_retries=0))
    assert len(failed_at) == 1
    ends = {e.trace_id: e.finish_reason for e in of(result.events, TraceCompleteEvent) if e.round == 0}
    assert ends == {"r0-00": "eos", "r0-01": "error", "r0-02": "eos", "r0-03": "eos"}


@pytest.mark.parametrize("concurrency", [1, 2, "auto"])
def test_trace_enters_the_engine_after_all_its_parents_ended(concurrency: int | str) -> None:
    events: list[Event] = []
    lineage = Lineage.of(WHOLE, 1)

    class Checking(FakeEngine):
        async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
            tails = {event.trace_id for event in of(events, TailExtractedEvent)}
            assert {str(key) for key in lineage.parents(TraceKey.parse(request.trace_id))} <= tails
            return await super().generate(request, listener)

    run(Checking(), WHOLE.replace(concurrency=concurrency), on_event=events.append)
    assert [event.round for event in of(events, RoundCompleteEvent)] == [0, 1, 2]


def test_only_the_thread_of_the_event_loop_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    write = AuditWriter.write

    def recording(self: AuditWriter, event: Event) -> None:
        threads.add(threading.get_ident())
        write(self, event)

    monkeypatch.setattr(AuditWriter, "write", recording)
    run(FakeEngine(), small(carry="summary", answer_selection="majority", final_candidates=0), tmp_path / "run.jsonl")
    assert threads == {threading.get_ident()}


def test_concurrent_runs_of_one_orchestrator_report_their_own_partial_results(tmp_path: Path) -> None:
    def echo(request: GenerationRequest, rng: random.Random) -> str:
        content = request.messages[-1]["content"]
        return boxed("first" if "Question one" in content else "second", "think " * 20)

    whole = orchestrator(FakeEngine(echo, chunk=4))

    async def execute(question: str, token_budget: int, path: Path) -> RunStoppedError:
        with pytest.raises(RunStoppedError) as caught:
            await whole.arun(question, WHOLE.replace(token_budget=token_budget), audit_path=path)
        return caught.value

    async def both() -> list[RunStoppedError]:
        return await asyncio.gather(
            execute("Question one?", 700, tmp_path / "one.jsonl"), execute("Question two?", 900, tmp_path / "two.jsonl")
        )

    one, two = (stop.partial for stop in asyncio.run(both()))
    assert (one.answer, one.audit_path) == ("first", tmp_path / "one.jsonl")
    assert (two.answer, two.audit_path) == ("second", tmp_path / "two.jsonl")
    assert 700 <= one.generated_tokens < 900 <= two.generated_tokens
    assert one.run_id != two.run_id
    assert {event.run_id for event in of_file(tmp_path / "one.jsonl", TraceCompleteEvent)} == {one.run_id}


def cancel_in_round_zero(path: Path, before: Callable[[], None] = lambda: None) -> None:
    """Cancel a run whose first traces have generated one token each. Call `before` shortly before."""

    async def execute() -> None:
        engine = SlowEngine()
        task = asyncio.create_task(orchestrator(engine).arun(QUESTION, WHOLE, audit_path=path))
        await engine.is_busy.wait()
        before()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(execute())


def test_cancelled_task_records_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    cancel_in_round_zero(path)
    points = [event.to_dict() for event in read_events(path) if event.EVENT_NAME == "trace_checkpoint"]
    assert {point["trace_id"] for point in points} == {"r0-00", "r0-01", "r0-02", "r0-03"}
    assert all(point["token_ids"] == [100] for point in points)


def test_cancellation_stays_a_cancellation_if_no_checkpoint_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: AuditWriter, event: Event) -> None:
        raise AuditError("No space left on device.")

    cancel_in_round_zero(tmp_path / "run.jsonl", before=lambda: monkeypatch.setattr(AuditWriter, "write", full))

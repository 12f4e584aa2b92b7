"""The runs of a server: start and resume them, limit their number, count them and end them.

A run is a task on the server's event loop. All runs share one engine, which admits their traces in turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, disable_created_metrics

from .. import reasoner
from ..audit import RunState
from ..audit.events import Event, SummaryCompleteEvent
from ..config import RSAConfig
from ..errors import AuditError, MarkovianRSAError, PromptError, RunStoppedError
from ..locks import is_locked
from ..orchestrator import MarkovianRSAOrchestrator
from ..run.result import RunResult
from ..run_store import new_run_path
from ..tokenizer import ChatMessage
from .config import ServerSettings
from .errors import RequestError, to_request_error
from .plan import Plan
from .stream import StreamingListener

_log = logging.getLogger(__name__)
RUN_ID_HEADER = "X-MRSA-Run-Id"
#: The reason why a run was cancelled.
CancelledBy = Literal["client", "request", "shutdown"]
T = TypeVar("T")


@dataclass(eq=False)
class ActiveRun:
    """A run in progress. `state` has the events of its earlier sessions too."""

    state: RunState
    path: Path | None
    kind: Literal["rsa", "plain"]
    count_tokens: Callable[[int], None]
    listener: StreamingListener | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    cancelled_by: CancelledBy | None = None
    task: asyncio.Task[RunResult] = field(init=False)

    @property
    def rows(self) -> int:
        """The number of traces that the engine generates now."""
        return sum(trace.status == "running" for trace in self.state.traces.values())

    def cancel(self, by: CancelledBy) -> None:
        """Stop the run within one decoding step. It can be resumed from its audit trail."""
        if not self.task.done():
            self.cancelled_by = self.cancelled_by or by
            self.task.cancel()

    def on_event(self, event: Event) -> None:
        self.state.apply(event)
        if isinstance(event, SummaryCompleteEvent):  # its tokens are not streamed
            self.count_tokens(event.generated_tokens)
        if self.listener is not None:
            self.listener.event(event, self.state)
        self.begun.set()

    def on_tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s
        self.count_tokens(len(ids))
        self.state.add_tokens(trace_id, len(ids))
        if self.listener is not None:
            self.listener.tokens(trace_id, ids)


class Metrics:
    """Counters and gauges for Prometheus. `active` is the manager's list of runs, which grows and shrinks."""

    def __init__(self, active: Sequence[ActiveRun], queue: int) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no switch per registry
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "mrsa", "registry": self.registry}
        self.runs = Counter("runs", "Runs that ended, by kind and outcome.", ["kind", "outcome"], **options)
        self.run_seconds = Counter("run_seconds", "Seconds that ended runs took.", ["kind"], **options)
        self.requests = Counter("requests", "Requests answered, by route and status.", ["route", "status"], **options)
        self.first_token = Summary("first_token_seconds", "Seconds from a run's start to its first token.", **options)
        self.tokens = Counter("generated_tokens", "Tokens generated.", **options)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "runs_active": ("Runs with a trace in the engine.", lambda: sum(run.rows > 0 for run in active)),
            "runs_waiting": ("Runs that wait for the engine.", lambda: sum(run.rows == 0 for run in active)),
            "engine_rows": ("Traces in the engine.", lambda: sum(run.rows for run in active)),
            "queue_limit": ("Maximum number of concurrent runs.", lambda: queue),
        }
        for name, (documentation, value) in gauges.items():
            Gauge(name, documentation, **options).set_function(value)

    def mean_run_seconds(self) -> float:
        """Return the mean duration of the runs that ended, and 1 if there are none."""
        seconds, count = (
            sum(sample.value for family in counter.collect() for sample in family.samples)
            for counter in (self.run_seconds, self.runs)
        )
        return seconds / count if count else 1.0


class RunManager:
    """Starts, resumes, counts and ends the runs of one server."""

    def __init__(self, orchestrator: MarkovianRSAOrchestrator, settings: ServerSettings) -> None:
        assert orchestrator.shared
        self.orchestrator, self.settings = orchestrator, settings
        self.engine = orchestrator.backend
        model_id = own_name = self.engine.info.model_id
        if model_id.startswith(("/", ".", "~")):  # a folder
            path = Path(model_id)
            own_name = path.name if path.name not in ("", "..") else path.resolve().name
        self.model_names = settings.names or (own_name,)  #: names under which the model is listed
        self.model_name = self.model_names[0]  #: its name in responses
        self._known_names = {*self.model_names, own_name, model_id}
        self.active: list[ActiveRun] = []
        self.metrics = Metrics(self.active, settings.queue)
        self.closing = asyncio.Event()
        self.started_at = int(time.time())
        self._preparing = 0  #: number of requests in preparation
        # Threads of its own, so that tokenizing long prompts does not block other work.
        self._preparers = ThreadPoolExecutor(2, "prepare")
        self._draining: asyncio.Task[None] | None = None

    def check_model(self, name: str) -> None:
        """Raise `RequestError` if the model is not served under this name."""
        if name not in self._known_names:
            message = f"There is no model {name[:80]!r} here. The served model is {self.model_name!r}."
            raise RequestError(404, message, "model_not_found", "model")

    def find_active(self, run_id: str) -> ActiveRun | None:
        """Return the run with this id if it is in progress in this server."""
        return next((run for run in self.active if run.state.run_id == run_id), None)

    async def prepare(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run the work that precedes a run on a thread. It takes a place in the queue."""
        self._check_capacity()
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparers, work, *arguments)
        finally:
            self._preparing -= 1

    async def start(self, plan: Plan, listener: StreamingListener | None = None) -> ActiveRun:
        """Start a run. Errors before its first event are raised here."""
        question = plan.chat[-1]["content"]
        embedded = self.engine.info.model_id == reasoner.MODEL_ID and not self.settings.any_question
        if embedded and not reasoner.can_answer(question):
            raise PromptError(f"The served model cannot answer this question. {reasoner.CAPABILITIES}")
        path = new_run_path(question) if plan.keep_trail else None
        kind: Literal["rsa", "plain"] = "rsa" if plan.rsa else "plain"
        run = ActiveRun(self.new_state(), path, kind, self.metrics.tokens.inc, listener)
        await self._start(run, plan.chat, plan.config)
        return run

    async def resume(self, state: RunState, path: Path) -> None:
        """Resume the unfinished run in `path` with its recorded chat and settings.

        Raise `RequestError` if the run is in progress, here or in another process.
        """
        assert state.setup is not None
        if self.find_active(state.run_id) is not None or is_locked(path):
            raise RequestError(409, "The run is already in progress.", "already_running")
        chat = [ChatMessage(role=m["role"], content=m["content"]) for m in state.setup.messages]
        run = ActiveRun(state, path, "rsa", self.metrics.tokens.inc)
        await self._start(run, chat, state.config)
        run.task.add_done_callback(_log_unexpected)

    def new_state(self, events: Iterable[Event] = ()) -> RunState:
        """Return the state of a run after these events, with its planned traces."""
        return RunState(events, plan_traces=True, decode=self.engine.tokenizer.decode)

    async def drain(self) -> None:
        """Refuse new runs, wait for active ones during the grace period, then cancel them.

        Concurrent callers share one drain.
        """
        self.closing.set()
        self._draining = self._draining or asyncio.create_task(self._drain())
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        if self.active:
            await asyncio.wait([run.task for run in self.active], timeout=self.settings.grace_s)
        await self.cancel_all("shutdown")
        self._preparers.shutdown(wait=False)

    async def cancel_all(self, by: CancelledBy) -> None:
        """Cancel all runs and wait for their end."""
        tasks = [run.task for run in self.active]
        for run in list(self.active):
            run.cancel(by)
        if tasks:
            await asyncio.wait(tasks)

    def _check_capacity(self) -> None:
        """Raise `RequestError` if the server stops or its queue is full."""
        if self.closing.is_set():
            message = "The server is stopping. Try again later."
            raise RequestError(503, message, "stopping", headers={"Retry-After": "10"})
        limit = self.settings.queue
        if len(self.active) + self._preparing >= limit:
            wait_s = min(60, max(1, math.ceil(self.metrics.mean_run_seconds())))
            message = f"The queue is full: {limit} requests are in progress. Try again later."
            raise RequestError(429, message, "queue_full", headers={"Retry-After": str(wait_s)})

    async def _start(self, run: ActiveRun, chat: Sequence[ChatMessage], config: RSAConfig) -> None:
        """Start the run's task, and wait for its first event or its failure."""
        self._check_capacity()
        if run.path is not None:
            folder = run.path.parent
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise AuditError(
                    f"Cannot create the folder for audit trails {folder} ({error.strerror}). Set MRSA_HOME."
                ) from error
        work = self.orchestrator.arun(
            list(chat), config, audit_path=run.path, on_event=run.on_event, on_progress=run.on_tokens
        )
        run.task = asyncio.create_task(self._watch(run, work))
        self.active.append(run)
        begun = asyncio.create_task(run.begun.wait())
        await asyncio.wait({run.task, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if run.task.done() and not run.begun.is_set():
            run.task.result()

    async def _watch(self, run: ActiveRun, work: Coroutine[Any, Any, RunResult]) -> RunResult:
        """Await the run, and count its outcome."""
        outcome = "failed"
        try:
            result = await work
            outcome = "ok"
            return result
        except RunStoppedError:
            outcome = "stopped"
            raise
        except asyncio.CancelledError:
            outcome = "disconnected" if run.cancelled_by == "client" else "cancelled"
            raise
        finally:
            self.active.remove(run)
            self.metrics.runs.labels(run.kind, outcome).inc()
            self.metrics.run_seconds.labels(run.kind).inc(time.monotonic() - run.started_s)
            if run.first_token_s is not None:
                self.metrics.first_token.observe(run.first_token_s)


async def wait_for_result(run: ActiveRun) -> RunResult:
    """Return the run's result, the partial one if a limit stopped it. Raise `RequestError` for any other end."""
    await asyncio.wait({run.task})
    try:
        return run.task.result()
    except RunStoppedError as stop:
        return stop.partial
    except asyncio.CancelledError:
        hint = f" Resume it with POST /v1/runs/{run.state.run_id}/resume." if run.path is not None else ""
        if run.cancelled_by == "shutdown":
            message = f"The server is stopping and cancelled the run.{hint}"
            error = RequestError(503, message, "stopping", headers={"Retry-After": "10"})
        else:
            error = RequestError(409, f"The run was cancelled.{hint}", "cancelled")
    except MarkovianRSAError as failure:
        error = to_request_error(failure)
    # OpenAI's clients repeat requests that failed with 409 or 5xx, and the work would be done again.
    error.headers |= {RUN_ID_HEADER: run.state.run_id, "x-should-retry": "false"}
    raise error


def _log_unexpected(task: asyncio.Task[RunResult]) -> None:
    """Log an unexpected exception of a resumed run, which no client awaits."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, MarkovianRSAError):
        _log.error("A resumed run failed", exc_info=error)

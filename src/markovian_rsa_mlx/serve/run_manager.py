"""What all endpoints share: the engine, the runs under way, their number and their end.

A run is one task on the server's event loop; every run uses the one engine, which lets their traces in by turns.

One run that this server carries out: its task, what it has said so far, and who listens.

What `GET /metrics` tells, in Prometheus' text format.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from .. import reasoner
from ..audit import RunState
from ..audit.events import (
    Event,
    GenerationStartEvent,
    RunStartEvent,
    SummaryCompleteEvent,
    TraceCompleteEvent,
    TraceRetryEvent,
)
from ..config import RSAConfig
from ..errors import AuditError, MarkovianRSAError, PromptError, RunStoppedError
from ..orchestrator import MarkovianRSAOrchestrator
from ..progress import Decode, Progress
from ..run.result import RunResult
from ..run_store import is_being_written, new_run_path
from ..tokenizer import ChatMessage
from .config import ServerSettings
from .errors import RequestError, to_request_error
from .plan import Plan

_log = logging.getLogger(__name__)
RUN_ID_HEADER = "X-MRSA-Run-Id"
#: For OpenAI's clients, which repeat what failed with 409 or 5xx: the work was done, and would be done again.
DO_NOT_RETRY = {"x-should-retry": "false"}
T = TypeVar("T")


class RunManager:
    """The running server without its HTTP. Close it when done: what still runs is cancelled and can be resumed."""

    def __init__(self, orchestrator: MarkovianRSAOrchestrator, settings: ServerSettings) -> None:
        orchestrator.shared = True
        self.orchestrator, self.settings = orchestrator, settings
        self.backend = orchestrator.backend
        self.metrics = Metrics()
        self.closing = asyncio.Event()
        self.started_at = int(time.time())
        self._active: set[ActiveRun] = set()
        self._coming = 0  #: requests that are being prepared
        # Of their own, so that tokenizing long prompts keeps no other work off the threads.
        self._preparers = ThreadPoolExecutor(2, "prepare")
        self._draining: asyncio.Task[None] | None = None

    @property
    def model_names(self) -> tuple[str, ...]:
        """What the model is listed as."""
        return self.settings.names or (self._own_name(),)

    @property
    def model_name(self) -> str:
        """What the model is called in answers."""
        return self.model_names[0]

    def knows_model(self, name: str) -> bool:
        """Whether clients may call the model so."""
        return name in (*self.model_names, self._own_name(), self.backend.info.model_id)

    def _own_name(self) -> str:
        """A hub id as it is, a folder by its own name."""
        model_id = self.backend.info.model_id
        if not model_id.startswith(("/", ".", "~")):
            return model_id
        path = Path(model_id)
        return path.name if path.name not in ("", "..") else path.resolve().name

    @property
    def active(self) -> list[ActiveRun]:
        return list(self._active)

    def find_active(self, run_id: str) -> ActiveRun | None:
        """The run of this id, if it is under way here."""
        return next((run for run in self._active if run.run_id == run_id), None)

    async def prepare(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do what comes before a run, on a thread; it has its place in the queue from here on."""
        self._check_room()
        self._coming += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparers, work, *arguments)
        finally:
            self._coming -= 1

    async def start(self, plan: Plan, watcher: Watcher | None = None) -> ActiveRun:
        """Begin a run. What is wrong with it before its first token is raised here."""
        self._check_question(plan.chat)
        path = new_run_path(plan.chat[-1]["content"]) if plan.keep_trail else None
        run = ActiveRun(plan.config, path, self.backend.tokenizer.decode, watcher, rsa=plan.rsa)
        return await self._begin(plan.chat, plan.config, run)

    async def resume(self, history: RunState, events: Sequence[Event], path: Path) -> ActiveRun:
        """Go on with the unfinished run that `path` holds, as it was asked for. Raises `RequestError` if it goes on."""
        assert history.start is not None
        assert history.setup is not None
        chat = [ChatMessage(role=m["role"], content=m["content"]) for m in history.setup.messages]
        config = history.start.config
        run = ActiveRun(config, path, self.backend.tokenizer.decode, rsa=True)
        await self.prepare(run.recall, events)
        if self.find_active(run.run_id) is not None or is_being_written(path):
            raise RequestError(409, "The run is under way already.", "already_running")
        await self._begin(chat, config, run)
        run.task.add_done_callback(_log_unexpected)
        return run

    async def drain(self) -> None:
        """Take nothing new; let what runs finish within the grace, then cancel it. Whoever asks again waits along."""
        self.closing.set()
        self._draining = self._draining or asyncio.create_task(self._drain())
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        await self._wait(self.settings.grace_s)
        await self.cancel_all("shutdown")
        self._preparers.shutdown(wait=False)

    async def cancel_all(self, ender: Ender) -> None:
        for run in self.active:
            run.cancel(ender)
        await self._wait(None)

    async def _wait(self, seconds: float | None) -> None:
        tasks = [run.task for run in self.active]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _begin(
        self,
        chat: Sequence[ChatMessage],
        config: RSAConfig,
        run: ActiveRun,
    ) -> ActiveRun:
        self._check_room()
        if run.path is not None:
            _make_folder(run.path.parent)
        work = self.orchestrator.arun(
            list(chat), config, audit_path=run.path, on_event=run.on_event, on_progress=run.on_tokens
        )
        run.task = asyncio.create_task(self._watched(run, work))
        self._active.add(run)
        begun = asyncio.create_task(run.begun.wait())
        await asyncio.wait({run.task, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if run.task.done() and not run.begun.is_set():
            run.task.result()
        return run

    async def _watched(self, run: ActiveRun, work: Coroutine[Any, Any, RunResult]) -> RunResult:
        outcome = "failed"
        try:
            result = await work
            outcome = "ok"
            return result
        except RunStoppedError:
            outcome = "stopped"
            raise
        except asyncio.CancelledError:
            outcome = "disconnected" if run.ended_by == "client" else "cancelled"
            raise
        finally:
            self._active.discard(run)
            if run.first_token_s is not None:
                self.metrics.first_token(run.first_token_s)
            self.metrics.tokens += run.generated
            self.metrics.run_ended(run.kind, outcome, time.monotonic() - run.started_s)

    def _check_room(self) -> None:
        if self.closing.is_set():
            raise RequestError(503, "The server is stopping; try another one, or later.", "stopping", None, _retry(10))
        most = self.settings.queue
        if len(self._active) + self._coming >= most:
            wait = min(60, max(1, math.ceil(self.metrics.mean_run_seconds)))
            raise RequestError(
                429,
                f"{most} requests are under way, and no more are taken; try again later.",
                "queue_full",
                None,
                _retry(wait),
            )

    def _check_question(self, chat: Sequence[ChatMessage]) -> None:
        embedded = self.backend.info.model_id == reasoner.MODEL_ID and not self.settings.any_question
        if embedded and chat and not reasoner.can_answer(chat[-1]["content"]):
            raise PromptError(f"The served model is not made for this question. {reasoner.CAPABILITIES}")


async def wait_for_result(run: ActiveRun) -> RunResult:
    """What a run comes to; one that was stopped at a budget gives what it has. Raises `RequestError`."""
    await asyncio.wait({run.task})
    try:
        return run.task.result()
    except RunStoppedError as stop:
        return cast(RunResult, stop.partial)
    except asyncio.CancelledError:
        refusal = _cancelled(run)
    except MarkovianRSAError as error:
        refusal = to_request_error(error)
    refusal.headers |= {RUN_ID_HEADER: run.run_id} | DO_NOT_RETRY
    raise refusal


def _cancelled(run: ActiveRun) -> RequestError:
    again = f"; POST /v1/runs/{run.run_id}/resume goes on with it" if run.path is not None else ""
    if run.ended_by == "shutdown":
        return RequestError(503, f"The server is stopping and cancelled the run{again}.", "stopping", None, _retry(10))
    return RequestError(409, f"The run was cancelled{again}.", "cancelled")


def _log_unexpected(task: asyncio.Task[RunResult]) -> None:
    """Nobody waits for a resumed run: how it ends stands in its trail, but a bug must not go unseen."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, MarkovianRSAError):
        _log.error("A resumed run failed", exc_info=error)


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuditError(f"The folder {folder} for trails cannot be made ({error.strerror}); set MRSA_HOME.") from error


#: Who ended a run before its time.
Ender = Literal["client", "request", "shutdown"]


class Watcher(Protocol):
    """Hears of a run, on the event loop's thread."""

    def event(self, event: Event, progress: Progress) -> None:
        """An event; `progress` has taken it in already."""

    def tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        """New ids of a trace."""


class ActiveRun:
    """A run between its start and its end. `rows` are its traces in the engine."""

    def __init__(
        self, config: RSAConfig, path: Path | None, decode: Decode, watcher: Watcher | None = None, *, rsa: bool
    ) -> None:
        self.path, self.rsa = path, rsa
        self.progress = Progress(config, time.monotonic, decode)
        self.rows: set[str] = set()
        self.begun = asyncio.Event()
        self.ended_by: Ender | None = None
        self.started_s = time.monotonic()
        self.first_token_s: float | None = None
        self.start: RunStartEvent | None = None  #: of a run that was begun here
        self.generated = 0  #: tokens of this sitting
        self.task: asyncio.Task[RunResult]
        self._watcher = watcher

    @property
    def run_id(self) -> str:
        return self.progress.run_id

    @property
    def kind(self) -> str:
        return "rsa" if self.rsa else "plain"

    def recall(self, events: Iterable[Event]) -> None:
        """Take in what earlier sittings of this run wrote."""
        for event in events:
            self.progress.handle(event)
            self.start = event if isinstance(event, RunStartEvent) else self.start

    def cancel(self, ender: Ender) -> None:
        """Stop it within a step; its trail can be resumed. Does nothing to a run that is over."""
        if not self.task.done():
            self.ended_by = self.ended_by or ender
            self.task.cancel()

    def on_event(self, event: Event) -> None:
        self.progress.handle(event)
        if isinstance(event, RunStartEvent):
            self.start = event
        elif isinstance(event, GenerationStartEvent):
            self.rows.add(event.trace_id)
        elif isinstance(event, (TraceCompleteEvent, TraceRetryEvent)):
            self.rows.discard(event.trace_id)
        elif isinstance(event, SummaryCompleteEvent):
            self.generated += event.generated_tokens
        if self._watcher is not None:
            self._watcher.event(event, self.progress)
        self.begun.set()

    def on_tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s
        self.generated += len(ids)
        self.progress.add_tokens(trace_id, len(ids))
        if self._watcher is not None:
            self._watcher.tokens(trace_id, ids)


_PREFIX = "mrsa_"


class Metrics:
    """Counts since the server began. Seconds and tokens only grow, so that rates can be taken."""

    def __init__(self) -> None:
        self._runs: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._first_token: list[float] = [0.0, 0.0]  # sum, count
        self.tokens = 0  #: of runs that ended

    def run_ended(self, kind: str, outcome: str, seconds: float) -> None:
        """A run ended: `kind` rsa or plain; `outcome` ok, failed, cancelled, disconnected or stopped."""
        self._runs[kind, outcome] += 1
        self._seconds[kind] += seconds  # type: ignore[assignment]

    def answered(self, route: str, status: int) -> None:
        self._requests[route, status] += 1

    def first_token(self, seconds: float) -> None:
        self._first_token[0] += seconds
        self._first_token[1] += 1

    @property
    def mean_run_seconds(self) -> float:
        """Of the runs so far, 1 before there was any."""
        count = sum(self._runs.values())
        return sum(self._seconds.values()) / count if count else 1.0

    def text(self, runs: Sequence[ActiveRun], queue: int) -> str:
        """The page; `runs` are under way, at most `queue` of them."""
        return "\n".join(self._lines(runs, queue)) + "\n"

    def _lines(self, runs: Sequence[ActiveRun], queue: int) -> Iterator[str]:
        yield from _head("runs_total", "counter", "Runs that ended, by kind and outcome.")
        for (kind, outcome), count in sorted(self._runs.items()):
            yield f'{_PREFIX}runs_total{{kind="{kind}",outcome="{outcome}"}} {count}'
        yield from _head("run_seconds_total", "counter", "Seconds that ended runs took.")
        for kind, seconds in sorted(self._seconds.items()):
            yield f'{_PREFIX}run_seconds_total{{kind="{kind}"}} {seconds:.3f}'
        yield from _head("requests_total", "counter", "Requests answered, by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'{_PREFIX}requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("first_token_seconds", "summary", "Seconds from a run's start to its first token.")
        yield f"{_PREFIX}first_token_seconds_sum {self._first_token[0]:.3f}"
        yield f"{_PREFIX}first_token_seconds_count {self._first_token[1]:.0f}"
        inside = sum(bool(run.rows) for run in runs)
        tokens = self.tokens + sum(run.generated for run in runs)
        for name, kind, value, meaning in (
            ("generated_tokens_total", "counter", tokens, "Tokens generated."),
            ("runs_active", "gauge", inside, "Runs with a trace in the engine."),
            ("runs_waiting", "gauge", len(runs) - inside, "Runs that wait for the engine."),
            ("engine_rows", "gauge", sum(len(run.rows) for run in runs), "Traces in the engine."),
            ("queue_limit", "gauge", queue, "Most runs at once."),
        ):
            yield from _head(name, kind, meaning)
            yield f"{_PREFIX}{name} {value}"


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {meaning}"
    yield f"# TYPE {_PREFIX}{name} {kind}"

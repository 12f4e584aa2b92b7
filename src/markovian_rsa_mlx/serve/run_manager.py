"""The runs of a server: start and resume them, limit their number, count them and end them.

A run is a task on the server's event loop. All runs share one engine, which admits their traces in turn.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, disable_created_metrics

from .. import choose_model, reasoner
from ..audit import RunState
from ..audit.events import Event, JudgementEvent, SummaryCompleteEvent, TraceCompleteEvent, TraceRetryEvent
from ..config import PROFILES, RSAConfig
from ..errors import AuditError, MarkovianRSAError, PromptError, RunStoppedError
from ..formatting import model_name, shortened
from ..locks import is_locked
from ..method.context import PromptLengths, longest_sequence
from ..method.prompts import check_chat
from ..orchestrator import MarkovianRSAOrchestrator
from ..run.result import RunResult
from ..run.setup import make_setup
from ..run_store import new_run_path
from ..tools import Chat, recorded_chat
from .config import ServerSettings
from .errors import RequestError, naming_schema, to_request_error
from .live_progress import ProgressMeter
from .logprobs import TraceValues
from .plain_engine import PlainEngine
from .plan import Plan, Target
from .request import RequestModel, tolerated_parts, unknown_key_error, unknown_keys
from .stream import StreamingListener, live_traces

_log = logging.getLogger(__name__)
RUN_ID_HEADER = "X-MRSA-Run-Id"
#: The reason why a run was cancelled.
CancelledBy = Literal["client", "request", "shutdown"]
#: Maximum number of notices in the log about ignored keys and tolerated parts of requests.
_MAX_NOTICES = 100
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
    created: int = field(default_factory=lambda: int(time.time()))
    started_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    cancelled_by: CancelledBy | None = None
    plain_engine: PlainEngine | None = None
    meter: ProgressMeter | None = None  #: of a run with a trail, which has a page
    task: asyncio.Task[RunResult] = field(init=False)

    @property
    def values(self) -> TraceValues | None:
        """The log-probabilities of ids by trace, if the request asks for them."""
        return None if self.plain_engine is None else self.plain_engine.values

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
        if isinstance(event, SummaryCompleteEvent | JudgementEvent):  # its tokens are not streamed
            self.count_tokens(event.generated_tokens)
        if self.meter is not None and isinstance(event, TraceCompleteEvent | TraceRetryEvent):
            self.meter.forget(event.trace_id)
        if self.listener is not None:
            self.listener.event(event, self.state)
        self.begun.set()

    def on_tokens(self, trace_id: str, ids: Sequence[int]) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.started_s
        self.count_tokens(len(ids))
        self.state.add_tokens(trace_id, len(ids))
        if self.meter is not None and self.state.trace(trace_id).status == "running":  # not the tokens of its summary
            self.meter.add(trace_id, ids)
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
        self.ignored_keys = Counter("ignored_keys", "Unknown keys of requests that were ignored.", **options)
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
        orchestrator.any_question = True  # `start` checks the questions
        self.engine = orchestrator.backend
        if hasattr(self.engine, "expect_chats"):
            self.engine.expect_chats()
        model_id = self.engine.info.model_id
        own_name = model_name(model_id)
        self.model_names = settings.names or (own_name,)  #: names under which the model is listed
        self.model_name = self.model_names[0]  #: its name in responses
        self._known_names = {*self.model_names, own_name, model_id}
        self.run_models = self._run_models()  #: names that stand for runs, and their settings
        self._notices: set[str] = set()  #: what the log has about requests
        self.active: list[ActiveRun] = []
        self.texts: set[asyncio.Task[None]] = set()  #: completions of texts, which are not runs
        self.metrics = Metrics(self.active, settings.queue)
        self.closing = asyncio.Event()
        self.started_at = int(time.time())
        self._preparing = 0  #: number of requests in preparation
        # Threads of its own, so that tokenizing long prompts does not block other work.
        self._preparers = ThreadPoolExecutor(2, "prepare")
        self._draining: asyncio.Task[None] | None = None

    def target(self, name: str | None) -> Target:
        """Return what a model name stands for. Raise `RequestError` if no model is served under it."""
        if not name or name in self._known_names:
            return Target(self.model_name, self.settings.base, rsa=self.settings.always_rsa)
        if (base := self.run_models.get(name)) is not None:
            return Target(name, base, rsa=True)
        message = f"There is no model {name[:80]!r} here. The served model is {self.model_name!r}."
        raise RequestError(404, message, "model_not_found", "model")

    def check_tolerance(self, request: RequestModel) -> None:
        """Name once in the log what of a request is ignored, left out or replaced. Raise `RequestError` if strict."""
        strict, ignored = self.settings.strict, 0
        for path in unknown_keys(request):
            if strict:
                raise unknown_key_error(path)
            self._log_once(f"The key {shortened(path, 80)!r} of requests is unknown and ignored.")
            ignored += 1
        self.metrics.ignored_keys.inc(ignored)
        for part in tolerated_parts(request):
            if strict:
                raise part.error
            self._log_once(part.notice)

    def _log_once(self, notice: str) -> None:
        if len(self._notices) < _MAX_NOTICES and notice not in self._notices:
            self._notices.add(notice)
            _log.warning("%s", notice)

    def _run_models(self) -> dict[str, RSAConfig]:
        """Return `MODEL-rsa` with the server's profile, and `MODEL-rsa-NAME` for each profile that fits the context."""
        found, kind = {f"{self.model_name}-rsa": self.settings.base}, self.settings.rsa_models
        for name in self.fitting_profiles() if kind == "all" else ():
            found[f"{self.model_name}-rsa-{name}"] = PROFILES[name].for_any_question()
        return {} if kind == "none" else {name: each for name, each in found.items() if name not in self._known_names}

    def fitting_profiles(self) -> list[str]:
        """Return the names of the profiles that fit the model's context."""
        context = self.engine.info.context_length

        def need(config: RSAConfig) -> int:
            return longest_sequence(config, PromptLengths.without_template(config, 0)).tokens

        return [name for name, config in PROFILES.items() if context is None or need(config) < context]

    def prompt_tokens(self, plan: Plan) -> int:
        """Tokenize the prompt that the first traces of a run get, and return its length. Raise `PromptError`."""
        check_chat(plan.chat)
        chat = choose_model(self.engine.info.model_id).worded(plan.chat, any_question=True)
        return len(make_setup(run_id="", seed=0, prompt=chat, config=plan.config, engine=self.engine).prompt_token_ids)

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
        question = plan.chat.question
        embedded = self.engine.info.model_id == reasoner.MODEL_ID and not self.settings.any_question
        if embedded:
            reasoner.as_trained(question)  # refuses other questions
            if plan.chat.tools:
                raise PromptError("The embedded reasoner calls no tools. Leave tools out, or serve another model.")
        path = new_run_path(question) if plan.keep_trail else None
        kind: Literal["rsa", "plain"] = "rsa" if plan.rsa else "plain"
        run = ActiveRun(self.new_state(), path, kind, self.metrics.tokens.inc, listener)
        run.plain_engine = self._plain_engine(plan)
        with naming_schema(plan.request.schema_key):
            await self._start(run, plan.chat, plan.config)
        return run

    async def start_in_background(self, plan: Plan) -> ActiveRun:
        """Start a run that no client waits for."""
        run = await self.start(plan)
        run.task.add_done_callback(_log_unexpected)
        return run

    def _plain_engine(self, plan: Plan) -> PlainEngine | None:
        """Return the engine of an ordinary completion that needs one of its own."""
        stops, top_logprobs = plan.live_stops, plan.top_logprobs
        if top_logprobs is not None and not self.engine.info.gives_logprobs:
            message = f"logprobs is not supported: {self.engine.info.engine} gives no log-probabilities. Leave it out."
            raise RequestError(400, message, "unsupported_key", "logprobs")
        if not stops and top_logprobs is None:
            return None
        new_trace = live_traces(plan, self.engine.tokenizer)
        return PlainEngine(self.engine, new_trace=new_trace, stops=stops, top_logprobs=top_logprobs)

    async def resume(self, state: RunState, path: Path) -> None:
        """Resume the unfinished run in `path` with its recorded chat and settings.

        Raise `RequestError` if the run is in progress, here or in another process, or if its chat cannot be read.
        """
        assert state.setup is not None
        if self.find_active(state.run_id) is not None or is_locked(path):
            raise RequestError(409, "The run is already in progress.", "already_running")
        try:
            chat = recorded_chat(state.setup.messages, state.tools)
            check_chat(chat)
        except (ValueError, PromptError) as error:
            reason = str(error).removesuffix(".")
            message = f"The audit trail is damaged: its chat cannot be read ({reason}). Send the request again."
            raise RequestError(409, message, "damaged") from error
        run = ActiveRun(state, path, "rsa", self.metrics.tokens.inc)
        await self._start(run, chat, state.config)
        run.task.add_done_callback(_log_unexpected)

    def start_text(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the completion of a text."""
        try:
            self._check_capacity()
        except RequestError:
            work.close()
            raise
        task = asyncio.create_task(work)
        self.texts.add(task)
        task.add_done_callback(self.texts.discard)
        return task

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
        if tasks := [*(run.task for run in self.active), *self.texts]:
            await asyncio.wait(tasks, timeout=self.settings.grace_s)
        await self.cancel_all("shutdown")
        self._preparers.shutdown(wait=False, cancel_futures=True)

    async def cancel_all(self, by: CancelledBy) -> None:
        """Cancel all runs and wait for their end."""
        tasks = [*(run.task for run in self.active), *self.texts]
        for run in list(self.active):
            run.cancel(by)
        for text in self.texts:
            text.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _check_capacity(self) -> None:
        """Raise `RequestError` if the server stops or its queue is full."""
        if self.closing.is_set():
            message = "The server is stopping. Try again later."
            raise RequestError(503, message, "stopping", headers={"Retry-After": "10"})
        limit = self.settings.queue
        if len(self.active) + len(self.texts) + self._preparing >= limit:
            wait_s = min(60, max(1, math.ceil(self.metrics.mean_run_seconds())))
            message = f"The queue is full: {limit} requests are in progress. Try again later."
            raise RequestError(429, message, "queue_full", headers={"Retry-After": str(wait_s)})

    async def _start(self, run: ActiveRun, chat: Chat, config: RSAConfig) -> None:
        """Start the run's task, and wait for its first event or its failure."""
        self._check_capacity()
        if run.path is not None:
            run.meter = ProgressMeter(self.engine.tokenizer.decode)
            folder = run.path.parent
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise AuditError(
                    f"Cannot create the folder for audit trails {folder} ({error.strerror}). Set MRSA_HOME."
                ) from error
        orchestrator = self.orchestrator
        if run.plain_engine is not None:
            orchestrator = copy.copy(orchestrator)
            orchestrator.backend = orchestrator.engine = run.plain_engine
        work = orchestrator.arun(
            chat,
            config,
            audit_path=run.path,
            on_event=run.on_event,
            on_progress=run.on_tokens,
            interactive=run.kind == "plain",
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
    """Log an unexpected exception of a run that no client awaits."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, MarkovianRSAError):
        _log.error("A run in the background failed", exc_info=error)

"""What all endpoints share: the engine, the runs under way, their number and their end.

A run is one task on the server's event loop; every run uses the one engine, which lets their traces in by turns.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

from .. import reasoner
from ..audit import RunHistory, _BaseEvent
from ..config import RSAConfig
from ..errors import AuditError, MarkovianRSAError, PromptError, RunStoppedError
from ..method.codec import ChatMessage
from ..orchestrator import MarkovianRSAOrchestrator, RunResult
from ..store import is_being_written, new_run_path
from .active import ActiveRun, Ender, Watcher
from .errors import RequestError, of_error
from .metrics import Metrics
from .plan import Plan
from .settings import ServerSettings

_log = logging.getLogger(__name__)
RUN_ID_HEADER = "X-MRSA-Run-Id"
#: For OpenAI's clients, which repeat what failed with 409 or 5xx: the work was done, and would be done again.
DO_NOT_RETRY = {"x-should-retry": "false"}
T = TypeVar("T")


class Service:
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
        run = ActiveRun(plan.config, path, self.backend.codec.decode, watcher, rsa=plan.rsa)
        return await self._begin(plan.chat, plan.config, run)

    async def resume(self, history: RunHistory, events: Sequence[_BaseEvent], path: Path) -> ActiveRun:
        """Go on with the unfinished run that `path` holds, as it was asked for. Raises `RequestError` if it goes on."""
        assert history.start is not None
        assert history.setup is not None
        chat = [ChatMessage(role=m["role"], content=m["content"]) for m in history.setup.messages]
        config = history.start.config
        run = ActiveRun(config, path, self.backend.codec.decode, rsa=True)
        await self.prepare(run.recall, events)
        if self.find_active(run.run_id) is not None or is_being_written(path):
            raise RequestError(409, "The run is under way already.", "already_running")
        await self._begin(chat, config, run)
        run.task.add_done_callback(_log_what_nobody_foresaw)
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


async def result_of(run: ActiveRun) -> RunResult:
    """What a run comes to; one that was stopped at a budget gives what it has. Raises `RequestError`."""
    await asyncio.wait({run.task})
    try:
        return run.task.result()
    except RunStoppedError as stop:
        return cast(RunResult, stop.partial)
    except asyncio.CancelledError:
        refusal = _cancelled(run)
    except MarkovianRSAError as error:
        refusal = of_error(error)
    refusal.headers |= {RUN_ID_HEADER: run.run_id} | DO_NOT_RETRY
    raise refusal


def _cancelled(run: ActiveRun) -> RequestError:
    again = f"; POST /v1/runs/{run.run_id}/resume goes on with it" if run.path is not None else ""
    if run.ended_by == "shutdown":
        return RequestError(503, f"The server is stopping and cancelled the run{again}.", "stopping", None, _retry(10))
    return RequestError(409, f"The run was cancelled{again}.", "cancelled")


def _log_what_nobody_foresaw(task: asyncio.Task[RunResult]) -> None:
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

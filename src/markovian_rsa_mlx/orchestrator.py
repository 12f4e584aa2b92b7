"""Answer one question with Markovian RSA: open a run, run its traces, select the answer, record the end.

`run.session` owns the audit file, `run.runner` runs the traces, `run.result` selects the answer. Runs share no state.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import choose_model
from .audit.events import Event
from .backends.base import Engine
from .config import RSAConfig
from .equivalence import MathEquivalence, equivalence_for
from .errors import RunStoppedError
from .method.prompts import check_chat
from .method.selection import Equivalent, for_one_run
from .run.audit_log import OnEvent
from .run.generation import Progress
from .run.limits import LimitReached
from .run.result import RunResult, recorded_result
from .run.runner import Runner
from .run.session import RunSession
from .run.sync import run_sync
from .tools import Chat, Prompt

if TYPE_CHECKING:
    from .backends.upstream import Upstream

__all__ = ["MarkovianRSAOrchestrator", "RunResult"]

Stopped = Callable[[], RunStoppedError]


class MarkovianRSAOrchestrator(contextlib.AbstractContextManager["MarkovianRSAOrchestrator"]):
    """Answers questions with one engine. Close it (or use it as a context manager) to free the model.

    `equivalent` decides whether answers of the kind `math` are equal (default: math-verify). Those of the kind `text`
    are compared as text. If `shared`, other runs use the engine too: limits and counters are its owner's, and
    `memory_limit_gb` has no effect.
    """

    def __init__(self, backend: Engine, *, equivalent: Equivalent | None = None, shared: bool = False) -> None:
        self.backend = self.engine = backend
        self.any_question = False  #: send the embedded reasoner questions that it was not trained for, too
        self.shared, self._equivalent, self._math = shared, equivalent, MathEquivalence()

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        *,
        revision: str | None = None,
        adapter_path: str | None = None,
        kv_bits: int | None = None,
        progress: Callable[[str], None] | None = None,
        shared: bool = False,
        speculate: bool = True,
        aggregation_adapter: str | None = None,
    ) -> MarkovianRSAOrchestrator:
        """Load a model into the MLX engine: a hub id, a local folder, or None for the embedded reasoner.

        `progress` gets messages on slow steps, the rest is as in `MLXEngine`. Raise `ModelError`.
        """
        from .backends.mlx import MLXEngine

        load = partial(MLXEngine.from_pretrained, kv_bits=kv_bits, aggregation_adapter=aggregation_adapter)
        load = partial(load, speculate=speculate, revision=revision, adapter_path=adapter_path)
        choice = choose_model(model)
        if choice.is_embedded:
            return cls(load(choice.source, model_id=choice.model_id), shared=shared)
        return cls(load(choice.source, progress=progress), shared=shared)

    @classmethod
    def from_upstream(
        cls,
        *urls: str,
        model: str | None = None,
        api_key: str | None = None,
        tokenizer: str | None = None,
        progress: Callable[[str], None] | None = None,
        shared: bool = False,
        **options: Any,
    ) -> MarkovianRSAOrchestrator:
        """Use an OpenAI-compatible server as the engine, or several that serve the same model.

        `urls` are like http://127.0.0.1:8080/v1, `options` are fields of `Upstream`. Raise `ConfigError`, `ModelError`.
        """
        from .backends.upstream import Upstream

        return cls.from_upstream_config(Upstream(urls, model, api_key, tokenizer, **options), progress, shared=shared)

    @classmethod
    def from_upstream_config(
        cls, upstream: Upstream, progress: Callable[[str], None] | None = None, *, shared: bool = False
    ) -> MarkovianRSAOrchestrator:
        """Do the same as `from_upstream`, from an `Upstream`."""
        from .backends.upstream import UpstreamEngine

        return cls(run_sync(UpstreamEngine.connect(upstream, progress)), shared=shared)

    over = from_upstream_config  #: the former name

    def solve(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        return_audit: bool = False,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
    ) -> str | tuple[str, list[Event]]:
        """Return the text of the answer (the part after the thinking), with the list of events if `return_audit`.

        `prompt` is a question, a chat that ends with it, or a `Chat` with tools. With `audit_path` the run is recorded
        in that file. An unfinished run there is resumed, a finished one gives its answer. Raise `MarkovianRSAError`s.
        """
        result = self.run(prompt, config, audit_path=audit_path, on_event=on_event)
        return (result.text or "", result.events) if return_audit else result.text or ""

    async def asolve(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        return_audit: bool = False,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
    ) -> str | tuple[str, list[Event]]:
        """Do the same as `solve` in asynchronous code. Cancelling it leaves a resumable file."""
        result = await self.arun(prompt, config, audit_path=audit_path, on_event=on_event)
        return (result.text or "", result.events) if return_audit else result.text or ""

    def run(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
        on_progress: Progress | None = None,
    ) -> RunResult:
        """Do the same as `solve`, and return the whole `RunResult`.

        Ctrl-C and a reached limit raise `RunStoppedError` with the best result so far. The callbacks
        `on_event(event)` and `on_progress(trace_id, new_token_ids)` are called on the event loop's thread.
        """
        begun: list[Stopped] = []
        try:
            return run_sync(self._execute(prompt, config, on_progress, begun, audit_path=audit_path, on_event=on_event))
        except KeyboardInterrupt:
            if not begun:
                raise
            raise begun[0]() from None

    async def arun(
        self,
        prompt: Prompt,
        config: RSAConfig | None = None,
        *,
        audit_path: Path | str | None = None,
        on_event: OnEvent | None = None,
        on_progress: Progress | None = None,
        interactive: bool = False,
    ) -> RunResult:
        """Do the same as `run` in asynchronous code. An `interactive` run goes before others on a shared engine."""
        options = {"audit_path": audit_path, "on_event": on_event, "interactive": interactive}
        return await self._execute(prompt, config, on_progress, [], **options)

    async def _execute(
        self, prompt: Prompt, config: RSAConfig | None, on_progress: Progress | None, begun: list[Stopped], **open_: Any
    ) -> RunResult:
        """Run. `open_` are options of `RunSession.open`. Append to `begun` a call that makes the error of Ctrl-C."""
        check_chat(chat := Chat.of(prompt))
        defaults = choose_model(self.engine.info.model_id)
        chat, config = defaults.worded(chat, self.any_question), config or defaults.config.for_any_question()
        if not self.shared:
            self.engine.limit(None, config.engine_limits().memory_limit_bytes)
            self.engine.reset_peak_memory()
        async with RunSession.open(self.engine, chat, config, **open_) as session:
            log, rules = session.log, session.setup.answer_rules
            if log.history.finished:
                return recorded_result(log.history, log.events, log.path)
            equivalent = equivalence_for(session.config.answer_kind, self._equivalent or self._math, rules)
            runner = Runner(session, equivalent := for_one_run(equivalent, rules), on_progress)
            begun.append(lambda: session.stopped("interrupted", runner.traces(), equivalent))
            try:
                return await session.finish(await runner.run(), equivalent)
            except LimitReached as reached:
                raise await asyncio.to_thread(session.stopped, reached.limit, runner.traces(), equivalent) from None

    def close(self) -> None:
        """Free the model and end the workers."""
        self._math.close()
        run_sync(self.engine.aclose())

    def __exit__(self, *_: object) -> None:
        self.close()

"""One sitting of a run: its trail is opened, and its first events are written."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from ..audit import RunHistory
from ..audit.events import RunResumedEvent, RunSetupEvent, RunStartEvent
from ..backends.base import Backend
from ..config import RSAConfig
from ..method.codec import ChatMessage
from ..method.lineage import SEED_LIMIT
from .resume import check_same_run, elapsed_before, resumed_config
from .setup import check_context, check_memory, make_setup, now, package_version
from .trail import OnEvent, Trail


class Sitting:
    """One sitting of a run: fresh, or going on from what the trail holds."""

    def __init__(self, config: RSAConfig, setup: RunSetupEvent, trail: Trail, elapsed_before_s: float = 0.0) -> None:
        self.config, self.setup = config, setup
        self.trail, self.elapsed_before_s = trail, elapsed_before_s

    @classmethod
    async def begin(cls, backend: Backend, messages: list[ChatMessage], config: RSAConfig, trail: Trail) -> Sitting:
        """Write the trail's first events of this sitting. Tokenizing goes on on a thread: a prompt can be megabytes."""
        if trail.history is None:
            return await cls._start(backend, messages, config, trail)
        return await cls._resume(backend, messages, config, trail, trail.history)

    @classmethod
    async def _start(cls, backend: Backend, messages: list[ChatMessage], config: RSAConfig, trail: Trail) -> Sitting:
        seed = secrets.randbelow(SEED_LIMIT) if config.seed is None else config.seed
        config = config.replace(seed=seed)
        run_id = secrets.token_hex(8)
        setup = await asyncio.to_thread(make_setup, run_id, seed, messages, config, backend)
        check_context(config, setup, backend.info.context_length)
        check_memory(config, setup, backend)
        trail.run_id = run_id
        info = backend.info
        prompt = messages[-1]["content"]
        trail.write(RunStartEvent(run_id, info.model_id, info.quantization, config, prompt, now()))
        trail.write(setup)
        trail.sync()
        return cls(config, setup, trail)

    @classmethod
    async def _resume(
        cls, backend: Backend, messages: list[ChatMessage], config: RSAConfig, trail: Trail, history: RunHistory
    ) -> Sitting:
        assert history.start is not None
        assert trail.path is not None
        assert trail.last_written is not None
        setup = await asyncio.to_thread(check_same_run, history, trail.path, messages, config, backend)
        trail.run_id = setup.run_id
        config = resumed_config(history.start, config)
        if history.finished:
            return cls(config, setup, trail)
        elapsed_s = elapsed_before(history, trail.last_written)
        trail.write(
            RunResumedEvent(
                setup.run_id,
                now(),
                package_version(),
                config.concurrency,
                config.memory_limit_gb,
                config.max_retries,
                config.token_budget,
                config.time_budget_s,
                elapsed_s,
                trail.dropped_bytes,
            )
        )
        return cls(config, setup, trail, elapsed_s)


async def open_trail(path: Path | str | None, on_event: OnEvent | None) -> Trail:
    """The trail; what it holds is read on a thread. Whoever is cancelled meanwhile leaves no file open."""
    opening = asyncio.get_running_loop().run_in_executor(None, Trail, path, on_event)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opened: asyncio.Future[Trail]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()

"""Notice identical traces that chance cannot explain."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

from ..audit.events import ThinkingClosedEvent
from ..config import Sampling
from ..method.lineage import TraceKey
from ..method.prompts import Prompt
from .session import RunSession

#: Equal samples of one prompt raise an alarm if their probability was below one in a million.
_LOG_COINCIDENCE = math.log(1e-6)
#: The stage of the recorded error.
_STAGE = "identical_traces"
#: Ids that were drawn, after those that came before.
Drawn = tuple[tuple[int, ...], tuple[int, ...]]


class CloneAlarm:
    """Warns, once per run, if two traces of one prompt are the same although that was very improbable."""

    def __init__(self, session: RunSession) -> None:
        self._session = session
        self._first_with: dict[tuple[tuple[int, ...], tuple[int, ...]], TraceKey] = {}  #: by prompt ids and trace ids
        history = session.log.history
        recorded = [error.message for error in history.errors if error.stage == _STAGE]
        session.warnings += recorded
        self._lock, self._raised = asyncio.Lock(), bool(recorded) or history.selection is not None

    def compare(
        self,
        key: TraceKey,
        *,
        prompt: Prompt,
        ids: tuple[int, ...],
        sampling: Sampling,
        closed: ThinkingClosedEvent | None,
    ) -> Coroutine[None, None, None] | None:
        """Return a check to await if another trace of the same prompt has the same ids, else None."""
        twin = self._first_with.setdefault((prompt.token_ids, ids), key)
        bound = self._session.config.schema_at(key.round) is not None  # a grammar may leave few answers
        if twin == key or sampling.temperature == 0 or bound:
            return None
        drawn = [(prompt.token_ids, ids)]
        if closed is not None:  # the closing ids were not drawn
            before, after = ids[: closed.position], ids[closed.position + len(closed.token_ids) :]
            drawn = [(prompt.token_ids, before), (prompt.token_ids + ids[: len(ids) - len(after)], after)]
        return self._check(key, twin=twin, drawn=drawn, sampling=sampling)

    async def _check(self, key: TraceKey, *, twin: TraceKey, drawn: list[Drawn], sampling: Sampling) -> None:
        async with self._lock:
            if self._raised:
                return
            try:
                adapter = self._session.setup.adapter_digest if key.round >= 1 else ""
                engine: Any = self._session.engine  # one with an adapter takes its digest, too
                settings = (sampling, adapter) if adapter else (sampling,)
                chances = [await engine.log_probability(*part, *settings) for part in drawn if part[1]]
            except Exception:  # the alarm is only a help, so its failure must not end a run
                return
            chance = sum(known for known in chances if known is not None)
            if chance < _LOG_COINCIDENCE:
                self._raised = True
                self._session.warn(
                    _STAGE,
                    f"{twin} and {key} are identical although sampled with different seeds (probability "
                    f"e^{chance:.0f}). The engine's random streams are not independent: do not trust this run.",
                )

"""Notice identical traces that chance cannot explain."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine

from ..config import Sampling
from ..method.lineage import TraceKey
from ..method.prompts import Prompt
from .session import RunSession

#: Equal samples of one prompt raise an alarm if their probability was below one in a million.
_LOG_COINCIDENCE = math.log(1e-6)


class CloneAlarm:
    """Warns, once per session, if two traces of one prompt are the same although that was very improbable."""

    def __init__(self, session: RunSession) -> None:
        self._session = session
        self._first_with: dict[tuple[tuple[int, ...], tuple[int, ...]], TraceKey] = {}  #: by prompt ids and trace ids
        self._lock, self._raised = asyncio.Lock(), False

    def compare(
        self, key: TraceKey, prompt: Prompt, ids: tuple[int, ...], sampling: Sampling
    ) -> Coroutine[None, None, None] | None:
        """Return a check to await if another trace of the same prompt has the same ids, else None."""
        twin = self._first_with.setdefault((prompt.token_ids, ids), key)
        if twin == key or sampling.temperature == 0:
            return None
        return self._check(key, twin, prompt, ids, sampling)

    async def _check(
        self, key: TraceKey, twin: TraceKey, prompt: Prompt, ids: tuple[int, ...], sampling: Sampling
    ) -> None:
        async with self._lock:
            if self._raised:
                return
            try:
                chance = await self._session.engine.log_probability(prompt.token_ids, ids, sampling)
            except Exception:  # the alarm is only a help, so its failure must not end a run
                return
            if chance is not None and chance < _LOG_COINCIDENCE:
                self._raised = True
                self._session.warn(
                    "identical_traces",
                    f"{twin} and {key} are identical although sampled with different seeds (probability "
                    f"e^{chance:.0f}). The engine's random streams are not independent: do not trust this run.",
                )

"""The engine's loop: let waiting traces in, prefill a little, decode one step, report.

The trace whose turn it is (see `turns`) waits until there is room for it, and none overtakes it. Runs on the worker
thread alone.

The line of waiting traces. Runs that share the engine take turns; within a run, first come, first served.

Whoever is next stays next until there is room: nobody overtakes, so that a large trace cannot starve.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from ...config import Sampling
from ...errors import BackendError, MemoryLimitError
from ...models.routing import drop_pending
from ..policy import MemoryBudget
from .batch import DecodeBatch, Row, sequence_log_probability
from .prefix_cache import Prefill, PrefixCache
from .sequence import Job, ProgressDispatcher

#: Prompt tokens read between two decode steps: enough to keep the device busy, short enough not to stall the rows.
PREFILL_TOKENS = 2048


class Scheduler:
    """All traces of one engine. `admission` may be replaced at any time; it binds newcomers."""

    def __init__(self, model: Any, admission: MemoryBudget, outbox: ProgressDispatcher, *, batchable: bool) -> None:
        self.admission = admission
        self._model, self._outbox = model, outbox
        self._prefixes = PrefixCache()
        self._rows = DecodeBatch(model, batchable=batchable)
        self._waiting = FairQueue()
        self._prefilling: deque[Job] = deque()
        self._prefill: Prefill | None = None
        self._decoding: dict[int, Job] = {}
        self._row_cap: int | None = None  # rows at once while a failure is being tracked down
        self._old_wired_limit = maybe_set_recommended_wired_limit()

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._decoding)

    @property
    def model(self) -> Any:
        """The model; for use on the worker thread only."""
        return self._model

    def add(self, job: Job) -> None:
        """Queue a trace."""
        self._waiting.add(job)

    def cancel(self, job: Job) -> None:
        """Forget a trace, wherever it is; its row is free at once."""
        if self._prefilling and self._prefilling[0] is job:
            self._prefill = None
        self._waiting.remove(job)
        if job in self._prefilling:
            self._prefilling.remove(job)
        if self._decoding.pop(job.key, None) is not None:
            self._rows.leave([job.key])

    def fail_all(self, error: Exception) -> None:
        """End every trace with this error."""
        jobs = [*self._waiting, *self._prefilling, *self._decoding.values()]
        self._drop_caches()
        self._waiting.clear()
        self._prefilling.clear()
        for job in jobs:
            self._outbox.failed(job, error)

    def log_probability(self, prompt: Sequence[int], tokens: Sequence[int], sampling: Sampling) -> float:
        """See `scoring`."""
        return sequence_log_probability(self._model, prompt, tokens, sampling)

    def rest(self) -> None:
        """Nothing to do for a while: give memory back."""
        self._prefixes.clear()
        mx.clear_cache()

    def close(self) -> None:
        """Fail what is left and free the model."""
        self.fail_all(BackendError("The MLX engine was closed."))
        del self._model, self._rows
        mx.synchronize()
        if self._old_wired_limit is not None:
            mx.set_wired_limit(self._old_wired_limit)
        mx.clear_cache()

    def turn(self) -> None:
        """One round. Whatever goes wrong ends traces, never the engine."""
        try:
            self._admit()
            self._read_prompts()
            self._decode()
        except Exception as error:
            self.fail_all(_failure(error))

    def _admit(self) -> None:
        while self._waiting and self._has_room(self._waiting.next):
            job = self._waiting.take()
            self._outbox.started(job)
            self._prefilling.append(job)
        if self._waiting and not self._prefilling and not self._decoding:
            job = self._waiting.take()
            self._outbox.failed(job, no_room(self.admission, job.final_length))

    def _has_room(self, newcomer: Job) -> bool:
        inside = [job.final_length for job in (*self._prefilling, *self._decoding.values())]
        if self._row_cap is not None and len(inside) >= self._row_cap:
            return False
        while not self.admission.admits(inside, newcomer.final_length, self._prefixes.nbytes):
            if len(inside) >= self.admission.max_rows or not self._prefixes.drop_oldest():
                return False
        return True

    def _read_prompts(self) -> None:
        budget, ready = PREFILL_TOKENS, []
        while self._prefilling and budget > 0:
            job = self._prefilling[0]
            try:
                if self._prefill is None:
                    others = [other.context for other in (*self._prefilling, *self._waiting) if other is not job]
                    self._prefixes.max_bytes = self.admission.spare_bytes // 4
                    self._prefill = Prefill(self._model, job.context, self._prefixes, others)
                budget -= self._prefill.advance(budget)
            except Exception as error:
                self._prefilling.popleft()
                self._prefill = None
                drop_pending(self._model)
                self._outbox.failed(job, _failure(error))
                continue
            if self._prefill.remaining == 0:
                self._prefilling.popleft()
                ready.append(_row(job, self._prefill))
                self._decoding[job.key] = job
                self._prefill = None
        self._rows.join(ready)  # together: each join copies the caches of all rows

    def _decode(self) -> None:
        try:
            drawn = self._rows.step()
        except Exception as error:
            self._recover(error)
            return
        ended = []
        for key, token in drawn:
            job = self._decoding[key]
            job.tokens.append(token)
            if job.finish_reason is not None:
                ended.append(self._decoding.pop(key))
        if ended:
            self._rows.leave([job.key for job in ended])
            for job in ended:
                self._outbox.finished(job)
        self._outbox.stepped(self._decoding.values())
        if not self._decoding:
            self._row_cap = None

    def _recover(self, error: Exception) -> None:
        """A step failed for all rows: start them over from their tokens, half as many at once.

        If memory ran out that helps; if one trace is at fault, it is alone in the end and fails.
        """
        jobs = list(self._decoding.values())
        self._drop_caches()
        if len(jobs) == 1:
            self._row_cap = None
            self._outbox.failed(jobs[0], _failure(error))
            return
        self._row_cap = max(1, len(jobs) // 2)
        self._waiting.put_back(jobs)

    def _drop_caches(self) -> None:
        self._rows.clear()
        self._prefixes.clear()
        self._decoding.clear()
        self._prefill = None
        drop_pending(self._model)
        mx.clear_cache()


def no_room(admission: MemoryBudget, length: int) -> MemoryLimitError:
    """The sentence for a trace that can never fit."""
    need, limit = admission.need(1, length), admission.memory_limit_bytes
    return MemoryLimitError(
        f"One trace of {length} tokens needs {need / 1e9:.2f} GB with the model's weights, and the limit is "
        f"{limit / 1e9:.2f} GB; lower thinking_tokens, final_tokens or tail_tokens, raise memory_limit_gb, or "
        "take a smaller or more quantized model."
    )


def _row(job: Job, prefill: Prefill) -> Row:
    request = job.request
    return Row(job.key, prefill.caches, prefill.last_token, len(job.tokens), request.seed, request.sampling)


def _failure(error: Exception) -> BackendError:
    return BackendError(f"The MLX engine failed on this trace ({type(error).__name__}: {error}).")


class FairQueue:
    """Waiting jobs. `returned` ones, which were inside before, go ahead of all turns."""

    def __init__(self) -> None:
        self._returned: deque[Job] = deque()
        self._lines: dict[str, deque[Job]] = {}  # by run, the run whose turn it is first

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Job]:
        yield from self._returned
        for line in self._lines.values():
            yield from line

    @property
    def next(self) -> Job:
        """Whose turn it is. Raises IndexError where nobody waits."""
        return self._returned[0] if self._returned else self._first_line()[0]

    def add(self, job: Job) -> None:
        """Stand in the run's own line; a run that did not wait yet has its turn after the others."""
        self._lines.setdefault(job.request.run_id, deque()).append(job)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Let jobs that were inside go first, in this order."""
        self._returned.extendleft(reversed(list(jobs)))

    def take(self) -> Job:
        """Take out whose turn it is; the next turn is another run's, where one waits."""
        if self._returned:
            return self._returned.popleft()
        line = self._first_line()
        job = line.popleft()
        del self._lines[job.request.run_id]
        if line:
            self._lines[job.request.run_id] = line
        return job

    def remove(self, job: Job) -> None:
        """Forget a job, if it waits here."""
        if job in self._returned:
            self._returned.remove(job)
        line = self._lines.get(job.request.run_id)
        if line is not None and job in line:
            line.remove(job)
            if not line:
                del self._lines[job.request.run_id]

    def clear(self) -> None:
        self._returned.clear()
        self._lines.clear()

    def _first_line(self) -> deque[Job]:
        for line in self._lines.values():
            return line
        raise IndexError("nobody waits")

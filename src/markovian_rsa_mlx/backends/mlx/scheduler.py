"""Schedule all sequences of the engine on the worker thread: admit, prefill a little, decode one step, report.

mlx-lm's `BatchGenerator` has the same loop and does not fit for three reasons. This engine draws once per batch, keyed
by seed and position, instead of calling a sampler per row. It admits sequences by memory. It recovers from a failed
step by halving the batch. `python -m benchmarks.engine --only d` compares both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from ...errors import BackendError, MemoryLimitError
from ...models.routing import drop_pending
from ..policy import PREFILL_TOKENS, MemoryBudget, evict_until_fits
from .batch import DecodeBatch
from .prefix_cache import Prefill, PrefixCache
from .sequence import ProgressDispatcher, Sequence


class Scheduler:
    """All sequences of one engine: waiting, then prefilling, then in the batch.

    The first waiting sequence stays first until it fits, so that others cannot overtake a large one. `admission` may be
    replaced at any time and binds the sequences that come after. A sequence whose event loop was closed is dropped.
    """

    def __init__(self, model: Any, admission: MemoryBudget, dispatcher: ProgressDispatcher, *, batchable: bool) -> None:
        self.model = model
        self.admission = admission
        self._dispatcher = dispatcher
        self._prefixes = PrefixCache()
        self._waiting = FairQueue()
        self._prefilling: deque[Sequence] = deque()
        self._batch = DecodeBatch(model, batchable=batchable)
        self._row_cap: int | None = None  # while the cause of a failure is narrowed down
        self._old_wired_limit = maybe_set_recommended_wired_limit()

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._prefilling or self._batch.sequences)

    def add(self, sequence: Sequence) -> None:
        self._waiting.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is. Its row is free immediately."""
        self._waiting.remove(sequence)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self._batch.leave([sequence])

    def fail_all(self, error: Exception) -> None:
        """End every sequence with this error."""
        sequences = [*self._waiting, *self._prefilling, *self._batch.sequences]
        self._free_caches()
        self._waiting = FairQueue()
        self._prefilling.clear()
        for sequence in sequences:
            self._dispatcher.failed(sequence, error)
        self._dispatcher.flush()

    def on_idle(self) -> None:
        """Give memory back."""
        self._prefixes.clear()
        mx.clear_cache()

    def close(self) -> None:
        """Fail what is left and free the model."""
        self.fail_all(BackendError("The MLX engine was closed."))
        del self.model, self._batch
        mx.synchronize()
        if self._old_wired_limit is not None:
            mx.set_wired_limit(self._old_wired_limit)
        mx.clear_cache()

    def step(self) -> None:
        """Admit sequences, read prompts, decode one token per row. An error ends sequences, never the engine."""
        try:
            while self._waiting and self._fits(self._waiting.next):
                sequence = self._waiting.pop()
                self._dispatcher.started(sequence)
                self._prefilling.append(sequence)
            if self._waiting and not self._prefilling and not self._batch.sequences:
                sequence = self._waiting.pop()
                self._dispatcher.failed(sequence, memory_error(self.admission, sequence.final_length))
            self._read_prompts()
            self._decode()
        except Exception as error:
            self.fail_all(_failure(error))
        for orphan in self._dispatcher.flush_if_due(self._batch.sequences):
            self.cancel(orphan)

    def _fits(self, newcomer: Sequence) -> bool:
        lengths = [sequence.final_length for sequence in (*self._prefilling, *self._batch.sequences)]
        if self._row_cap is not None and len(lengths) >= self._row_cap:
            return False
        return evict_until_fits(self.admission, lengths, newcomer.final_length, self._prefixes)

    def _read_prompts(self) -> None:
        """Read up to PREFILL_TOKENS tokens. Completed prompts join together: a join copies the caches of all rows."""
        budget, ready = PREFILL_TOKENS, []
        while self._prefilling and budget > 0:
            sequence = self._prefilling[0]
            try:
                if sequence.prefill is None:
                    others = (*self._prefilling, *self._waiting)
                    queued = [other.context for other in others if other is not sequence]
                    self._prefixes.max_bytes = self.admission.prefix_bytes
                    sequence.prefill = Prefill(self.model, sequence.context, self._prefixes, queued)
                budget -= sequence.prefill.advance(budget)
            except Exception as error:
                self._prefilling.popleft()
                sequence.prefill = None
                drop_pending(self.model)
                self._dispatcher.failed(sequence, _failure(error))
                continue
            if sequence.prefill.remaining == 0:
                sequence.caches, sequence.prefill = sequence.prefill.caches, None
                ready.append(self._prefilling.popleft())
        self._batch.join(ready)

    def _decode(self) -> None:
        try:
            drawn = self._batch.step()
        except Exception as error:
            # Start over from the tokens of all rows, with half as many rows. This helps if memory ran out. If one
            # sequence causes the error, it is alone in the end and fails.
            sequences = self._batch.sequences
            self._free_caches()
            if len(sequences) == 1:
                self._row_cap = None
                self._dispatcher.failed(sequences[0], _failure(error))
            else:
                self._row_cap = max(1, len(sequences) // 2)
                self._waiting.requeue(sequences)
            return
        ended = []
        for sequence, token in drawn:
            sequence.tokens.append(token)
            if sequence.finish_reason is not None:
                ended.append(sequence)
        if ended:
            self._batch.leave(ended)
            for sequence in ended:
                self._dispatcher.finished(sequence)
        if not self._batch.sequences:
            self._row_cap = None

    def _free_caches(self) -> None:
        self._batch.clear()
        self._prefixes.clear()
        for sequence in self._prefilling:
            sequence.prefill = None
        drop_pending(self.model)
        mx.clear_cache()


def memory_error(admission: MemoryBudget, length: int) -> MemoryLimitError:
    """Return the error for a trace of `length` tokens that exceeds the memory limit on its own."""
    required, limit = admission.required_bytes(1, length), admission.memory_limit_bytes
    return MemoryLimitError(
        f"One trace of {length} tokens needs {required / 1e9:.2f} GB with the model's weights, and the limit is "
        f"{limit / 1e9:.2f} GB. Lower thinking_tokens, final_tokens or tail_tokens, raise memory_limit_gb, or use a "
        "smaller or more quantized model."
    )


def _failure(error: Exception) -> BackendError:
    return BackendError(f"The MLX engine failed on this trace ({type(error).__name__}: {error}).")


class FairQueue:
    """Waiting sequences. Runs take turns, and each run is served in order.

    Sequences that were in the batch before come back by `requeue` and precede all others.
    """

    def __init__(self) -> None:
        self._requeued: deque[Sequence] = deque()
        self._by_run: dict[str, deque[Sequence]] = {}  # the run whose turn it is first

    def __len__(self) -> int:
        return len(self._requeued) + sum(map(len, self._by_run.values()))

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._requeued
        for queue in self._by_run.values():
            yield from queue

    @property
    def next(self) -> Sequence:
        """The sequence that `pop` would return. Raises StopIteration if the queue is empty."""
        return next(iter(self))

    def add(self, sequence: Sequence) -> None:
        """Append to the queue of the run. A run that was not waiting has its turn after the others."""
        self._by_run.setdefault(sequence.request.run_id, deque()).append(sequence)

    def requeue(self, sequences: Iterable[Sequence]) -> None:
        """Put sequences back in front, in this order."""
        self._requeued.extendleft(reversed(list(sequences)))

    def pop(self) -> Sequence:
        """Remove and return the next sequence. The next turn is another run's, if one waits."""
        sequence = self.next
        if self._requeued:
            return self._requeued.popleft()
        queue = self._by_run.pop(sequence.request.run_id)
        queue.popleft()
        if queue:
            self._by_run[sequence.request.run_id] = queue
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence if it waits here."""
        if sequence in self._requeued:
            self._requeued.remove(sequence)
        queue = self._by_run.get(sequence.request.run_id)
        if queue is not None and sequence in queue:
            queue.remove(sequence)
            if not queue:
                del self._by_run[sequence.request.run_id]

"""The sequences of one kind in the engine, chats or runs: waiting, then prefilling, then in a batch of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from .batch import DecodeBatch
from .sequence import Sequence
from .speculation import Speculator


class Lane:
    """The chats (interactive requests) or the runs of an engine. They never share a decode step with the others.

    The first waiting sequence stays first until it fits, so that others cannot overtake a large one. `row_cap` bounds
    the rows while the cause of a failed step is narrowed down.
    """

    def __init__(self, model: Any, speculator: Speculator, *, batchable: bool) -> None:
        self.waiting = FairQueue()
        self.prefilling: deque[Sequence] = deque()
        self.batch = DecodeBatch(model, batchable=batchable, speculator=speculator)
        self.row_cap: int | None = None

    @property
    def admitted(self) -> list[Sequence]:
        """The sequences that hold memory."""
        return [*self.prefilling, *self.batch.sequences]

    @property
    def lengths(self) -> list[int]:
        """The final lengths of the admitted sequences."""
        return [sequence.final_length for sequence in self.admitted]

    @property
    def cache_bytes(self) -> int:
        """The size of the caches of its batch, and of the prompts that have not joined it."""
        singles = [each.prefill.caches for each in self.prefilling if each.prefill is not None]
        singles += [each.caches for each in self.batch.sequences if each.caches is not None]
        return self.batch.cache_bytes + int(sum(cache.nbytes for caches in singles for cache in caches))

    @property
    def is_capped(self) -> bool:
        """Whether it has as many sequences as `row_cap` allows."""
        return self.row_cap is not None and len(self.admitted) >= self.row_cap

    @property
    def busy(self) -> bool:
        return bool(self.prefilling or self.batch.sequences)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.busy)

    @property
    def awaits_first_token(self) -> bool:
        """Whether an admitted sequence has not generated anything yet."""
        return any(not sequence.has_new_tokens for sequence in self.admitted)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is. Its row is free immediately."""
        self.waiting.remove(sequence)
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        self.batch.leave([sequence])

    def displace(self) -> None:
        """Put the sequence with the fewest tokens read back into the queue. It keeps its tokens, not its caches."""
        read = {each: len(each.context) for each in self.batch.sequences}
        read |= {each: each.prefill.done if each.prefill is not None else 0 for each in self.prefilling}
        sequence = min(read, key=read.__getitem__)
        self.remove(sequence)
        sequence.prefill = sequence.caches = None
        self.waiting.requeue([sequence])

    def clear(self) -> list[Sequence]:
        """Free all caches and return the sequences that were in the batch. Prompts are read again from the start."""
        sequences = self.batch.sequences
        self.batch.clear()
        for sequence in self.prefilling:
            sequence.prefill = None
        return sequences


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

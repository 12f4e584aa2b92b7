"""Schedule all sequences of the engine on the worker thread: admit, prefill a little, decode one step, report.

Chats and runs have a lane each, with a batch of its own, and take turns while both have work (`policy.TimeShare`). A
chat that does not fit into memory displaces sequences of runs, which continue later from their tokens.

mlx-lm's `BatchGenerator` has the same loop and does not fit for three reasons. This engine draws once per batch, keyed
by seed and position, instead of calling a sampler per row. It admits sequences by memory. It recovers from a failed
step by halving the batch. `python -m benchmarks.engine --only d` compares both: this engine takes 0.73 of the processor
time of a loop over `BatchGenerator` with the same draws (embedded model, 16 rows, 2 Linux cores, median of 3 runs).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ...errors import BackendError, MemoryLimitError
from ...formatting import size
from ...models.numpy_llama import NumpyLlama
from ...models.routing import drop_pending
from ..policy import MAX_POSITIONS, PREFILL_TOKENS, MemoryBudget, ReadingSpeed, TimeShare, evict_until_fits
from .device import set_allocator_limits
from .lane import FairQueue, Lane
from .prefix_cache import Prefill, PrefixCache, TurnCache
from .read_ahead import ReadAhead
from .sequence import ProgressDispatcher, Sequence
from .speculation import Speculator

#: Seconds without work after which the caches of chats are freed.
TURN_SECONDS = 600.0
#: Seconds of a step above which the time between two steps hardly counts.
LONG_STEP_S = 0.05


class Scheduler:
    """All sequences of one engine, in a lane for chats and one for runs.

    `admission` may be replaced at any time and binds the sequences that come after. Its rows are those of each lane,
    its memory is that of both. A sequence whose event loop was closed is dropped. `called` returns whether a call waits
    for the thread: once chats are expected, prompts are read in short chunks, and a call is served between two of them.
    `speculator` guesses tokens, if it is enabled.
    """

    def __init__(
        self,
        model: Any,
        admission: MemoryBudget,
        dispatcher: ProgressDispatcher,
        *,
        batchable: bool,
        called: Callable[[], bool] = lambda: False,
        speculate: bool = False,
    ) -> None:
        self.model = model
        self.admission = admission
        self._dispatcher, self._called = dispatcher, called
        self._prefixes, self._turns = PrefixCache(), TurnCache()
        self.ahead = ReadAhead(model, self._prefixes)
        self.speculator = Speculator(enabled=speculate)
        self._chats, self._runs = (Lane(model, self.speculator, batchable=batchable) for _ in range(2))
        self._lanes = (self._chats, self._runs)
        self._share, self._speed, self._expects_chats = TimeShare(), ReadingSpeed(), False
        self._steps_are_long = False
        self._runs_in_numpy = isinstance(model, NumpyLlama)
        self.peak_numpy_bytes = 0  #: of caches that MLX does not count
        self._restore_limits = set_allocator_limits(admission.footprint.weight_bytes)

    @property
    def idle(self) -> bool:
        return all(lane.idle for lane in self._lanes)

    def expect_chats(self) -> None:
        """Read prompts in short chunks from now on."""
        self._expects_chats = True

    def add(self, sequence: Sequence) -> None:
        self._expects_chats |= sequence.request.interactive
        self.ahead.drop(sequence.request.run_id, sequence.request.trace_id)
        self._lane_of(sequence).waiting.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is. Its row is free immediately."""
        self._lane_of(sequence).remove(sequence)

    def _lane_of(self, sequence: Sequence) -> Lane:
        return self._chats if sequence.request.interactive else self._runs

    def fail_all(self, error: Exception) -> None:
        """End every sequence with this error."""
        for lane in self._lanes:
            sequences = [*lane.waiting, *lane.admitted]
            self._free_caches(lane)
            lane.waiting = FairQueue()
            lane.prefilling.clear()
            for sequence in sequences:
                self._dispatcher.failed(sequence, error)
        self._dispatcher.flush()

    def on_idle(self, seconds: float = math.inf) -> None:
        """Give memory back after `seconds` without work. The next turn of a chat may take a person some minutes."""
        self.ahead.clear()
        self._prefixes.clear()
        if seconds >= TURN_SECONDS:
            self._turns.clear()
        self.speculator.clear()
        mx.clear_cache()

    def close(self) -> None:
        """Fail what is left and free the model."""
        self.fail_all(BackendError("The MLX engine was closed."))
        del self.model, self._chats, self._runs, self._lanes
        mx.synchronize()
        self._restore_limits()
        mx.clear_cache()

    def step(self) -> None:
        """Admit sequences, read prompts, decode one token per row. An error ends sequences, never the engine."""
        try:
            for lane in self._lanes:
                self._admit(lane)
            if self._chats.busy and self._runs.busy:
                self._take_turn()
            else:
                self._advance_alone(self._chats if self._chats.busy else self._runs)
        except Exception as error:
            self.fail_all(_failure(error))

    def _advance_alone(self, lane: Lane) -> None:
        """Advance the only lane with work.

        A chat that arrives waits for all steps that have begun, so long ones of many rows do not run ahead of it.
        """
        begun = time.monotonic()
        self._advance(lane, PREFILL_TOKENS)
        many_rows = len(lane.batch.sequences) > MAX_POSITIONS // 2  # too many for guesses, whose steps are timed
        if self._expects_chats and self._steps_are_long and many_rows and lane is self._runs:
            self._settle(lane)
        seconds = time.monotonic() - begun
        self._steps_are_long = seconds > LONG_STEP_S
        self._share.add_alone(seconds)

    def _take_turn(self) -> None:
        """Advance the chats or the runs, and wait for the end of the step, so that its time can be counted."""
        awaited, begun = self._chats.awaits_first_token, time.monotonic()
        lane = self._chats if self._share.chats_are_next(awaited) else self._runs
        self._advance(lane, self._speed.short_chunk)
        self._settle(lane)
        self._share.add(time.monotonic() - begun, chats=lane is self._chats, first_token=awaited)

    def _settle(self, lane: Lane) -> None:
        try:
            lane.batch.settle()
        except Exception as error:
            self._start_over(lane, error)

    def _advance(self, lane: Lane, prefill_tokens: int) -> None:
        self._read_prompts(lane, prefill_tokens)
        if self._runs_in_numpy:
            self.peak_numpy_bytes = max(self.peak_numpy_bytes, self._cache_bytes())
        self._decode(lane)
        self._read_ahead(prefill_tokens)
        decoding = [sequence for each in self._lanes for sequence in each.batch.sequences]
        for orphan in self._dispatcher.flush_if_due(decoding):
            self.cancel(orphan)

    def _admit(self, lane: Lane) -> None:
        if lane.waiting:
            self.ahead.store()  # so that admission counts what was read
        while lane.waiting and (self._fits(lane, lane.waiting.next) or self._displace_runs(lane, lane.waiting.next)):
            sequence = lane.waiting.pop()
            self._dispatcher.started(sequence)
            lane.prefilling.append(sequence)
        if lane.waiting and not any(each.busy for each in self._lanes):
            sequence = lane.waiting.pop()
            self._dispatcher.failed(sequence, memory_error(self.admission, sequence.final_length))

    def _cache_bytes(self) -> int:
        """Return the size of all caches, those of stored prompts included."""
        in_use = sum(lane.cache_bytes for lane in self._lanes) + self.ahead.cache_bytes
        return in_use + self._prefixes.nbytes + self._turns.nbytes

    def _fits(self, lane: Lane, newcomer: Sequence) -> bool:
        if lane.is_capped:
            return False
        runs_bytes, least = self.admission.cache_bytes(self._runs.lengths), self._least_for_runs()
        others = max(runs_bytes, least) if lane is self._chats else self.admission.cache_bytes(self._chats.lengths)
        if not self.admission.fits(lane.lengths, newcomer.final_length, others):
            return False  # without anything stored it would not fit either, so the stores are kept
        for store in (self._turns, self._prefixes):
            kept = others + self._turns.nbytes + self._prefixes.nbytes - store.nbytes
            if evict_until_fits(
                self.admission, lane.lengths, newcomer=newcomer.final_length, prefixes=store, other_bytes=kept
            ):
                return True
        return False

    def _least_for_runs(self) -> int:
        """Return the bytes that chats leave to runs. One chat alone may take all."""
        return 0 if self._runs.idle or not self._chats.busy else self.admission.free_bytes // 2

    def _displace_runs(self, lane: Lane, newcomer: Sequence) -> bool:
        """Displace sequences of runs until a chat fits. Return False if that would not help, or it is not a chat."""
        least = self._least_for_runs()
        if (
            lane is not self._chats
            or lane.is_capped
            or not self.admission.fits(lane.lengths, newcomer.final_length, least)
        ):
            return False
        while self._runs.busy and not self._fits(lane, newcomer):
            self._runs.displace()
        return self._fits(lane, newcomer)

    def _read_prompts(self, lane: Lane, most: int) -> None:
        """Read up to `most` tokens. Completed prompts join together: a join copies the caches of all rows."""
        ready = []
        while lane.prefilling and most > 0:
            sequence = lane.prefilling[0]
            try:
                if sequence.prefill is None:
                    others = (each for any_lane in self._lanes for each in (*any_lane.prefilling, *any_lane.waiting))
                    queued = [other.prefix_key for other in others if other is not sequence]
                    self._prefixes.max_bytes = self._turns.max_bytes = self.admission.prefix_bytes
                    turns = self._turns if lane is self._chats else None
                    sequence.prefill = Prefill(
                        self.model,
                        sequence.context,
                        self._prefixes,
                        queued,
                        turns,
                        sequence.request.shared_lengths,
                        sequence.score_from,
                        bool(sequence.request.adapter),
                    )
                begun = time.monotonic()
                count = sequence.prefill.advance(min(most, self._speed.short_chunk) if self._expects_chats else most)
                self._speed.add(count, time.monotonic() - begun)
                most -= count
            except Exception as error:
                lane.prefilling.popleft()
                sequence.prefill = None
                drop_pending(self.model)
                self._dispatcher.failed(sequence, _failure(error))
                continue
            if sequence.prefill.remaining == 0:
                if sequence.score_from is not None:
                    sequence.measure(sequence.prefill.logprobs)
                sequence.caches, sequence.prefill = sequence.prefill.caches, None
                lane.prefilling.popleft()
                if sequence.finish_reason is None:
                    ready.append(sequence)
                else:  # the ids of the request are the whole trace, and only their confidence was missing
                    self._dispatcher.finished(sequence)
            if self._expects_chats and self._called():
                break
        lane.batch.join(ready)

    def _read_ahead(self, most: int) -> None:
        """Read up to `most` tokens of prompts to come, unless other work waits for the model."""
        if self._chats.busy or self._runs.prefilling or any(lane.waiting for lane in self._lanes):
            return
        most = min(most, self._speed.short_chunk) if self._expects_chats else most
        others = self._prefixes.nbytes + self._turns.nbytes
        rows = [sequence.request.run_id for sequence in self._runs.batch.sequences]
        try:
            self.ahead.advance(most, rows, lambda length: self.admission.fits(self._runs.lengths, length, others))
        except Exception:  # the trace reads its whole prompt itself, and reports what fails then
            self.ahead.clear()
            drop_pending(self.model)

    def _decode(self, lane: Lane) -> None:
        try:
            drawn = lane.batch.step(self._max_positions(lane))
        except Exception as error:
            self._start_over(lane, error)
            return
        ended = []
        for sequence, tokens, logprobs in drawn:
            if sequence.extend(tokens, logprobs) is not None or sequence.failure:
                ended.append(sequence)
            elif lane is self._chats and not sequence.reported:
                self._dispatcher.first_token(sequence)
        if ended:
            lane.batch.leave(ended)
            for sequence in ended:
                if sequence.failure:
                    self._dispatcher.failed(sequence, BackendError(sequence.failure))
                else:
                    self._dispatcher.finished(sequence)
        if not lane.batch.sequences:
            lane.row_cap = None

    def _max_positions(self, lane: Lane) -> int:
        """Return how many positions a step may have that checks guesses. 0: guess nothing."""
        if not self.speculator.enabled or lane.row_cap is not None:
            return 0
        others = self._chats if lane is self._runs else self._runs
        other_bytes = self.admission.cache_bytes(others.lengths) + self._prefixes.nbytes + self._turns.nbytes
        return min(MAX_POSITIONS, self.admission.max_positions(lane.lengths, other_bytes))

    def _start_over(self, lane: Lane, error: Exception) -> None:
        """Start over from the tokens of all rows, with half as many rows.

        This helps if memory ran out. If one sequence causes the error, it is alone in the end and fails.
        """
        sequences = self._free_caches(lane)
        if len(sequences) == 1:
            lane.row_cap = None
            self._dispatcher.failed(sequences[0], _failure(error))
        else:
            lane.row_cap = max(1, len(sequences) // 2)
            lane.waiting.requeue(sequences)

    def _free_caches(self, lane: Lane) -> list[Sequence]:
        """Free all caches of a lane and return its sequences that decoded."""
        sequences = lane.clear()
        self.ahead.clear()
        self._prefixes.clear()
        self._turns.clear()
        drop_pending(self.model)
        mx.clear_cache()
        return sequences


def memory_error(admission: MemoryBudget, length: int) -> MemoryLimitError:
    """Return the error for a trace of `length` tokens that exceeds the memory limit on its own."""
    required, limit = admission.required_bytes(1, length), admission.memory_limit_bytes
    return MemoryLimitError(
        f"One trace of {length} tokens needs {size(required)} with the model's weights, and the limit is "
        f"{size(limit)}. Lower thinking_tokens, final_tokens or tail_tokens, raise memory_limit_gb, or use a "
        "smaller or more quantized model."
    )


def _failure(error: Exception) -> BackendError:
    return BackendError(f"The MLX engine failed on this trace ({type(error).__name__}: {error}).")

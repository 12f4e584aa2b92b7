"""One engine in simulated time: the MLX engine's scheduler, turn by turn, with lengths in the place of tokens.

A turn lets waiting traces in while there is room, reads prompts up to a bound, and starts one decode step for all rows.
As in `backends.mlx.scheduler` and `rows`, a step runs one ahead of what is looked at: a trace of L tokens takes part in
L + 1 steps, and a turn lasts as long as the step that the turn before has started. Turns in which nothing but decoding
happens are taken together.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import MemoryLimitError
from .costs import Costs
from .prefixes import Prefixes
from .room import Room
from .work import Generation

#: Prompt tokens read between two steps, as in the engine; a test compares.
PREFILL_TOKENS = 2048


@dataclass
class _Reading:
    """The prompt that is being read: `done` of `total` tokens (all but its last), a copy kept at `fork`."""

    done: int
    total: int
    fork: int


@dataclass
class _Row:
    """A row that decodes: `storage` tokens in its cache, `left` tokens to come."""

    task: Generation
    storage: int
    left: int


@dataclass
class Engine:
    """`clock` is the simulated time at the end of the last turn; `pending_s` what the device is still busy for then.

    A turn reads at most `turn_tokens` of prompts.
    """

    costs: Costs
    room: Room
    turn_tokens: int = PREFILL_TOKENS
    clock: float = 0.0
    pending_s: float = 0.0
    waiting: deque[Generation] = field(default_factory=deque)
    prefilling: deque[Generation] = field(default_factory=deque)
    rows: list[_Row] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)  #: (rows, how many steps in a row had so many)
    peak_bytes: int = 0
    peak_rows: int = 0
    prefill_tokens: int = 0

    def __post_init__(self) -> None:
        self._reading: _Reading | None = None
        empty = self.room.need(1, 0)
        self._prefixes = Prefixes(lambda tokens: self.room.need(1, tokens) - empty)

    @property
    def load(self) -> int:
        """Traces that are in it or wait for it."""
        return len(self.waiting) + len(self.prefilling) + len(self.rows)

    def add(self, task: Generation, now: float) -> None:
        """Queue a generation; the engine must have been advanced to `now`."""
        if not self.room.admits((), task.final_length):
            raise MemoryLimitError(
                f"{task.name} may grow to {task.final_length:,} tokens, and not even it alone fits into the engine."
            )
        if not self.load:
            self.pending_s = max(0.0, self.pending_s - (now - self.clock))
            self.clock = max(self.clock, now)
        self.waiting.append(task)

    def next_end(self) -> float:
        """When the next trace can end at the latest, if nothing is added; infinite for an engine without work."""
        if not self.load:
            return math.inf
        return self.clock if self._busy_beyond_decoding() else self.clock + self._seconds(self._turns_to_an_end())

    def advance(self, until: float) -> list[Generation]:
        """Take turns: one that lets in or reads, or decode-only ones up to the first that ends a trace or `until`."""
        if self._busy_beyond_decoding():
            return self._turn()
        turns = self._turns_to_an_end()
        if self.clock + self._seconds(turns) > until:
            turns = self._turns_until(until, turns)
        return self._decode(turns)

    def _busy_beyond_decoding(self) -> bool:
        return bool(self.prefilling) or bool(self.waiting and self._has_room(self.waiting[0]))

    def _turn(self) -> list[Generation]:
        while self.waiting and self._has_room(self.waiting[0]):
            self.prefilling.append(self.waiting.popleft())
            inside = self._lengths()
            self.peak_bytes = max(self.peak_bytes, self.room.need(len(inside), max(inside)))
            self.peak_rows = max(self.peak_rows, len(inside))
        ready = self._read()
        if ready:
            self.pending_s += self._change(len(self.rows) + len(ready), [*self.rows, *ready])
        return self._decode(1, joining=ready)

    def _has_room(self, newcomer: Generation) -> bool:
        inside = self._lengths()
        while not self.room.admits(inside, newcomer.final_length, self._prefixes.nbytes):
            if len(inside) >= self.room.max_rows or not self._prefixes.drop_oldest():
                return False
        return True

    def _lengths(self) -> list[int]:
        return [task.final_length for task in (*self.prefilling, *(row.task for row in self.rows))]

    def _read(self) -> list[_Row]:
        """Read prompts up to the turn's bound; those read to the end become rows."""
        budget, ready = self.turn_tokens, []
        while self.prefilling and budget > 0:
            task = self.prefilling[0]
            if self._reading is None:
                self._reading = self._begin(task)
            budget -= self._advance(self._reading, task, budget)
            if self._reading.done == self._reading.total:
                self.prefilling.popleft()
                ready.append(_Row(task, task.prompt_tokens - 1, task.generated))
                self._reading = None
        return ready

    def _begin(self, task: Generation) -> _Reading:
        total = task.prompt_tokens - 1
        self._prefixes.max_bytes = self.room.spare_bytes // 4
        queued = [other.read for other in (*self.prefilling, *self.waiting) if other is not task]
        known, fork = self._prefixes.begin(task.read, queued)
        return _Reading(known, total, fork)

    def _advance(self, reading: _Reading, task: Generation, most: int) -> int:
        end = min(reading.total, reading.done + most)
        if reading.done < reading.fork:
            end = min(end, reading.fork)
        count = end - reading.done
        if count:
            self.clock += self.costs.prefill(count, reading.done)
            self.prefill_tokens += count
            reading.done = end
        if reading.fork and reading.done == reading.fork:
            self._prefixes.put(task.read, reading.fork)
            reading.fork = 0
        return count

    def _decode(self, turns: int, joining: Sequence[_Row] = ()) -> list[Generation]:
        """End `turns` turns: each looks at the tokens of the step before and starts the next one.

        Rows that join take part in the steps that are started, but no token of theirs is under way before the first.
        """
        self.clock += self._seconds(turns, joining)
        before = list(self.rows)
        self.rows += joining
        if not self.rows:
            self.pending_s = 0.0
            return []
        self.pending_s = self._step_seconds(self.rows, turns - 1)
        self._count(len(self.rows), turns)
        for row in self.rows:
            row.storage += turns
        for row in before:
            row.left -= turns
        ended = [row for row in before if row.left == 0]
        if ended:
            self.rows = [row for row in self.rows if row.left]
            self.pending_s += self._change(len(self.rows), self.rows)
        return [row.task for row in ended]

    def _seconds(self, turns: int, joining: Sequence[_Row] = ()) -> float:
        """Until the end of so many turns: the step under way, and the steps that all but the last of them start."""
        rows = [*self.rows, *joining]
        a, b = self.costs.step(len(rows)) if rows else (0.0, 0.0)
        longest = max((row.storage for row in rows), default=0) + 1
        steps = turns - 1
        return self.pending_s + steps * (a + b * longest) + b * steps * (steps - 1) / 2

    def _step_seconds(self, rows: Sequence[_Row], later: int) -> float:
        """One step, `later` steps from now."""
        a, b = self.costs.step(len(rows))
        return a + b * (max(row.storage for row in rows) + 1 + later)

    def _change(self, count: int, rows: Sequence[_Row]) -> float:
        if not count:
            return 0.0
        a, b = self.costs.change(count)
        return a + b * max(row.storage for row in rows)

    def _turns_to_an_end(self) -> int:
        return min(row.left for row in self.rows)

    def _turns_until(self, until: float, most: int) -> int:
        """The first turn that ends at `until` or later."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self.clock + self._seconds(middle) >= until:
                high = middle
            else:
                low = middle + 1
        return low

    def _count(self, rows: int, turns: int) -> None:
        if self.steps and self.steps[-1][0] == rows:
            turns += self.steps.pop()[1]
        self.steps.append((rows, turns))

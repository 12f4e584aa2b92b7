"""Fake engines whose speeds are known."""

from __future__ import annotations

from dataclasses import dataclass, field

from markovian_rsa_mlx.backends.mlx.profiler import DecodeTiming
from markovian_rsa_mlx.backends.policy import MemoryBudget, ModelFootprint
from tests.support.fakes import FakeBackend


@dataclass
class FakeProfiler:
    """A step takes step_s + row_s * rows + cache_s * rows * context. `now` advances by the reported times."""

    step_s: float = 0.01
    row_s: float = 0.001
    cache_s: float = 0.0
    token_s: float = 0.0001
    offset_s: float = 0.0
    now: float = 0.0
    reads: list[tuple[int, int]] = field(default_factory=list)
    decodes: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    async def read(self, tokens: int, offset: int = 0) -> float:
        self.reads.append((tokens, offset))
        seconds = self.token_s * tokens + self.offset_s * tokens * (offset + tokens / 2)
        self.now += seconds
        return seconds

    async def decode(self, rows: int, context: int, steps: int) -> DecodeTiming:
        self.decodes.append((rows, context))
        step_s = self.step_s + self.row_s * rows + self.cache_s * rows * context
        self.now += steps * step_s
        return DecodeTiming(step_s, 0.0)

    async def close(self) -> None:
        self.closed = True


@dataclass
class TimedFake(FakeBackend):
    """A fake engine that can be timed: 1 GB of weights, 1 MB per token, 8 rows."""

    times: FakeProfiler = field(default_factory=FakeProfiler)
    admission: MemoryBudget = field(default_factory=lambda: MemoryBudget(ModelFootprint(10**9, 10**6, 0), 8, 10**12))

    def timer(self) -> FakeProfiler:
        return self.times

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        self.admission = MemoryBudget(self.admission.footprint, max_rows or 8, memory_limit_bytes or 10**12)

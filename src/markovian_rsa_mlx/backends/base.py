"""The interface of an engine: a request in, a result out.

An engine deals with tokens, seeds and memory. Rounds, answers and the audit trail are the run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..config import Sampling
from ..tokenizer import ChatMessage, Tokenizer


@dataclass(frozen=True)
class GenerationRequest:
    """One trace to generate.

    The random stream is a pure function of (`seed`, position). `generated_ids` were generated before an interruption.
    The engine continues after them, at position `len(generated_ids)`, within the same `max_tokens` (which counts them).
    `messages` is the same prompt as a chat, for engines that take no ids. `prompt_text` is the same prompt as text,
    chat frame included (if it is "", the engine renders the messages with `enable_thinking`). `run_id` is the run of
    the trace: an engine that several runs share admits them round-robin.
    """

    trace_id: str
    messages: tuple[ChatMessage, ...]
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    sampling: Sampling
    generated_ids: tuple[int, ...] = ()
    run_id: str = ""
    prompt_text: str = ""
    enable_thinking: bool = True


@dataclass(frozen=True)
class GenerationResult:
    """A finished trace: all its ids, those of `generated_ids` and the EOS included."""

    token_ids: tuple[int, ...]
    finish_reason: Literal["eos", "max_tokens"]


class GenerationListener(Protocol):
    """Receives one trace's progress, on the event loop's thread.

    Its methods may raise errors that end the run. `Engine.generate` must let them through unchanged.
    """

    def started(self) -> None:
        """The trace got its row in the engine. Called once, before any `tokens`."""

    def tokens(self, ids: Sequence[int]) -> None:
        """Receive the ids generated since the last call."""

    def warning(self, message: str) -> None:
        """Receive a problem that the engine recovered from within this attempt, such as a repeated call."""


@dataclass(frozen=True)
class EngineInfo:
    """Facts of an engine that a run records. `quantization` is "none" or like "4-bit"; sizes in tokens and bytes."""

    model_id: str
    quantization: str
    engine: str
    engine_version: str
    dtype: str
    context_length: int | None
    max_rows: int | None
    memory_limit_bytes: int | None


class Engine(Protocol):
    """An engine. Coroutines run on the event loop; the other members must be safe to use from any thread."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def info(self) -> EngineInfo: ...

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace. Wait until the engine has capacity for it.

        Cancelling the awaiting task stops the trace within one step. Raise `BackendError` if this trace failed and
        `MemoryLimitError` if it can never fit.
        """
        ...

    async def log_probability(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
    ) -> float | None:
        """Return the natural log of the probability to sample `token_ids` after the prompt, None if it is not known."""
        ...

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Limit the traces in one batch and the memory for weights and caches. None leaves the choice to the engine."""

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """Return the bytes for the weights and the caches of `rows` traces, the longest of `longest` tokens."""
        ...

    def peak_memory_bytes(self) -> int:
        """Return the peak of memory use since the engine was made or `reset_peak_memory` was called."""
        ...

    async def model_stats(self) -> dict[str, Any] | None:
        """Return the model's counters since the last reset, as JSON values, or None if it has none.

        The counters belong to the engine: runs that share it are counted together.
        """
        ...

    def reset_peak_memory(self) -> None:
        """Reset the peak and the model's counters. Called when a session of a run begins."""

    async def aclose(self) -> None:
        """Stop all generations and free the model."""

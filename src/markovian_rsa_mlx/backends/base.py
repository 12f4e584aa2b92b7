"""What the orchestrator asks of an engine: a request in, a result out.

An engine knows tokens, seeds and memory. It knows nothing of rounds, answers or the audit trail.
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

    The random stream is a pure function of (`seed`, position). `generated_ids` were generated before an
    interruption: the engine goes on behind them, at position `len(generated_ids)`, within the same
    `max_tokens` (which counts them). `messages` is the same prompt as a chat, for engines that take no ids.
    `prompt_text` is it as text, chat frame included ("": render the messages; `enable_thinking` is for that).
    `run_id` says whose trace it is: an engine that several runs share lets them in by turns.
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
    """Receives one trace's progress, on the event loop's thread."""

    def started(self) -> None:
        """The trace got its row in the engine. Called once, before any `tokens`."""

    def tokens(self, ids: Sequence[int]) -> None:
        """Receive the ids generated since the last call."""

    def warning(self, message: str) -> None:
        """Receive a problem that the engine recovered from within this attempt, such as a repeated call."""


@dataclass(frozen=True)
class EngineInfo:
    """What a run records of its engine. `quantization` is "none" or like "4-bit"; sizes in tokens and bytes."""

    model_id: str
    quantization: str
    engine: str
    engine_version: str
    dtype: str
    context_length: int | None
    max_rows: int | None
    memory_limit_bytes: int | None


class Engine(Protocol):
    """An engine. All methods are called on the event loop's thread."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def info(self) -> EngineInfo: ...

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace; waits until the engine has room for it.

        Cancelling the awaiting task stops the trace within one step. Raises `BackendError` if this trace
        failed and `MemoryLimitError` if it can never fit.
        """
        ...

    async def log_probability(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
    ) -> float | None:
        """Natural log of the chance to sample `token_ids` after the prompt; None where it cannot be had."""
        ...

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Bound the traces decoded at once and the memory for weights and caches; None: the engine's own choice."""

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """Bytes for the weights and the caches of `rows` traces, the longest of `longest` tokens."""
        ...

    def peak_memory_bytes(self) -> int:
        """The most memory used since the engine was made or last asked to `reset_peak_memory`."""
        ...

    async def model_stats(self) -> dict[str, Any] | None:
        """What the model counted of itself since the last reset, in JSON values; None where it counts nothing.

        The counters are the engine's: runs that share it are counted together.
        """
        ...

    def reset_peak_memory(self) -> None:
        """Forget the peak and the model's counters; called as a run begins or goes on."""

    async def aclose(self) -> None:
        """Stop what runs and free the model."""

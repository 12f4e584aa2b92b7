"""The interface of an engine: a request in, a result out.

An engine deals with tokens, seeds and memory. Rounds, answers and the audit trail are the run's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from ..confidence import Confidence
from ..config import Sampling
from ..tokenizer import ChatMessage, Tokenizer
from ..tools import Tools


@dataclass(frozen=True)
class ThinkingLimit:
    """Where an engine closes the thinking of a trace.

    If the first `position` ids of the trace are all thinking (`is_open`, a pure function), `closing_ids` follow them
    without a draw, and the engine continues after them. They count as ids of the trace: the next draw is that of
    position `position + len(closing_ids)`, and `max_tokens` includes them.
    """

    position: int
    closing_ids: tuple[int, ...]
    is_open: Callable[[Sequence[int]], bool] = field(compare=False)


class AnswerWatch(Protocol):
    """Follows the ids of one trace to the beginning of its answer, after the thinking.

    `begun`: the answer begins with the next id, unless that is white space, one of the `alternatives`, which begin a
    thinking, or part of a mark.
    """

    begun: bool
    alternatives: frozenset[int]

    def add(self, token: int) -> str:
        """Add the next id. Return the text that it adds to the answer, without marks."""
        ...


@dataclass(frozen=True)
class CallGrammar:
    """A call of a tool as an answer: `begin_ids`, then what `schemas` bind. Without them it is free.

    The schemas have the same alternatives (`anyOf`), the strictest first. Each alternative is bound by the first of its
    forms that can be used. `required`: the answer is a call, and nothing else.
    """

    begin_ids: tuple[int, ...]
    schemas: tuple[Mapping[str, Any], ...] = ()
    required: bool = False


@dataclass(frozen=True)
class AnswerSchema:
    """The JSON Schema of the answer of a trace. `watch` makes what finds the answer's beginning, once a generation.

    The thinking is free. A trace does not end before its answer is a JSON value that the schema allows, other than by
    `max_tokens`. With `call` the answer may also be a call of a tool, which an engine with `info.binds_calls` honours.
    The schema is None only where a call is required.
    """

    schema: Mapping[str, Any] | None
    watch: Callable[[], AnswerWatch]
    call: CallGrammar | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One trace to generate.

    The random stream is a pure function of (`seed`, position). `generated_ids` were generated before an interruption.
    The engine continues after them, at position `len(generated_ids)`, within the same `max_tokens` (which counts them).
    `messages` is the same prompt as a chat, for engines that take no ids. `prompt_text` is the same prompt as text,
    chat frame included (if it is "", the engine renders the messages with `enable_thinking`). `run_id` is the run of
    the trace: an engine that several runs share admits them round-robin. `thinking_limit` is None unless the engine's
    `info.closes_thinking` is True. `thinking_marks` are those that the run names, for servers that return text.
    `tools` are those that the answer may call; the prompt describes them, too.
    `answer_schema` is None unless the engine's `info.binds_answers` is True. With `top_logprobs`, from 0 on, the
    listener is a `LogProbListener` and gets the values of each id and of so many likeliest ones (None unless
    `info.gives_logprobs`).
    `shared_lengths` are the tokens that later requests of the run will have in common with this prompt, one for each.
    With `wants_confidence`, the result has the confidence of the trace, if the engine knows log-probabilities.
    `adapter` is the digest of the engine's aggregation adapter if the trace uses it, else "".
    `interactive`: a person waits for these tokens, so the engine puts them before those of other requests.
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
    thinking_limit: ThinkingLimit | None = None
    thinking_marks: tuple[str, str] | None = None
    answer_schema: AnswerSchema | None = None
    tools: Tools | None = None
    top_logprobs: int | None = None
    wants_confidence: bool = False
    adapter: str = ""
    interactive: bool = False
    shared_lengths: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class DecodingCounts:
    """The decode steps of a generation, the tokens that were guessed for them, and those of them that were right.

    A step gives one token and the right guesses before it.
    """

    steps: int
    drafted: int
    accepted: int


class TokenLogProbs(NamedTuple):
    """The natural log-probability of an id, and the likeliest ids with theirs, the most likely first.

    They are those of the model's own distribution: before the temperature, the filters and a grammar.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    """A finished trace: all its ids, those of `generated_ids`, closing ids and the EOS included.

    `decoding` is None if the engine does not count its steps. `confidence` covers all drawn ids, those of
    `generated_ids` included; it is None unless the request wants it and the engine knows them all.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["eos", "max_tokens"]
    decoding: DecodingCounts | None = None
    confidence: Confidence | None = None


class GenerationListener(Protocol):
    """Receives one trace's progress, on the event loop's thread.

    Its methods may raise errors that end the run. `Engine.generate` must let them through unchanged.
    """

    def started(self) -> None:
        """The trace got its row in the engine. Called once, before any `tokens`."""

    def tokens(self, ids: Sequence[int]) -> None:
        """Receive the ids generated since the last call."""

    def thinking_closed(self, closing_ids: Sequence[int]) -> None:
        """Receive the closing ids of the trace's `thinking_limit`, after all ids before them."""

    def warning(self, message: str) -> None:
        """Receive a problem that the engine recovered from within this attempt, such as a repeated call."""


class LogProbListener(GenerationListener, Protocol):
    """The listener of a request with `top_logprobs`."""

    def log_probabilities(self, values: Sequence[TokenLogProbs]) -> None:
        """Receive the values of the ids of the next call."""


class SilentListener:
    """A listener that ignores everything."""

    def started(self) -> None: ...

    def tokens(self, ids: Sequence[int]) -> None: ...

    def thinking_closed(self, closing_ids: Sequence[int]) -> None: ...

    def warning(self, message: str) -> None: ...


@dataclass(frozen=True)
class EngineInfo:
    """Facts of an engine that a run records. `quantization` is "none" or like "4-bit"; sizes in tokens and bytes.

    `tokenizer` is where the tokenizer was read, `tokenizer_digest` its digest (`backends.tokenizers.files_digest`).
    `model_digest` identifies the weights, with the adapter that all traces use (`hub.model_digest`,
    `hub.with_adapter`; "": unknown, as on a server).
    `closes_thinking`: whether the engine honours the `thinking_limit` of a request (None: it does not know of any).
    `binds_answers`, `binds_calls` and `gives_logprobs`: whether it honours `answer_schema`, its `call`, and
    `top_logprobs`. `writes_calls`: whether it takes the `tools` of a request as such, and writes the calls that it gets
    into the trace in the generic form.
    `kv_bits`: the width of a number in a quantized KV cache (None: not quantized, or unknown).
    `adapter_folder` and `adapter_digest`: where the aggregation adapter was read, and its digest ("": there is none).
    """

    model_id: str
    quantization: str
    engine: str
    engine_version: str
    dtype: str
    context_length: int | None
    max_rows: int | None
    memory_limit_bytes: int | None
    tokenizer: str = ""
    tokenizer_digest: str = ""
    model_digest: str = ""
    closes_thinking: bool | None = None
    binds_answers: bool = False
    binds_calls: bool = False
    writes_calls: bool = False
    gives_logprobs: bool = False
    kv_bits: int | None = None
    adapter_folder: str = ""
    adapter_digest: str = ""


@runtime_checkable
class ReadsAhead(Protocol):
    """An engine that can read the beginning of a prompt before its end is known."""

    def read_ahead(self, run_id: str, trace_id: str, prompt_token_ids: Iterable[int], *, adapter: str = "") -> None:
        """Read the first ids of a trace's prompt while the engine has time. It takes the place of an earlier call.

        A hint: `generate` gives the same tokens without it. `adapter` is that of the request to come.
        """
        ...


@runtime_checkable
class MeasuresConfidence(Protocol):
    """An engine that can measure the confidence of a trace that an earlier session generated."""

    async def confidence(self, request: GenerationRequest) -> Confidence | None:
        """Return the confidence of `generated_ids`, which are the whole trace."""
        ...


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

    def check_schema(self, schema: Mapping[str, Any]) -> None:
        """Raise `SchemaError` if answers cannot be bound to the schema. Blocks, for seconds at most."""
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

"""Turn a request into a plan: its chat, the settings of its run and the form of its answer.

Every request is a run. An ordinary completion is parallel sampling (T = 0) of `n` traces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..backends.base import Engine
from ..config import FULL, RSAConfig
from ..errors import ContextLengthError
from ..tokenizer import ChatMessage
from .errors import RequestError
from .request import RSA_KEYS, ChatRequest, Message

#: Limit on the traces of one request, because the lineage of all of them is drawn at the start.
MAX_TRACES_PER_REQUEST = 4_096
#: Limit on the tails of one prompt: the frames of all smaller prompts are built too, in quadratic time.
MAX_PARENTS = 64
#: Lower bound of the default `max_tokens` of an ordinary completion.
MIN_DEFAULT_TOKENS = 512
#: Upper bound of the search for the longest sequence that fits into memory.
_MAX_SEQUENCE = 1 << 30

_SAMPLER = "the sampler supports temperature, top_p, top_k and min_p"
_NO_TOOLS = "this server has no tools"
#: Keys that the server cannot honour: the values without an effect, which are accepted, and the reason.
_UNSUPPORTED: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "stop": (("", []), "a trace ends at the model's end of sequence or at max_tokens; cut the text yourself"),
    "logprobs": ((False,), "log probabilities are not kept"),
    "top_logprobs": ((0,), "log probabilities are not kept"),
    "logit_bias": (({},), _SAMPLER),
    "frequency_penalty": ((0,), _SAMPLER),
    "presence_penalty": ((0,), _SAMPLER),
    "repetition_penalty": ((1,), _SAMPLER),
    "tools": (([],), _NO_TOOLS),
    "tool_choice": (("none", "auto"), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none", "auto"), _NO_TOOLS),
    "response_format": (({"type": "text"},), "the model's text is not constrained; ask for the format in the prompt"),
    "modalities": ((["text"],), "answers are text"),
    "store": ((False,), "use rsa_trail to keep an audit trail"),
    "reasoning_effort": (("none",), 'only "none" is accepted; short_resp_len and rsa_t set the amount of thinking'),
}


@dataclass(frozen=True)
class Plan:
    """A run to start. `rsa` is False for an ordinary completion. The response's metadata repeats the warnings."""

    chat: list[ChatMessage]
    config: RSAConfig
    rsa: bool
    keep_trail: bool
    request: ChatRequest
    warnings: list[str]

    @property
    def live(self) -> dict[str, int]:
        """The traces that are certain to be choices, and so can be streamed: their ids and the choices' indices."""
        if self.rsa and (self.config.final_count > 1 or self.config.answer_selection == "final_aggregation"):
            return {}
        return {f"r{self.config.rounds}-{index:02d}": index for index in range(self.config.final_count)}


@dataclass(frozen=True)
class RemainingTokens:
    """The tokens that fit after a prompt, into the model's context and into memory. None: no limit is known."""

    context: int | None = None
    memory: int | None = None


def remaining_tokens(engine: Engine, chat: Sequence[ChatMessage], thinking: bool) -> RemainingTokens:
    """Tokenize the chat and return the tokens that fit after it."""
    context, memory = engine.info.context_length, engine.info.memory_limit_bytes
    if memory is not None:
        lengths = range(_MAX_SEQUENCE)
        memory = bisect_right(lengths, memory, key=lambda tokens: engine.memory_estimate_bytes(1, tokens)) - 1
    if context is None and memory is None:
        return RemainingTokens()
    prompt = len(engine.tokenizer.encode(engine.tokenizer.render_chat(chat, thinking)))
    return RemainingTokens(*(None if limit is None else limit - prompt for limit in (context, memory)))


def build_plan(
    request: ChatRequest, base: RSAConfig, remaining: Callable[[list[ChatMessage], bool], RemainingTokens]
) -> Plan:
    """Return the run that a request asks for.

    `base` is the server's profile. `remaining(chat, thinking)` limits a completion without `max_tokens`. A prompt that
    exceeds the context is refused before other prompts are built from it. Raises `RequestError` and `ConfigError`.
    """
    reject_unsupported(request)
    chat = to_chat(request.messages)
    if request.rsa_profile is not None:
        base = RSAConfig.profile(request.rsa_profile)
    thinking = request.chat_template_kwargs.enable_thinking if request.chat_template_kwargs else None
    if request.reasoning_effort == "none":
        if thinking:
            raise RequestError(400, 'reasoning_effort "none" and enable_thinking true contradict each other.')
        thinking = False
    changes = {key: getattr(request, key) for key in ("temperature", "top_p", "top_k", "min_p", "seed")}
    changes["enable_thinking"] = thinking
    # The memory limit belongs to the server, and no request can lift it.
    base = base.replace(memory_limit_gb=None, **{key: value for key, value in changes.items() if value is not None})
    left = remaining(chat, base.enable_thinking)
    if left.context is not None and left.context < 1:
        message = f"The prompt is {1 - left.context:,} tokens too long for the model's context. Send a shorter one."
        raise RequestError(400, message, ContextLengthError.kind, "messages")
    rsa = bool(RSA_KEYS & request.model_fields_set) and (request.rsa_t != 0 or request.rsa_selection is not None)
    config, warnings = _rsa_settings(request, base) if rsa else (_completion_settings(request, base, left), [])
    keep_trail = rsa if request.rsa_trail is None else request.rsa_trail
    return Plan(chat, config, rsa, keep_trail, request, warnings)


def reject_unsupported(request: ChatRequest) -> None:
    """Raise `RequestError` for the first key whose value the server would ignore."""
    for key, (accepted, reason) in _UNSUPPORTED.items():
        value = getattr(request, key)
        if value is not None and value not in accepted:
            raise RequestError(400, f"{key} is not supported: {reason}.", "unsupported_key", key)
    if request.stream_options is not None and not request.stream:
        raise RequestError(400, "stream_options is only allowed with stream: true.", param="stream_options")


def to_chat(messages: Sequence[Message]) -> list[ChatMessage]:
    """Return the messages as roles and texts. Raise `RequestError` for content that would be lost."""
    chat = []
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        if message.role in ("tool", "function") or message.tool_calls or message.function_call is not None:
            raise RequestError(400, f"{path} is part of a tool call: {_NO_TOOLS}.", "unsupported_tools", f"{path}.role")
        for key in ("name", "audio", "tool_call_id"):
            if getattr(message, key) is not None:
                text = f"{path}.{key} is not supported: the model would not see it."
                raise RequestError(400, text, "unsupported_key", f"{path}.{key}")
        if message.content is None:
            raise RequestError(400, f"{path}.content is missing.", "missing_key", f"{path}.content")
        content = message.content
        if not isinstance(content, str):
            for part in content:
                if part.type != "text" or part.text is None:
                    text = f"{path}.content has a part of type {part.type[:40]!r}. Only text parts are supported."
                    raise RequestError(400, text, "unsupported_content", f"{path}.content")
            content = "".join(part.text or "" for part in content)
        # Chat templates know "developer" by its older name.
        chat.append(ChatMessage(role="system" if message.role == "developer" else message.role, content=content))
    return chat


def _completion_settings(request: ChatRequest, base: RSAConfig, left: RemainingTokens) -> RSAConfig:
    # A prompt that leaves no memory at all is refused later, so it limits nothing here.
    limits = [limit for limit in (left.context, left.memory) if limit is not None and limit > 0]
    return base.replace(
        rounds=0,
        population=request.n or 1,
        final_candidates=None,
        final_tokens=request.max_tokens or min([max(base.final_tokens, MIN_DEFAULT_TOKENS), *limits]),
        final_temperature=None,
        final_top_p=None,
        final_top_k=None,
        final_min_p=None,
        carry="tail",
        answer_selection="single",
        answer_kind="text",
    )


def _rsa_settings(request: ChatRequest, base: RSAConfig) -> tuple[RSAConfig, list[str]]:
    """Return the settings of a run, and warnings about them."""
    rounds = base.rounds if request.rsa_t is None else request.rsa_t
    population = request.rsa_n or request.n or base.population
    if (traces := (rounds + 1) * population) > MAX_TRACES_PER_REQUEST:
        message = f"(rsa_t + 1) * rsa_n must be at most {MAX_TRACES_PER_REQUEST:,} traces (got {traces:,})."
        raise RequestError(400, message, param="rsa_n")
    parents = min(request.rsa_k or base.aggregation_size, population)
    if request.rsa_k is not None and parents > MAX_PARENTS:
        message = f"rsa_k must be at most {MAX_PARENTS} tails per prompt (got {parents})."
        raise RequestError(400, message, param="rsa_k")
    finals = base.final_candidates if request.rsa_final_n is None else request.rsa_final_n
    thinking_tokens = request.short_resp_len or base.thinking_tokens
    tail_tokens, warnings = _tail_tokens(request, base, thinking_tokens)
    final_sampling = {"final_temperature", "final_top_p", "final_top_k"} & request.model_fields_set
    config = base.replace(
        rounds=rounds,
        population=population,
        aggregation_size=parents,
        thinking_tokens=thinking_tokens,
        tail_tokens=tail_tokens,
        final_tokens=request.max_tokens or base.final_tokens,
        final_candidates=None if finals is None else min(finals, population),
        carry=_carry(request, base),
        summary_prompt=request.summary_prompt or base.summary_prompt,
        answer_selection=request.rsa_selection or base.answer_selection,
        concurrency=request.rsa_max_concurrency or "auto",
        **{key: getattr(request, key) for key in final_sampling},
    )
    return config, [*warnings, *config.warnings(published_model=False)]


def _tail_tokens(request: ChatRequest, base: RSAConfig, thinking_tokens: int) -> tuple[Any, list[str]]:
    """Return tau and warnings. The profile's tau yields to a smaller beta; a tau of the request does not."""
    if request.rsa_tail_window is False:
        return FULL, []
    if request.tail_window_len is not None:
        return request.tail_window_len, []
    tail_tokens = base.tail_tokens
    if request.rsa_tail_window and tail_tokens == FULL:
        return base.tail_limit, []
    if isinstance(tail_tokens, int) and tail_tokens > thinking_tokens:
        comparison = f"short_resp_len {thinking_tokens} is below the profile's tail_window_len {tail_tokens}"
        return FULL, [f"{comparison}: whole traces are carried forward."]
    return tail_tokens, []


def _carry(request: ChatRequest, base: RSAConfig) -> str:
    if request.rsa_summarize and request.rsa_tail_window:
        message = "rsa_summarize and rsa_tail_window exclude each other. Give one of them."
        raise RequestError(400, message, param="rsa_summarize")
    if request.rsa_summarize and request.use_pacore:
        message = "rsa_summarize and use_pacore exclude each other. Give one of them."
        raise RequestError(400, message, param="use_pacore")
    if request.summary_prompt is not None and not (request.rsa_summarize or base.carry == "summary"):
        raise RequestError(400, "summary_prompt needs rsa_summarize: true.", param="summary_prompt")
    switches = {"summary": request.rsa_summarize, "answer": request.use_pacore}
    for carry, switch in switches.items():
        if switch:
            return carry
    # Keep the profile's carry unless the request switched it off, or asked for the tail.
    return "tail" if request.rsa_tail_window or switches.get(base.carry) is False else base.carry

"""From a request to a run: its chat, its settings and what the answer must hold.

Pure. An ordinary completion is a run too: parallel sampling (T = 0) of `n` traces.

A request's messages as the plain chat that the method knows.

Keys of the OpenAI protocol that this server cannot honour: refused with a sentence, never dropped.

How much fits behind a prompt.
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

#: Most traces that one request may ask for, needed or not: their lineage is drawn at once.
MOST_TRACES = 4_096
#: Most tails in a prompt: the frames of prompts with fewer are all made at once, their number grows as its square.
MOST_PARENTS = 64
#: An ordinary completion without a budget may be this long at the least, whatever a profile gives its final round.
LEAST_BUDGET = 512


@dataclass(frozen=True)
class Plan:
    """What to run. `rsa` False: an ordinary completion. `warnings` are told in the metadata."""

    chat: list[ChatMessage]
    config: RSAConfig
    rsa: bool
    keep_trail: bool
    asked: ChatRequest
    warnings: list[str]

    @property
    def live(self) -> dict[str, int]:
        """Traces that are choices for certain while they are generated: their ids, and the choice's index."""
        if self.rsa and (self.config.final_count > 1 or self.config.answer_selection == "final_aggregation"):
            return {}
        return {f"r{self.config.rounds}-{index:02d}": index for index in range(self.config.final_count)}


def build_plan(asked: ChatRequest, base: RSAConfig, room: Callable[[list[ChatMessage], bool], RemainingTokens]) -> Plan:
    """The run that a request asks for; `base` is the server's profile.

    `room(chat, thinking)` bounds a completion that names no budget, and a prompt that the context does not hold goes no
    further, whatever it would be put into. Raises `RequestError` and `ConfigError`.
    """
    reject_unsupported(asked)
    chat = to_chat(asked.messages)
    base = RSAConfig.profile(asked.rsa_profile) if asked.rsa_profile is not None else base
    # The engine's bounds are the server's, and no request can lift them.
    base = base.replace(memory_limit_gb=None, enable_thinking=_thinking(asked, base.enable_thinking))
    rsa = bool(RSA_KEYS & asked.model_fields_set) and (asked.rsa_t != 0 or asked.given("rsa_selection"))
    left = room(chat, base.enable_thinking)
    if left.context is not None and left.context < 1:
        raise RequestError(
            400,
            f"The prompt is {1 - left.context:,} tokens too long for the model's context; send less.",
            ContextLengthError.kind,
            "messages",
        )
    config, warnings = _rsa(asked, base) if rsa else (_ordinary(asked, base, left), [])
    keep = asked.rsa_trail if asked.rsa_trail is not None else rsa
    return Plan(chat, config, rsa, keep, asked, warnings)


def _ordinary(asked: ChatRequest, base: RSAConfig, room: RemainingTokens) -> RSAConfig:
    budget = asked.max_tokens or room.bound(max(base.final_tokens, LEAST_BUDGET))
    return base.replace(
        rounds=0,
        population=asked.n or 1,
        final_candidates=None,
        final_tokens=budget,
        final_temperature=None,
        final_top_p=None,
        final_top_k=None,
        final_min_p=None,
        carry="tail",
        answer_selection="single",
        answer_kind="text",
        seed=base.seed if asked.seed is None else asked.seed,
        **_sampling(asked),
    )


def _rsa(asked: ChatRequest, base: RSAConfig) -> tuple[RSAConfig, list[str]]:
    rounds = base.rounds if asked.rsa_t is None else asked.rsa_t
    population = asked.rsa_n or asked.n or base.population
    if (rounds + 1) * population > MOST_TRACES:
        raise RequestError(
            400,
            f"(rsa_t + 1) * rsa_n is {(rounds + 1) * population:,}; allowed: at most {MOST_TRACES:,} traces.",
            param="rsa_n",
        )
    finals = base.final_candidates if asked.rsa_final_n is None else asked.rsa_final_n
    beta = asked.short_resp_len or base.thinking_tokens
    tau, warnings = _tail(asked, base, beta)
    config = base.replace(
        rounds=rounds,
        population=population,
        aggregation_size=_parents(asked, base, population),
        thinking_tokens=beta,
        tail_tokens=tau,
        final_tokens=asked.max_tokens or base.final_tokens,
        final_candidates=None if finals is None else min(finals, population),
        carry=_carry(asked, base),
        summary_prompt=asked.summary_prompt or base.summary_prompt,
        answer_selection=asked.rsa_selection or base.answer_selection,
        concurrency=asked.rsa_max_concurrency or "auto",
        seed=base.seed if asked.seed is None else asked.seed,
        **_sampling(asked),
        **{key: getattr(asked, key) for key in _FINAL_SAMPLING if key in asked.model_fields_set},
    )
    return config, [*warnings, *config.warnings(published_model=False)]


def _parents(asked: ChatRequest, base: RSAConfig, population: int) -> int:
    parents = min(asked.rsa_k or base.aggregation_size, population)
    if asked.rsa_k is not None and parents > MOST_PARENTS:
        raise RequestError(400, f"rsa_k is {parents}; allowed: at most {MOST_PARENTS} tails a prompt.", param="rsa_k")
    return parents


_FINAL_SAMPLING = ("final_temperature", "final_top_p", "final_top_k")


def _tail(asked: ChatRequest, base: RSAConfig, beta: int) -> tuple[Any, list[str]]:
    """tau; the profile's is lowered to a smaller beta, a given one that exceeds beta is refused."""
    if asked.rsa_tail_window is False:
        return FULL, []
    if asked.tail_window_len is not None:
        return asked.tail_window_len, []
    tau = base.tail_tokens
    if asked.rsa_tail_window and tau == FULL:
        return base.tail_limit, []
    if isinstance(tau, int) and tau > beta:
        return FULL, [
            f"short_resp_len {beta} is below the profile's tail_window_len {tau}: whole traces are carried on."
        ]
    return tau, []


def _carry(asked: ChatRequest, base: RSAConfig) -> str:
    if asked.rsa_summarize and asked.rsa_tail_window:
        raise RequestError(
            400, "rsa_summarize and rsa_tail_window exclude each other; give one of them.", param="rsa_summarize"
        )
    if asked.rsa_summarize and asked.use_pacore:
        raise RequestError(400, "rsa_summarize and use_pacore exclude each other; give one.", param="use_pacore")
    carries = {"summary": asked.rsa_summarize, "answer": asked.use_pacore}
    if asked.summary_prompt is not None and not (asked.rsa_summarize or base.carry == "summary"):
        raise RequestError(400, "summary_prompt needs rsa_summarize: true.", param="summary_prompt")
    chosen = next((carry for carry, wanted in carries.items() if wanted), None)
    if chosen is not None:
        return chosen
    # The profile's carry stays unless it was switched off, or the tail was asked for by name.
    return "tail" if asked.rsa_tail_window or carries.get(base.carry) is False else base.carry


def _sampling(asked: ChatRequest) -> dict[str, Any]:
    keys = ("temperature", "top_p", "top_k", "min_p")
    return {key: getattr(asked, key) for key in keys if asked.given(key)}


def _thinking(asked: ChatRequest, default: bool) -> bool:
    wanted = asked.chat_template_kwargs.enable_thinking if asked.chat_template_kwargs is not None else None
    if asked.reasoning_effort == "none":
        if wanted:
            raise RequestError(400, 'reasoning_effort "none" and enable_thinking true contradict each other.')
        return False
    return default if wanted is None else wanted


_ROLES = {"developer": "system"}  # chat templates know the older name


def to_chat(messages: Sequence[Message]) -> list[ChatMessage]:
    """Roles and texts; whatever would be lost on the way is refused."""
    chat = []
    for index, message in enumerate(messages):
        _refuse_what_is_no_text(message, f"messages.{index}")
        role = _ROLES.get(message.role, message.role)
        chat.append(ChatMessage(role=role, content=_text(message, f"messages.{index}")))
    return chat


def _text(message: Message, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        raise RequestError(400, f"{path}.content is missing; give text.", "missing_key", f"{path}.content")
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestError(
                400,
                f"{path}.content holds a part of type {part.type[:40]!r}; this server reads text parts only.",
                "unsupported_content",
                f"{path}.content",
            )
    return "".join(part.text or "" for part in message.content)


def _refuse_what_is_no_text(message: Message, path: str) -> None:
    if message.role in ("tool", "function") or message.tool_calls or message.function_call is not None:
        raise RequestError(
            400, f"{path} belongs to a tool call; this server has no tools.", "unsupported_tools", f"{path}.role"
        )
    for key in ("name", "audio", "tool_call_id"):
        if getattr(message, key) is not None:
            raise RequestError(
                400, f"{path}.{key} would not reach the model; leave it out.", "unsupported_key", f"{path}.{key}"
            )


#: What a key may be although nothing is done about it, and why it cannot be anything else.
_HARMLESS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "stop": (lambda v: not v, "a trace ends where the model ends it or at max_tokens; cut the text yourself"),
    "logprobs": (lambda v: not v, "log probabilities are not kept"),
    "top_logprobs": (lambda v: v == 0, "log probabilities are not kept"),
    "logit_bias": (lambda v: not v, "the sampler knows temperature, top_p, top_k and min_p"),
    "frequency_penalty": (lambda v: v == 0, "the sampler knows temperature, top_p, top_k and min_p"),
    "presence_penalty": (lambda v: v == 0, "the sampler knows temperature, top_p, top_k and min_p"),
    "repetition_penalty": (lambda v: v == 1, "the sampler knows temperature, top_p, top_k and min_p"),
    "tools": (lambda v: not v, "this server has no tools"),
    "tool_choice": (lambda v: v in ("none", "auto"), "this server has no tools"),
    "functions": (lambda v: not v, "this server has no tools"),
    "function_call": (lambda v: v in ("none", "auto"), "this server has no tools"),
    "response_format": (
        lambda v: v == {"type": "text"},
        "the model's text is not constrained; ask for the form in words",
    ),
    "modalities": (lambda v: v == ["text"], "answers are text"),
    "store": (lambda v: not v, "rsa_trail keeps a trail"),
    "reasoning_effort": (lambda v: v == "none", "it may be none; short_resp_len and rsa_t say how much is thought"),
}


def reject_unsupported(asked: ChatRequest) -> None:
    """Raise `RequestError` for the first key whose value would have no effect."""
    for key, (harmless, reason) in _HARMLESS.items():
        value = getattr(asked, key)
        if value is not None and not harmless(value):
            raise RequestError(400, f"{key} is not supported: {reason}.", "unsupported_key", key)
    if asked.stream_options is not None and not asked.stream:
        raise RequestError(400, "stream_options needs stream: true; leave it out.", param="stream_options")


#: No sequence is longer than that.
_LONGEST = 1 << 30


@dataclass(frozen=True)
class RemainingTokens:
    """Tokens that fit behind a prompt, into the model's context and into memory; None: nobody knows of a bound."""

    context: int | None = None
    memory: int | None = None

    def bound(self, wanted: int) -> int:
        """As much of a budget as fits; all of it where the prompt alone is too much, for then it is refused."""
        return min([wanted, *(left for left in (self.context, self.memory) if left is not None and left > 0)])


def remaining_tokens(backend: Engine, chat: Sequence[ChatMessage], thinking: bool) -> RemainingTokens:
    """What there is behind this chat's prompt."""
    context, memory = backend.info.context_length, _most_tokens(backend)
    if context is None and memory is None:
        return RemainingTokens()
    prompt = len(backend.tokenizer.encode(backend.tokenizer.render_chat(chat, thinking)))
    return RemainingTokens(*(None if bound is None else bound - prompt for bound in (context, memory)))


def _most_tokens(backend: Engine) -> int | None:
    """The longest sequence that memory holds; None where nothing bounds it."""
    limit = backend.info.memory_limit_bytes
    if limit is None:
        return None
    return bisect_right(range(_LONGEST), limit, key=lambda tokens: backend.memory_estimate_bytes(1, tokens)) - 1

"""Turn a request into a plan: its chat, the settings of its run and the form of its answer.

Every request is a run. An ordinary completion is parallel sampling (T = 0) of `n` traces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..backends.base import Engine
from ..config import FULL, RSAConfig
from ..content_parts import TEXT_PARTS, THINKING_PARTS
from ..errors import ConfigError, ContextLengthError, MemoryLimitError, PromptError
from ..formatting import shortened
from ..method.chat_form import render_chat
from ..tokenizer import ChatMessage, Tokenizer
from ..tools import Chat, ToolChoice, join_texts, waits_for_answer
from .errors import RequestError, naming_schema
from .request import (
    RSA_KEYS,
    AllowedToolsChoice,
    ChatRequest,
    Effort,
    Message,
    NamedTool,
    Part,
    SamplingRequest,
)

#: Limit on the traces of one request, because the lineage of all of them is drawn at the start.
MAX_TRACES_PER_REQUEST = 4_096
#: Limit on the tails of one prompt: the frames of all smaller prompts are built too, in quadratic time.
MAX_PARENTS = 64
#: Lower bound of the default `max_tokens` of an ordinary completion.
MIN_DEFAULT_TOKENS = 512
#: Limit on the tokens of a prompt where neither the context nor the memory limits it.
MAX_PROMPT = 1 << 20
#: Number of characters that are tokenized at once to find out whether a long text exceeds a limit.
_PIECE = 1 << 14
#: Upper bound of the search for the longest sequence that fits into memory.
_MAX_SEQUENCE = 1 << 30


class Scale(NamedTuple):
    """A change of a profile: a factor for its population, and its rounds where they are not the profile's own."""

    population: float
    rounds: int | None = None


WITHOUT_THINKING: Final = frozenset({"none", "minimal"})
#: The effect of each `reasoning_effort` on a request for a run by name. None: an ordinary completion.
EFFORTS: Final[dict[str, Scale | None]] = {
    "none": None,
    "minimal": None,
    "low": None,
    "medium": Scale(0.5, rounds=1),
    "high": Scale(1),
    "xhigh": Scale(2),
    "max": Scale(2),
}
_SAMPLER = "the sampler supports temperature, top_p, top_k and min_p"
_OLD_TOOLS = "this older form has become tools, tool_choice and tool_calls"
#: Keys that the server cannot honour: the values without an effect, which are accepted, and the reason.
_UNSUPPORTED: Final[dict[str, tuple[tuple[Any, ...], str]]] = {
    "logit_bias": (({},), _SAMPLER),
    "frequency_penalty": ((0,), _SAMPLER),
    "presence_penalty": ((0,), _SAMPLER),
    "repetition_penalty": ((1,), _SAMPLER),
    "functions": (([],), _OLD_TOOLS),
    "function_call": (("none", "auto"), _OLD_TOOLS),
    "modalities": ((["text"],), "answers are text"),
}


@dataclass(frozen=True)
class Target:
    """The meaning of a model name: an ordinary completion, or with `rsa` a run with these settings."""

    name: str  #: the model's name in the response
    base: RSAConfig  #: settings that the request leaves unset
    rsa: bool = False


@dataclass(frozen=True)
class Plan:
    """A run to start. `rsa` is False for an ordinary completion. The response's metadata repeats the warnings."""

    chat: Chat
    config: RSAConfig
    rsa: bool
    keep_trail: bool
    request: ChatRequest
    model: str  #: its name in the response
    warnings: list[str]
    max_choices: int | None = None  #: None: all final candidates

    @property
    def top_logprobs(self) -> int | None:
        """The number of likeliest tokens with log-probabilities at each place, None without any."""
        return self.request.top_logprobs or 0 if self.request.logprobs else None

    @property
    def live_stops(self) -> tuple[str, ...]:
        """The texts that end the generation itself. In a run, and in a trail, they only cut the response."""
        bound = self.config.response_schema is not None  # such an answer ends where its schema allows it
        return () if self.rsa or self.keep_trail or bound or self.chat.tools else self.request.stops

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


def remaining_tokens(engine: Engine, chat: Chat, thinking: bool) -> RemainingTokens:
    """Tokenize the chat and return the tokens that fit after it, or less than 1 for a chat that does not fit."""
    context, memory = engine.info.context_length, engine.info.memory_limit_bytes
    if memory is not None:
        lengths = range(_MAX_SEQUENCE)
        memory = bisect_right(lengths, memory, key=lambda tokens: engine.memory_estimate_bytes(1, tokens)) - 1
    limits = [limit for limit in (context, memory) if limit is not None]
    text = render_chat(engine.tokenizer, chat.messages, enable_thinking=thinking, tools=chat.tools)
    prompt = count_tokens(engine.tokenizer, text, min(limits, default=MAX_PROMPT))
    if not limits:
        return RemainingTokens(context=None if prompt <= MAX_PROMPT else MAX_PROMPT - prompt)
    return RemainingTokens(*(None if limit is None else limit - prompt for limit in (context, memory)))


def count_tokens(tokenizer: Tokenizer, text: str, limit: int) -> int:
    """Return the number of tokens of `text`, or only a lower bound of it if that exceeds the limit.

    Tokenizing megabytes takes minutes and gigabytes, so a long text is counted in pieces first.
    """
    counted = 0
    for start in range(0, len(text), _PIECE) if len(text) > limit else ():
        piece = len(tokenizer.encode(text[start : start + _PIECE]))
        counted += piece - piece // 10  # the cut divides tokens
        if counted > limit:
            return counted
    return len(tokenizer.encode(text))


def build_plan(
    request: ChatRequest,
    target: Target,
    remaining: Callable[[Chat, bool], RemainingTokens],
    *,
    lower_max_tokens: bool = False,
) -> Plan:
    """Return the run that a request asks for.

    `remaining(chat, thinking)` limits a completion without `max_tokens`. A prompt that exceeds the context is refused
    before other prompts are built from it. With `lower_max_tokens`, a limit that is too high is lowered. Raises
    `RequestError` and `ConfigError`.
    """
    reject_unsupported(request)
    chat = to_chat(request)
    base = target.base
    if request.rsa_profile is not None:
        try:
            base = RSAConfig.profile(request.rsa_profile).for_any_question()
        except ConfigError as error:
            raise RequestError(400, f"rsa_profile: {error}", error.kind, "rsa_profile") from error
    effort = _effort(request)
    changes = {key: getattr(request, key) for key in ("temperature", "top_p", "top_k", "min_p", "seed")}
    changes["enable_thinking"] = _thinking(request, effort)
    changes["response_schema"] = request.schema_of_answer
    # The memory limit belongs to the server, and no request can lift it.
    with naming_schema(request.schema_key):
        base = base.replace(memory_limit_gb=None, **{key: value for key, value in changes.items() if value is not None})
    left = remaining(chat, base.enable_thinking)
    if left.context is not None and left.context < 1:
        message = f"The prompt is at least {1 - left.context:,} tokens too long for the model's context. Shorten it."
        raise RequestError(400, message, ContextLengthError.kind, "messages")
    if left.memory is not None and left.memory < 1:
        message = f"The prompt is at least {1 - left.memory:,} tokens too long for the memory limit. Shorten it."
        raise RequestError(400, message, MemoryLimitError.kind, "messages")
    scale = EFFORTS[effort or "high"] if target.rsa else None
    rsa = scale is not None or any(getattr(request, key) is not None for key in RSA_KEYS)
    rsa = rsa and (request.rsa_t != 0 or request.rsa_selection is not None)
    if lower_max_tokens:
        request = _fitting(request, left, profile_limit=base.final_tokens if rsa else None)
    max_choices = request.n or 1 if target.rsa else None
    if scale is not None:
        base = scaled(base, scale)
    config, warnings = (
        _rsa_settings(request, base, choices=max_choices) if rsa else (_completion_settings(request, base, left), [])
    )
    if request.logprobs and rsa:
        message = "logprobs is not supported in a run: its answer is chosen among traces. Leave it out."
        raise RequestError(400, message, "unsupported_key", "logprobs")
    keep_trail = rsa if request.rsa_trail is None else request.rsa_trail
    return Plan(chat, config, rsa, keep_trail, request, target.name, warnings, max_choices)


def _fitting(request: ChatRequest, left: RemainingTokens, profile_limit: int | None) -> ChatRequest:
    """Return the request with at most the tokens that are left, and in a run at most those of its profile."""
    limits = [limit for limit in (request.max_tokens, left.context, left.memory, profile_limit) if limit is not None]
    if request.max_tokens is None or (max_tokens := min(limits)) == request.max_tokens:
        return request
    changes = {"max_tokens": max_tokens}
    if request.answer_tokens:
        changes["answer_tokens"] = min(request.answer_tokens, max_tokens // 2)
    return request.model_copy(update=changes)


def _effort(request: ChatRequest) -> Effort | None:
    """Return `reasoning_effort`, or `reasoning.effort`."""
    options = request.reasoning
    nested = options.effort if options is not None else None
    if nested and request.reasoning_effort and nested != request.reasoning_effort:
        message = "reasoning_effort and reasoning.effort have different values. Give one of them."
        raise RequestError(400, message, param="reasoning.effort")
    return request.reasoning_effort or nested


def _thinking(request: ChatRequest, effort: Effort | None) -> bool | None:
    """Return whether the request switches thinking on or off."""
    thinking = request.chat_template_kwargs.thinks if request.chat_template_kwargs else None
    by_effort = None if effort is None else effort not in WITHOUT_THINKING
    if thinking is not None and by_effort is False and thinking:
        message = f'reasoning_effort "{effort}" and enable_thinking true contradict each other.'
        raise RequestError(400, message, param="reasoning_effort")
    return by_effort if thinking is None else thinking


def scaled(base: RSAConfig, scale: Scale) -> RSAConfig:
    """Return the profile with another population, and with fewer rounds: the first ones."""
    rounds = base.rounds if scale.rounds is None else min(base.rounds, scale.rounds)
    populations = tuple(max(1, int(number * scale.population)) for number in base.populations[: rounds + 1])
    finals = base.final_candidates
    return base.replace(
        population=populations,
        rounds=rounds,
        aggregation_size=min(base.aggregation_size, *populations[: max(rounds, 1)]),
        final_candidates=None if finals is None else min(finals, populations[-1]),
    )


def reject_unsupported(request: SamplingRequest) -> None:
    """Raise `RequestError` for the first key whose value the server would ignore."""
    for key, (accepted, reason) in _UNSUPPORTED.items():
        value = getattr(request, key, None)
        if value is not None and value not in accepted:
            raise RequestError(400, f"{key} is not supported: {reason}.", "unsupported_key", key)
    if getattr(request, "top_logprobs", None) and not getattr(request, "logprobs", None):
        raise RequestError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError(400, "stream_options is only allowed with stream: true.", param="stream_options")


def to_chat(request: ChatRequest) -> Chat:
    """Return the chat of a request, with the tools that it may call. Raise `RequestError` for an invalid one."""
    messages = _with_question(to_messages(request.messages))
    tools, choice = request.tools or [], request.tool_choice
    names = [tool.function.name for tool in tools]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(400, f"tools has two functions of the name {twice!r}.", param="tools")
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    elif isinstance(choice, AllowedToolsChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        tools = [tool for tool in tools if tool.function.name in allowed]
        choice = choice.allowed_tools.mode
    if not tools and choice not in (None, "auto", "none"):
        name = f" a function {choice.function.name!r}" if isinstance(choice, NamedTool) else " at least one function"
        raise RequestError(400, f"tool_choice needs{name} in tools.", param="tool_choice")
    offered = () if choice == "none" else tuple(tool.to_dict() for tool in tools)
    mode: ToolChoice = "required" if choice not in (None, "auto", "none") else "auto"
    return Chat(tuple(messages), offered, mode, request.parallel_tool_calls is not False)


def _with_question(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the chat with system messages at its end in front of the question.

    Where no message of the user is open, the last system message becomes the question. Raise `RequestError` if there is
    none, or if the assistant has the last word.
    """
    roles = [message["role"] for message in messages]
    end = next((index for index in range(len(roles), 0, -1) if roles[index - 1] != "system"), 0)
    if waits_for_answer(messages[:end]):
        start = max(index for index in range(end) if roles[index] == "user")
        return [*_joined_at_end([*messages[:start]], messages[end:]), *messages[start:end]]
    if roles[-1] == "assistant":
        message = "messages ends with a message of the assistant. It cannot be continued: add one of the user."
        raise RequestError(400, message, PromptError.kind, "messages")
    if "system" not in roles:
        raise RequestError(400, "messages has no message of the user.", param="messages")
    instruction = max(index for index, role in enumerate(roles) if role == "system")
    question: ChatMessage = {**messages[instruction], "role": "user"}
    return [*messages[:instruction], question, *messages[instruction + 1 :]]


def _joined_at_end(chat: list[ChatMessage], system: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Append system messages to a chat as one, since many chat templates accept no second one in a row."""
    if not system:
        return chat
    before = [chat.pop()] if chat and chat[-1]["role"] == "system" else []
    content = join_texts(*(message["content"] for message in [*before, *system]))
    return [*chat, ChatMessage(role="system", content=content)]


def to_messages(messages: Sequence[Message]) -> list[ChatMessage]:
    """Return the messages as roles and texts, with the calls in them.

    Raise `RequestError` for content that would be lost.
    """
    chat, names = list[ChatMessage](), dict[str, str]()  # the names of called functions, by the calls' ids
    for index, message in enumerate(messages):
        path = f"messages.{index}"
        if message.role == "function" or message.function_call is not None:
            raise RequestError(400, f"{path}: {_OLD_TOOLS}.", "unsupported_tools", f"{path}.role")
        if message.tool_calls and message.role != "assistant":
            raise RequestError(400, f"{path}.tool_calls needs the role assistant.", param=f"{path}.tool_calls")
        if message.content is None and message.role not in ("assistant", "tool"):
            raise RequestError(400, f"{path}.content is missing.", "missing_key", f"{path}.content")
        content = message.content or (message.refusal if isinstance(message.refusal, str) else "")
        if not isinstance(content, str):
            shown = [part for part in content if message.role != "assistant" or part.type not in THINKING_PARTS]
            content = "".join(_text_of(part, f"{path}.content") for part in shown)
        # Chat templates know "developer" by its older name.
        role = "system" if message.role == "developer" else message.role
        converted = ChatMessage(role=role, content=content)
        if message.tool_calls:
            converted["tool_calls"] = [call.to_dict() for call in message.tool_calls]
            names |= {call["id"]: call["function"]["name"] for call in converted["tool_calls"]}
        if role == "tool" and message.tool_call_id is not None:
            converted["tool_call_id"] = message.tool_call_id
            if name := names.get(message.tool_call_id) or message.name:
                converted["name"] = name
        elif message.name:
            converted["name"] = message.name
        chat.append(converted)
    return chat


def _text_of(part: Part, path: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in (*TEXT_PARTS, "refusal") or text is None:
        message = f"{path} has a part of type {part.type[:40]!r}. Only text parts are supported."
        raise RequestError(400, message, "unsupported_content", path)
    return text


def _completion_settings(request: ChatRequest, base: RSAConfig, left: RemainingTokens) -> RSAConfig:
    limits = [limit for limit in (left.context, left.memory) if limit is not None]
    return base.replace(
        rounds=0,
        population=request.n or 1,
        final_candidates=None,
        final_tokens=request.max_tokens or min([max(base.final_tokens, MIN_DEFAULT_TOKENS), *limits]),
        answer_tokens=request.answer_tokens or 0,
        final_temperature=None,
        final_top_p=None,
        final_top_k=None,
        final_min_p=None,
        carry="tail",
        answer_selection="single",
        answer_kind="text",
    )


def _rsa_settings(request: ChatRequest, base: RSAConfig, choices: int | None) -> tuple[RSAConfig, list[str]]:
    """Return the settings of a run, and warnings about them. `choices` is None where `n` is the population."""
    rounds = base.rounds if request.rsa_t is None else request.rsa_t
    populations = _populations(request.rsa_n or (request.n if choices is None else None) or base.population, rounds)
    parents = min(request.rsa_k or base.aggregation_size, populations[max(rounds - 1, 0)])
    if request.rsa_k is not None and parents > MAX_PARENTS:
        message = f"rsa_k must be at most {MAX_PARENTS} tails per prompt (got {parents})."
        raise RequestError(400, message, param="rsa_k")
    finals = base.final_candidates if request.rsa_final_n is None else request.rsa_final_n
    if choices is not None and choices > 1:
        if choices > populations[-1]:
            raise RequestError(400, f"n must be at most the population, {populations[-1]} (got {choices}).", param="n")
        least = populations[-1] if finals == 0 or (finals is None and rounds == 0) else finals or 1
        finals = max(least, choices)
    thinking_tokens = request.short_resp_len or base.thinking_tokens
    tail_tokens, warnings = _tail_tokens(request, base, thinking_tokens)
    selection, kind = request.rsa_selection or base.answer_selection, request.answer_kind or base.answer_kind
    if (selection, kind) == ("majority", "open") and base.response_schema is None:
        message = (
            "Open answers are not compared. Give rsa_selection single, final_aggregation or tournament (got majority)."
        )
        raise RequestError(400, message, param="rsa_selection")
    early_stop = request.rsa_early_stop or base.early_stop
    if early_stop == "posterior" and choices is not None and choices > 1:
        early_stop = "off"
        warnings.append("early_stop posterior is off, since n choices need all their final candidates.")
    final_sampling = {"final_temperature", "final_top_p", "final_top_k"} & request.model_fields_set
    config = base.replace(
        rounds=rounds,
        population=populations,
        aggregation_size=parents,
        thinking_tokens=thinking_tokens,
        tail_tokens=tail_tokens,
        final_tokens=request.max_tokens or base.final_tokens,
        answer_tokens=base.answer_tokens if request.answer_tokens is None else request.answer_tokens,
        final_candidates=None if finals is None else min(finals, populations[-1]),
        carry=_carry(request, base),
        summary_prompt=request.summary_prompt or base.summary_prompt,
        answer_selection=selection,
        answer_kind=kind,
        early_stop=early_stop,
        concurrency=request.rsa_max_concurrency or "auto",
        **{key: getattr(request, key) for key in final_sampling},
    )
    return config, [*warnings, *config.warnings(published_model=False)]


def _populations(given: int | Sequence[int], rounds: int) -> tuple[int, ...]:
    """Return N of each round. Raise `RequestError` if there are not T + 1 of them, or too many traces."""
    populations = (given,) * (rounds + 1) if isinstance(given, int) else tuple(given)
    if len(populations) != rounds + 1:
        message = (
            f"rsa_n must be one number, or rsa_t + 1 = {rounds + 1} of them (got {len(populations)}: "
            f"{shortened(str(list(populations)), 80)}). Give rsa_n and rsa_t together."
        )
        raise RequestError(400, message, param="rsa_n")
    if (traces := sum(populations)) > MAX_TRACES_PER_REQUEST:
        what = "(rsa_t + 1) * rsa_n" if isinstance(given, int) else "The sum of rsa_n"
        message = f"{what} must be at most {MAX_TRACES_PER_REQUEST:,} traces (got {traces:,})."
        raise RequestError(400, message, param="rsa_n")
    return populations


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

"""The body of `POST /v1/chat/completions`: what each key may be, checked before anything else happens.

Knows shapes and bounds of single keys; what they mean together is for `plan`.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import RequestError
from .keys import (
    ALIASES,
    Choices,
    Finals,
    MinP,
    Parents,
    Rounds,
    Seed,
    Slots,
    Switch,
    Temperature,
    Tokens,
    TopK,
    TopP,
    Traces,
)

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Part(BaseModel):
    """A part of a message's content; only text can be read."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """One message of the chat. `reasoning` of earlier turns is accepted and not shown to the model again."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    annotations: list[Any] | None = None


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with the usage."""

    model_config = _STRICT
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TemplateOptions(BaseModel):
    """What reaches the model's chat template."""

    model_config = _STRICT
    enable_thinking: bool | None = None


class ChatRequest(BaseModel):
    """A chat to complete. Unset and null keys come from the server's profile."""

    model_config = _STRICT
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    model: str | None = Field(None, description="The served model's name; unset: the one that is served.")

    max_tokens: Tokens | None = Field(None, description="Budget of the answer; of a final-round trace with RSA.")
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = Field(None, description="Unset: drawn; rsa_metadata tells it.")
    n: Choices | None = Field(None, description="Choices; with RSA keys and without rsa_n the population.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: str | None = Field(None, description='Only "none": the same as enable_thinking false.')

    rsa_t: Rounds | None = Field(None, description="T, aggregation rounds; 0 is an ordinary completion.")
    rsa_n: Traces | None = Field(None, description="N, traces a round.")
    rsa_k: Parents | None = Field(None, description="C, tails in an aggregation prompt; at most N is used.")
    short_resp_len: Tokens | None = Field(None, description="beta, budget of a trace before the final round.")
    rsa_tail_window: Switch | None = Field(None, description="false: the whole trace is carried on (tau = beta).")
    tail_window_len: Tokens | None = Field(None, description="tau, tokens carried on.")
    rsa_final_n: Finals | None = Field(None, description="F, traces of the final round; 0 means N.")
    final_temperature: Temperature | None = Field(None, description="Of the final round; null: as before.")
    final_top_p: TopP | None = Field(None, description="Of the final round; null: as before.")
    final_top_k: TopK | None = Field(None, description="Of the final round; null: as before.")
    rsa_summarize: Switch | None = Field(None, description="Carry a summary of each trace instead of its tail.")
    summary_prompt: str | None = Field(None, min_length=1, max_length=20_000, description="Own wording for summaries.")
    use_pacore: Switch | None = Field(None, description="Carry the answer section of a finished trace.")
    return_aggregation_prompt: Switch | None = None
    return_rsa_metadata: Switch | None = Field(None, description="Unset: true.")
    rsa_max_concurrency: Slots | None = Field(None, description="Traces at once; 0: no limit of its own.")
    rsa_debug: Switch | None = Field(None, description="rsa_metadata tells of every trace.")
    rsa_profile: str | None = Field(
        None, max_length=100, description="Settings by name, in place of the server's profile."
    )
    rsa_selection: Literal["single", "majority", "final_aggregation"] | None = None
    rsa_progress: Literal["reasoning", "comments", "none"] | None = Field(
        None, description="How a stream tells of the rounds: as reasoning (unset), as comments, or not."
    )
    rsa_trail: Switch | None = Field(None, description="Whether a trail is kept; unset: with RSA only.")

    stop: str | list[str] | None = Field(None, description="Refused unless empty.")
    logprobs: bool | None = Field(None, description="Refused unless false.")
    top_logprobs: int | None = Field(None, description="Refused unless 0.")
    logit_bias: dict[str, Any] | None = Field(None, description="Refused unless empty.")
    frequency_penalty: float | None = Field(None, description="Refused unless 0.")
    presence_penalty: float | None = Field(None, description="Refused unless 0.")
    repetition_penalty: float | None = Field(None, description="Refused unless 1.")
    tools: list[Any] | None = Field(None, description="Refused unless empty.")
    tool_choice: Any = Field(None, description='Refused unless "none" or "auto".')
    parallel_tool_calls: bool | None = Field(None, description="Without effect: there are no tools.")
    functions: list[Any] | None = Field(None, description="Refused unless empty.")
    function_call: Any = Field(None, description='Refused unless "none" or "auto".')
    response_format: dict[str, Any] | None = Field(None, description='Refused unless its type is "text".')
    modalities: list[str] | None = Field(None, description="Refused unless text.")
    store: bool | None = Field(None, description="Refused unless false; rsa_trail keeps a trail.")
    user: str | None = Field(None, description="Without effect.")
    metadata: dict[str, Any] | None = Field(None, description="Without effect.")
    safety_identifier: str | None = Field(None, description="Without effect.")
    prompt_cache_key: str | None = Field(None, description="Without effect.")
    service_tier: str | None = Field(None, description="Without effect.")

    def given(self, key: str) -> bool:
        """Whether the body holds this key with a value."""
        return getattr(self, key) is not None


def parse(body: dict[str, Any]) -> ChatRequest:
    """The body as a request; a `RequestError` names the first key at fault."""
    try:
        return ChatRequest.model_validate(_canonical(body))
    except ValidationError as error:
        raise _refusal(error) from error


def _canonical(body: dict[str, Any]) -> dict[str, Any]:
    """Every key under its own name; two names of one key must agree."""
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for key, value in body.items():
        name = ALIASES.get(key, key)
        if name in found and value is not None and found[name] is not None and found[name] != value:
            raise RequestError(
                400,
                f"{said[name]} and {key} are two names of one setting and differ; give one of them.",
                param=key,
            )
        if name not in found or found[name] is None:
            found[name], said[name] = value, key
    return found


def _refusal(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    path = shortened(".".join(str(step) for step in first["loc"]))
    if first["type"] == "extra_forbidden":
        known = [*ChatRequest.model_fields, *ALIASES]
        close = difflib.get_close_matches(path, known, n=1)
        hint = f"; did you mean {close[0]}" if close else "; the server's /openapi.json lists its keys"
        return RequestError(400, f"{path} is no key of this server{hint}.", "unknown_key", path)
    if first["type"] == "missing":
        return RequestError(400, f"{path} is missing.", "missing_key", path)
    reason = first["msg"].removeprefix("Value error, ")
    return RequestError(400, f"{path} is {_short(first['input'])}: {reason[:1].lower()}{reason[1:]}.", param=path)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of many digits"
    return shortened(text)


def shortened(text: str) -> str:
    """What a client sent, as an error quotes it: a body's worth of it helps nobody."""
    return text if len(text) <= 80 else text[:77] + "..."

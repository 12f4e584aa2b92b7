"""The body of `POST /v1/chat/completions`: read it as strict JSON, and check each key by itself.

`plan` decides what the keys mean together. The JSON Schema of the OpenAPI document is made from these types.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import ClientDisconnect, Request

from ..formatting import shortened
from ..json_strict import parse_line
from .errors import RequestError

#: Other names of a key, as clients of Zyphra's proxy and of OpenAI write them.
ALIASES: Final = {
    "rsa_short_resp_len": "short_resp_len",
    "rsa_use_tail_window": "rsa_tail_window",
    "rsa_tail_window_len": "tail_window_len",
    "final_aggregation_prompts": "rsa_final_n",
    "rsa_final_temperature": "final_temperature",
    "rsa_final_top_p": "final_top_p",
    "rsa_final_top_k": "final_top_k",
    "summarize": "rsa_summarize",
    "rsa_summary_prompt": "summary_prompt",
    "rsa_use_pacore": "use_pacore",
    "rsa_return_aggregation_prompt": "return_aggregation_prompt",
    "rsa_return_metadata": "return_rsa_metadata",
    "max_completion_tokens": "max_tokens",
    "rsa_seed": "seed",
}
#: Each of these keys makes a request a run of Markovian RSA.
RSA_KEYS: Final = frozenset({
    "rsa_t", "rsa_n", "rsa_k", "short_resp_len", "rsa_tail_window", "tail_window_len", "rsa_final_n",
    "final_temperature", "final_top_p", "final_top_k", "rsa_summarize", "summary_prompt", "use_pacore",
    "return_aggregation_prompt", "return_rsa_metadata", "rsa_max_concurrency", "rsa_debug", "rsa_profile",
    "rsa_selection",
})  # fmt: skip
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_WORDS = "|".join(
    "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word) for word in (*_ON, *_OFF)
)
_SWITCH_SCHEMA = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "integer", "enum": [0, 1]},
        {"type": "string", "pattern": f"^({_WORDS})$"},
    ]
}


def _switch(value: Any) -> bool:
    word = str(value).strip().lower() if isinstance(value, str | int) else None
    if word not in (*_ON, *_OFF):
        raise ValueError('give true or false (or "1", "yes", "on", "0", "no", "off")')
    return word in _ON


# JSON has one kind of number, so a whole float is an integer.
Whole = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema(_SWITCH_SCHEMA)]
Rounds = Annotated[int, Whole, Field(ge=0, le=100)]
Traces = Annotated[int, Whole, Field(ge=1, le=1_024)]
Finals = Annotated[int, Whole, Field(ge=0, le=1_024)]
Parents = Annotated[int, Whole, Field(ge=1, le=1_024)]
Choices = Annotated[int, Whole, Field(ge=1, le=128)]
Tokens = Annotated[int, Whole, Field(ge=1, le=10_000_000)]
TopK = Annotated[int, Whole, Field(ge=0, le=1_000_000)]
Slots = Annotated[int, Whole, Field(ge=0, le=10_000)]
Seed = Annotated[int, Whole, Field(ge=0, le=2**63 - 1)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Part(BaseModel):
    """A part of a message's content. Only text parts are supported."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """One message of the chat. The `reasoning` of earlier turns is accepted and ignored."""

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
    """`include_usage` adds a last chunk with the usage."""

    model_config = _STRICT
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TemplateOptions(BaseModel):
    """Options of the model's chat template."""

    model_config = _STRICT
    enable_thinking: bool | None = None


class ChatRequest(BaseModel):
    """A chat to complete. The server's profile supplies keys that are absent or null."""

    model_config = _STRICT
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    model: str | None = Field(None, description="The model's name. Default: the served model.")

    max_tokens: Tokens | None = Field(
        None, description="Token limit of the answer, or of a final-round trace with RSA."
    )
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = Field(None, description="Default: random, reported in rsa_metadata.")
    n: Choices | None = Field(None, description="Number of choices, or the population with RSA keys and without rsa_n.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: str | None = Field(None, description='Only "none": the same as enable_thinking false.')

    rsa_t: Rounds | None = Field(None, description="T, aggregation rounds. 0 is an ordinary completion.")
    rsa_n: Traces | None = Field(None, description="N, traces per round.")
    rsa_k: Parents | None = Field(None, description="C, tails per aggregation prompt, at most N.")
    short_resp_len: Tokens | None = Field(None, description="beta, token limit of a trace before the final round.")
    rsa_tail_window: Switch | None = Field(None, description="false: the whole trace is carried forward (tau = beta).")
    tail_window_len: Tokens | None = Field(None, description="tau, tokens carried forward.")
    rsa_final_n: Finals | None = Field(None, description="F, traces of the final round. 0 means N.")
    final_temperature: Temperature | None = Field(
        None, description="For the final round. null: as in the other rounds."
    )
    final_top_p: TopP | None = Field(None, description="For the final round. null: as in the other rounds.")
    final_top_k: TopK | None = Field(None, description="For the final round. null: as in the other rounds.")
    rsa_summarize: Switch | None = Field(None, description="Carry a summary of each trace instead of its tail.")
    summary_prompt: str | None = Field(None, min_length=1, max_length=20_000, description="Prompt for summaries.")
    use_pacore: Switch | None = Field(None, description="Carry the answer section of a finished trace.")
    return_aggregation_prompt: Switch | None = None
    return_rsa_metadata: Switch | None = Field(None, description="Default: true.")
    rsa_max_concurrency: Slots | None = Field(
        None, description="Maximum number of concurrent traces. 0: only the server's limit."
    )
    rsa_debug: Switch | None = Field(None, description="Describe every trace in rsa_metadata.")
    rsa_profile: str | None = Field(
        None, max_length=100, description="Name of a profile to use instead of the server's."
    )
    rsa_selection: Literal["single", "majority", "final_aggregation"] | None = None
    rsa_progress: Literal["reasoning", "comments", "none"] | None = Field(
        None, description="How a stream reports progress: as reasoning (default), as comments, or not."
    )
    rsa_trail: Switch | None = Field(None, description="Keep an audit trail. Default: with RSA only.")

    stop: str | list[str] | None = Field(None, description="Refused unless empty.")
    logprobs: bool | None = Field(None, description="Refused unless false.")
    top_logprobs: int | None = Field(None, description="Refused unless 0.")
    logit_bias: dict[str, Any] | None = Field(None, description="Refused unless empty.")
    frequency_penalty: float | None = Field(None, description="Refused unless 0.")
    presence_penalty: float | None = Field(None, description="Refused unless 0.")
    repetition_penalty: float | None = Field(None, description="Refused unless 1.")
    tools: list[Any] | None = Field(None, description="Refused unless empty.")
    tool_choice: Any = Field(None, description='Refused unless "none" or "auto".')
    parallel_tool_calls: bool | None = Field(None, description="Ignored: the server has no tools.")
    functions: list[Any] | None = Field(None, description="Refused unless empty.")
    function_call: Any = Field(None, description='Refused unless "none" or "auto".')
    response_format: dict[str, Any] | None = Field(None, description='Refused unless its type is "text".')
    modalities: list[str] | None = Field(None, description='Refused unless ["text"].')
    store: bool | None = Field(None, description="Refused unless false. rsa_trail keeps an audit trail.")
    user: str | None = Field(None, description="Ignored.")
    metadata: dict[str, Any] | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored.")
    service_tier: str | None = Field(None, description="Ignored.")


def parse(body: dict[str, Any]) -> ChatRequest:
    """Return the body as a request. Raise `RequestError` for the first invalid key."""
    values: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for key, value in body.items():
        name = ALIASES.get(key, key)
        if values.get(name) is None:
            values[name], given_as[name] = value, key
        elif value is not None and value != values[name]:
            message = f"{given_as[name]} and {key} are two names of one setting and have different values. Give one."
            raise RequestError(400, message, param=key)
    try:
        return ChatRequest.model_validate(values)
    except ValidationError as error:
        raise _validation_error(error) from error


def _validation_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    path, value = shortened(".".join(str(step) for step in first["loc"]), 80), first["input"]
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path, [*ChatRequest.model_fields, *ALIASES], n=1)
        hint = f"Did you mean {close[0]}? See" if close else "See"
        message = f"{path} is not a known key. {hint} /openapi.json for all keys."
        return RequestError(400, message, "unknown_key", path)
    if first["type"] == "missing":
        return RequestError(400, f"{path} is missing.", "missing_key", path)
    # Python refuses to print an integer of several thousand digits.
    huge = isinstance(value, int) and abs(value) >= 10**30
    given = "a number of many digits" if huge else shortened(repr(value), 80)
    reason = first["msg"].removeprefix("Value error, ")
    if reason.startswith("Input should "):
        message = f"{path} {reason.removeprefix('Input ')} (got {given})."
    else:
        message = f"{path} is invalid (got {given}): {reason[:1].lower()}{reason[1:]}."
    return RequestError(400, message, param=path)


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the body's JSON object.

    Raise `RequestError` for another content type or value, repeated keys, NaN and lone surrogates.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        message = f"The content type must be application/json (got {content_type[:80]!r})."
        raise RequestError(400, message, "invalid_content_type")
    body = await read_bytes(request, max_bytes)
    try:
        return parse_line(body)
    except ValueError as error:
        reason = str(error).encode(errors="replace").decode()[:200]
        raise RequestError(400, f"The body is invalid: {reason}.", "invalid_json") from error


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """Return the body. Raise `RequestError` as soon as it is known to be too large."""
    too_large = RequestError(413, f"The body is larger than the limit of {max_bytes:,} bytes.", "body_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise RequestError(400, "The client disconnected while sending the body.", "client_gone") from error
    return bytes(body)

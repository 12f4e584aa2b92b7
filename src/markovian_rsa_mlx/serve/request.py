"""The body of `POST /v1/chat/completions`: what each key may be, checked before anything else happens.

Knows shapes and bounds of single keys; what they mean together is for `plan`.

The values that a body's keys may have: types with bounds, and the key's other names.

The JSON Schema of the served document is made of these types, so it cannot say anything else.

A request's body as one JSON object: bounded, and read more strictly than `json` does.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import ClientDisconnect, Request

from ..json_strict import parse_line
from .errors import RequestError

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
#: Each of these makes a request a run of Markovian RSA.
RSA_KEYS: Final = frozenset(
    {
        "rsa_t",
        "rsa_n",
        "rsa_k",
        "short_resp_len",
        "rsa_tail_window",
        "tail_window_len",
        "rsa_final_n",
        "final_temperature",
        "final_top_p",
        "final_top_k",
        "rsa_summarize",
        "summary_prompt",
        "use_pacore",
        "return_aggregation_prompt",
        "return_rsa_metadata",
        "rsa_max_concurrency",
        "rsa_debug",
        "rsa_profile",
        "rsa_selection",
    }
)
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 8.0 is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    word = str(value).strip().lower() if isinstance(value, str | int) else None
    if word in _ON or word in _OFF:
        return word in _ON
    raise ValueError('give true or false (or "1", "yes", "on", "0", "no", "off")')


def _any_case(word: str) -> str:
    return "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word)


_SWITCH_SCHEMA = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "integer", "enum": [0, 1]},
        {"type": "string", "pattern": f"^({'|'.join(map(_any_case, (*_ON, *_OFF)))})$"},
    ]
}

Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema(_SWITCH_SCHEMA)]
Rounds = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=100)]
Traces = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1_024)]
Finals = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_024)]
Parents = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1_024)]
Choices = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=128)]
Tokens = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10_000_000)]
TopK = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_000_000)]
Slots = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=10_000)]
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**63 - 1)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]


_JSON = "application/json"


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """The body's object. Refused: another content type, doubled keys, NaN, lone surrogates, any other value."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != _JSON:
        raise RequestError(400, f"The content type is {content_type!r}; send {_JSON}.", "invalid_content_type")
    body = await read_bytes(request, most_bytes)
    try:
        return parse_line(body)
    except ValueError as error:
        reason = str(error).encode(errors="replace").decode()[:200]
        raise RequestError(400, f"The body cannot be used: {reason}.", "invalid_json") from error


async def read_bytes(request: Request, most_bytes: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(most_bytes)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most_bytes:
                raise _too_large(most_bytes)
    except ClientDisconnect as error:
        raise RequestError(400, "The client went away in the middle of the body.", "client_gone") from error
    return bytes(body)


def _too_large(most_bytes: int) -> RequestError:
    return RequestError(413, f"The body is larger than {most_bytes:,} bytes; send less.", "body_too_large")

"""The body of `POST /v1/chat/completions`: read it as strict JSON, and check each key by itself.

`plan` decides what the keys mean together. The JSON Schema of the OpenAPI document is made from these types.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from ..content_parts import THINKING_PARTS
from ..formatting import shortened
from ..json_strict import loads, parse_body, without_surrogates
from ..tools import MAX_CALLS, NAME_PATTERN
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
    "rsa_selection", "rsa_early_stop",
})  # fmt: skip
_MAX_KEYS: Final = 1_000
MAX_TOOLS: Final = 512
_UNSET_BY_MINUS_ONE: Final = frozenset({"max_tokens", "max_output_tokens", "seed"})
_ALL_BY_MINUS_ONE: Final = frozenset({"top_k", "final_top_k"})
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


def _whole(value: Any) -> Any:
    """Return a whole float as an integer, since JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _population(value: Any) -> Any:
    """Check one number of traces, or a list of them for the rounds."""
    numbers = list(map(_whole, value if isinstance(value, list) else [value]))
    valid = all(type(number) is int and 1 <= number <= _MAX_TRACES for number in numbers)
    if not (valid and numbers and numbers == sorted(numbers, reverse=True)):
        raise ValueError(f"give a whole number from 1 to {_MAX_TRACES}, or rsa_t + 1 of them that do not increase")
    return numbers if isinstance(value, list) else numbers[0]


_MAX_ROUNDS, _MAX_TRACES = 100, 1_024
_TRACES_SCHEMA = {"type": "integer", "minimum": 1, "maximum": _MAX_TRACES}
Whole = BeforeValidator(_whole)
Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema(_SWITCH_SCHEMA)]
Rounds = Annotated[int, Whole, Field(ge=0, le=_MAX_ROUNDS)]
Population = Annotated[
    int | list[int],
    BeforeValidator(_population),
    WithJsonSchema(
        {
            "anyOf": [
                _TRACES_SCHEMA,
                {"type": "array", "items": _TRACES_SCHEMA, "minItems": 1, "maxItems": _MAX_ROUNDS + 1},
            ]
        }
    ),
]
Finals = Annotated[int, Whole, Field(ge=0, le=_MAX_TRACES)]
Parents = Annotated[int, Whole, Field(ge=1, le=_MAX_TRACES)]
Choices = Annotated[int, Whole, Field(ge=1, le=128)]
Tokens = Annotated[int, Whole, Field(ge=1, le=10_000_000)]
AnswerTokens = Annotated[int, Whole, Field(ge=0, le=10_000_000)]
TopK = Annotated[
    int, Whole, Field(ge=0, le=1_000_000), WithJsonSchema({"type": "integer", "minimum": -1, "maximum": 1_000_000})
]
Slots = Annotated[int, Whole, Field(ge=0, le=10_000)]
# parse() takes -1 for unset.
TokenLimit = Annotated[
    Tokens, WithJsonSchema({"type": "integer", "minimum": -1, "maximum": 10_000_000, "not": {"const": 0}})
]
Seed = Annotated[
    int, Whole, Field(ge=0, le=2**63 - 1), WithJsonSchema({"type": "integer", "minimum": -1, "maximum": 2**63 - 1})
]
_StopText = Annotated[str, Field(max_length=1_000)]
Stop = Annotated[
    list[_StopText],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(max_length=16),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": 1_000},
                {"type": "array", "items": {"type": "string", "maxLength": 1_000}, "maxItems": 16},
            ]
        }
    ),
]
FunctionName = Annotated[str, Field(pattern=NAME_PATTERN)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Likeliest = Annotated[int, Whole, Field(ge=0, le=20)]
Temperature = Annotated[float, Field(ge=0, le=10)]
#: In the place of a `top_p` of 0: only the likeliest token is in so small a share.
_MIN_TOP_P = 1e-6
TopP = Annotated[float, Field(ge=0, le=1), AfterValidator(lambda value: value or _MIN_TOP_P)]
MinP = Annotated[float, Field(ge=0, le=1)]


R = TypeVar("R", bound="RequestModel")


class Tolerated(NamedTuple):
    """A part of a request that is left out or replaced: a line for the log, and the error of a strict server."""

    notice: str
    error: RequestError


class RequestModel(BaseModel):
    """An object in a body. Its unknown keys are kept in `model_extra`, see `unknown_keys`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def unknown_keys(self) -> Iterator[str]:
        """Yield the names of unknown keys of this object."""
        return iter(self.model_extra or ())

    def tolerated(self, path: str) -> Iterator[Tolerated]:
        """Yield what of this object, which is at this path, is left out or replaced."""
        return iter(())


class StreamOptions(RequestModel):
    """`include_usage` adds a last chunk with the usage."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class SamplingRequest(RequestModel):
    """The keys that chats and texts to complete have in common."""

    model: str | None = Field(None, description="The model's name. Default: the served model.")
    max_tokens: TokenLimit | None = Field(
        None, description="Token limit of the answer, or of a final-round trace with RSA. -1: unset."
    )
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Seed | None = Field(None, description="Default, and -1: random, reported in rsa_metadata.")
    n: Choices | None = Field(None, description="Number of choices, or the population with RSA keys and without rsa_n.")
    stop: Stop | None = Field(None, description="Up to 16 texts. The answer ends before the first of them.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Any] | None = Field(None, description="Refused unless empty.")
    frequency_penalty: float | None = Field(None, description="Refused unless 0.")
    presence_penalty: float | None = Field(None, description="Refused unless 0.")
    repetition_penalty: float | None = Field(None, description="Refused unless 1.")
    user: str | None = Field(None, description="Ignored.")

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which the answer ends."""
        return tuple(text for text in self.stop or () if text)


class Part(RequestModel):
    """A part of a message's content: text, or a refusal of the assistant, which is text. Thinking is left out."""

    type: str
    text: str | None = None
    refusal: str | None = None

    def unknown_keys(self) -> Iterator[str]:
        """Yield the names of unknown keys. A part that is left out has none."""
        return iter(()) if self.type in THINKING_PARTS else super().unknown_keys()


def _arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of a call as an object. Clients send them as JSON text, and "" or null for none.

    Raises ValueError for anything else.
    """
    if isinstance(value, str):
        value = without_surrogates(loads(value)) if value.strip() else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def shown_arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of an earlier call as the model is shown them: broken ones as the text that they are."""
    try:
        return _arguments(value)
    except ValueError:
        return {"arguments": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def tolerated_call(
    name: str | None, arguments: Any, path: str, arguments_key: str = "arguments"
) -> Iterator[Tolerated]:
    """Yield the invalid parts of an earlier call. A client sends it with each further request of the chat."""
    if name is not None and re.match(NAME_PATTERN, name) is None:
        message = f"{path}.name is {shortened(repr(name), 80)}, which no function is called."
        error = RequestError(400, message, param=f"{path}.name")
        yield Tolerated("An earlier call in a chat has an invalid name. The model is shown it as it is.", error)
    try:
        _arguments(arguments)
    except ValueError as reason:
        place = f"{path}.{arguments_key}"
        message = f"{place} is invalid: give an object ({shortened(str(reason), 80)})."
        error = RequestError(400, message, param=place)
        yield Tolerated("An earlier call in a chat has invalid arguments. The model is shown their text.", error)


class RequestFunctionCall(RequestModel):
    """The function that a message of the assistant calls. `arguments` is the JSON text of an object.

    A model may have written another name or other arguments: they are shown as they are.
    """

    name: str
    arguments: Any = None

    def tolerated(self, path: str) -> Iterator[Tolerated]:
        """Yield the invalid parts of a call."""
        return tolerated_call(self.name, self.arguments, path)


class RequestToolCall(RequestModel):
    """One call in a message of the assistant."""

    id: str | None = Field(None, max_length=1_000)
    type: Literal["function"] | None = None
    function: RequestFunctionCall

    def to_dict(self) -> dict[str, Any]:
        """Return the call for chat templates, with the arguments as an object."""
        function = {"name": self.function.name, "arguments": shown_arguments(self.function.arguments)}
        return {"id": self.id or "", "type": "function", "function": function}


class Message(RequestModel):
    """One message of the chat. Keys that the model does not see, such as `reasoning`, are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(max_length=10_000, fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=1_000)
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: Annotated[list[RequestToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = Field(None, max_length=1_000)
    function_call: Any = None
    audio: Any = None
    annotations: Any = None


class TemplateOptions(RequestModel):
    """Options of the model's chat template."""

    enable_thinking: bool | None = None
    thinking: bool | None = None  #: another name of it, in templates such as those of DeepSeek

    @property
    def thinks(self) -> bool | None:
        """Whether the model thinks, None if the request leaves it open."""
        return self.thinking if self.enable_thinking is None else self.enable_thinking


class ReasoningOptions(RequestModel):
    """`effort` is the same as `reasoning_effort`."""

    effort: Effort | None = None


class FunctionTool(RequestModel):
    """A function that the model may call. `parameters` is the JSON Schema of its arguments."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Ignored.")

    def to_dict(self) -> dict[str, Any]:
        """Return the tool for chat templates, without keys that are unset or unknown."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


class Tool(RequestModel):
    """A tool that the model may call. Only functions are supported."""

    type: Literal["function"]
    function: FunctionTool

    def to_dict(self) -> dict[str, Any]:
        """Return the tool for chat templates."""
        return self.function.to_dict()


class FlatTool(FunctionTool):
    """A tool in the form of `/v1/responses`, which some clients of chats send."""

    type: Literal["function"]

    @property
    def function(self) -> FunctionTool:
        """The function of the tool."""
        return self


AnyTool = Annotated[Tool | FlatTool, Field(union_mode="left_to_right")]


class NamedFunction(RequestModel):
    name: FunctionName


class NamedTool(RequestModel):
    """A `tool_choice` that names the function to call."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(RequestModel):
    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[NamedTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolsChoice(RequestModel):
    """A `tool_choice` that offers a selection of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _tool_choice(value: Any) -> Any:
    if value is None or value in ("none", "auto", "required"):
        return value
    is_selection = isinstance(value, dict) and value.get("type") == "allowed_tools"
    if isinstance(value, dict) and "name" in value and "function" not in value:  # the form of /v1/responses
        value = {"type": value.get("type"), "function": {"name": value["name"]}}
    try:
        return (AllowedToolsChoice if is_selection else NamedTool).model_validate(value)
    except ValidationError as error:
        choice = '{"type": "function", "function": {"name": ...}}'
        selection = '{"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}'
        raise ValueError(f'give "none", "auto", "required", {choice} or {selection}') from error


def _object_schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_NAME_SCHEMA = {"type": "string", "pattern": NAME_PATTERN}
_NAMED_TOOL_SCHEMA = _object_schema(
    {"type": {"const": "function"}, "function": _object_schema({"name": _NAME_SCHEMA}, "name")}, "type", "function"
)
_FLAT_NAMED_TOOL_SCHEMA = _object_schema({"type": {"const": "function"}, "name": _NAME_SCHEMA}, "type", "name")
_ALLOWED_TOOLS_SCHEMA = _object_schema(
    {
        "type": {"const": "allowed_tools"},
        "allowed_tools": _object_schema(
            {
                "mode": {"type": "string", "enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _NAMED_TOOL_SCHEMA, "maxItems": MAX_TOOLS},
            },
            "tools",
        ),
    },
    "type",
    "allowed_tools",
)
ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice,
    BeforeValidator(_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": ["none", "auto", "required"]},
                _NAMED_TOOL_SCHEMA,
                _FLAT_NAMED_TOOL_SCHEMA,
                _ALLOWED_TOOLS_SCHEMA,
            ]
        }
    ),
]


class JSONSchemaFormat(RequestModel):
    """A JSON Schema. `name`, `description` and `strict` have no effect: the schema always binds the answer."""

    name: str | None = Field(None, max_length=1_000)
    description: str | None = None
    strict: bool | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}


class ResponseFormat(RequestModel):
    """The form of the answer: `json_object` is any JSON object, `json_schema` a value that the schema allows.

    Other servers take the schema as `schema` too, with either type.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def schema_of_answer(self) -> dict[str, Any] | None:
        """Return the JSON Schema of the answer, None for any text. Raise `RequestError` if it is missing."""
        if self.type == "text":
            return None
        own = self.json_schema.json_schema if self.json_schema is not None else None
        if own is not None and self.schema_ is not None and own != self.schema_:
            message = "response_format.schema and response_format.json_schema.schema are different. Give one of them."
            raise RequestError(400, message, param="response_format.schema")
        schema = self.schema_ if own is None else own
        if self.type == "json_object":
            return schema or ANY_OBJECT
        if schema is None:
            path = "response_format.json_schema.schema"
            raise RequestError(400, f"{path} is missing.", "missing_key", path)
        return schema


class StructuredOutputs(RequestModel):
    """vLLM's form of a schema. Other kinds of grammars are refused."""

    json_schema: dict[str, Any] | None = Field(None, alias="json")


class BoundRequest(SamplingRequest):
    """A request whose answer can be bound to a JSON Schema."""

    response_format: ResponseFormat | None = Field(
        None,
        description="Binds the answer after its thinking (in a run, the final candidates), or a text from its first "
        "token on.",
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="The same, as vLLM writes it.")

    @property
    def schema_key(self) -> str:
        """The key that has the schema."""
        return "response_format" if self.structured_outputs is None else "structured_outputs.json"

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer, or None. Raise `RequestError` if it is missing, or if there are two."""
        own = self.response_format.schema_of_answer() if self.response_format is not None else None
        if self.structured_outputs is None:
            return own
        if (schema := self.structured_outputs.json_schema) is None:
            message = f"{self.schema_key} is missing: only JSON Schemas are supported."
            raise RequestError(400, message, "missing_key", self.schema_key)
        refines = own == ANY_OBJECT and schema.get("type") == "object"
        if own not in (None, schema) and not refines:
            message = f"response_format and {self.schema_key} give different schemas. Give one of them."
            raise RequestError(400, message, param=self.schema_key)
        return schema


class RunOptions(RequestModel):
    """The keys of a run, in the body of any request for the answer to a chat."""

    rsa_t: Rounds | None = Field(None, description="T, aggregation rounds. 0 is an ordinary completion.")
    rsa_n: Population | None = Field(None, description="N, traces per round, or a list with N of rounds 0 to T.")
    rsa_k: Parents | None = Field(None, description="C, tails per aggregation prompt, at most the N that is read.")
    short_resp_len: Tokens | None = Field(None, description="beta, token limit of a trace before the final round.")
    rsa_tail_window: Switch | None = Field(None, description="false: the whole trace is carried forward (tau = beta).")
    tail_window_len: Tokens | None = Field(None, description="tau, tokens carried forward.")
    rsa_final_n: Finals | None = Field(None, description="F, traces of the final round. 0 means N.")
    final_temperature: Temperature | None = Field(
        None, description="For the final round. null: as in the other rounds."
    )
    final_top_p: TopP | None = Field(None, description="For the final round. null: as in the other rounds.")
    final_top_k: TopK | None = Field(None, description="For the final round. null: as in the other rounds.")
    answer_tokens: AnswerTokens | None = Field(
        None,
        description="Tokens of max_tokens that are kept for the answer: longer thinking is closed. 0: none. "
        "Default: the profile's with RSA, 0 for an ordinary completion.",
    )
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
    rsa_selection: Literal["single", "majority", "final_aggregation", "tournament"] | None = Field(
        None, description="How the answer is chosen. tournament: the model compares the final candidates in pairs."
    )
    rsa_early_stop: Literal["off", "agreement", "posterior"] | None = Field(
        None,
        description="agreement: a trace whose parents agree inherits their answer. posterior: a majority ends once it "
        "is decided, not with n above 1. Default: the server's, off.",
    )
    answer_kind: Literal["auto", "math", "text", "open"] | None = Field(
        None, description="How answers are compared. Default: the server's. open: not at all."
    )
    rsa_progress: Literal["reasoning", "comments", "none"] | None = Field(
        None, description="How a stream reports progress: as reasoning (default), as comments, or not."
    )
    rsa_trail: Switch | None = Field(None, description="Keep an audit trail. Default: with RSA only.")

    @property
    def run_options(self) -> dict[str, Any]:
        """The keys of a run that the request sets, null included."""
        return {key: getattr(self, key) for key in RunOptions.model_fields if key in self.model_fields_set}


class ChatRequest(RunOptions, BoundRequest):
    """A chat to complete. The server's profile supplies keys that are absent or null."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000, fail_fast=True)]
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = Field(
        None, description="Switches thinking, and scales a run that the model's name asks for."
    )
    reasoning: ReasoningOptions | None = None

    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens. Not in runs.")
    top_logprobs: Likeliest | None = Field(None, description="Number of likeliest tokens per place. Needs logprobs.")
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = Field(
        None,
        description='Default: "auto". A name offers only this tool, and requires a call, as "required" does.',
    )
    parallel_tool_calls: bool | None = Field(None, description="Default: true. false: at most one call.")
    functions: list[Any] | None = Field(None, description="Refused unless empty.")
    function_call: Any = Field(None, description='Refused unless "none" or "auto".')
    modalities: list[str] | None = Field(None, description='Refused unless ["text"].')
    store: bool | None = Field(None, description="Ignored. rsa_trail keeps an audit trail.")
    metadata: dict[str, Any] | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored.")
    service_tier: str | None = Field(None, description="Ignored.")


def parse(body: dict[str, Any], kind: type[R]) -> R:
    """Return the body as a request. Raise `RequestError` for the first invalid value of a known key."""
    if len(body) > _MAX_KEYS:
        raise RequestError(400, f"The body must have at most {_MAX_KEYS:,} keys (got {len(body):,}).")
    values: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for key, value in body.items():
        name = ALIASES.get(key, key)
        if name in _UNSET_BY_MINUS_ONE and isinstance(value, int | float) and value == -1:
            value = None
        if name in _ALL_BY_MINUS_ONE and value == -1:  # vLLM's value for all tokens
            value = 0
        if values.get(name) is None:
            values[name], given_as[name] = value, key
        elif value is not None and value != values[name]:
            message = f"{given_as[name]} and {key} are two names of one setting and have different values. Give one."
            raise RequestError(400, message, param=key)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise validation_error(error, values, given_as) from error


def unknown_keys(request: RequestModel, path: str = "") -> Iterator[str]:
    """Yield the paths of the keys of a request that the server does not know."""
    for name in request.unknown_keys():
        yield path + name
    for name in type(request).model_fields:
        value = getattr(request, name)
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, RequestModel):
                yield from unknown_keys(item, f"{path}{name}.")


def tolerated_parts(request: RequestModel, path: str = "") -> Iterator[Tolerated]:
    """Yield what of a request is left out or replaced."""
    yield from request.tolerated(path)
    for name in type(request).model_fields:
        value, place = getattr(request, name), f"{path}.{name}" if path else name
        if isinstance(value, RequestModel):
            yield from tolerated_parts(value, place)
        for index, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, RequestModel):
                yield from tolerated_parts(item, f"{place}.{index}")


def unknown_key_error(path: str) -> RequestError:
    """Return the error of a server that refuses unknown keys."""
    path = shortened(path, 80)
    close = difflib.get_close_matches(path, [*ChatRequest.model_fields, *ALIASES], n=1)
    hint = f"Did you mean {close[0]}? See" if close else "See"
    return RequestError(400, f"{path} is not a known key. {hint} /openapi.json for all keys.", "unknown_key", path)


def validation_error(error: ValidationError, values: Mapping[str, Any], given_as: Mapping[str, str]) -> RequestError:
    """Return the error that names the first invalid key of `values`. `given_as` has the client's names of keys.

    A value that may have several forms has an error for each of them. The one that is deepest in the value counts,
    since the value has that form, and one about a value rather than about a missing key.
    """
    errors = [(_path_in(values, each), each) for each in error.errors(include_url=False, include_context=False)]
    start, first = errors[0]
    if first["type"] == "missing" and len(start) > 1:  # another form has another key there
        start = start[:-1]
    forms = [(path, each) for path, each in errors if path[: len(start)] == start]
    (key, *rest), first = max(
        forms, key=lambda form: (len(form[0]), not form[1]["type"].endswith(("_type", "missing")))
    )
    path, value = shortened(".".join([given_as.get(key, key), *rest]), 80), first["input"]
    if first["type"] == "missing":
        return RequestError(400, f"{path} is missing.", "missing_key", path)
    # Python refuses to print an integer of several thousand digits.
    huge = isinstance(value, int) and abs(value) >= 10**30
    given = "a number of many digits" if huge else shortened(repr(value), 80)
    reason = "Input should be an object" if first["type"] == "model_type" else first["msg"]
    reason = reason.removeprefix("Value error, ")
    if reason.startswith("Input should "):
        message = f"{path} {reason.removeprefix('Input ')} (got {given})."
    else:
        message = f"{path} is invalid (got {given}): {reason[:1].lower()}{reason[1:]}."
    return RequestError(400, message, param=path)


def _path_in(values: Any, error: ErrorDetails) -> list[str]:
    """Return the keys and positions that lead to an invalid value, without Pydantic's names of the forms."""
    path = []
    for key in error["loc"]:
        is_position = isinstance(values, list) and isinstance(key, int) and key < len(values)
        if is_position or (isinstance(values, dict) and key in values):
            values = values[key]
            path.append(str(key))
    return [*path, str(error["loc"][-1])] if error["type"] == "missing" else path


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the body's JSON object.

    U+FFFD takes the place of lone surrogates. Raise `RequestError` for another content type or value, repeated keys and
    NaN.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        message = f"The content type must be application/json (got {content_type[:80]!r})."
        raise RequestError(400, message, "invalid_content_type")
    body = await read_bytes(request, max_bytes)
    try:
        return parse_body(body)
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

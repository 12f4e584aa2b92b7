"""The JSON objects of responses. The OpenAPI document is made from them too."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from ..tools import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


class ResponseModel(BaseModel):
    """A JSON object. Keys that were not set are left out."""

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True)


class ErrorDetail(ResponseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ResponseModel):
    error: ErrorDetail


class CalledFunction(ResponseModel):
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class MessageToolCall(ResponseModel):
    """A call of one of the request's tools."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    @classmethod
    def of(cls, call: ToolCall) -> Self:
        return cls(id=call.id, type="function", function=CalledFunction(name=call.name, arguments=call.arguments))


class DeltaToolCall(MessageToolCall):
    """A call in a stream, which has all of it in one delta."""

    index: int

    @classmethod
    def numbered(cls, call: ToolCall, index: int) -> Self:
        function = CalledFunction(name=call.name, arguments=call.arguments)
        return cls(index=index, id=call.id, type="function", function=function)


class AnswerMessage(ResponseModel):
    """`reasoning` and `reasoning_content` are the same, and null for a model without thinking.

    `content` is null for an answer that only has `tool_calls`.
    """

    role: Literal["assistant"]
    content: str | None
    reasoning: str | None
    reasoning_content: str | None
    tool_calls: list[MessageToolCall] | None = None


class LikelyToken(ResponseModel):
    """A token with its natural log-probability. `bytes` is null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogProb(LikelyToken):
    """A token of an answer, and the likeliest tokens in its place."""

    top_logprobs: list[LikelyToken]


class ChoiceLogProbs(ResponseModel):
    """Log-probabilities of the model before the temperature, filters and grammars."""

    content: list[TokenLogProb]
    refusal: None = None


class TextLogProbs(ResponseModel):
    """The same for the tokens of a text, in lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(ResponseModel):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    stop_reason: str | None = Field(default=None, description="The text of `stop` that ended the answer, as in vLLM.")
    logprobs: ChoiceLogProbs | None = None


class CompletionTokensDetails(ResponseModel):
    reasoning_tokens: int = Field(description="Tokens generated for anything but the answers of the choices.")


class Usage(ResponseModel):
    """Tokens of all traces of the run. The choices of an ordinary completion have one prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails | None = None


class TraceDetail(ResponseModel):
    """One trace, with `rsa_debug`."""

    trace_id: str
    seed: int | None
    parents: list[str]
    prompt_tokens: int
    tokens: int
    finish_reason: str
    tail_tokens: int
    elapsed_s: float


class Votes(ResponseModel):
    answer: str
    votes: int


class RSAMetadata(ResponseModel):
    """Details of the run. The first keys are those of Zyphra's proxy."""

    rsa_iterations: int
    rsa_k: int
    rsa_n: int | list[int]
    rsa_final_n: int
    rsa_summarize: bool
    rsa_tail_window: bool
    tail_window_len: int
    short_resp_len: int
    use_pacore: bool
    rsa_max_concurrency: int
    rsa_debug: bool
    rsa_token_count_history: list[float] = Field(description="Mean generated tokens per trace, by stage.")
    rsa_final_aggregation_prompt: str | None = None
    rsa_selection: str
    run_id: str
    trail: str | None = Field(description="The name of the audit trail's file on the server, or null.")
    seed: int
    answer: str = Field(description="Open answers are whole texts.")
    answer_kind: str = Field(description="How answers were compared: math, text, json, or open (not at all).")
    final_trace_id: str | None
    tally: list[Votes] = Field(description="Votes of the final candidates' answers.")
    round_zero: dict[str, Any] = Field(description="The baseline vote of the first round's traces.")
    elapsed_s: float
    warnings: list[str]
    rsa_stages: list[list[TraceDetail]] | None = Field(None, description="The traces of each stage, with rsa_debug.")


class Completion(ResponseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    rsa_metadata: RSAMetadata | None = None
    aggregation_prompt: str | None = None


class Delta(ResponseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(ResponseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: ChoiceLogProbs | None = None
    stop_reason: str | None = None


class Chunk(ResponseModel):
    """One piece of a streamed completion. The last `finish_reason` carries the metadata."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    rsa_metadata: RSAMetadata | None = None
    aggregation_prompt: str | None = None


class TextChoice(ResponseModel):
    """A completed text, or a piece of it. The ids are there with `return_token_ids`."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: TextLogProbs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class TextCompletion(ResponseModel):
    """Completed texts, or in a stream pieces of them."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Tokens(ResponseModel):
    """Token ids, as vLLM's `/tokenize` returns them."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Text(ResponseModel):
    """The text of token ids, as vLLM's `/detokenize` returns it."""

    prompt: str


class RunSettings(ResponseModel):
    """Settings of a run, as the keys of a request's body."""

    rsa_t: int
    rsa_n: int | list[int]
    rsa_k: int
    short_resp_len: int
    tail_window_len: int
    max_tokens: int


class Model(ResponseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = Field(description="The model whose runs have this name.")
    context_length: int | None
    max_model_len: int | None = Field(description="The same as context_length, as vLLM names it.")
    rsa: RunSettings | None = Field(None, description="The run that a request for this name is.")
    reasoning_effort: dict[str, RunSettings | None] | None = Field(
        None, description="The run for each effort. null: an ordinary completion."
    )


class ModelList(ResponseModel):
    object: Literal["list"]
    data: list[Model]


class Health(ResponseModel):
    status: Literal["ok", "stopping"]


class RunItem(ResponseModel):
    """A stored run, or an active one without an audit trail. A damaged file has no id."""

    object: Literal["run"]
    id: str
    state: Literal["finished", "unfinished", "running", "damaged"]
    created_at: str
    model: str
    prompt: str
    answer: str
    generated_tokens: int
    trail: str | None
    problem: str


class RunList(ResponseModel):
    object: Literal["list"]
    data: list[RunItem]
    has_more: bool

"""The JSON objects of responses. The OpenAPI document is made from them too."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


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


class AnswerMessage(ResponseModel):
    """`reasoning` and `reasoning_content` are the same, and null for a model without thinking."""

    role: Literal["assistant"]
    content: str
    reasoning: str | None
    reasoning_content: str | None


class Choice(ResponseModel):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: None = None


class Usage(ResponseModel):
    """Tokens of all traces of the run."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


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
    rsa_n: int
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
    trail: str | None = Field(description="The audit trail's file on the server, or null.")
    seed: int
    answer: str
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


class ChunkChoice(ResponseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None


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


class Model(ResponseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None


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

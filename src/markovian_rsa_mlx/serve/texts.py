"""Endpoints of plain texts: `/v1/completions`, `/tokenize` and `/detokenize`.

A text is completed as it is, without a chat template, and never by a run. The keys and replies are OpenAI's, with
vLLM's for token ids, so that this server can be the upstream of another one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from sse_starlette import ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..backends.base import AnswerSchema, GenerationRequest, TokenLogProbs
from ..config import RSAConfig, Sampling
from ..errors import ContextLengthError
from ..method.chat_form import render_chat
from ..method.lineage import SEED_LIMIT, TraceKey, trace_seed
from ..method.prompts import encode_framed, round_zero_frame
from ..method.tails import AnswerStart
from ..run.setup import check_schema
from ..tokenizer import ChatMessage, Tokenizer, Vocabulary, reserve_marks
from .completions import FIRST_EVENT_S, JSON, LateResponse, RunStream, after, until_disconnect, with_errors, with_spaces
from .errors import RequestError, naming_schema
from .incremental_text import LiveText
from .logprobs import AnswerLogProbs, text_logprobs
from .plan import MAX_PROMPT, count_tokens, reject_unsupported, to_messages
from .request import (
    MAX_TOOLS,
    AnyTool,
    BoundRequest,
    Likeliest,
    Message,
    RequestModel,
    TemplateOptions,
    parse,
    read_object,
)
from .response import StopCutter
from .run_manager import CancelledBy, RunManager
from .schemas import FinishReason, Text, TextChoice, TextCompletion, Tokens, Usage
from .sse import json_event

DEFAULT_TOKENS = 16  #: as OpenAI's completions
_MAX_ROWS = 128
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=2_000_000, fail_fast=True)]
_ID_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}


def _prompts(value: Any) -> list[str | list[int]]:
    """Return the texts and the lists of ids in `prompt`: one of them, or a list of them."""
    many = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    for prompt in many:
        ids = isinstance(prompt, list) and all(type(item) is int and 0 <= item < 2**31 for item in prompt)
        if not prompt or not (ids or isinstance(prompt, str)):
            raise ValueError("give a text, a list of token ids, or a list of them, none of them empty")
    return many


Prompts = Annotated[
    list[Any],
    BeforeValidator(_prompts),
    Field(max_length=_MAX_ROWS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": _MAX_ROWS},
                _ID_SCHEMA,
                {"type": "array", "items": _ID_SCHEMA, "minItems": 1, "maxItems": _MAX_ROWS},
            ]
        }
    ),
]


class TextRequest(BoundRequest):
    """Texts to complete."""

    prompt: Prompts = Field(description="A text, token ids, or a list of either.")
    echo: bool | None = Field(None, description="Refused unless false.")
    suffix: str | None = Field(None, description="Refused unless empty.")
    best_of: int | None = Field(None, description="Refused unless 1 or n.")
    logprobs: bool | Likeliest | None = Field(
        None, description="Number of likeliest tokens per place with log-probabilities. 0, false: none. true: 1."
    )
    return_token_ids: bool | None = Field(None, description="Add token_ids and prompt_token_ids to the choices.")
    stop_token_ids: _Ids | None = Field(None, description="Refused unless they end the model's texts anyway.")


class TokenizeRequest(RequestModel):
    """A text or a chat to tokenize."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=10_000)
    add_special_tokens: bool | None = Field(None, description="Ignored: a text gets no further tokens.")
    add_generation_prompt: Literal[True] | None = None
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    return_token_strs: bool | None = Field(None, description="Add the tokens as the vocabulary spells them.")


class DetokenizeRequest(RequestModel):
    """Token ids of a text."""

    model: str | None = None
    tokens: _Ids


async def completions(request: Request) -> Response:
    """Complete texts as they are."""
    manager: RunManager = request.app.state.manager
    body = parse(await read_object(request, manager.settings.max_body_bytes), TextRequest)
    manager.check_tolerance(body)
    model = manager.target(body.model).name
    preparation = manager.prepare(_prepare, manager, body)
    work = TextWork(manager, body, model, await until_disconnect(request, asyncio.ensure_future(preparation)))
    work.start()
    if body.stream:
        events = work.events()
        first = asyncio.ensure_future(anext(events))
        try:
            await until_disconnect(request, first, FIRST_EVENT_S)
        except BaseException:
            work.cancel("client")
            raise
        return RunStream(work, with_errors(after(first, events)), work.idle)
    whole = asyncio.ensure_future(work.completion())
    try:
        completion = await until_disconnect(request, whole, manager.settings.heartbeat_s or None)
    except BaseException:
        work.cancel("client")
        raise
    if completion is None:
        return LateResponse(work, with_spaces(whole, manager.settings.heartbeat_s), media_type=JSON)
    return JSONResponse(completion)


def _prepare(manager: RunManager, body: TextRequest) -> list[tuple[str, tuple[int, ...]]]:
    """Check the request, and return each prompt as its text and its ids."""
    reject_unsupported(body)
    tokenizer, context = manager.engine.tokenizer, manager.engine.info.context_length
    refused = {
        "echo": bool(body.echo),
        "suffix": bool(body.suffix),
        "best_of": body.best_of not in (None, 1, body.n),
        "logprobs": bool(body.logprobs) and not manager.engine.info.gives_logprobs,
        "stop_token_ids": not set(body.stop_token_ids or ()) <= tokenizer.eos_ids,
    }
    for key in (key for key, is_refused in refused.items() if is_refused):
        raise RequestError(400, f"{key} is not supported with this value.", "unsupported_key", key)
    with naming_schema(body.schema_key):
        check_schema(RSAConfig(response_schema=body.schema_of_answer), manager.engine)
    if (rows := len(body.prompt) * (body.n or 1)) > _MAX_ROWS:
        raise RequestError(400, f"The prompts times n must be at most {_MAX_ROWS} (got {rows}).", param="n")
    found = []
    for prompt in body.prompt:
        ids = _encode(tokenizer, prompt, context) if isinstance(prompt, str) else prompt
        max_tokens = body.max_tokens or DEFAULT_TOKENS
        if context is not None and len(ids) + max_tokens > context:
            message = (
                f"A prompt of {len(ids):,} tokens and max_tokens {max_tokens:,} exceed the model's context of "
                f"{context:,} tokens. Shorten one of them."
            )
            raise RequestError(400, message, ContextLengthError.kind, "max_tokens")
        found.append((prompt if isinstance(prompt, str) else _decode(tokenizer, ids, "prompt"), tuple(ids)))
    return found


def _encode(tokenizer: Tokenizer, text: str, context: int | None) -> list[int]:
    """Tokenize a text. Raise `RequestError` as `_check_length` does."""
    _check_length(tokenizer, text, context)
    return tokenizer.encode(text)


def _check_length(tokenizer: Tokenizer, text: str, context: int | None) -> None:
    """Raise `RequestError` for a text that exceeds the context, before all of it is tokenized."""
    limit = context or MAX_PROMPT
    if len(text) > limit and (count := count_tokens(tokenizer, text, limit)) > limit:
        message = f"The text has at least {count:,} tokens, and the limit is {limit:,}. Shorten it."
        raise RequestError(400, message, ContextLengthError.kind, "prompt")


def _encode_chat(manager: RunManager, body: TokenizeRequest) -> list[int]:
    """Tokenize a chat as the prompt of a completion is: texts of messages and tools are not parsed for marks."""
    engine, base, options = manager.engine, manager.settings.base, body.chat_template_kwargs
    tokenizer = reserve_marks(engine.tokenizer, engine.tokenizer.find_marks(base.thinking_marks))
    thinking = options.thinks if options is not None else None
    thinking = base.enable_thinking if thinking is None else thinking
    messages, tools = to_messages(body.messages or []), [tool.to_dict() for tool in body.tools or ()]
    _check_length(
        tokenizer, render_chat(tokenizer, messages, enable_thinking=thinking, tools=tools), engine.info.context_length
    )
    frame = round_zero_frame(tokenizer, messages, enable_thinking=thinking, tools=tools)
    return encode_framed(tokenizer, [""], frame)[0]


def _decode(tokenizer: Tokenizer, ids: Sequence[int], key: str) -> str:
    """Return the text of ids, special tokens included. Raise `RequestError` for ids outside the vocabulary."""
    size = getattr(tokenizer, "vocabulary_size", None)
    decode = tokenizer.decode_all if isinstance(tokenizer, Vocabulary) else tokenizer.decode
    try:
        if size is not None and max(ids, default=0) >= size:
            raise ValueError(f"the vocabulary has {size:,} tokens")
        return decode(ids)
    except (ValueError, OverflowError, LookupError) as error:
        message = f"{key} has an id outside the vocabulary (the largest one is {max(ids)})."
        raise RequestError(400, message, param=key) from error


@dataclass
class Row:
    """One text that grows: it ends at the model's end of sequence, at `max_tokens` or at a stop text."""

    work: TextWork
    index: int
    text: LiveText
    cutter: StopCutter
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: FinishReason | None = None
    values: list[TokenLogProbs] = field(default_factory=list)
    sent: int = 0  #: characters of the text
    _generation: asyncio.Future[Any] | None = None

    def __post_init__(self) -> None:
        self.begin_values()

    async def generate(self, request: GenerationRequest) -> None:
        """Generate the text. Its pieces are put into the queue of the request."""
        self._generation = asyncio.ensure_future(self.work.manager.engine.generate(request, self))
        try:
            await asyncio.wait({self._generation})
        finally:
            self._generation.cancel()
        if self.cutter.found:
            self.finish = "stop"
            self._add([], "")
            return
        result = self._generation.result()
        rest = list(result.token_ids[len(self.ids) :])
        text = self.cutter.add(self.text.add(rest) + self.text.end()) + self.cutter.end()
        self.finish = "stop" if self.cutter.found or result.finish_reason == "eos" else "length"
        self._add(rest, text)

    def started(self) -> None:
        """Do nothing when the engine begins."""

    def thinking_closed(self, closing_ids: Sequence[int]) -> None:
        """Do nothing: the thinking of a plain text has no limit."""

    def warning(self, message: str) -> None:
        """Ignore a problem that the engine recovered from."""

    def log_probabilities(self, values: Sequence[TokenLogProbs]) -> None:
        """Receive the values of the next tokens."""
        self.values += values

    def tokens(self, ids: Sequence[int]) -> None:
        """Add tokens, and stop the generation at a stop text."""
        if self.cutter.found:
            return
        self._add(list(ids), self.cutter.add(self.text.add(ids)))
        if self.cutter.found and self._generation is not None:
            self._generation.cancel()

    def begin_values(self) -> None:
        """Begin again with the values of the first token."""
        self.sent, self._finder = 0, AnswerLogProbs.of_text(self.work.manager.engine.tokenizer, trimmed=False)

    def take_values(self, text: str) -> list[tuple[TokenLogProbs, int]]:
        """Return the values of the tokens of the next piece of the text."""
        self.sent += len(text)
        return self._finder.take(self.values, self.sent)

    def _add(self, ids: list[int], text: str) -> None:
        self.ids += ids
        self.pieces.append(text)
        self.work.manager.metrics.tokens.inc(len(ids))
        self.work.items.put_nowait(self.work.choice(self, text, ids))


class TextWork:
    """The completion of the texts of one request."""

    def __init__(
        self, manager: RunManager, body: TextRequest, model: str, prompts: Sequence[tuple[str, tuple[int, ...]]]
    ) -> None:
        self.manager, self._body, self._model, self._prompts = manager, body, model, prompts
        self.items: asyncio.Queue[TextChoice | None] = asyncio.Queue()  #: None: the texts have ended
        self._id, self._created = f"cmpl-{secrets.token_hex(8)}", int(time.time())
        decode, count = manager.engine.tokenizer.decode, len(prompts) * (body.n or 1)
        self._rows = [Row(self, index, LiveText(decode), StopCutter(body.stops)) for index in range(count)]
        self._begun: set[int] = set()

    def start(self) -> None:
        """Start to generate. Raise `RequestError` if the queue is full."""
        self._task = self.manager.start_text(self._generate())
        self._task.add_done_callback(lambda _: self.items.put_nowait(None))

    def cancel(self, by: CancelledBy) -> None:
        """Stop the generation within one decoding step."""
        del by
        self._task.cancel()

    async def completion(self) -> dict[str, Any]:
        """Wait for the texts and return the response."""
        await self._end()
        self._begun.clear()
        for row in self._rows:
            row.begin_values()
        choices = [self.choice(row, "".join(row.pieces), row.ids) for row in self._rows]
        return self._object(choices, usage=self._usage()).to_json()

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        """Yield the pieces and [DONE]."""
        while (choice := await self.items.get()) is not None:
            if choice.text or choice.finish_reason or choice.token_ids:
                yield json_event(self._object([choice]).to_json())
        await self._end()
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield json_event(self._object([], usage=self._usage()).to_json())
        yield ServerSentEvent("[DONE]", sep="\n")

    def idle(self) -> ServerSentEvent:
        """Return an event without text, which keeps an idle stream open."""
        index = next((row.index for row in self._rows if row.finish is None), 0)
        nothing = TextChoice(index=index, text="", finish_reason=None, logprobs=None)
        return json_event(self._object([nothing]).to_json())

    def choice(self, row: Row, text: str, ids: Sequence[int]) -> TextChoice:
        """Return a piece of a text as a choice. The first one has the ids of the prompt."""
        choice = TextChoice(index=row.index, text=text, finish_reason=row.finish, logprobs=None)
        if self._body.logprobs and text:
            choice.logprobs = text_logprobs(self.manager.engine.tokenizer, row.take_values(text))
        if self._body.return_token_ids:
            choice.token_ids = list(ids)
            if row.index not in self._begun:
                self._begun.add(row.index)
                choice.prompt_token_ids = list(self._prompts[row.index // (self._body.n or 1)][1])
        return choice

    async def _generate(self) -> None:
        body, seed = self._body, self._body.seed
        seed = secrets.randbelow(SEED_LIMIT) if seed is None else seed
        given = {key: getattr(body, key) for key in ("temperature", "top_p", "top_k", "min_p")}
        sampling = Sampling(**{key: value for key, value in given.items() if value is not None})
        schema, decode = body.schema_of_answer, self.manager.engine.tokenizer.decode
        answer = None
        if schema is not None:
            answer = AnswerSchema(schema, lambda: AnswerStart(None, decode, suffix="", thinking=False))
        try:
            async with asyncio.TaskGroup() as group:
                for row in self._rows:
                    text, ids = self._prompts[row.index // (body.n or 1)]
                    key = TraceKey(0, row.index)
                    request = GenerationRequest(
                        trace_id=str(key),
                        messages=(ChatMessage(role="user", content=text),),
                        prompt_token_ids=ids,
                        max_tokens=body.max_tokens or DEFAULT_TOKENS,
                        seed=trace_seed(seed, key),
                        sampling=sampling,
                        run_id=self._id,
                        prompt_text=text,
                        interactive=True,
                        answer_schema=answer,
                        top_logprobs=int(body.logprobs) if body.logprobs else None,
                    )
                    group.create_task(row.generate(request))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _end(self) -> None:
        """Wait for the texts. Raise `RequestError` if they were cancelled."""
        await asyncio.wait({self._task})
        if self._task.cancelled():
            message = "The server is stopping and cancelled the request."
            raise RequestError(503, message, "stopping", headers={"Retry-After": "10"})
        self._task.result()

    def _object(self, choices: list[TextChoice], **usage: Usage) -> TextCompletion:
        return TextCompletion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            choices=choices,
            **usage,
        )

    def _usage(self) -> Usage:
        prompts = sum(len(ids) for _, ids in self._prompts)
        generated = sum(len(row.ids) for row in self._rows)
        return Usage(prompt_tokens=prompts, completion_tokens=generated, total_tokens=prompts + generated)


async def tokenize(request: Request) -> Response:
    """Return the token ids of a text, or of a chat in the model's template."""
    manager: RunManager = request.app.state.manager
    body = parse(await read_object(request, manager.settings.max_body_bytes), TokenizeRequest)
    manager.check_tolerance(body)
    manager.target(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError(400, "Give either prompt or messages.", param="prompt")
    tokenizer = manager.engine.tokenizer

    def work() -> Tokens:
        context = manager.engine.info.context_length
        ids = _encode(tokenizer, body.prompt, context) if body.prompt is not None else _encode_chat(manager, body)
        strings = tokenizer.spell(ids) if body.return_token_strs and isinstance(tokenizer, Vocabulary) else None
        return Tokens(count=len(ids), max_model_len=context, tokens=ids, token_strs=strings)

    found = await until_disconnect(request, asyncio.ensure_future(manager.prepare(work)))
    return JSONResponse(found.to_json())


async def detokenize(request: Request) -> Response:
    """Return the text of token ids, special tokens included."""
    manager: RunManager = request.app.state.manager
    body = parse(await read_object(request, manager.settings.max_body_bytes), DetokenizeRequest)
    manager.check_tolerance(body)
    manager.target(body.model)
    tokenizer = manager.engine.tokenizer
    work = manager.prepare(_decode, tokenizer, body.tokens, "tokens")
    text = await until_disconnect(request, asyncio.ensure_future(work))
    return JSONResponse(Text(prompt=text).to_json())

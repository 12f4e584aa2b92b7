"""Build the requests of each kind of server and read its replies. Pure: bodies in, ids or texts out.

To add a dialect, subclass `Dialect`, override the fields that differ, extend `body` and implement `read_choice` (or
`read`, if replies do not have the form of OpenAI's). Add it to `GENERAL_DIALECTS` in `probe.py` before the less
specific ones, because the first dialect that gets a reply to the trial request is used, or select it in
`_read_documents` if a document of the server names the server. Then add a kind of server to
`tests/backends/fake_upstream.py` and its name to `KINDS` in `tests/backends/upstream/test_dialects.py`, which runs
whole runs over it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ...config import Sampling
from ...content_parts import TEXT_PARTS, THINKING_PARTS
from ...errors import UpstreamError
from ...tokenizer import ChatMessage, thinking_switches
from ...tools import MAX_CALLS, Tools, write_call
from .errors import ProtocolError, shortened

PromptFormat = Literal["ids", "text", "chat"]
Finish = Literal["stop", "length"]
#: The words of servers for the end of a reply, in lower case. Any other word is an error that names it.
_STOP_REASONS = """
    stop eos eos_token eos_token_id eos_id eot end end_turn end_of_turn end_of_text end_of_sequence stop_token
    stop_token_id stop_tokens stop_word stop_words stop_sequence stop_string stop_str stop_id stopped complete completed
    finish finished done word eos_found stop_string_found
"""
_LENGTH_REASONS = """
    length limit max_tokens max_token max_new_tokens max_completion_tokens max_output_tokens max_length max_len
    length_limit length_cap token_limit model_length context_length max_context_length context_length_reached
    max_predicted_tokens_reached
"""
FINISH_REASONS: dict[str, Finish] = {
    **dict.fromkeys(_STOP_REASONS.split(), "stop"),
    **dict.fromkeys(_LENGTH_REASONS.split(), "length"),
}
#: The words, in letters alone, for the end of a reply with calls of tools.
_CALL_REASONS = ("toolcalls", "toolcall", "tooluse", "functioncall")
#: Values of a finish reason that mean that the reply continues.
_NO_REASONS = ("", "null", "none", "undefined", "unspecified")
#: The keys of what content parts hold.
_PART_KEYS = ("text", "thinking", "reasoning", "reasoning_content", "content", "summary", "value")
_MAX_PART_DEPTH = 20
#: Penalties without an effect: otherwise the server's defaults or the model's generation_config.json would apply.
_NO_PENALTIES: Final = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
#: The same by the names of llama.cpp and its relatives.
_NO_REPEAT_PENALTIES: Final = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True)
class CompletionRequest:
    """One call: the prompt in all its forms, and the sampling. Without a `seed` the server chooses its own.

    `schema` is the JSON Schema that binds the whole reply, or its answer where the server separates the reasoning.
    `tools` are those that the reply may call, for servers that read chats.
    """

    model: str
    prompt_ids: tuple[int, ...]
    prompt_text: str
    messages: tuple[ChatMessage, ...]
    enable_thinking: bool
    max_tokens: int
    sampling: Sampling
    seed: int | None = None
    eos_ids: tuple[int, ...] = ()
    schema: Mapping[str, Any] | None = None
    tools: Tools | None = None


@dataclass
class PartialCall:
    """A call of a tool as far as it has been received. `arguments` is JSON text."""

    name: str = ""
    arguments: str = ""


@dataclass
class CompletionReply:
    """The reply to a call as far as it has been received: ids if the server sends them, texts otherwise.

    `pieces` is the content as it was streamed: a piece ends where a token ends. `size` counts ids and characters.
    `token_texts` has the bytes of tokens, if the server sends them. `log_chance` is the natural log of the probability
    of all its tokens under `sampling`, or an upper bound of it, or None if unknown. `model` is the name that the reply
    gives. `logprobs` are those of its tokens in the model's own distribution, None if the server does not send them.
    `has_choices`: any part of it was a completion. `text_of_ids` is the server's text of `ids`, if it sends one.
    `calls` are the calls of tools, by their index.
    """

    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    reasoning: str = ""
    pieces: list[str] = field(default_factory=list)
    size: int = 0
    finish: Finish | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    log_chance: float | None = None
    logprobs: list[float] | None = None
    token_texts: dict[int, bytes] = field(default_factory=dict)
    truncated: bool = False
    model: str | None = None
    has_choices: bool = False
    text_of_ids: str = ""
    calls: dict[int, PartialCall] = field(default_factory=dict)

    @property
    def content(self) -> str:
        # The halves of a character outside the basic plane may come in two pieces.
        return "".join(self.pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def add_ids(self, ids: list[int]) -> None:
        self.ids += ids
        self.size += len(ids)

    def add_text_of_ids(self, text: Any) -> None:
        self.text_of_ids += text if isinstance(text, str) else ""

    def add_text(self, reasoning: str, content: str) -> None:
        self.reasoning += reasoning
        if content:
            self.pieces.append(content)
        self.size += len(reasoning) + len(content)

    def add_calls(self, calls: Any) -> None:
        """Add calls of tools, or pieces of their arguments. Raise `ProtocolError` for anything else, or too many."""
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                raise ProtocolError("the reply has an invalid tool call")
            name, arguments = function.get("name") or "", function.get("arguments") or ""
            index = call.get("index")  # where it is missing, a name begins a call
            index = max(0, len(self.calls) - (not name)) if index is None else index
            if type(index) is not int or not 0 <= index < MAX_CALLS or not isinstance(name, str):
                raise ProtocolError("the reply has an invalid tool call")
            piece = arguments if isinstance(arguments, str) else json.dumps(arguments)
            known = self.calls.setdefault(index, PartialCall())
            known.name, known.arguments = known.name or name, known.arguments + piece
            self.size += len(name) + len(piece)

    def write_calls(self) -> None:
        """Append the calls to the content, in the generic form."""
        for _, call in sorted(self.calls.items()):
            self.pieces.append(f"\n{write_call({'function': {'name': call.name, 'arguments': call.arguments}})}")
        self.calls.clear()

    def end_without_reason(self, max_tokens: int) -> None:
        """Set the end of a reply that its server calls complete, if the server named no reason for it."""
        if self.finish is None and self.has_choices:
            length = len(self.ids) if self.generated_tokens is None else self.generated_tokens
            self.finish = "length" if length >= max_tokens else "stop"


@dataclass(frozen=True)
class Dialect:
    """The requests and replies of one kind of server; by default those of OpenAI's protocol, streamed.

    `prompt_format` is the form in which the server reads prompts. Only with "ids" can it continue after given tokens.
    `returns_token_ids`: replies have token ids. `chunk_tokens`: the most tokens to request in one call (None: all).
    `seeds_disable_batching`: the server generates a request with a seed alone. `path` is relative to the API's root,
    or to the server's root if it begins with "//". `server_name` is recorded for a server whose documents do not
    name it. `required_fields` are those without which a reply would be of no use. `options_field` names the field that
    holds the sampling settings as fields of its own, if there is one. `binds_answers`: it can take a `schema`.
    """

    prompt_format: PromptFormat = "text"
    returns_token_ids: bool = False
    streams: bool = True
    chunk_tokens: int | None = None
    seeds_disable_batching: bool = False
    path: str = "/completions"
    server_name: str | None = None
    required_fields: tuple[str, ...] = ("model", "prompt", "messages", "temperature")
    options_field: str | None = None
    seed_field: str = "seed"
    binds_answers: bool = False

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """Return the JSON body of a call. State all sampling settings, so that no default of the server applies."""
        body = {
            "model": request.model,
            "max_tokens": request.max_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if self.streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def body_without(self, refused: Collection[str], request: CompletionRequest) -> dict[str, Any]:
        """Return the body without the fields that the server refuses."""
        body = {name: value for name, value in self.body(request).items() if name not in refused}
        if self.options_field is not None:
            options = body[self.options_field].items()
            body[self.options_field] = {name: value for name, value in options if name not in refused}
        if "max_tokens" in refused:  # the newer name in OpenAI's protocol
            body["max_completion_tokens"] = request.max_tokens
        return body

    def optional_fields(self, request: CompletionRequest) -> frozenset[str]:
        """Return the names of the fields that can be left out if the server refuses them."""
        body = self.body(request)
        options = body[self.options_field] if self.options_field is not None else ()
        return frozenset(body).union(options) - frozenset(self.required_fields)

    def read(self, payload: Any, reply: CompletionReply) -> None:
        """Add a whole reply or one event of a stream to `reply`. Anything without a choice is passed over.

        Raises `ProtocolError` for a choice of another form, and for an end other than a stop or the length.
        """
        if not isinstance(payload, dict):
            return
        usage = payload.get("usage")
        if isinstance(usage, dict):
            prompt, generated = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if type(prompt) is int and prompt >= 0:
                reply.prompt_tokens = prompt
            if type(generated) is int and generated >= 0:
                reply.generated_tokens = generated
        if isinstance(model := payload.get("model"), str) and model:
            reply.model = model
        choices = payload.get("choices")
        first = (
            (c for c in choices if isinstance(c, dict) and str(c.get("index") or 0) == "0")
            if isinstance(choices, list)
            else ()
        )
        choice = next(iter(first), None)
        if not choice:
            return
        reply.has_choices = True
        self.read_choice(choice, reply)
        reason = choice.get("finish_reason")
        is_call = bool(reply.calls) and isinstance(reason, str) and _letters(reason) in _CALL_REASONS
        reply.finish = "stop" if is_call else finish_of(reason) or reply.finish

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        """Add the tokens or texts of a choice to `reply`."""
        raise NotImplementedError


def _letters(word: str) -> str:
    """Return the letters and digits of a word, in lower case."""
    return re.sub(r"[\W_]+", "", word.lower())


_FINISH_BY_LETTERS = {_letters(word): finish for word, finish in FINISH_REASONS.items()}


def finish_of(reason: Any) -> Finish | None:
    """Return the meaning of a finish reason, or None if the reply continues. Raises `ProtocolError` for any other."""
    if isinstance(reason, dict):  # SGLang's own protocol: {"type": "stop", "matched": 2}
        reason = reason.get("type")
    if reason is None:
        return None
    if isinstance(reason, str):
        word = _letters(reason).removeprefix("finishreason")  # as in FINISH_REASON_STOP and FinishReason.STOP
        if word in _NO_REASONS:
            return None
        if finish := _FINISH_BY_LETTERS.get(word):
            return finish
    raise ProtocolError(f"the server ended the trace with the finish reason {shortened(str(reason))!r}")


@dataclass(frozen=True)
class VLLMDialect(Dialect):
    """vLLM (0.10.2 and later) and compatible servers: ids in, and a stream of ids out."""

    prompt_format: PromptFormat = "ids"
    returns_token_ids: bool = True
    required_fields: tuple[str, ...] = (*Dialect.required_fields, "return_token_ids", "structured_outputs")
    binds_answers: bool = True

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        bound = {} if request.schema is None else {"structured_outputs": {"json": dict(request.schema)}}
        return (
            super().body(request)
            | bound
            | {
                "prompt": list(request.prompt_ids),
                # Otherwise the model's generation_config.json would apply.
                "top_k": request.sampling.top_k or -1,
                "min_p": request.sampling.min_p,
                **_NO_PENALTIES,
                "stop_token_ids": list(request.eos_ids),
                "return_token_ids": True,
            }
        )

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        if choice.get("token_ids") is not None:
            reply.add_ids(token_ids(choice["token_ids"]))
            reply.add_text_of_ids(choice.get("text"))
        elif choice.get("text"):
            raise ProtocolError("the server streams text without its token ids")


@dataclass(frozen=True)
class LlamaCppDialect(Dialect):
    """llama.cpp's server (`llama-server`) through its own `/completion`: ids in, ids out.

    Its stream omits the ids of incomplete characters, so replies are not streamed but requested in chunks. Each chunk
    continues where the one before ended. The server caches the prompts that it has read.
    """

    prompt_format: PromptFormat = "ids"
    returns_token_ids: bool = True
    streams: bool = False
    chunk_tokens: int | None = 256
    path: str = "//completion"
    required_fields: tuple[str, ...] = ("prompt", "temperature", "n_predict", "return_tokens", "json_schema")
    binds_answers: bool = True

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        body = {
            # A server of one model ignores the name; one that routes between models needs it.
            "model": request.model,
            "prompt": list(request.prompt_ids),
            "n_predict": request.max_tokens,
            "temperature": request.sampling.temperature,
            "top_k": request.sampling.top_k,
            "top_p": request.sampling.top_p,
            "min_p": request.sampling.min_p,
            # Switch off the samplers that the server may have been started with.
            "typical_p": 1.0,
            **_NO_REPEAT_PENALTIES,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
            "mirostat": 0,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
            "n_probs": 1,
            "post_sampling_probs": True,
        }
        if request.schema is not None:
            body["json_schema"] = dict(request.schema)
        return body if request.seed is None else {**body, "seed": request.seed}

    def read(self, payload: Any, reply: CompletionReply) -> None:
        if not isinstance(payload, dict):
            raise ProtocolError("the reply is not a completion")
        ids = token_ids(payload.get("tokens"))
        if payload.get("tokens_predicted") != len(ids):
            raise ProtocolError(f"the reply has {len(ids)} token ids of {payload.get('tokens_predicted')}")
        reply.has_choices, reply.finish = True, finish_of(payload.get("stop_type"))
        reply.add_ids(ids)
        reply.add_text_of_ids(payload.get("content"))
        reply.truncated = bool(payload.get("truncated"))
        entries = payload.get("completion_probabilities")
        # The server omits the entries of incomplete characters, so there may be fewer of them than ids.
        if not isinstance(entries, list) or len(entries) != len(ids) or not all(isinstance(e, dict) for e in entries):
            return
        chances = [entry.get("prob") for entry in entries]
        if all(isinstance(chance, int | float) and 0 < chance <= 1 for chance in chances):
            reply.log_chance = sum(map(math.log, chances))
        for token, entry in zip(ids, entries, strict=True):
            text = token_bytes(entry.get("bytes"))
            if text and entry.get("id") == token:  # special tokens come without bytes
                reply.token_texts[token] = text


@dataclass(frozen=True)
class SGLangDialect(Dialect):
    """SGLang's server through its own `/generate`: ids in, ids out, in chunks. Its cache keeps the read prompts.

    Seeds take effect only if the server was started for deterministic inference, so by default none are sent.
    """

    prompt_format: PromptFormat = "ids"
    returns_token_ids: bool = True
    streams: bool = False
    chunk_tokens: int | None = 256
    seeds_disable_batching: bool = True
    path: str = "//generate"
    required_fields: tuple[str, ...] = ("input_ids", "sampling_params", "max_new_tokens", "temperature", "json_schema")
    binds_answers: bool = True
    options_field: str | None = "sampling_params"
    seed_field: str = "sampling_seed"

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        sampling = {
            "max_new_tokens": request.max_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k or -1,
            "min_p": request.sampling.min_p,
            **_NO_PENALTIES,
            "stop_token_ids": list(request.eos_ids),
            "skip_special_tokens": False,
        }
        if request.seed is not None:
            sampling["sampling_seed"] = request.seed
        if request.schema is not None:
            sampling["json_schema"] = json.dumps(request.schema)
        return {"input_ids": list(request.prompt_ids), "sampling_params": sampling, "stream": False}

    def read(self, payload: Any, reply: CompletionReply) -> None:
        facts = payload.get("meta_info") if isinstance(payload, dict) else None
        if not isinstance(facts, dict):
            raise ProtocolError("the reply is not a completion")
        ids, count = token_ids(payload.get("output_ids")), facts.get("completion_tokens")
        if count not in (len(ids), len(ids) + 1):  # the EOS may be missing
            raise ProtocolError(f"the reply has {len(ids)} token ids of {count}")
        reply.has_choices, reply.finish = True, finish_of(facts.get("finish_reason"))
        reply.add_ids(ids)
        reply.add_text_of_ids(payload.get("text"))


@dataclass(frozen=True)
class OllamaDialect(Dialect):
    """Ollama through its own `/api/generate` without a template (`raw`): texts in, and a stream of texts out.

    Its `/v1/completions` would put the prompt into the template a second time.
    """

    path: str = "//api/generate"
    required_fields: tuple[str, ...] = ("model", "prompt", "raw", "options", "num_predict", "temperature")
    options_field: str | None = "options"

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        options = {
            "num_predict": request.max_tokens,
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "top_k": request.sampling.top_k,
            "min_p": request.sampling.min_p,
            **_NO_REPEAT_PENALTIES,
        }
        if request.seed is not None:
            options["seed"] = request.seed
        return {
            "model": request.model,
            "prompt": request.prompt_text,
            "raw": True,
            # Otherwise newer versions move the thinking of the reply, with its marks, to a field of its own.
            "think": False,
            "stream": True,
            "options": options,
        }

    def read(self, payload: Any, reply: CompletionReply) -> None:
        if not isinstance(payload, dict):
            return
        thinking, response = payload.get("thinking"), payload.get("response")
        if not isinstance(thinking, str) and not isinstance(response, str):
            return
        reply.has_choices = True
        reply.add_text(*(text if isinstance(text, str) else "" for text in (thinking, response)))
        if isinstance(model := payload.get("model"), str) and model:
            reply.model = model
        if payload.get("done") is True:
            prompt, generated = payload.get("prompt_eval_count"), payload.get("eval_count")
            reply.prompt_tokens = prompt if type(prompt) is int else None
            reply.generated_tokens = generated if type(generated) is int else None
            reply.finish = finish_of(payload.get("done_reason")) or "stop"


@dataclass(frozen=True)
class MLXServerDialect(Dialect):
    """mlx_lm.server (0.32.2): texts in, and ids in the log-probabilities of a whole reply, so it is not streamed."""

    returns_token_ids: bool = True
    streams: bool = False
    seeds_disable_batching: bool = True
    server_name: str | None = "mlx_lm.server"
    required_fields: tuple[str, ...] = (*Dialect.required_fields, "logprobs")

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return super().body(request) | {
            "prompt": request.prompt_text,
            "top_k": request.sampling.top_k,
            "min_p": request.sampling.min_p,
            "logprobs": True,
        }

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ProtocolError("the reply has no token ids")
        reply.add_ids(token_ids([entry.get("id") for entry in content]))
        reply.add_text_of_ids(choice.get("text"))
        # These log-probabilities are for temperature 1 without filters. A temperature T of at least 1 maps p to p^(1/T)
        # divided by a sum of at least 1, so p^(1/T) is an upper bound. For T below 1 there is no such bound.
        values, temperature = [entry.get("logprob") for entry in content], reply.sampling.temperature
        unfiltered = temperature >= 1 and reply.sampling == Sampling(temperature=temperature)
        if not all(isinstance(value, float) and math.isfinite(value) for value in values):
            return
        reply.logprobs = values
        if unfiltered:
            reply.log_chance = sum(values) / temperature


@dataclass(frozen=True)
class TextDialect(Dialect):
    """Servers that complete texts and send no ids (LM Studio, Ollama, llama-cpp-python): texts in, texts out."""

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return super().body(request) | {
            "prompt": request.prompt_text,
            "top_k": request.sampling.top_k,
            "min_p": request.sampling.min_p,
            "repeat_penalty": 1.0,
        }

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        reply.add_text("", read_parts(choice.get("text"))[1])


@dataclass(frozen=True)
class ChatDialect(TextDialect):
    """Servers that only chat: messages in, texts out. The reasoning is in a field of its own or part of the text."""

    prompt_format: PromptFormat = "chat"
    path: str = "/chat/completions"
    required_fields: tuple[str, ...] = (*Dialect.required_fields, "response_format", "tools")
    binds_answers: bool = True

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        body = super().body(request)
        del body["prompt"]
        if request.schema is not None:
            form = {"name": "answer", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if request.tools is not None:
            body |= {"tools": list(request.tools.offered), "tool_choice": request.tools.choice}
            body |= {} if request.tools.parallel else {"parallel_tool_calls": False}
        return body | {
            "messages": list(map(_wire_message, request.messages)),
            "chat_template_kwargs": thinking_switches(request.enable_thinking),
        }

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        message = choice.get("delta") or choice.get("message")
        if not isinstance(message, dict):
            return
        if isinstance(refusal := message.get("refusal"), str) and refusal:
            raise ProtocolError(f"the server refuses to answer ({shortened(refusal)})")
        # Servers with several of these fields repeat the same text in them.
        keys = ("reasoning", "reasoning_content", "thinking", "reasoning_details")
        separate = next(filter(None, (_read_reasoning(message.get(key)) for key in keys)), "")
        reasoning, content = read_parts(message.get("content"))
        reply.add_text(separate + reasoning, content)
        reply.add_calls(message.get("tool_calls"))


def _wire_message(message: ChatMessage) -> dict[str, Any]:
    """Return a message as OpenAI's protocol has it: the arguments of calls are JSON text."""
    if "tool_calls" not in message:
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "content": message["content"] or None, "tool_calls": calls}


def _read_reasoning(value: Any) -> str:
    """Return the text of a field that has nothing but reasoning. Its parts may be encrypted, and then have no text."""
    parts = value if isinstance(value, list) else [value]
    pairs = (read_parts({**part, "type": "reasoning"} if isinstance(part, dict) else part) for part in parts)
    return "".join(map("".join, pairs))


def read_parts(value: Any, depth: int = 0) -> tuple[str, str]:
    """Return the reasoning and the text of a content: a text, or typed parts. Raises `UpstreamError` for any other."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        return "", value
    if depth > _MAX_PART_DEPTH:
        raise UpstreamError(
            f"The server's reply has content parts within each other, more than {_MAX_PART_DEPTH} deep."
        )
    if isinstance(value, list):
        pairs = [read_parts(part, depth + 1) for part in value]
        return "".join(reasoning for reasoning, _ in pairs), "".join(text for _, text in pairs)
    kind = value.get("type", "text") if isinstance(value, dict) else type(value).__name__
    if not isinstance(value, dict) or kind not in (*TEXT_PARTS, "text_delta", *THINKING_PARTS):
        raise UpstreamError(
            f"The server's reply has a content part of type {shortened(str(kind))!r}, which is not text."
        )
    inner = next((value[key] for key in _PART_KEYS if value.get(key)), None)
    texts = "".join(read_parts(inner, depth + 1))
    return (texts, "") if kind in THINKING_PARTS else ("", texts)


def token_ids(value: Any) -> list[int]:
    """Return `value` if it is a list of token ids; raise `ProtocolError` otherwise."""
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise ProtocolError("the reply has invalid token ids")
    return value


def token_bytes(piece: Any) -> bytes:
    """Return the bytes of a token, given as a text or as a list of numbers. Return b"" for anything else."""
    if isinstance(piece, str):
        return piece.encode("utf-8", "replace")
    is_bytes = isinstance(piece, list) and all(type(byte) is int and 0 <= byte < 256 for byte in piece)
    return bytes(piece) if is_bytes else b""

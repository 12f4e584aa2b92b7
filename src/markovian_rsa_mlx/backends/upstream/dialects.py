"""Build the requests of each kind of server and read its replies. Pure: bodies in, ids or texts out.

To add a dialect, subclass `Dialect`, override the fields that differ, extend `body` and implement `read_choice` (or
`read`, if replies do not have the form of OpenAI's). Add it to `GENERAL_DIALECTS` in `probe.py` before the less
specific ones, because the first dialect that gets a reply to the trial request is used, or select it in
`_read_documents` if a document of the server names the server. Then add a kind of server to
`tests/backends/fake_upstream.py` and its name to `KINDS` in `tests/backends/upstream/test_dialects.py`, which runs
whole runs over it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ...config import Sampling
from ...tokenizer import ChatMessage
from .errors import ProtocolError

PromptFormat = Literal["ids", "text", "chat"]


@dataclass(frozen=True)
class CompletionRequest:
    """One call: the prompt in all its forms, and the sampling. Without a `seed` the server chooses its own."""

    model: str
    prompt_ids: tuple[int, ...]
    prompt_text: str
    messages: tuple[ChatMessage, ...]
    enable_thinking: bool
    max_tokens: int
    sampling: Sampling
    seed: int | None = None
    eos_ids: tuple[int, ...] = ()


@dataclass
class CompletionReply:
    """The reply to a call as far as it has been received: ids if the server sends them, texts otherwise.

    `pieces` is the content as it was streamed: a piece ends where a token ends. `token_texts` has the bytes of tokens,
    if the server sends them. `log_chance` is the natural log of the probability of all its tokens under `sampling`, or
    an upper bound of it, or None if unknown.
    """

    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    reasoning: str = ""
    pieces: list[str] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    log_chance: float | None = None
    token_texts: dict[int, bytes] = field(default_factory=dict)
    truncated: bool = False

    @property
    def content(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Dialect:
    """The requests and replies of one kind of server; by default those of OpenAI's protocol, streamed.

    `prompt_format` is the form in which the server reads prompts. Only with "ids" can it continue after given tokens.
    `returns_token_ids`: replies have token ids. `chunk_tokens`: the most tokens to request in one call (None: all).
    `seeds_disable_batching`: the server generates a request with a seed alone. `path` is relative to the API's root,
    or to the server's root if it begins with "//". `server_name` is recorded for a server whose documents do not
    name it.
    """

    prompt_format: PromptFormat = "text"
    returns_token_ids: bool = False
    streams: bool = True
    chunk_tokens: int | None = None
    seeds_disable_batching: bool = False
    path: str = "/completions"
    server_name: str | None = None

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

    def read(self, payload: Any, reply: CompletionReply) -> None:
        """Add a whole reply or one event of a stream to `reply`. Raises `ProtocolError` if it is neither."""
        choices = payload.get("choices") if isinstance(payload, dict) else None
        if not isinstance(choices, list):
            raise ProtocolError("the reply is not a completion")
        usage = payload.get("usage")
        if isinstance(usage, dict):
            prompt, generated = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if type(prompt) is int and prompt >= 0:
                reply.prompt_tokens = prompt
            if type(generated) is int and generated >= 0:
                reply.generated_tokens = generated
        choice = choices[0] if choices else {}
        if not isinstance(choice, dict):
            raise ProtocolError("the reply is not a completion")
        reason = choice.get("finish_reason")
        if reason in ("stop", "length"):
            reply.finish = reason
        elif reason is not None:
            raise ProtocolError(f"the server ended the trace with the finish reason {str(reason)[:40]!r}")
        self.read_choice(choice, reply)

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        """Add the tokens or texts of a choice to `reply`. `choice` is {} for an event without one."""
        raise NotImplementedError


@dataclass(frozen=True)
class VLLMDialect(Dialect):
    """vLLM (0.10.2 and later) and compatible servers: ids in, and a stream of ids out."""

    prompt_format: PromptFormat = "ids"
    returns_token_ids: bool = True

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        return super().body(request) | {
            "prompt": list(request.prompt_ids),
            # Otherwise the model's generation_config.json would apply.
            "top_k": request.sampling.top_k or -1,
            "min_p": request.sampling.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(request.eos_ids),
            "return_token_ids": True,
        }

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        if choice.get("token_ids") is not None:
            reply.ids += token_ids(choice["token_ids"])
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

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        body = {
            "prompt": list(request.prompt_ids),
            "n_predict": request.max_tokens,
            "temperature": request.sampling.temperature,
            "top_k": request.sampling.top_k,
            "top_p": request.sampling.top_p,
            "min_p": request.sampling.min_p,
            # Switch off the samplers that the server may have been started with.
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
            "mirostat": 0,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
            "n_probs": 1,
            "post_sampling_probs": True,
        }
        return body if request.seed is None else {**body, "seed": request.seed}

    def read(self, payload: Any, reply: CompletionReply) -> None:
        if not isinstance(payload, dict):
            raise ProtocolError("the reply is not a completion")
        ids = token_ids(payload.get("tokens"))
        if payload.get("tokens_predicted") != len(ids):
            raise ProtocolError(f"the reply has {len(ids)} token ids of {payload.get('tokens_predicted')}")
        finishes: dict[Any, Literal["stop", "length"]] = {"eos": "stop", "limit": "length"}
        stop_type = payload.get("stop_type")
        if stop_type not in finishes:
            raise ProtocolError(f"the server ended the trace with the stop type {str(stop_type)[:40]!r}")
        reply.ids += ids
        reply.finish, reply.truncated = finishes[stop_type], bool(payload.get("truncated"))
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
class MLXServerDialect(Dialect):
    """mlx_lm.server (0.32.2): texts in, and ids in the log-probabilities of a whole reply, so it is not streamed."""

    returns_token_ids: bool = True
    streams: bool = False
    seeds_disable_batching: bool = True
    server_name: str | None = "mlx_lm.server"

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
        reply.ids += token_ids([entry.get("id") for entry in content])
        # These log-probabilities are for temperature 1 without filters. A temperature T of at least 1 maps p to p^(1/T)
        # divided by a sum of at least 1, so p^(1/T) is an upper bound. For T below 1 there is no such bound.
        values, temperature = [entry.get("logprob") for entry in content], reply.sampling.temperature
        unfiltered = temperature >= 1 and reply.sampling == Sampling(temperature=temperature)
        if unfiltered and all(isinstance(value, float) and math.isfinite(value) for value in values):
            reply.log_chance = sum(values) / temperature


@dataclass(frozen=True)
class TextDialect(Dialect):
    """Servers that complete texts and send no ids (LM Studio, Ollama, llama-cpp-python): texts in, texts out.

    `plain`: send only the fields of OpenAI's protocol, because the server refuses others.
    """

    plain: bool = False

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        body = super().body(request) | {"prompt": request.prompt_text}
        if self.plain:
            return body
        return body | {"top_k": request.sampling.top_k, "min_p": request.sampling.min_p, "repeat_penalty": 1.0}

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        if isinstance(choice.get("text"), str):
            reply.pieces.append(choice["text"])


@dataclass(frozen=True)
class ChatDialect(TextDialect):
    """Servers that only chat: messages in, texts out. The reasoning is in a field of its own or part of the text."""

    prompt_format: PromptFormat = "chat"
    path: str = "/chat/completions"

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        body = super().body(request) | {"messages": list(request.messages)}
        del body["prompt"]
        if self.plain:
            return body
        return body | {"chat_template_kwargs": {"enable_thinking": request.enable_thinking}}

    def read_choice(self, choice: dict[str, Any], reply: CompletionReply) -> None:
        message = choice.get("delta") or choice.get("message")
        if not isinstance(message, dict):
            return
        reasoning, content = message.get("reasoning") or message.get("reasoning_content"), message.get("content")
        if isinstance(reasoning, str):
            reply.reasoning += reasoning
        if isinstance(content, str):
            reply.pieces.append(content)


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

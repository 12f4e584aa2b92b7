"""What all dialects share: the question to a server, and the reply as it grows.

How each kind of server is asked for a trace, and what its replies say. Pure: bodies in, ids or texts out.

Servers that only chat: messages in, texts out, the reasoning split off or left in the text.

llama.cpp's server (`llama-server`), through its own `/completion`: ids in, ids out.

Its stream leaves out the ids of characters that are not whole yet, so replies are not streamed but asked for in
segments, each going on exactly where the one before ended; the server keeps the cache of what it has read.

mlx_lm.server (0.32.2): ids stand in the log-probabilities of a whole reply, and only there.

So replies are not streamed. Prompts are texts, which it tokenises itself; a seed makes a request run alone.

Servers that complete texts and tell no ids (LM Studio, Ollama, llama-cpp-python): the tokenizer makes the ids.

vLLM (0.10.2 and later), and servers that speak like it: prompts are ids, and so are the pieces of the stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ...config import Sampling
from ...tokenizer import ChatMessage
from .errors import ProtocolError

__all__ = [
    "ChatDialect",
    "CompletionReply",
    "CompletionRequest",
    "Dialect",
    "LlamaCppDialect",
    "MLXServerDialect",
    "TextDialect",
    "VLLMDialect",
]


#: Vocabularies are far smaller; ids beyond this are no ids.
_ID_LIMIT = 2**31


@dataclass(frozen=True)
class CompletionRequest:
    """One call: the prompt in all its forms, and how to sample. `seed` None: the server draws its own."""

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
    """What a call has brought so far: ids where the server gives them, else texts.

    `pieces` is the content as it came: a piece of a stream ends where a token ends.
    `spelled` are the bytes of tokens, where the server tells them.
    `log_chance` is the natural log of the chance of all its tokens under `sampling`, or a bound above it; None: not
    told.
    """

    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    reasoning: str = ""
    pieces: list[str] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    log_chance: float | None = None
    spelled: dict[int, bytes] = field(default_factory=dict)
    truncated: bool = False

    @property
    def content(self) -> str:
        return "".join(self.pieces)


class Dialect(Protocol):
    """`prompt_as` says in which form the server reads the prompt; only with "ids" can it go on from given tokens.

    `gives_ids`: its replies hold token ids. `segment`: tokens to ask for in one call (None: all of them).
    `costly_seeds`: a seed makes the server lose its batching.
    """

    @property
    def prompt_as(self) -> Literal["ids", "text", "chat"]: ...

    @property
    def gives_ids(self) -> bool: ...

    @property
    def streams(self) -> bool: ...

    @property
    def segment(self) -> int | None: ...

    @property
    def costly_seeds(self) -> bool: ...

    @property
    def path(self) -> str:
        """Of the call, behind the API's root; with a leading "//", behind the server's root."""
        ...

    def body(self, ask: CompletionRequest) -> dict[str, Any]: ...

    def read(self, payload: Any, reply: CompletionReply) -> None:
        """Take in a whole reply or one event of a stream. Raises `ProtocolError` for what is no such thing."""
        ...


def sampling_body(ask: CompletionRequest) -> dict[str, Any]:
    """The fields of the OpenAI protocol that all servers know."""
    body = {"max_tokens": ask.max_tokens, "temperature": ask.sampling.temperature, "top_p": ask.sampling.top_p}
    return body if ask.seed is None else {**body, "seed": ask.seed}


def first_choice(payload: Any, reply: CompletionReply) -> dict[str, Any]:
    """The choice of a reply or event, {} where it has none; usage and finish reason are noted."""
    if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list):
        raise ProtocolError("the reply is no completion")
    usage = payload.get("usage")
    if isinstance(usage, dict):
        reply.prompt_tokens = _count(usage.get("prompt_tokens"), reply.prompt_tokens)
        reply.generated_tokens = _count(usage.get("completion_tokens"), reply.generated_tokens)
    if not payload["choices"]:
        return {}
    choice = payload["choices"][0]
    if not isinstance(choice, dict):
        raise ProtocolError("the reply is no completion")
    reason = choice.get("finish_reason")
    if reason in ("stop", "length"):
        reply.finish = reason
    elif reason is not None:
        raise ProtocolError(f"the server ended the trace with the finish reason {str(reason)[:40]!r}")
    return choice


def token_ids(value: Any) -> list[int]:
    """`value` as token ids; raises `ProtocolError` for anything else."""
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < _ID_LIMIT for i in value):
        raise ProtocolError("the reply's token ids are none")
    return value


def token_bytes(piece: Any) -> bytes:
    """The bytes of a token, told as a text or, where they are none, as numbers; b"" for anything else."""
    if isinstance(piece, str):
        return piece.encode("utf-8", "replace")
    numbers = isinstance(piece, list) and all(type(byte) is int and 0 <= byte < 256 for byte in piece)
    return bytes(piece) if numbers else b""


def _count(value: Any, before: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else before


@dataclass(frozen=True)
class ChatDialect:
    """`POST /v1/chat/completions`."""

    plain: bool = False
    prompt_as: Literal["chat"] = "chat"
    gives_ids: bool = False
    streams: bool = True
    segment: None = None
    costly_seeds: bool = False
    path: str = "/chat/completions"

    def body(self, ask: CompletionRequest) -> dict[str, Any]:
        thinking = {} if self.plain else {"chat_template_kwargs": {"enable_thinking": ask.enable_thinking}}
        return {
            "model": ask.model,
            "messages": list(ask.messages),
            **thinking,
            **streamed(ask, self.plain),
        }

    def read(self, payload: Any, reply: CompletionReply) -> None:
        choice = first_choice(payload, reply)
        message = choice.get("delta") or choice.get("message") or {}
        if not isinstance(message, dict):
            return
        reply.reasoning += _text(message.get("reasoning")) or _text(message.get("reasoning_content"))
        reply.pieces.append(_text(message.get("content")))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


_SEGMENT_TOKENS = 256


@dataclass(frozen=True)
class LlamaCppDialect:
    """`POST /completion` with `return_tokens: true`."""

    prompt_as: Literal["ids"] = "ids"
    gives_ids: bool = True
    streams: bool = False
    segment: int = _SEGMENT_TOKENS
    costly_seeds: bool = False
    path: str = "//completion"

    def body(self, ask: CompletionRequest) -> dict[str, Any]:
        body = {
            "prompt": list(ask.prompt_ids),
            "n_predict": ask.max_tokens,
            "temperature": ask.sampling.temperature,
            "top_k": ask.sampling.top_k,
            "top_p": ask.sampling.top_p,
            "min_p": ask.sampling.min_p,
            # The server's other samplers off, whatever it was started with.
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
        return body if ask.seed is None else {**body, "seed": ask.seed}

    def read(self, payload: Any, reply: CompletionReply) -> None:
        if not isinstance(payload, dict):
            raise ProtocolError("the reply is no completion")
        ids = token_ids(payload.get("tokens"))
        if payload.get("tokens_predicted") != len(ids):
            raise ProtocolError(f"the reply holds {len(ids)} token ids of {payload.get('tokens_predicted')}")
        ends: dict[Any, Literal["stop", "length"]] = {"eos": "stop", "limit": "length"}
        kind = payload.get("stop_type")
        if kind not in ends:
            raise ProtocolError(f"the server ended the trace with the stop type {str(kind)[:40]!r}")
        reply.ids += ids
        reply.finish, reply.truncated = ends[kind], bool(payload.get("truncated"))
        entries = payload.get("completion_probabilities")
        # It leaves out the tokens of a torn character, and gives their bytes to the one behind them.
        if isinstance(entries, list) and len(entries) == len(ids) and all(isinstance(e, dict) for e in entries):
            reply.log_chance = _log_chance([entry.get("prob") for entry in entries])
            reply.spelled = _spelled(entries, ids)


def _log_chance(chances: list[Any]) -> float | None:
    """The log of the chance that the sampling gave to just these tokens."""
    known = [float(chance) for chance in chances if isinstance(chance, int | float) and 0 < chance <= 1]
    return sum(map(math.log, known)) if len(known) == len(chances) else None


def _spelled(entries: list[Any], ids: list[int]) -> dict[int, bytes]:
    """The bytes of the tokens; special ones are told without any, and left out."""
    pairs = zip(ids, entries, strict=True)
    spelled = {token: token_bytes(entry.get("bytes")) for token, entry in pairs if entry.get("id") == token}
    return {token: piece for token, piece in spelled.items() if piece}


@dataclass(frozen=True)
class MLXServerDialect:
    """`POST /v1/completions` with `logprobs: true`."""

    prompt_as: Literal["text"] = "text"
    gives_ids: bool = True
    streams: bool = False
    segment: None = None
    costly_seeds: bool = True
    path: str = "/completions"

    def body(self, ask: CompletionRequest) -> dict[str, Any]:
        return {
            "model": ask.model,
            "prompt": ask.prompt_text,
            "top_k": ask.sampling.top_k,
            "min_p": ask.sampling.min_p,
            "logprobs": True,
            **sampling_body(ask),
        }

    def read(self, payload: Any, reply: CompletionReply) -> None:
        choice = first_choice(payload, reply)
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise ProtocolError("the reply holds no token ids")
        reply.ids += token_ids([entry.get("id") for entry in content])
        reply.log_chance = _mlx_log_chance([entry.get("logprob") for entry in content], reply.sampling)


def _mlx_log_chance(logprobs: list[Any], sampling: Sampling) -> float | None:
    """A bound above the log of the chance: the log-probabilities are those of temperature 1 without filters.

    A temperature T of 1 and up takes p to p^(1/T) over a sum that is at least 1. Below it nothing can be said.
    """
    plain = sampling == Sampling(temperature=sampling.temperature) and sampling.temperature >= 1
    known = [logprob for logprob in logprobs if isinstance(logprob, float) and math.isfinite(logprob)]
    return sum(known) / sampling.temperature if plain and len(known) == len(logprobs) else None


@dataclass(frozen=True)
class TextDialect:
    """`POST /v1/completions` with a text. `plain`: the server refuses fields that OpenAI's protocol has not."""

    plain: bool = False
    prompt_as: Literal["text"] = "text"
    gives_ids: bool = False
    streams: bool = True
    segment: None = None
    costly_seeds: bool = False
    path: str = "/completions"

    def body(self, ask: CompletionRequest) -> dict[str, Any]:
        return {"model": ask.model, "prompt": ask.prompt_text, **streamed(ask, self.plain)}

    def read(self, payload: Any, reply: CompletionReply) -> None:
        choice = first_choice(payload, reply)
        if isinstance(choice.get("text"), str):
            reply.pieces.append(choice["text"])


def streamed(ask: CompletionRequest, plain: bool) -> dict[str, Any]:
    """A stream with its usage, and the sampling by the usual names of what OpenAI's protocol lacks.

    All of it is said, so that no server's defaults sample along.
    """
    body = {"stream": True, "stream_options": {"include_usage": True}, **sampling_body(ask)}
    if plain:
        return body
    sampling = ask.sampling
    return {**body, "top_k": sampling.top_k, "min_p": sampling.min_p, "repeat_penalty": 1.0}


@dataclass(frozen=True)
class VLLMDialect:
    """`POST /v1/completions` with `return_token_ids: true`."""

    prompt_as: Literal["ids"] = "ids"
    gives_ids: bool = True
    streams: bool = True
    segment: None = None
    costly_seeds: bool = False
    path: str = "/completions"

    def body(self, ask: CompletionRequest) -> dict[str, Any]:
        return {
            "model": ask.model,
            "prompt": list(ask.prompt_ids),
            # The model's generation_config.json must not sample along.
            "top_k": ask.sampling.top_k or -1,
            "min_p": ask.sampling.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(ask.eos_ids),
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling_body(ask),
        }

    def read(self, payload: Any, reply: CompletionReply) -> None:
        choice = first_choice(payload, reply)
        if not choice:
            return
        if choice.get("token_ids") is not None:
            reply.ids += token_ids(choice["token_ids"])
        elif choice.get("text"):
            raise ProtocolError("the server streams text without its token ids")

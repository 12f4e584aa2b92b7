"""What all dialects share: the question to a server, and the reply as it grows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ....config import Sampling
from ....method.codec import ChatMessage
from ..faults import Misread

#: Vocabularies are far smaller; ids beyond this are no ids.
_ID_LIMIT = 2**31


@dataclass(frozen=True)
class Ask:
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
class Reply:
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

    def body(self, ask: Ask) -> dict[str, Any]: ...

    def read(self, payload: Any, reply: Reply) -> None:
        """Take in a whole reply or one event of a stream. Raises `Misread` for what is no such thing."""
        ...


def sampling_body(ask: Ask) -> dict[str, Any]:
    """The fields of the OpenAI protocol that all servers know."""
    body = {"max_tokens": ask.max_tokens, "temperature": ask.sampling.temperature, "top_p": ask.sampling.top_p}
    return body if ask.seed is None else {**body, "seed": ask.seed}


def first_choice(payload: Any, reply: Reply) -> dict[str, Any]:
    """The choice of a reply or event, {} where it has none; usage and finish reason are noted."""
    if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list):
        raise Misread("the reply is no completion")
    usage = payload.get("usage")
    if isinstance(usage, dict):
        reply.prompt_tokens = _count(usage.get("prompt_tokens"), reply.prompt_tokens)
        reply.generated_tokens = _count(usage.get("completion_tokens"), reply.generated_tokens)
    if not payload["choices"]:
        return {}
    choice = payload["choices"][0]
    if not isinstance(choice, dict):
        raise Misread("the reply is no completion")
    reason = choice.get("finish_reason")
    if reason in ("stop", "length"):
        reply.finish = reason
    elif reason is not None:
        raise Misread(f"the server ended the trace with the finish reason {str(reason)[:40]!r}")
    return choice


def token_ids(value: Any) -> list[int]:
    """`value` as token ids; raises `Misread` for anything else."""
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < _ID_LIMIT for i in value):
        raise Misread("the reply's token ids are none")
    return value


def token_bytes(piece: Any) -> bytes:
    """The bytes of a token, told as a text or, where they are none, as numbers; b"" for anything else."""
    if isinstance(piece, str):
        return piece.encode("utf-8", "replace")
    numbers = isinstance(piece, list) and all(type(byte) is int and 0 <= byte < 256 for byte in piece)
    return bytes(piece) if numbers else b""


def _count(value: Any, before: int | None) -> int | None:
    return value if type(value) is int and value >= 0 else before

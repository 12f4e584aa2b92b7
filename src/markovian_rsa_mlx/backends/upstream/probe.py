"""Asking a server what it is: its model, its dialect, and whether the tokenizer at hand is its model's.

What a server is: asked once, from the routes that it has and from a short trial, not from its name alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import stamina

from ...config import Sampling
from ...errors import ModelError, UpstreamError
from ...tokenizer import ChatMessage, Tokenizer
from .config import Upstream
from .dialects import (
    ChatDialect,
    CompletionReply,
    CompletionRequest,
    Dialect,
    LlamaCppDialect,
    MLXServerDialect,
    TextDialect,
    VLLMDialect,
)
from .errors import ProtocolError, TransientError, Unreachable, UnsupportedRequest
from .tokenizers import choose_tokenizer
from .transport import HTTPClient, request_completion

#: What is asked on trial: digits, other scripts and odd spacing tell tokenizers apart.
TRIAL_QUESTION = "Say  yes: 12345 + 0.5 = ?\n\tça va, 你好 🙂"
_TRIES, _LONGEST_WAIT_S = 6, 10.0
#: Tokens that are drawn twice to tell independent random streams, and the chance below which equal ones raise an alarm.
_DRAWN_TOKENS, _COINCIDENCE = 12, math.log(1e-6)
T = TypeVar("T")


@dataclass(frozen=True)
class ServerFacts:
    """What a server's documents say of it."""

    name: str
    version: str = ""
    context_length: int | None = None
    rows: int | None = None
    props: dict[str, Any] = field(default_factory=dict)


async def identify(wire: HTTPClient, upstream: Upstream, tokenizer: Tokenizer | None) -> tuple[ServerInfo, Tokenizer]:
    """What the server is, with the tokenizer: `tokenizer`, or the one to use. Raises `UpstreamError` and `ModelError`s.

    Faults that may pass are waited out a little; `Unreachable` comes through at once.
    """
    entry = await _served_model(wire, upstream.model)
    about = await _about(wire, entry)
    model = str(entry["id"])
    tokenizer = tokenizer or choose_tokenizer(upstream, model, wire, about.props)
    refusals: list[str] = []
    for dialect in _candidates(about):
        name = "mlx_lm.server" if isinstance(dialect, MLXServerDialect) else about.name
        identity = ServerInfo(model, name, about.version, dialect, about.context_length, about.rows)
        prompt = _trial_prompt(tokenizer, identity)
        reply = await _trial(wire, dialect, prompt, refusals)
        if reply is not None:
            return await _check_tokenizer(wire, identity, prompt, reply, tokenizer), tokenizer
    cause = f" ({refusals[-1]})" if refusals else ""
    raise UpstreamError(
        f"{wire.url} completes neither texts nor chats as OpenAI's protocol has it{cause}; check the URL."
    )


async def check_independence(wire: HTTPClient, identity: ServerInfo, tokenizer: Tokenizer, seeded: bool) -> float:
    """Two requests at once, seeded as those of a run, must not draw the same random numbers. Raises `UpstreamError`.

    Returns the seconds that a token of theirs took, the prompt's share included.
    """
    ask = replace(_trial_prompt(tokenizer, identity), max_tokens=_DRAWN_TOKENS, sampling=Sampling(temperature=2.0))
    seeds = (1, 2) if seeded else (None, None)
    asks = [replace(ask, seed=seed) for seed in seeds]
    start = time.monotonic()
    one, other = await asyncio.gather(*(_trial(wire, identity.dialect, ask) for ask in asks))
    token_s = (time.monotonic() - start) / max(1, len(one.ids if one is not None else ()))
    if one is None or other is None or _sampled_output(one) != _sampled_output(other):
        return token_s
    # Equal by chance, where the model is all but certain of its words?
    if one.log_chance is None or one.log_chance < _COINCIDENCE:
        hint = "" if seeded else "; let it have seeds (--upstream-seeds always)"
        raise UpstreamError(
            f"{wire.url} drew the same {_DRAWN_TOKENS} tokens for two requests at temperature 2: its random streams "
            f"are not independent{hint}."
        )
    return token_s


async def _served_model(wire: HTTPClient, wanted: str | None) -> dict[str, Any]:
    """The entry of the model in the server's list."""
    data, cause = None, "lists no models"
    try:
        listed = await retry_transient(lambda: wire.get(f"{wire.url}/models"))
        data = listed.get("data") if isinstance(listed, dict) else None
    except Unreachable:
        raise
    except TransientError as fault:  # mlx_lm.server's list breaks where the machine has no cache of the hub
        cause = f"gives no list of its models ({fault})"
    entries = [e for e in data or [] if isinstance(e, dict) and isinstance(e.get("id"), str)]
    names = [str(entry["id"]) for entry in entries]
    if wanted is not None:
        # A server need not list what it serves under another name.
        return next((entry for entry in entries if entry["id"] == wanted), {"id": wanted})
    if len(entries) != 1:
        cause = f"lists {len(names)} models ({', '.join(names[:5])})" if names else cause
        raise UpstreamError(f"{wire.url} {cause}; name the one to use with --upstream-model.")
    return entries[0]


async def _about(wire: HTTPClient, entry: dict[str, Any]) -> ServerFacts:
    props = await _document(wire, "/props")
    if "default_generation_settings" in props:
        settings = props["default_generation_settings"]
        context = settings.get("n_ctx") if isinstance(settings, dict) else None
        version, rows = str(props.get("build_info", "")), _size(props.get("total_slots"))
        return ServerFacts("llama.cpp", version, _size(context), rows, props)
    version = str((await _document(wire, "/version")).get("version", ""))
    if version:
        return ServerFacts("vLLM", version, _size(entry.get("max_model_len")))
    api = (await _document(wire, "/openapi.json")).get("info")
    if isinstance(api, dict) and "llama.cpp Python" in str(api.get("title")):
        return ServerFacts("llama-cpp-python", str(api.get("version", "")), rows=1)  # it generates one reply at a time
    return ServerFacts("OpenAI-compatible server", "", _size(entry.get("max_model_len")))


async def _document(wire: HTTPClient, path: str) -> dict[str, Any]:
    """A document that some servers have; {} where this one has not."""
    try:
        found = await retry_transient(lambda: wire.get(wire.root + path))
    except (UpstreamError, ProtocolError):
        return {}
    return found if isinstance(found, dict) else {}


def _candidates(about: ServerFacts) -> list[Dialect]:
    if about.name == "llama.cpp":
        return [LlamaCppDialect()]
    if about.name == "llama-cpp-python":
        return [TextDialect()]
    return [VLLMDialect(), MLXServerDialect(), TextDialect(), TextDialect(plain=True), ChatDialect(), ChatDialect(True)]


def _trial_prompt(tokenizer: Tokenizer, identity: ServerInfo) -> CompletionRequest:
    chat = (ChatMessage(role="user", content=TRIAL_QUESTION),)
    text = tokenizer.render_chat(list(chat), True)
    ids, sent = tuple(tokenizer.encode(text)), text.removeprefix(identity.own_bos)
    return CompletionRequest(identity.model, ids, sent, chat, True, 2, Sampling(), eos_ids=tuple(tokenizer.eos_ids))


async def _trial(
    wire: HTTPClient, dialect: Dialect, ask: CompletionRequest, refusals: list[str] | None = None
) -> CompletionReply | None:
    """The reply to a short question, None where the server does not speak so.

    `refusals` takes what a route that is there says against the question.
    """

    async def once() -> CompletionReply:
        reply = CompletionReply(ask.sampling)
        async for reply in request_completion(wire, dialect, ask):  # noqa: B007
            pass
        return reply

    try:
        reply = await retry_transient(once)
    except ProtocolError:
        return None
    except UnsupportedRequest as refusal:
        if refusals is not None and refusal.of_request:
            refusals.append(str(refusal))
        return None
    return None if dialect.gives_ids and not reply.ids else reply


async def _check_tokenizer(
    wire: HTTPClient, identity: ServerInfo, ask: CompletionRequest, reply: CompletionReply, tokenizer: Tokenizer
) -> ServerInfo:
    """See that the server reads as many tokens as the tokenizer makes; a BOS of its own is left to it."""
    if identity.dialect.prompt_as == "ids" or reply.prompt_tokens in (None, len(ask.prompt_ids)):
        return identity
    bos = _first_token_text(tokenizer, ask)
    if identity.dialect.prompt_as == "text" and reply.prompt_tokens == len(ask.prompt_ids) + 1 and bos:
        again = await _trial(wire, identity.dialect, replace(ask, prompt_text=ask.prompt_text.removeprefix(bos)))
        if again is not None and again.prompt_tokens == len(ask.prompt_ids):
            return replace(identity, own_bos=bos)
    raise ModelError(
        f"The tokenizer makes {len(ask.prompt_ids)} tokens of a test prompt and {identity.model!r} at {wire.url} "
        f"{reply.prompt_tokens}: it is another model's; name the right one with --tokenizer."
    )


def _first_token_text(tokenizer: Tokenizer, ask: CompletionRequest) -> str:
    """The text of the prompt's first token, found by leaving it out; "" where that cannot be done."""
    rest = list(ask.prompt_ids[1:])
    lengths = range(1, min(40, len(ask.prompt_text)))
    return next((ask.prompt_text[:n] for n in lengths if tokenizer.encode(ask.prompt_text[n:]) == rest), "")


async def retry_transient(call: Callable[[], Awaitable[T]]) -> T:
    """The call, made again a few times where it fails with what may pass."""
    async for attempt in stamina.retry_context(_passing, attempts=_TRIES, timeout=None, wait_jitter=0.2, wait_max=1.0):
        with attempt:
            return await call()
    raise AssertionError("unreachable")


def _passing(error: Exception) -> bool | float:
    if not isinstance(error, TransientError) or isinstance(error, ProtocolError | Unreachable):
        return False
    return True if error.retry_after_s is None else min(error.retry_after_s, _LONGEST_WAIT_S)


def _sampled_output(reply: CompletionReply) -> tuple[list[int], str, str]:
    return reply.ids, reply.reasoning, reply.content


def _size(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


@dataclass(frozen=True)
class ServerInfo:
    """A server that was asked. `rows`: requests that it decodes at once.

    `own_bos`: the text that it puts before every text prompt by itself, so that prompts are sent without it.
    """

    model: str
    name: str
    version: str
    dialect: Dialect
    context_length: int | None = None
    rows: int | None = None
    own_bos: str = ""

    @property
    def service(self) -> tuple[str, str, Dialect]:
        """What all servers of a fleet must have in common."""
        return self.model, self.name, self.dialect

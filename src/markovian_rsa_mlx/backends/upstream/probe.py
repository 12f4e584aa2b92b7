"""Find out what a server is: its model, its dialect, and whether the tokenizer is the model's.

A server is probed once, through the documents that it has and through short trial requests.
"""

from __future__ import annotations

import asyncio
import difflib
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote

import stamina

from ...config import Sampling
from ...errors import UpstreamError
from ...tokenizer import ChatMessage, Tokenizer
from .config import Upstream
from .dialects import (
    ChatDialect,
    CompletionReply,
    CompletionRequest,
    Dialect,
    LlamaCppDialect,
    MLXServerDialect,
    OllamaDialect,
    SGLangDialect,
    TextDialect,
    VLLMDialect,
)
from .errors import ProtocolError, TransientError, Unreachable, UnsupportedRequest, WrongTokenizer, shortened
from .tokenizers import TEST_TEXT, RemoteTokenizer, choose_tokenizer
from .transport import HTTPClient, request_completion

#: Dialects to try where the documents of a server do not name it, the most specific one first.
GENERAL_DIALECTS = (
    VLLMDialect(),
    MLXServerDialect(),
    TextDialect(),
    ChatDialect(),
)
_MAX_TRIES, _MAX_WAIT_S = 6, 10.0
#: Tokens to sample for a comparison of random streams, and the log-probability above which they may be equal by chance.
_SAMPLED_TOKENS, _COINCIDENCE = 12, math.log(1e-6)
#: Characters to compare at least, and the similarity of two texts above which they are of one tokenizer.
_COMPARED, _ALIKE = 10, 0.6
T = TypeVar("T")


@dataclass(frozen=True)
class ServerInfo:
    """The result of a probe. `max_requests` is the number of requests that the server generates concurrently.

    `seeded`: requests carry the seed of their trace. `own_bos` is the text that the server puts before every text
    prompt, so prompts are sent without it. `reply_model` is the name that the server's replies give to the model.
    """

    model: str
    name: str
    version: str = ""
    dialect: Dialect = field(default_factory=Dialect)
    context_length: int | None = None
    max_requests: int | None = None
    seeded: bool = True
    own_bos: str = ""
    reply_model: str | None = None

    def check_model(self, named: str | None) -> None:
        """Raise `UpstreamError` if a reply names another model than the replies to the trial did."""
        if named is None or self.reply_model is None or _is_same_name(named, self.reply_model):
            return
        raise UpstreamError(
            f"{self.name} answers as {shortened(named)!r}, and at the start it answered as "
            f"{shortened(self.reply_model)!r}: the model has changed. Serve the former one again and resume."
        )


async def identify(client: HTTPClient, upstream: Upstream, tokenizer: Tokenizer | None) -> tuple[ServerInfo, Tokenizer]:
    """Return the description of a server, and `tokenizer` or the one to use.

    Retries transient errors a few times, but raises `Unreachable` immediately. Raises `UpstreamError` for a server that
    cannot be used, and `ModelError` if the tokenizer is missing or another model's.
    """
    entry = await _find_model(client, upstream.model)
    found, dialects, props, sources = await _read_documents(client, entry)
    if tokenizer is None:
        tokenizer = choose_tokenizer(upstream, found.model, client=client, props=props, sources=sources)
    refusals: list[Exception] = []
    for dialect in dialects:
        seeded = upstream.seeds == "always" or (upstream.seeds == "auto" and not dialect.seeds_disable_batching)
        info = replace(found, name=dialect.server_name or found.name, dialect=dialect, seeded=seeded)
        request = _trial_request(tokenizer, info)
        reply = await _try_fields(client, dialect, request, refusals=refusals)
        if reply is None:
            continue
        if dialect.seed_field in client.refused_fields:
            if upstream.seeds == "always":
                raise UpstreamError(
                    f"{client.url} refuses the field {dialect.seed_field!r}; use --upstream-seeds never."
                )
            info = replace(info, seeded=False)
        info = replace(info, reply_model=reply.model)
        if isinstance(dialect, OllamaDialect):  # it cuts longer prompts off without a word
            info = replace(info, context_length=await _loaded_context(client, info.model))
        if dialect.prompt_format != "ids" and reply.prompt_tokens not in (None, len(request.prompt_ids)):
            info = await _without_own_bos(client, info, tokenizer, request=request, reply=reply)
        return info, tokenizer
    cause = f" ({refusals[-1]})" if refusals else ""
    raise UpstreamError(f"{client.url} completes neither texts nor chats in OpenAI's protocol{cause}; check the URL.")


async def check_independence(client: HTTPClient, info: ServerInfo, tokenizer: Tokenizer) -> float:
    """Check that two concurrent requests, seeded as those of a run, get different random numbers.

    Returns the seconds per token of their replies, with the share of the prompt. Raises `UpstreamError` otherwise, and
    `WrongTokenizer` if the server's texts are not those of its ids.
    """
    request = replace(_trial_request(tokenizer, info), max_tokens=_SAMPLED_TOKENS, sampling=Sampling(temperature=2.0))
    start = time.monotonic()
    one, other = await asyncio.gather(
        *(_try_request(client, info.dialect, replace(request, seed=seed if info.seeded else None)) for seed in (1, 2))
    )
    token_s = (time.monotonic() - start) / max(1, len(one.ids if one is not None else ()))
    if one is None or other is None:
        return token_s
    if not isinstance(tokenizer, RemoteTokenizer):  # otherwise it is the server's
        _check_texts(client, info, tokenizer, [one, other])
    if (one.ids, one.reasoning, one.content) != (other.ids, other.reasoning, other.content):
        return token_s
    # A model that is nearly certain of its next tokens may sample equal ones by coincidence.
    if one.log_chance is None or one.log_chance < _COINCIDENCE:
        cure = "" if info.seeded else "; send it seeds (--upstream-seeds always)"
        raise UpstreamError(
            f"{client.url} sampled the same {_SAMPLED_TOKENS} tokens for two requests at temperature 2: its random "
            f"streams are not independent{cure}."
        )
    return token_s


def _check_texts(
    client: HTTPClient, info: ServerInfo, tokenizer: Tokenizer, replies: Sequence[CompletionReply]
) -> None:
    """Compare the server's texts of ids with the tokenizer's. Raises `WrongTokenizer` if they have little in common.

    Only ASCII letters and digits count: servers treat spaces, marks and incomplete characters in different ways.
    """
    sent, made = "", ""
    size = getattr(tokenizer, "vocabulary_size", None)
    for reply in replies:
        text = reply.text_of_ids
        for mark in getattr(tokenizer, "reserved", {}):
            text = text.replace(mark, "")
        if text:
            sent += text
            made += tokenizer.decode([token for token in reply.ids if size is None or token < size])
    sent, made = (re.sub(r"<[^<>\s]{1,40}>|[^A-Za-z0-9]+", "", text) for text in (sent, made))
    if len(sent) < _COMPARED or difflib.SequenceMatcher(None, sent, made, autojunk=False).ratio() > _ALIKE:
        return
    raise WrongTokenizer(
        f"The tokenizer makes another text of the ids of {info.model!r} at {client.url} than the server does. Name the "
        "model's own tokenizer with --tokenizer."
    )


async def retry_transient(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of a call. Retry it a few times after transient errors that another try may cure."""

    def delay(error: Exception) -> bool | float:
        if not isinstance(error, TransientError) or isinstance(error, ProtocolError | Unreachable):
            return False
        return True if error.retry_after_s is None else min(error.retry_after_s, _MAX_WAIT_S)

    async for attempt in stamina.retry_context(delay, attempts=_MAX_TRIES, timeout=None, wait_jitter=0.2, wait_max=1.0):
        with attempt:
            return await call()
    raise AssertionError("unreachable")


async def _find_model(client: HTTPClient, wanted: str | None) -> dict[str, Any]:
    """Return the model's entry in the server's list."""
    data, failure = None, "lists no models"
    try:
        listed = await retry_transient(lambda: client.fetch(f"{client.url}/models"))
        data = listed.get("data") if isinstance(listed, dict) else listed
    except Unreachable:
        raise
    except UnsupportedRequest:
        pass
    except TransientError as error:  # mlx_lm.server fails to list models on a machine without a hub cache
        failure = f"cannot list its models ({error})"
    data = data if isinstance(data, list) else []
    entries = [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if wanted is not None:
        # A server may also accept names that it does not list.
        return next((entry for entry in entries if entry["id"] == wanted), {"id": wanted})
    # Another server of this package also lists the names of a model's runs, and vLLM its adapters.
    names = [entry["id"] for entry in entries]
    entries = [entry for entry in entries if entry.get("parent") not in names]
    if len(entries) != 1:
        if entries:
            first = shortened(", ".join(entry["id"] for entry in entries[:5]))
            failure = f"lists {len(entries)} models ({first})"
        raise UpstreamError(f"{client.url} {failure}; name the one to use with --upstream-model.")
    return entries[0]


async def _read_documents(
    client: HTTPClient, entry: dict[str, Any]
) -> tuple[ServerInfo, Sequence[Dialect], dict[str, Any], list[str]]:
    """Return the description of a server without its dialect, the dialects to try, and where its tokenizer is from.

    That is `/props` of llama.cpp ({} for others), and folders and hub ids that the server names.
    """

    async def document(path: str) -> dict[str, Any]:
        try:
            found = await retry_transient(lambda: client.fetch(client.root + path))
        except (UpstreamError, ProtocolError, UnsupportedRequest):
            return {}
        return found if isinstance(found, dict) else {}

    def size(value: Any) -> int | None:
        return value if type(value) is int and value > 0 else None

    def texts(*values: Any) -> list[str]:
        return [value for value in values if isinstance(value, str) and value]

    info = ServerInfo(str(entry["id"]), "OpenAI-compatible server", context_length=size(entry.get("max_model_len")))
    sources = texts(entry.get("root"))
    props = await document("/props")
    if props.get("role") == "router":  # llama-server with several models: its own document is about none of them
        props |= await document(f"/props?model={quote(info.model, safe='')}")
    is_kobold = entry.get("owned_by") == "koboldcpp"
    if "default_generation_settings" in props or is_kobold:
        settings, slots = props.get("default_generation_settings"), size(props.get("total_slots"))
        context_length = size(settings.get("n_ctx")) if isinstance(settings, dict) else None
        info = ServerInfo(info.model, "llama.cpp", context_length=context_length, max_requests=slots)
        # KoboldCpp imitates documents of llama.cpp and of Ollama, and has the routes of neither.
        own = await document("/api/extra/version")
        if is_kobold or own.get("result") == "KoboldCpp":
            version = shortened(str(own.get("version", "")))
            info = replace(info, name="KoboldCpp", version=version, max_requests=slots or 1)
            return info, [TextDialect(), ChatDialect()], {}, []
        return replace(info, version=shortened(str(props.get("build_info", "")))), [LlamaCppDialect()], props, []
    version = shortened(str((await document("/version")).get("version", "")))
    if version:
        return replace(info, name="vLLM", version=version), GENERAL_DIALECTS, {}, sources
    if entry.get("owned_by") == "sglang" and (model := await document("/get_model_info")):
        sources = texts(model.get("tokenizer_path"), model.get("model_path"))
        return replace(info, name="SGLang"), [SGLangDialect(), *GENERAL_DIALECTS], {}, sources
    if version := shortened(str((await document("/api/version")).get("version", ""))):
        return replace(info, name="Ollama", version=version), [OllamaDialect(), *GENERAL_DIALECTS], {}, sources
    api = (await document("/openapi.json")).get("info")
    if isinstance(api, dict) and "llama.cpp Python" in str(api.get("title")):
        version = shortened(str(api.get("version", "")))
        info = ServerInfo(info.model, "llama-cpp-python", version, max_requests=1)
        return info, [TextDialect()], {}, []
    return info, GENERAL_DIALECTS, {}, sources


async def _loaded_context(client: HTTPClient, model: str) -> int | None:
    """Return the context of a model that Ollama has loaded."""
    try:
        loaded = await client.fetch(f"{client.root}/api/ps")
    except (TransientError, UnsupportedRequest, UpstreamError):
        return None
    entries = loaded.get("models") if isinstance(loaded, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        length = entry.get("context_length") if isinstance(entry, dict) else None
        if type(length) is int and length > 0 and model in (entry.get("name"), entry.get("model")):
            return length
    return None


def _trial_request(tokenizer: Tokenizer, info: ServerInfo) -> CompletionRequest:
    chat = (ChatMessage(role="user", content=TEST_TEXT),)
    text = tokenizer.render_chat(list(chat), True)
    return CompletionRequest(
        model=info.model,
        prompt_ids=tuple(tokenizer.encode(text)),
        prompt_text=text.removeprefix(info.own_bos),
        messages=chat,
        enable_thinking=True,
        max_tokens=2,
        sampling=Sampling(),
        seed=1 if info.seeded else None,
        eos_ids=tuple(tokenizer.eos_ids),
    )


async def _try_fields(
    client: HTTPClient, dialect: Dialect, request: CompletionRequest, *, refusals: list[Exception]
) -> CompletionReply | None:
    """Return the reply to a short request, with as many fields as the server accepts, or None.

    A server that refuses a field may not name it. Then all optional fields are left out, and those that the server
    accepts one by one are put back.
    """
    before, count = set(client.refused_fields), len(refusals)
    reply = await _try_request(client, dialect, request, refusals=refusals)
    if reply is not None or not any(isinstance(refusal, UnsupportedRequest) for refusal in refusals[count:]):
        return reply
    optional = dialect.optional_fields(request) - {"max_tokens"}
    client.refused_fields |= optional
    reply = await _try_request(client, dialect, request)
    if reply is None:
        client.refused_fields = before
        return None
    for name in sorted(optional - before):
        client.refused_fields.discard(name)
        if (accepted := await _try_request(client, dialect, request)) is None:
            client.refused_fields.add(name)
        reply = accepted or reply
    return reply


async def _try_request(
    client: HTTPClient, dialect: Dialect, request: CompletionRequest, *, refusals: list[Exception] | None = None
) -> CompletionReply | None:
    """Return the reply to a short request, or None if the server does not understand the dialect.

    Appends to `refusals` why a server that has the route did not give a reply of this dialect.
    """

    async def call() -> CompletionReply:
        reply = CompletionReply(request.sampling)
        async for reply in request_completion(client, dialect, request):  # noqa: B007
            pass
        return reply

    try:
        reply = await retry_transient(call)
    except (ProtocolError, UnsupportedRequest) as refusal:
        if refusals is not None and (isinstance(refusal, ProtocolError) or refusal.of_request):
            refusals.append(refusal)
        return None
    return None if dialect.returns_token_ids and not reply.ids else reply


def _is_same_name(one: str, other: str) -> bool:
    """Compare names of models regardless of case, and of the provider before the slash if only one has it."""
    one, other = one.strip().lower(), other.strip().lower()
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")


async def _without_own_bos(
    client: HTTPClient, info: ServerInfo, tokenizer: Tokenizer, *, request: CompletionRequest, reply: CompletionReply
) -> ServerInfo:
    """Check whether a server that counts another number of prompt tokens adds a BOS of its own.

    Returns the description with that BOS. Raises `WrongTokenizer` if the tokenizer is another model's.
    """
    expected = len(request.prompt_ids)
    if info.dialect.prompt_format == "text" and reply.prompt_tokens == expected + 1:
        text, rest = request.prompt_text, list(request.prompt_ids[1:])
        # The text of the first token is the shortest prefix without which the other tokens remain.
        for end in range(1, min(40, len(text))):
            if tokenizer.encode(text[end:]) != rest:
                continue
            trial = await _try_request(client, info.dialect, replace(request, prompt_text=text[end:]))
            if trial is not None and trial.prompt_tokens == expected:
                return replace(info, own_bos=text[:end])
            break
    raise WrongTokenizer(
        f"The tokenizer makes {expected} tokens of a test prompt, and {info.model!r} at {client.url} "
        f"{reply.prompt_tokens}. Name the model's own tokenizer with --tokenizer."
    )

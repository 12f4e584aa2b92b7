"""Tokenizers for upstream engines: the one of llama.cpp's server, the one in a GGUF file, or that of a model folder."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import jinja2
import jinja2.sandbox

from ...errors import ModelError, PromptError, UpstreamError
from ...tokenizer import ChatMessage, Tokenizer
from .config import Upstream
from .dialects import token_bytes, token_ids
from .errors import ProtocolError, TransientError, UnsupportedRequest, error_from_response
from .transport import HTTPClient, ssl_context

#: Names of tokens at which llama.cpp ends a generation.
_EOS_NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
)  # fmt: skip
_END_OF_THINKING, _START_OF_THINKING = "</think>", "<think>"
_MARKS = re.compile(r"<[^<>\s'\"]{1,40}>|\[/?[A-Z_]{2,20}\]")
#: Seconds: the limit of a call, and the first and the longest pause before it is retried.
_CALL_S, _FIRST_PAUSE_S, _MAX_PAUSE_S = 10.0, 0.1, 1.0
#: Seconds for which calls on an event loop's thread are retried. They block the event loop.
_EVENT_LOOP_TIMEOUT_S = 5.0
_CACHE_SIZE = 1_024
_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)


def choose_tokenizer(upstream: Upstream, model: str, *, client: HTTPClient, props: dict[str, Any]) -> Tokenizer:
    """Return the configured tokenizer, or the one that the server offers, or that of the model's folder or hub id.

    `props` is the document of llama.cpp's server, and {} for other servers. Raises `ModelError` if there is none.
    """
    if upstream.tokenizer is not None:
        return local_tokenizer(upstream.tokenizer)
    if props:
        return RemoteTokenizer(client, props, upstream.api_key)
    failure: ModelError | None = None
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if is_hub_id or (Path(model) / "config.json").is_file():
        try:
            return local_tokenizer(model)
        except ModelError as error:
            failure = error
    cause = f" ({str(failure).rstrip('.')})" if failure else ""
    raise ModelError(
        f"The server offers no tokenizer, and none is known for its model {model!r}{cause}. Name the model's folder or "
        "hub id with --tokenizer."
    ) from failure


def local_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer of a GGUF file, a folder or a hub id. Raises `ModelError`."""
    if name.endswith(".gguf"):
        return GGUFTokenizer(Path(name).expanduser())
    from ..tokenizers import load_tokenizer

    return load_tokenizer(name)


class RemoteTokenizer:
    """A `Tokenizer` over `/tokenize`, `/detokenize` and `/apply-template` of llama.cpp's server.

    Calls block, so they are avoided: results are cached, and the bytes of tokens are kept from encoded texts
    (`encode`) and of generated ids (`prefetch`).

    `props` is the server's `/props`. Any server of the model can answer (`add_server`). Raises `UpstreamError` if none
    does for `unreachable_timeout_s`, or for 5 s on the thread of an event loop.
    """

    def __init__(self, client: HTTPClient, props: dict[str, Any], api_key: str | None) -> None:
        self._roots: tuple[str, ...] = (client.root,)
        self._timeout_s = client.times.unreachable_timeout_s
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._bytes: dict[int, bytes] = {}
        self._encoded = functools.lru_cache(_CACHE_SIZE)(self._tokenize)
        self._decoded = functools.lru_cache(_CACHE_SIZE)(
            lambda ids: _text(self._call("/detokenize", {"tokens": list(ids)}))
        )
        self._rendered = functools.lru_cache(_CACHE_SIZE)(self._apply_template)
        template = str(props.get("chat_template", ""))
        adds_bos = len(self._tokenize("a", add_special=True)) > len(self._tokenize("a"))
        self._bos = str(props.get("bos_token", "")) if adds_bos else ""
        eos = str(props.get("eos_token", ""))
        special: dict[str, int] = {}
        for mark in {*_MARKS.findall(template), *_EOS_NAMES, eos, self._bos} - {""}:
            ids = self._encoded(mark)
            if len(ids) == 1 and ids != self._encoded(mark, parse_special=False):  # otherwise it is ordinary text
                special[mark] = ids[0]
        self.eos_ids = frozenset(special[mark] for mark in (eos, *_EOS_NAMES) if mark in special)
        self.end_of_thinking, self.control_ids = _thinking_marks(self.encode, template, frozenset(special.values()))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without adding special tokens. Marks in the text become their ids."""
        return list(self._encoded(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without control ids. Incomplete characters become U+FFFD."""
        kept = tuple(token for token in ids if token not in self.control_ids)
        if any(token not in self._bytes for token in kept):
            return self._decoded(kept)
        return b"".join(self._bytes[token] for token in kept).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """Return the chat in the model's template, with the BOS that the server would add."""
        return self._rendered(tuple((m["role"], m["content"]) for m in messages), enable_thinking)

    def add_server(self, root: str) -> None:
        """Add a server of the same model, to call if the others do not answer."""
        if root not in self._roots:
            self._roots = (*self._roots, root)

    async def prefetch(self, client: HTTPClient, ids: Sequence[int], known: Mapping[int, bytes]) -> None:
        """Get the bytes that `decode` needs of `ids` without blocking. `known` are those that a reply has.

        Raises `TransientError`.
        """
        self._bytes.update(known)
        unknown = [token for token in dict.fromkeys(ids) if token not in self._bytes and token not in self.control_ids]
        if not unknown:
            return
        try:
            text = _text(await client.fetch(f"{client.root}/detokenize", {"tokens": list(ids)}))
            body = {"content": text, "parse_special": True, "with_pieces": True}
            self._keep_pieces(await client.fetch(f"{client.root}/tokenize", body))
            for token in unknown:
                if token not in self._bytes:
                    text = _text(await client.fetch(f"{client.root}/detokenize", {"tokens": [token]}))
                    if "\ufffd" not in text:
                        self._bytes[token] = text.encode()
        except UnsupportedRequest:
            return  # `decode` raises the error

    def _tokenize(self, text: str, *, parse_special: bool = True, add_special: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        options = {"parse_special": parse_special, "add_special": add_special, "with_pieces": True}
        return self._keep_pieces(self._call("/tokenize", {"content": text, **options}))

    def _apply_template(self, messages: tuple[tuple[str, str], ...], enable_thinking: bool) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        body = {"messages": chat, "chat_template_kwargs": {"enable_thinking": enable_thinking}}
        try:
            text = str(self._call("/apply-template", body)["prompt"])
        except UnsupportedRequest as error:
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(self._bos) else self._bos + text

    def _keep_pieces(self, answer: Any) -> tuple[int, ...]:
        """Return the ids in an answer of `/tokenize` and keep their bytes. Older servers answer with ids only."""
        entries = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(entries, list):
            raise ProtocolError("the server's tokenizer returned no tokens")
        pairs = [(e.get("id"), e.get("piece")) if isinstance(e, dict) else (e, None) for e in entries]
        ids = token_ids([token for token, _ in pairs])
        for token, (_, piece) in zip(ids, pairs, strict=True):
            if text := token_bytes(piece):
                self._bytes[token] = text
        return tuple(ids)

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call one server after another until one answers or the time is over."""
        timeout_s = self._timeout_s
        try:
            asyncio.get_running_loop()
            timeout_s = min(timeout_s, _EVENT_LOOP_TIMEOUT_S)
        except RuntimeError:
            pass
        end, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
        while True:
            for root in self._roots:
                try:
                    return self._post(root + path, body, min(_CALL_S, timeout_s))
                except TransientError as error:
                    failure = error
                    self._roots = (*(other for other in self._roots if other != root), root)  # call it last next time
            if time.monotonic() + pause > end:
                raise UpstreamError(f"The server's tokenizer does not answer: {failure}.") from failure
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    def _post(self, url: str, body: dict[str, Any], limit_s: float) -> dict[str, Any]:
        try:
            with httpx2.Client(verify=ssl_context(), headers=self._headers, timeout=limit_s) as client:
                response = client.post(url, json=body)
            answer = response.json()
        except httpx2.ConnectError as error:
            raise TransientError(f"{url} cannot be reached") from error
        except (httpx2.RequestError, ValueError) as error:
            raise TransientError(f"{url}: {type(error).__name__}") from error
        if response.status_code >= 300:
            raise error_from_response(url, response.status_code, body=answer, headers=response.headers)
        if not isinstance(answer, dict) or not {"tokens", "content", "prompt"} & answer.keys():
            raise TransientError(f"{url} returned an unknown document")
        return answer


class GGUFTokenizer:
    """A `Tokenizer` over the vocabulary and chat template in a GGUF file, read by llama-cpp-python without weights."""

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise ModelError(
                f"Reading the tokenizer of {str(path)!r} needs llama-cpp-python (pip install llama-cpp-python). "
                "Alternatively, name the model's folder or hub id."
            ) from error
        # llama.cpp warns about a context that is not used here. Keep the callback alive.
        self._log_callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log_callback, None)
        try:
            self._model: Any = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        except Exception as error:  # llama.cpp raises errors of many kinds for a file that it cannot read
            raise ModelError(f"The tokenizer in {str(path)!r} cannot be loaded: {error}.") from error
        vocabulary = self._model._model.vocab
        tokens = range(self._model.n_vocab())
        self._template = str(self._model.metadata.get("tokenizer.chat_template", ""))
        self.eos_ids = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, i))
        control = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_control(vocabulary, i))
        self.end_of_thinking, self.control_ids = _thinking_marks(self.encode, self._template, control | self.eos_ids)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without adding special tokens. Marks in the text become their ids."""
        return list(self._model.tokenize(text.encode("utf-8", "replace"), add_bos=False, special=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without control ids. Incomplete characters become U+FFFD."""
        return self._raw_text([token for token in ids if token not in self.control_ids])

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """Return the chat in the file's template. Without a template, return the contents in order."""

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        specials = (self._model.token_bos(), self._model.token_eos())
        bos, eos = (self._raw_text([token]) if token >= 0 else "" for token in specials)
        first = bos if self._model.metadata.get("tokenizer.ggml.add_bos_token") == "true" else ""
        if not self._template:
            return first + "\n\n".join(message["content"] for message in messages)
        try:
            text = _environment.from_string(self._template).render(
                messages=list(messages),
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
                bos_token=bos,
                eos_token=eos,
                raise_exception=refuse,
            )
        except Exception as error:  # templates are third-party code, and many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(first) else first + text

    def _raw_text(self, ids: list[int]) -> str:
        # A previous token keeps the leading space of the first one.
        return bytes(self._model.detokenize(ids, prev_tokens=[0], special=True)).decode("utf-8", "replace")


def _thinking_marks(
    encode: Callable[[str], list[int]], template: str, special_ids: frozenset[int]
) -> tuple[tuple[tuple[int, ...], ...], frozenset[int]]:
    """Return the end-of-thinking marks, and the special ids plus a start mark and minus an end mark."""
    start, end = encode(_START_OF_THINKING), encode(_END_OF_THINKING)
    thinks = len(end) == 1 or _END_OF_THINKING in template
    control_ids = special_ids | (frozenset(start) if len(start) == 1 else frozenset())
    return ((tuple(end),) if thinks else ()), control_ids - (frozenset(end) if len(end) == 1 else frozenset())


def _text(answer: Any) -> str:
    text = answer.get("content") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise ProtocolError("the server's tokenizer returned no text")
    return text

"""The tokenizer that llama.cpp's server lends: exact, without a file of the model at hand.

Calls wait for their answer, so few are made: what a token's bytes are is kept, from texts that were encoded, from
replies that tell it, and from questions asked beside the event loop (`prepare`). Texts of known ids are made here.

Which tokenizer makes ids and texts: a local one, or the server's own where it lends it.

The tokenizer of a GGUF file, as llama.cpp itself reads it (through llama-cpp-python, without the weights).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
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

#: Names of tokens that llama.cpp ends a generation at, and of marks that end the thinking.
_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
)
_END_OF_THINKING, _START_OF_THINKING = "</think>", "<think>"
_MARKS = re.compile(r"<[^<>\s'\"]{1,40}>|\[/?[A-Z_]{2,20}\]")
#: Seconds: a call's limit, the first and the longest pause before it is made again, the patience on an event loop.
_CALL_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LOOP_PATIENCE_S = 10.0, 0.1, 1.0, 5.0
_CACHED = 1_024
_PIECES = {"parse_special": True, "with_pieces": True}
_TORN = "\ufffd"


class RemoteTokenizer:
    """A `Tokenizer` over `/tokenize`, `/detokenize` and `/apply-template`. `props` is what `/props` says.

    Any server that `join`s is asked. Raises `UpstreamError` where for the wire's `patience_s` none answers; on an event
    loop's thread, which stands still meanwhile, after 5 s.
    """

    def __init__(self, wire: HTTPClient, props: dict[str, Any], api_key: str | None) -> None:
        self._roots: tuple[str, ...] = (wire.root,)
        self._patience_s = wire.times.patience_s
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._bytes: dict[int, bytes] = {}
        self._encoded = functools.lru_cache(_CACHED)(self._encode)
        self._decoded = functools.lru_cache(_CACHED)(self._decode)
        self._rendered = functools.lru_cache(_CACHED)(self._render)
        template = str(props.get("chat_template", ""))
        self._bos = str(props.get("bos_token", "")) if self._adds_bos() else ""
        eos = str(props.get("eos_token", ""))
        special = {mark: self._special_id(mark) for mark in {*_MARKS.findall(template), *_ENDS, eos, self._bos} - {""}}
        known = {mark: token for mark, token in special.items() if token is not None}
        self.eos_ids = frozenset(known[mark] for mark in (eos, *_ENDS) if mark in known)
        start, end = self.encode(_START_OF_THINKING), self.encode(_END_OF_THINKING)
        thinks = len(end) == 1 or _END_OF_THINKING in template
        self.end_of_thinking: tuple[tuple[int, ...], ...] = (tuple(end),) if thinks else ()
        marks = frozenset(known.values()) | frozenset(start if len(start) == 1 else ())
        self.control_ids = marks - (frozenset(end) if len(end) == 1 else frozenset())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added; markers written in the text become their ids."""
        return list(self._encoded(text, True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control ids leave none, torn characters become U+FFFD."""
        kept = tuple(token for token in ids if token not in self.control_ids)
        known = [self._bytes.get(token) for token in kept]
        whole = b"".join(piece for piece in known if piece is not None)
        return self._decoded(kept) if None in known else whole.decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The model's chat template as the server applies it, with the BOS that it would put before."""
        return self._rendered(tuple((m["role"], m["content"]) for m in messages), enable_thinking)

    def join(self, root: str) -> None:
        """A further server of the model, to be asked where the others do not answer."""
        if root not in self._roots:
            self._roots = (*self._roots, root)

    def learn(self, spelled: Mapping[int, bytes]) -> None:
        """The bytes of tokens, from a reply that tells them."""
        self._bytes.update(spelled)

    async def prepare(self, wire: HTTPClient, ids: Sequence[int]) -> None:
        """Ask this server for what `decode` needs of `ids` and is not known. Raises `TransientError`."""
        if not self._unknown(ids):
            return
        try:
            text = _text(await wire.post(f"{wire.root}/detokenize", {"tokens": list(ids)}))
            self._learn(await wire.post(f"{wire.root}/tokenize", {"content": text, **_PIECES}))
            for token in self._unknown(ids):
                alone = _text(await wire.post(f"{wire.root}/detokenize", {"tokens": [token]}))
                if _TORN not in alone:
                    self._bytes[token] = alone.encode()
        except UnsupportedRequest:
            return  # `decode` will say so

    def _unknown(self, ids: Iterable[int]) -> list[int]:
        return [token for token in dict.fromkeys(ids) if token not in self._bytes and token not in self.control_ids]

    def _learn(self, found: Any) -> tuple[int, ...]:
        """The ids of `/tokenize`'s answer, whose pieces are kept. Older servers give ids alone."""
        entries = found.get("tokens") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise ProtocolError("the server's tokenizer gives no tokens")
        pairs = [(e.get("id"), e.get("piece")) if isinstance(e, dict) else (e, None) for e in entries]
        ids = token_ids([token for token, _ in pairs])
        spelled = {token: token_bytes(piece) for token, (_, piece) in zip(ids, pairs, strict=True)}
        self._bytes.update({token: piece for token, piece in spelled.items() if piece})
        return tuple(ids)

    def _render(self, messages: tuple[tuple[str, str], ...], enable_thinking: bool) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        body = {"messages": chat, "chat_template_kwargs": {"enable_thinking": enable_thinking}}
        try:
            text = str(self._call("/apply-template", body)["prompt"])
        except UnsupportedRequest as error:
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(self._bos) else self._bos + text

    def _adds_bos(self) -> bool:
        plain, whole = (self._tokens("a", add_special=special) for special in (False, True))
        return len(whole) > len(plain)

    def _special_id(self, mark: str) -> int | None:
        """The one id of a mark that is a special token; None for what is plain text to the model."""
        ids = self._encoded(mark, True)
        return ids[0] if len(ids) == 1 and ids != self._encoded(mark, False) else None

    def _encode(self, text: str, parse_special: bool) -> tuple[int, ...]:
        return self._tokens(text, parse_special=parse_special) if text else ()

    def _tokens(self, text: str, **options: bool) -> tuple[int, ...]:
        return self._learn(self._call("/tokenize", {"content": text, "with_pieces": True, **options}))

    def _decode(self, ids: tuple[int, ...]) -> str:
        return _text(self._call("/detokenize", {"tokens": list(ids)}))

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask one server after another until one answers or the patience is at its end."""
        patience_s = min(self._patience_s, _LOOP_PATIENCE_S) if _on_an_event_loop() else self._patience_s
        end, pause = time.monotonic() + patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return self._of_any(path, body, min(_CALL_S, patience_s))
            except TransientError as fault:
                if time.monotonic() + pause > end:
                    raise UpstreamError(f"The server's tokenizer cannot be asked: {fault}.") from fault
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _of_any(self, path: str, body: dict[str, Any], limit_s: float) -> dict[str, Any]:
        *others, last = self._roots
        for root in others:
            with contextlib.suppress(TransientError):
                return self._once(root + path, body, limit_s)
            self._roots = (*(r for r in self._roots if r != root), root)  # whoever answers is asked first
        return self._once(last + path, body, limit_s)

    def _once(self, url: str, body: dict[str, Any], limit_s: float) -> dict[str, Any]:
        try:
            with httpx2.Client(verify=ssl_context(), headers=self._headers, timeout=limit_s) as client:
                response = client.post(url, json=body)
            found = response.json()
        except httpx2.ConnectError as error:
            raise TransientError(f"{url} cannot be reached") from error
        except (httpx2.RequestError, ValueError) as error:
            raise TransientError(f"{url}: {type(error).__name__}") from error
        if response.status_code >= 300:
            raise error_from_response(url, response.status_code, found, response.headers)
        if not isinstance(found, dict) or not {"tokens", "content", "prompt"} & found.keys():
            raise TransientError(f"{url} answers something else")
        return found


def _text(found: Any) -> str:
    text = found.get("content") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise ProtocolError("the server's tokenizer gives no text")
    return text


def _on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def choose_tokenizer(upstream: Upstream, model: str, wire: HTTPClient, props: dict[str, Any]) -> Tokenizer:
    """The tokenizer that was named, else the one that the server lends, else that of the model's folder or hub id.

    `props`: what llama.cpp's server says of itself, {} of another. Raises `ModelError`.
    """
    if upstream.tokenizer is not None:
        return local_tokenizer(upstream.tokenizer)
    if props:
        return RemoteTokenizer(wire, props, upstream.api_key)
    if not _reads_like_a_model(model):
        raise _no_tokenizer(model, "")
    try:
        return local_tokenizer(model)
    except ModelError as error:
        raise _no_tokenizer(model, f" ({str(error).rstrip('.')})") from error


def local_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a GGUF file, a folder or a hub id."""
    if name.endswith(".gguf"):
        return GGUFTokenizer(Path(name).expanduser())
    from ..tokenizers import load_tokenizer

    return load_tokenizer(name)


def _reads_like_a_model(model: str) -> bool:
    return (Path(model) / "config.json").is_file() or (model.count("/") == 1 and not model.startswith((".", "/", "~")))


def _no_tokenizer(model: str, cause: str) -> ModelError:
    return ModelError(
        f"The server lends no tokenizer, and none is known for its model {model!r}{cause}; tokens are never counted by "
        "words, so name the model's folder or hub id with --tokenizer."
    )


_END_OF_THINKING, _START_OF_THINKING = "</think>", "<think>"
_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)


class GGUFTokenizer:
    """A `Tokenizer` over the vocabulary and the chat template in a GGUF file. Raises `ModelError`."""

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise ModelError(
                f"To read the tokenizer of {str(path)!r} llama-cpp-python is needed (pip install llama-cpp-python); or "
                "give the model's folder or hub id."
            ) from error
        # It warns about a context that is never used.
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        try:
            self._model: Any = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        except Exception as error:  # llama.cpp's own words for a file that it cannot read
            raise ModelError(f"The tokenizer in {str(path)!r} cannot be loaded: {error}.") from error
        vocabulary = self._model._model.vocab
        tokens = range(self._model.n_vocab())
        self._template = str(self._model.metadata.get("tokenizer.chat_template", ""))
        self.eos_ids = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, i))
        control = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_control(vocabulary, i))
        start, end = self.encode(_START_OF_THINKING), self.encode(_END_OF_THINKING)
        thinks = len(end) == 1 or _END_OF_THINKING in self._template
        self.end_of_thinking: tuple[tuple[int, ...], ...] = (tuple(end),) if thinks else ()
        marks = control | self.eos_ids | frozenset(start if len(start) == 1 else ())
        self.control_ids = marks - (frozenset(end) if len(end) == 1 else frozenset())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added; markers written in the text become their ids."""
        return list(self._model.tokenize(text.encode("utf-8", "replace"), add_bos=False, special=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control ids leave none, torn characters become U+FFFD."""
        kept = [token for token in ids if token not in self.control_ids]
        # A token before the others keeps the first one's space.
        return bytes(self._model.detokenize(kept, prev_tokens=[0], special=True)).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The file's chat template; without one, the contents in order."""
        bos, eos = (self._piece(token) for token in (self._model.token_bos(), self._model.token_eos()))
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
                raise_exception=_refuse,
            )
        except Exception as error:  # templates are the model maker's code; many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(first) else first + text

    def _piece(self, token: int) -> str:
        if token < 0:
            return ""
        return bytes(self._model.detokenize([token], prev_tokens=[0], special=True)).decode("utf-8", "replace")


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

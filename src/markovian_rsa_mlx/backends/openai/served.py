"""The tokenizer that llama.cpp's server lends: exact, without a file of the model at hand.

Calls wait for their answer, so few are made: what a token's bytes are is kept, from texts that were encoded, from
replies that tell it, and from questions asked beside the event loop (`prepare`). Texts of known ids are made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx2

from ...errors import PromptError, UpstreamError
from ...method.codec import ChatMessage
from .dialects.base import token_bytes, token_ids
from .faults import Fault, Misread, Unsupported, refusal
from .wire import Wire, ssl_context

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


class ServedCodec:
    """A `Codec` over `/tokenize`, `/detokenize` and `/apply-template`. `props` is what `/props` says.

    Any server that `join`s is asked. Raises `UpstreamError` where for the wire's `patience_s` none answers; on an event
    loop's thread, which stands still meanwhile, after 5 s.
    """

    def __init__(self, wire: Wire, props: dict[str, Any], api_key: str | None) -> None:
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

    async def prepare(self, wire: Wire, ids: Sequence[int]) -> None:
        """Ask this server for what `decode` needs of `ids` and is not known. Raises `Fault`."""
        if not self._unknown(ids):
            return
        try:
            text = _text(await wire.post(f"{wire.root}/detokenize", {"tokens": list(ids)}))
            self._learn(await wire.post(f"{wire.root}/tokenize", {"content": text, **_PIECES}))
            for token in self._unknown(ids):
                alone = _text(await wire.post(f"{wire.root}/detokenize", {"tokens": [token]}))
                if _TORN not in alone:
                    self._bytes[token] = alone.encode()
        except Unsupported:
            return  # `decode` will say so

    def _unknown(self, ids: Iterable[int]) -> list[int]:
        return [token for token in dict.fromkeys(ids) if token not in self._bytes and token not in self.control_ids]

    def _learn(self, found: Any) -> tuple[int, ...]:
        """The ids of `/tokenize`'s answer, whose pieces are kept. Older servers give ids alone."""
        entries = found.get("tokens") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise Misread("the server's tokenizer gives no tokens")
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
        except Unsupported as error:
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
            except Fault as fault:
                if time.monotonic() + pause > end:
                    raise UpstreamError(f"The server's tokenizer cannot be asked: {fault}.") from fault
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _of_any(self, path: str, body: dict[str, Any], limit_s: float) -> dict[str, Any]:
        *others, last = self._roots
        for root in others:
            with contextlib.suppress(Fault):
                return self._once(root + path, body, limit_s)
            self._roots = (*(r for r in self._roots if r != root), root)  # whoever answers is asked first
        return self._once(last + path, body, limit_s)

    def _once(self, url: str, body: dict[str, Any], limit_s: float) -> dict[str, Any]:
        try:
            with httpx2.Client(verify=ssl_context(), headers=self._headers, timeout=limit_s) as client:
                response = client.post(url, json=body)
            found = response.json()
        except httpx2.ConnectError as error:
            raise Fault(f"{url} cannot be reached") from error
        except (httpx2.RequestError, ValueError) as error:
            raise Fault(f"{url}: {type(error).__name__}") from error
        if response.status_code >= 300:
            raise refusal(url, response.status_code, found, response.headers)
        if not isinstance(found, dict) or not {"tokens", "content", "prompt"} & found.keys():
            raise Fault(f"{url} answers something else")
        return found


def _text(found: Any) -> str:
    text = found.get("content") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise Misread("the server's tokenizer gives no text")
    return text


def _on_an_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

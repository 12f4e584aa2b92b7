"""The tokenizer that llama.cpp's server lends: exact, without a file of the model at hand.

Calls are short and wait for their answer: encoding happens as a run is set up, decoding once or twice a trace.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import stamina

from ...errors import PromptError, UpstreamError
from ...method.codec import ChatMessage
from .faults import Fault, Unreachable, Unsupported, refusal
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
_CALL_S, _TRIES = 10.0, 6
_CACHED = 1_024


class ServedCodec:
    """A `Codec` over `/tokenize`, `/detokenize` and `/apply-template`. `props` is what `/props` says.

    Raises `UpstreamError` where the server is gone.
    """

    def __init__(self, wire: Wire, props: dict[str, Any], api_key: str | None) -> None:
        self._root, self._headers = wire.root, {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._encoded = functools.lru_cache(_CACHED)(self._encode)
        self._decoded = functools.lru_cache(_CACHED)(self._decode)
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
        return self._decoded(kept) if kept else ""

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The model's chat template as the server applies it, with the BOS that it would put before."""
        body = {"messages": list(messages), "chat_template_kwargs": {"enable_thinking": enable_thinking}}
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
        return tuple(int(token) for token in self._call("/tokenize", {"content": text, **options})["tokens"])

    def _decode(self, ids: tuple[int, ...]) -> str:
        return str(self._call("/detokenize", {"tokens": list(ids)})["content"])

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        passing: Callable[[Exception], bool] = lambda error: isinstance(error, Fault)  # noqa: E731
        try:
            for attempt in stamina.retry_context(passing, attempts=_TRIES, timeout=None, wait_jitter=0.2, wait_max=1.0):
                with attempt:
                    return self._once(self._root + path, body)
        except Fault as fault:
            raise UpstreamError(f"The server's tokenizer cannot be asked: {fault}.") from fault
        raise AssertionError("unreachable")

    def _once(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            with httpx2.Client(verify=ssl_context(), headers=self._headers, timeout=_CALL_S) as client:
                response = client.post(url, json=body)
            found = response.json()
        except httpx2.ConnectError as error:
            raise Unreachable(f"{url} cannot be reached") from error
        except (httpx2.RequestError, ValueError) as error:
            raise Fault(f"{url}: {type(error).__name__}") from error
        if response.status_code >= 300:
            raise refusal(url, response.status_code, found, response.headers)
        if not isinstance(found, dict) or not {"tokens", "content", "prompt"} & found.keys():
            raise Fault(f"{url} answers something else")
        return found

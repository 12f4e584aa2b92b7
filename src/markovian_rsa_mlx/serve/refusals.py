"""Keys of the OpenAI protocol that this server cannot honour: refused with a sentence, never dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .errors import RequestError
from .request import ChatRequest

#: What a key may be although nothing is done about it, and why it cannot be anything else.
_HARMLESS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "stop": (lambda v: not v, "a trace ends where the model ends it or at max_tokens; cut the text yourself"),
    "logprobs": (lambda v: not v, "log probabilities are not kept"),
    "top_logprobs": (lambda v: v == 0, "log probabilities are not kept"),
    "logit_bias": (lambda v: not v, "the sampler knows temperature, top_p, top_k and min_p"),
    "frequency_penalty": (lambda v: v == 0, "the sampler knows temperature, top_p, top_k and min_p"),
    "presence_penalty": (lambda v: v == 0, "the sampler knows temperature, top_p, top_k and min_p"),
    "repetition_penalty": (lambda v: v == 1, "the sampler knows temperature, top_p, top_k and min_p"),
    "tools": (lambda v: not v, "this server has no tools"),
    "tool_choice": (lambda v: v in ("none", "auto"), "this server has no tools"),
    "functions": (lambda v: not v, "this server has no tools"),
    "function_call": (lambda v: v in ("none", "auto"), "this server has no tools"),
    "response_format": (
        lambda v: v == {"type": "text"},
        "the model's text is not constrained; ask for the form in words",
    ),
    "modalities": (lambda v: v == ["text"], "answers are text"),
    "store": (lambda v: not v, "rsa_trail keeps a trail"),
    "reasoning_effort": (lambda v: v == "none", "it may be none; short_resp_len and rsa_t say how much is thought"),
}


def refuse_what_would_be_lost(asked: ChatRequest) -> None:
    """Raise `RequestError` for the first key whose value would have no effect."""
    for key, (harmless, reason) in _HARMLESS.items():
        value = getattr(asked, key)
        if value is not None and not harmless(value):
            raise RequestError(400, f"{key} is not supported: {reason}.", "unsupported_key", key)
    if asked.stream_options is not None and not asked.stream:
        raise RequestError(400, "stream_options needs stream: true; leave it out.", param="stream_options")

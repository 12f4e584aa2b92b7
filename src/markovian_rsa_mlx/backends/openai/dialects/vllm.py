"""vLLM (0.10.2 and later), and servers that speak like it: prompts are ids, and so are the pieces of the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..faults import Misread
from .base import Ask, Reply, first_choice, sampling_body, token_ids


@dataclass(frozen=True)
class VLLMDialect:
    """`POST /v1/completions` with `return_token_ids: true`."""

    prompt_as: Literal["ids"] = "ids"
    gives_ids: bool = True
    streams: bool = True
    segment: None = None
    costly_seeds: bool = False
    path: str = "/completions"

    def body(self, ask: Ask) -> dict[str, Any]:
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

    def read(self, payload: Any, reply: Reply) -> None:
        choice = first_choice(payload, reply)
        if not choice:
            return
        if choice.get("token_ids") is not None:
            reply.ids += token_ids(choice["token_ids"])
        elif choice.get("text"):
            raise Misread("the server streams text without its token ids")

"""Servers that complete texts and tell no ids (LM Studio, Ollama, llama-cpp-python): the tokenizer makes the ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .base import Ask, Reply, first_choice, sampling_body


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

    def body(self, ask: Ask) -> dict[str, Any]:
        return {"model": ask.model, "prompt": ask.prompt_text, **streamed(ask, self.plain)}

    def read(self, payload: Any, reply: Reply) -> None:
        choice = first_choice(payload, reply)
        if isinstance(choice.get("text"), str):
            reply.pieces.append(choice["text"])


def streamed(ask: Ask, plain: bool) -> dict[str, Any]:
    """A stream with its usage, and the sampling by the usual names of what OpenAI's protocol lacks.

    All of it is said, so that no server's defaults sample along.
    """
    body = {"stream": True, "stream_options": {"include_usage": True}, **sampling_body(ask)}
    if plain:
        return body
    sampling = ask.sampling
    return {**body, "top_k": sampling.top_k, "min_p": sampling.min_p, "repeat_penalty": 1.0}

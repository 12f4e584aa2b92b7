"""mlx_lm.server (0.32.2): ids stand in the log-probabilities of a whole reply, and only there.

So replies are not streamed. Prompts are texts, which it tokenises itself; a seed makes a request run alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ....config import Sampling
from ..faults import Misread
from .base import Ask, Reply, first_choice, sampling_body, token_ids


@dataclass(frozen=True)
class MLXServerDialect:
    """`POST /v1/completions` with `logprobs: true`."""

    prompt_as: Literal["text"] = "text"
    gives_ids: bool = True
    streams: bool = False
    segment: None = None
    costly_seeds: bool = True
    path: str = "/completions"

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "model": ask.model,
            "prompt": ask.prompt_text,
            "top_k": ask.sampling.top_k,
            "min_p": ask.sampling.min_p,
            "logprobs": True,
            **sampling_body(ask),
        }

    def read(self, payload: Any, reply: Reply) -> None:
        choice = first_choice(payload, reply)
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise Misread("the reply holds no token ids")
        reply.ids += token_ids([entry.get("id") for entry in content])
        reply.log_chance = _log_chance([entry.get("logprob") for entry in content], reply.sampling)


def _log_chance(logprobs: list[Any], sampling: Sampling) -> float | None:
    """A bound above the log of the chance: the log-probabilities are those of temperature 1 without filters.

    A temperature T of 1 and up takes p to p^(1/T) over a sum that is at least 1. Below it nothing can be said.
    """
    plain = sampling == Sampling(temperature=sampling.temperature) and sampling.temperature >= 1
    known = [logprob for logprob in logprobs if isinstance(logprob, float) and math.isfinite(logprob)]
    return sum(known) / sampling.temperature if plain and len(known) == len(logprobs) else None

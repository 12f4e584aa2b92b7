"""llama.cpp's server (`llama-server`), through its own `/completion`: ids in, ids out.

Its stream leaves out the ids of characters that are not whole yet, so replies are not streamed but asked for in
segments, each going on exactly where the one before ended; the server keeps the cache of what it has read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..faults import Misread
from .base import Ask, Reply, token_bytes, token_ids

_SEGMENT_TOKENS = 256


@dataclass(frozen=True)
class LlamaCppDialect:
    """`POST /completion` with `return_tokens: true`."""

    prompt_as: Literal["ids"] = "ids"
    gives_ids: bool = True
    streams: bool = False
    segment: int = _SEGMENT_TOKENS
    costly_seeds: bool = False
    path: str = "//completion"

    def body(self, ask: Ask) -> dict[str, Any]:
        body = {
            "prompt": list(ask.prompt_ids),
            "n_predict": ask.max_tokens,
            "temperature": ask.sampling.temperature,
            "top_k": ask.sampling.top_k,
            "top_p": ask.sampling.top_p,
            "min_p": ask.sampling.min_p,
            # The server's other samplers off, whatever it was started with.
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
            "mirostat": 0,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
            "n_probs": 1,
            "post_sampling_probs": True,
        }
        return body if ask.seed is None else {**body, "seed": ask.seed}

    def read(self, payload: Any, reply: Reply) -> None:
        if not isinstance(payload, dict):
            raise Misread("the reply is no completion")
        ids = token_ids(payload.get("tokens"))
        if payload.get("tokens_predicted") != len(ids):
            raise Misread(f"the reply holds {len(ids)} token ids of {payload.get('tokens_predicted')}")
        ends: dict[Any, Literal["stop", "length"]] = {"eos": "stop", "limit": "length"}
        kind = payload.get("stop_type")
        if kind not in ends:
            raise Misread(f"the server ended the trace with the stop type {str(kind)[:40]!r}")
        reply.ids += ids
        reply.finish, reply.truncated = ends[kind], bool(payload.get("truncated"))
        entries = payload.get("completion_probabilities")
        # It leaves out the tokens of a torn character, and gives their bytes to the one behind them.
        if isinstance(entries, list) and len(entries) == len(ids) and all(isinstance(e, dict) for e in entries):
            reply.log_chance = _log_chance([entry.get("prob") for entry in entries])
            reply.spelled = _spelled(entries, ids)


def _log_chance(chances: list[Any]) -> float | None:
    """The log of the chance that the sampling gave to just these tokens."""
    known = [float(chance) for chance in chances if isinstance(chance, int | float) and 0 < chance <= 1]
    return sum(map(math.log, known)) if len(known) == len(chances) else None


def _spelled(entries: list[Any], ids: list[int]) -> dict[int, bytes]:
    """The bytes of the tokens; special ones are told without any, and left out."""
    pairs = zip(ids, entries, strict=True)
    spelled = {token: token_bytes(entry.get("bytes")) for token, entry in pairs if entry.get("id") == token}
    return {token: piece for token, piece in spelled.items() if piece}

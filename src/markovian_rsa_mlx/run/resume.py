"""Whether a recorded run is the one asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ..audit import RunHistory
from ..audit.events import RunSetupEvent, RunStartEvent
from ..backends.base import Backend
from ..config import RSAConfig
from ..errors import ResumeError
from ..method.codec import ChatMessage
from ..method.lineage import LINEAGE_VERSION
from ..method.prompts import PromptTemplate

#: Settings that change how a run is carried out but not what it computes.
FREE_SETTINGS = frozenset({"concurrency", "memory_limit_gb", "max_retries", "token_budget", "time_budget_s"})


def check_same_run(
    history: RunHistory, path: Path, messages: Sequence[ChatMessage], config: RSAConfig, backend: Backend
) -> RunSetupEvent:
    """The recorded setup; raises `ResumeError` with the first difference to what is asked for."""
    start, setup = history.start, history.setup
    assert start is not None
    assert setup is not None

    def refuse(what: str, recorded: object, asked: object) -> ResumeError:
        return ResumeError(
            f"The audit file {path} holds a run with another {what}: {_short(recorded)} there, {_short(asked)} asked "
            "for; ask for the same, or write to another file."
        )

    if [dict(m) for m in messages] != setup.messages:
        recorded, asked = setup.messages[-1]["content"], messages[-1]["content"]
        raise (
            refuse("prompt", *_where_they_differ(recorded, asked))
            if recorded != asked
            else refuse("chat before the prompt", setup.messages[:-1], list(messages[:-1]))
        )
    if start.model_id != backend.info.model_id:
        raise refuse("model", start.model_id, backend.info.model_id)
    if start.quantization != backend.info.quantization:
        raise refuse("quantization of the model", start.quantization, backend.info.quantization)
    for name, asked in config.to_dict().items():
        recorded = getattr(start.config, name)
        if name not in FREE_SETTINGS and recorded != asked and not (name == "seed" and asked is None):
            raise refuse(name, recorded, asked)
    if PromptTemplate.load(config.template).source != setup.template_source:
        raise refuse("text of the template", setup.template_source, config.template)
    if setup.lineage_version != LINEAGE_VERSION:
        raise refuse("version of the lineage hash", setup.lineage_version, LINEAGE_VERSION)
    if backend.codec.encode(setup.prompt_text) != setup.prompt_token_ids:
        raise refuse("tokenizer", f"{len(setup.prompt_token_ids)} ids of the prompt", "another tokenisation")
    return setup


def resumed_config(start: RunStartEvent, config: RSAConfig) -> RSAConfig:
    """The recorded settings, with the free ones as asked for now."""
    return dataclasses.replace(start.config, **{name: getattr(config, name) for name in FREE_SETTINGS})


def elapsed_before(history: RunHistory, last_written: float) -> float:
    """Seconds of the earlier sittings: what they recorded, and the last one until its last write."""
    assert history.start is not None
    last = history.resumes[-1] if history.resumes else None
    began = datetime.fromisoformat(last.created_at if last else history.start.created_at).timestamp()
    told = (last.elapsed_before_s if last else 0.0) + max(0.0, last_written - began)
    return max(told, history.clock_s)  # the file's time may have been changed since


def unfinished_tokens(history: RunHistory | None) -> int:
    """Tokens that earlier sittings generated for traces that are not finished yet."""
    traces = history.traces.values() if history is not None else ()
    return sum(len(t.checkpoint_ids) for t in traces if t.complete is None or t.given_up)


def given_up(history: RunHistory) -> list[str]:
    """A warning for each trace that was given up for good."""
    return [f"{t.trace_id} was given up" for t in history.traces.values() if t.given_up]


def _where_they_differ(first: str, second: str) -> tuple[str, str]:
    """Both texts from shortly before their first difference."""
    pairs = enumerate(zip(first, second, strict=False))
    start = max(0, next((i for i, (a, b) in pairs if a != b), min(len(first), len(second))) - 20)
    return first[start:], second[start:]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

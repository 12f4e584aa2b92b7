"""One sitting of a run: its trail is opened, and its first events are written.

A run's setup: everything that its prompts and tails are derived from, made once and recorded.

A fresh run and a resumed one build their prompts from the same event, so that they cannot differ.

Whether a recorded run is the one asked for.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ..audit import RunState
from ..audit.events import RunResumedEvent, RunSetupEvent, RunStartEvent
from ..backends.base import Engine
from ..config import FREE_SETTINGS, RSAConfig
from ..errors import ContextLengthError, MemoryLimitError, ResumeError
from ..method.lineage import LINEAGE_VERSION, SEED_LIMIT, Lineage, Purpose
from ..method.prompts import (
    QUOTE,
    ChatFrame,
    Prompt,
    PromptBuilder,
    PromptTemplate,
    chat_frame,
    framed,
    summary_segments,
    summary_template,
)
from ..method.tails import Tail
from ..tokenizer import ChatMessage, Tokenizer
from .audit_log import AuditLog, OnEvent


class RunSession:
    """One sitting of a run: fresh, or going on from what the trail holds."""

    def __init__(self, config: RSAConfig, setup: RunSetupEvent, trail: AuditLog, elapsed_before_s: float = 0.0) -> None:
        self.config, self.setup = config, setup
        self.trail, self.elapsed_before_s = trail, elapsed_before_s

    @classmethod
    async def begin(
        cls, backend: Engine, messages: list[ChatMessage], config: RSAConfig, trail: AuditLog
    ) -> RunSession:
        """Write the trail's first events of this sitting. Tokenizing goes on on a thread: a prompt can be megabytes."""
        if trail.history is None:
            return await cls._start(backend, messages, config, trail)
        return await cls._resume(backend, messages, config, trail, trail.history)

    @classmethod
    async def _start(
        cls, backend: Engine, messages: list[ChatMessage], config: RSAConfig, trail: AuditLog
    ) -> RunSession:
        seed = secrets.randbelow(SEED_LIMIT) if config.seed is None else config.seed
        config = config.replace(seed=seed)
        run_id = secrets.token_hex(8)
        setup = await asyncio.to_thread(make_setup, run_id, seed, messages, config, backend)
        check_context(config, setup, backend.info.context_length)
        check_memory(config, setup, backend)
        trail.run_id = run_id
        info = backend.info
        prompt = messages[-1]["content"]
        trail.write(RunStartEvent(run_id, info.model_id, info.quantization, config, prompt, now()))
        trail.write(setup)
        trail.sync()
        return cls(config, setup, trail)

    @classmethod
    async def _resume(
        cls, backend: Engine, messages: list[ChatMessage], config: RSAConfig, trail: AuditLog, history: RunState
    ) -> RunSession:
        assert history.start is not None
        assert trail.path is not None
        assert trail.last_written is not None
        setup = await asyncio.to_thread(check_same_run, history, trail.path, messages, config, backend)
        trail.run_id = setup.run_id
        config = resumed_config(history.start, config)
        if history.finished:
            return cls(config, setup, trail)
        elapsed_s = elapsed_before(history, trail.last_written)
        trail.write(
            RunResumedEvent(
                setup.run_id,
                now(),
                package_version(),
                config.concurrency,
                config.memory_limit_gb,
                config.max_retries,
                config.token_budget,
                config.time_budget_s,
                elapsed_s,
                trail.dropped_bytes,
            )
        )
        return cls(config, setup, trail, elapsed_s)


async def open_trail(path: Path | str | None, on_event: OnEvent | None) -> AuditLog:
    """The trail; what it holds is read on a thread. Whoever is cancelled meanwhile leaves no file open."""
    opening = asyncio.get_running_loop().run_in_executor(None, AuditLog, path, on_event)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opened: asyncio.Future[AuditLog]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()


@functools.cache
def package_version() -> str:
    """The installed version of this package."""
    return metadata.version("markovian-rsa-mlx")


def now() -> str:
    """The time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def make_setup(
    run_id: str, seed: int, messages: Sequence[ChatMessage], config: RSAConfig, backend: Engine
) -> RunSetupEvent:
    """The setup of a fresh run. Raises `TemplateError` for a template that cannot be used."""
    tokenizer, info = backend.tokenizer, backend.info
    template = PromptTemplate.load(config.template)
    frame = chat_frame(tokenizer, messages, config.enable_thinking)
    problem = messages[-1]["content"]
    largest = Lineage.of(config, seed).max_parents
    prompter = PromptBuilder(tokenizer, template, frame, problem, config.carry, largest)
    prompt_text = tokenizer.render_chat(messages, config.enable_thinking)
    summary_source, summary = "", list[str]()
    if config.carry == "summary":
        asking = summary_template(config.summary_prompt)
        summary_source = asking.source
        # A summary is no reasoning: the chat is rendered without thinking, where the model can do that.
        summary = framed(summary_segments(asking, problem), chat_frame(tokenizer, messages, False))
    return RunSetupEvent(
        run_id=run_id,
        seed=seed,
        messages=[{"role": m["role"], "content": m["content"]} for m in messages],
        prompt_text=prompt_text,
        prompt_token_ids=tokenizer.encode(prompt_text),
        template_name=template.name,
        template_source=template.source,
        chat_prefix=frame.prefix,
        chat_suffix=frame.suffix,
        segments=list(prompter.segments.values()),
        segment_token_ids=[[list(ids) for ids in pieces] for pieces in prompter.segment_ids.values()],
        quote_token_ids=tokenizer.encode(QUOTE),
        summary_source=summary_source,
        summary_segments=summary,
        summary_segment_token_ids=[tokenizer.encode(piece) for piece in summary],
        end_of_thinking=[list(marker) for marker in tokenizer.end_of_thinking],
        end_of_thinking_texts=[tokenizer.decode(marker) for marker in tokenizer.end_of_thinking],
        eos_token_ids=sorted(tokenizer.eos_ids),
        control_token_ids=sorted(tokenizer.control_ids),
        package_version=package_version(),
        lineage_version=LINEAGE_VERSION,
        engine=info.engine,
        engine_version=info.engine_version,
        dtype=info.dtype,
        context_length=info.context_length,
        max_rows=info.max_rows,
        memory_limit_bytes=info.memory_limit_bytes,
    )


def longest_sequence(config: RSAConfig, setup: RunSetupEvent) -> int:
    """Tokens of the longest sequence that the run can need: a prompt at its largest, and its budget."""
    budgets = [config.max_tokens(t) for t in range(config.rounds + 1)]
    needs = [len(setup.prompt_token_ids) + budgets[0]]
    for count, pieces in enumerate(setup.segment_token_ids, start=1):
        needs.append(sum(map(len, pieces)) + count * config.tail_limit + max(budgets[1:], default=config.final_tokens))
    if setup.summary_segment_token_ids:
        needs.append(sum(map(len, setup.summary_segment_token_ids)) + config.thinking_tokens + config.tail_limit)
    return max(needs)


def check_context(config: RSAConfig, setup: RunSetupEvent, context_length: int | None) -> None:
    """Raise `ContextLengthError` if a sequence of this run could outgrow the model's context."""
    need = longest_sequence(config, setup)
    if context_length is not None and need > context_length:
        raise ContextLengthError(
            f"The run can need {need:,} tokens of context (prompt {len(setup.prompt_token_ids):,}, "
            f"{config.parents_per_trace} tails of {config.tail_limit:,}, budget {config.final_tokens:,}) but the model "
            f"has {context_length:,}; lower thinking_tokens, tail_tokens, final_tokens or aggregation_size."
        )


def check_memory(config: RSAConfig, setup: RunSetupEvent, backend: Engine) -> None:
    """Raise `MemoryLimitError` if a sequence of this run could outgrow the engine's memory, before anything is done."""
    longest, limit = longest_sequence(config, setup), backend.info.memory_limit_bytes
    need = backend.memory_estimate_bytes(1, longest)
    if limit is not None and need > limit:
        raise MemoryLimitError(
            f"One trace of this run can need {longest:,} tokens, {need / 1e9:.2f} GB with the model's weights, and the "
            f"limit is {limit / 1e9:.2f} GB; lower thinking_tokens, tail_tokens, final_tokens or aggregation_size."
        )


class Prompts:
    """Builds every prompt of a run from its setup."""

    def __init__(self, tokenizer: Tokenizer, setup: RunSetupEvent) -> None:
        self.round_zero = Prompt(setup.prompt_text, tuple(setup.prompt_token_ids))
        self._tokenizer, self._setup = tokenizer, setup
        self._aggregation = PromptBuilder.recorded(
            tokenizer, setup.segments, setup.segment_token_ids, setup.quote_token_ids
        )

    def aggregation(self, tails: Sequence[Tail]) -> Prompt:
        """The prompt that shows these tails."""
        return self._aggregation.build(tails)

    def summary(self, notes: Tail) -> Prompt:
        """The prompt that asks for a summary of a trace's reasoning."""
        (before, after), (ids_before, ids_after) = self._setup.summary_segments, self._setup.summary_segment_token_ids
        return Prompt(before + notes.text + after, (*ids_before, *notes.token_ids, *ids_after))

    def messages(self, prompt: Prompt, purpose: Purpose = "trace") -> tuple[ChatMessage, ...]:
        """The same prompt as a chat, for engines that take no token ids."""
        chat = tuple(ChatMessage(role=m["role"], content=m["content"]) for m in self._setup.messages)
        if prompt == self.round_zero:
            return chat
        frame = ChatFrame(self._setup.chat_prefix, self._setup.chat_suffix)
        if purpose == "summary":
            frame = chat_frame(self._tokenizer, chat, False)
        content = prompt.text.removeprefix(frame.prefix).removesuffix(frame.suffix)
        return (*chat[:-1], ChatMessage(role="user", content=content))


def check_same_run(
    history: RunState, path: Path, messages: Sequence[ChatMessage], config: RSAConfig, backend: Engine
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
    if backend.tokenizer.encode(setup.prompt_text) != setup.prompt_token_ids:
        raise refuse("tokenizer", f"{len(setup.prompt_token_ids)} ids of the prompt", "another tokenisation")
    return setup


def resumed_config(start: RunStartEvent, config: RSAConfig) -> RSAConfig:
    """The recorded settings, with the free ones as asked for now."""
    return dataclasses.replace(start.config, **{name: getattr(config, name) for name in FREE_SETTINGS})


def elapsed_before(history: RunState, last_written: float) -> float:
    """Seconds of the earlier sittings: what they recorded, and the last one until its last write."""
    assert history.start is not None
    last = history.resumes[-1] if history.resumes else None
    began = datetime.fromisoformat(last.created_at if last else history.start.created_at).timestamp()
    told = (last.elapsed_before_s if last else 0.0) + max(0.0, last_written - began)
    return max(told, history.clock_s)  # the file's time may have been changed since


def unfinished_tokens(history: RunState | None) -> int:
    """Tokens that earlier sittings generated for traces that are not finished yet."""
    traces = history.traces.values() if history is not None else ()
    return sum(len(t.checkpoint_ids) for t in traces if t.complete is None or t.given_up)


def _where_they_differ(first: str, second: str) -> tuple[str, str]:
    """Both texts from shortly before their first difference."""
    pairs = enumerate(zip(first, second, strict=False))
    start = max(0, next((i for i, (a, b) in pairs if a != b), min(len(first), len(second))) - 20)
    return first[start:], second[start:]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

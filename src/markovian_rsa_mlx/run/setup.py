"""A run's setup: everything that its prompts and tails are derived from, made once and recorded.

A fresh run and a resumed one build their prompts from the same event, so that they cannot differ.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata

from ..audit.events import RunSetupEvent
from ..backends.base import Backend
from ..config import RSAConfig
from ..errors import ContextLengthError, MemoryLimitError
from ..method.codec import ChatMessage, Codec
from ..method.lineage import LINEAGE_VERSION, Lineage, Purpose
from ..method.prompts import (
    QUOTE,
    AggregationPrompter,
    ChatFrame,
    Prompt,
    PromptTemplate,
    chat_frame,
    framed,
    summary_segments,
    summary_template,
)
from ..method.tails import Tail


@functools.cache
def package_version() -> str:
    """The installed version of this package."""
    return metadata.version("markovian-rsa-mlx")


def now() -> str:
    """The time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def make_setup(
    run_id: str, seed: int, messages: Sequence[ChatMessage], config: RSAConfig, backend: Backend
) -> RunSetupEvent:
    """The setup of a fresh run. Raises `TemplateError` for a template that cannot be used."""
    codec, info = backend.codec, backend.info
    template = PromptTemplate.load(config.template)
    frame = chat_frame(codec, messages, config.enable_thinking)
    problem = messages[-1]["content"]
    largest = Lineage.of(config, seed).largest_parent_count
    prompter = AggregationPrompter(codec, template, frame, problem, config.carry, largest)
    prompt_text = codec.render_chat(messages, config.enable_thinking)
    summary_source, summary = "", list[str]()
    if config.carry == "summary":
        asking = summary_template(config.summary_prompt)
        summary_source = asking.source
        # A summary is no reasoning: the chat is rendered without thinking, where the model can do that.
        summary = framed(summary_segments(asking, problem), chat_frame(codec, messages, False))
    return RunSetupEvent(
        run_id=run_id,
        seed=seed,
        messages=[{"role": m["role"], "content": m["content"]} for m in messages],
        prompt_text=prompt_text,
        prompt_token_ids=codec.encode(prompt_text),
        template_name=template.name,
        template_source=template.source,
        chat_prefix=frame.prefix,
        chat_suffix=frame.suffix,
        segments=list(prompter.segments.values()),
        segment_token_ids=[[list(ids) for ids in pieces] for pieces in prompter.segment_ids.values()],
        quote_token_ids=codec.encode(QUOTE),
        summary_source=summary_source,
        summary_segments=summary,
        summary_segment_token_ids=[codec.encode(piece) for piece in summary],
        end_of_thinking=[list(marker) for marker in codec.end_of_thinking],
        end_of_thinking_texts=[codec.decode(marker) for marker in codec.end_of_thinking],
        eos_token_ids=sorted(codec.eos_ids),
        control_token_ids=sorted(codec.control_ids),
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
    budgets = [config.budget(t) for t in range(config.rounds + 1)]
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


def check_memory(config: RSAConfig, setup: RunSetupEvent, backend: Backend) -> None:
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

    def __init__(self, codec: Codec, setup: RunSetupEvent) -> None:
        self.round_zero = Prompt(setup.prompt_text, tuple(setup.prompt_token_ids))
        self._codec, self._setup = codec, setup
        self._aggregation = AggregationPrompter.recorded(
            codec, setup.segments, setup.segment_token_ids, setup.quote_token_ids
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
            frame = chat_frame(self._codec, chat, False)
        content = prompt.text.removeprefix(frame.prefix).removesuffix(frame.suffix)
        return (*chat[:-1], ChatMessage(role="user", content=content))

"""Make the setup of a run: everything that its prompts and tails are derived from, recorded as one event."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata

from ..audit.events import RunSetupEvent
from ..backends.base import Engine
from ..config import RSAConfig
from ..errors import ContextLengthError, MemoryLimitError
from ..method.lineage import LINEAGE_VERSION, Lineage
from ..method.prompts import (
    ChatFrame,
    Prompt,
    PromptBuilder,
    PromptTemplate,
    Segments,
    build_segments,
    chat_frame,
    framed,
    summary_segments,
    summary_template,
)
from ..method.tails import Tail
from ..tokenizer import ChatMessage, Tokenizer


@functools.cache
def package_version() -> str:
    """Return the installed version of this package."""
    return metadata.version("markovian-rsa-mlx")


def make_setup(
    run_id: str, seed: int, messages: Sequence[ChatMessage], config: RSAConfig, engine: Engine
) -> RunSetupEvent:
    """Make the setup of a new run. Raise `TemplateError` for a template that cannot be used."""
    tokenizer, info = engine.tokenizer, engine.info
    template = PromptTemplate.load(config.template)
    frame = chat_frame(tokenizer, messages, config.enable_thinking)
    problem = messages[-1]["content"]
    max_parents = Lineage.of(config, seed).max_parents
    segments = build_segments(tokenizer, template, frame, problem=problem, carry=config.carry, max_parents=max_parents)
    prompt_text = tokenizer.render_chat(messages, config.enable_thinking)
    summary_source, summary = "", list[str]()
    if config.carry == "summary":
        summariser = summary_template(config.summary_prompt)
        summary_source = summariser.source
        # A summary needs no thinking, so render the chat without it where the model can do that.
        summary = framed(summary_segments(summariser, problem), chat_frame(tokenizer, messages, False))
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
        segments=[list(pieces) for pieces in segments.texts],
        segment_token_ids=[[list(ids) for ids in pieces] for pieces in segments.token_ids],
        quote_token_ids=list(segments.quote_ids),
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
    """Return the length of the longest sequence that the run can need, prompt and generation, in tokens."""
    limits = [config.max_tokens(t) for t in range(config.rounds + 1)]
    needs = [len(setup.prompt_token_ids) + limits[0]]
    for count, pieces in enumerate(setup.segment_token_ids, start=1):
        needs.append(sum(map(len, pieces)) + count * config.tail_limit + max(limits[1:], default=config.final_tokens))
    if setup.summary_segment_token_ids:
        needs.append(sum(map(len, setup.summary_segment_token_ids)) + config.thinking_tokens + config.tail_limit)
    return max(needs)


def check_fits(config: RSAConfig, setup: RunSetupEvent, engine: Engine) -> None:
    """Raise `ContextLengthError` or `MemoryLimitError` if a sequence of the run could be too long for the engine."""
    longest, context_length = longest_sequence(config, setup), engine.info.context_length
    if context_length is not None and longest > context_length:
        raise ContextLengthError(
            f"The run can need {longest:,} tokens of context (prompt {len(setup.prompt_token_ids):,}, "
            f"{config.parents_per_trace} tails of {config.tail_limit:,}, generation {config.final_tokens:,}), and the "
            f"model has {context_length:,}. Lower thinking_tokens, tail_tokens, final_tokens or aggregation_size."
        )
    needed, limit = engine.memory_estimate_bytes(1, longest), engine.info.memory_limit_bytes
    if limit is not None and needed > limit:
        raise MemoryLimitError(
            f"One trace of this run can need {longest:,} tokens, {needed / 1e9:.2f} GB with the model's weights, and "
            f"the limit is {limit / 1e9:.2f} GB. Lower thinking_tokens, tail_tokens, final_tokens or aggregation_size."
        )


class Prompts:
    """Builds every prompt of a run from its recorded setup."""

    def __init__(self, tokenizer: Tokenizer, setup: RunSetupEvent) -> None:
        self._chat = tuple(ChatMessage(role=m["role"], content=m["content"]) for m in setup.messages)
        self._frame = ChatFrame(setup.chat_prefix, setup.chat_suffix)
        self._setup = setup
        segments = Segments(setup.segments, setup.segment_token_ids, setup.quote_token_ids)
        self._builder = PromptBuilder(tokenizer, segments, self._frame)
        self._summary_frame = chat_frame(tokenizer, self._chat, False) if setup.summary_segments else self._frame
        self.round_zero = Prompt(self._chat[-1]["content"], setup.prompt_text, tuple(setup.prompt_token_ids))

    def aggregation(self, tails: Sequence[Tail]) -> Prompt:
        """Return the prompt that shows these tails."""
        return self._builder.build(tails)

    def recorded(self, text: str, token_ids: Sequence[int]) -> Prompt:
        """Return an aggregation prompt that an earlier session recorded."""
        return Prompt(self._frame.content_of(text), text, tuple(token_ids))

    def summary(self, notes: Tail) -> Prompt:
        """Return the prompt that asks for a summary of a trace's thinking."""
        (before, after), (ids_before, ids_after) = self._setup.summary_segments, self._setup.summary_segment_token_ids
        text = before + notes.text + after
        return Prompt(self._summary_frame.content_of(text), text, (*ids_before, *notes.token_ids, *ids_after))

    def messages(self, prompt: Prompt) -> tuple[ChatMessage, ...]:
        """Return the prompt as a chat, for engines that take no token ids."""
        return (*self._chat[:-1], ChatMessage(role="user", content=prompt.content))

"""Make the setup of a run: everything that its prompts and tails are derived from, recorded as one event."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from types import SimpleNamespace
from typing import Any, cast

from ..audit.events import RunSetupEvent, RunStartEvent
from ..audit.state import prompt_lengths
from ..backends.base import CallGrammar, Engine, EngineInfo
from ..config import RSAConfig
from ..errors import MemoryLimitError, SchemaError
from ..formatting import size
from ..method.answers import ANSWER_RULES
from ..method.context import PromptLengths, context_error, longest_sequence
from ..method.lineage import LINEAGE_VERSION, Lineage
from ..method.prompts import (
    Places,
    Prompt,
    PromptBuilder,
    PromptTemplate,
    Segments,
    build_segments,
    chat_frame,
    earlier_messages,
    encode_framed,
    framed,
    judge_segments,
    pair_segments,
    question_in_frame,
    recorded_frame,
    round_zero_frame,
    summary_frame,
    summary_segments,
    summary_template,
    user_message,
)
from ..method.tails import Tail
from ..tokenizer import ChatMessage, Tokenizer, encode_text, reserve_marks
from ..tools import (
    GENERIC,
    Chat,
    Tools,
    ends_with_question,
    form_of,
    question_of,
    record_message,
    recorded_message,
)


def timestamp() -> str:
    """Return the present time in UTC, as events record it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@functools.cache
def package_version() -> str:
    """Return the installed version of this package."""
    return metadata.version("markovian-rsa-mlx")


def make_start(run_id: str, *, prompt: str, config: RSAConfig, engine: Engine) -> RunStartEvent:
    """Return the first event of a new run."""
    info = engine.info
    return RunStartEvent(run_id, info.model_id, info.quantization, config, prompt, created_at=timestamp())


def make_setup(
    *, run_id: str, seed: int, prompt: Chat | Sequence[ChatMessage], config: RSAConfig, engine: Engine
) -> RunSetupEvent:
    """Make the setup of a new run. Raise `TemplateError` for a template that cannot be used."""
    chat = Chat.of(prompt)
    messages, tools = chat.messages, chat.tools
    info, marks = engine.info, engine.tokenizer.find_marks(config.thinking_marks)
    tokenizer = reserve_marks(engine.tokenizer, marks)
    template = PromptTemplate.load(config.template)
    frame = chat_frame(tokenizer, messages, enable_thinking=config.enable_thinking, tools=tools)
    problem = chat.question
    max_parents = Lineage.of(config, seed).max_parents
    segments = build_segments(tokenizer, template, frame, problem=problem, carry=config.carry, max_parents=max_parents)
    round_zero, question = frame, ""
    if ends_with_question(messages):
        question = question_in_frame(
            tokenizer, messages, enable_thinking=config.enable_thinking, frame=frame, tools=tools
        )
    else:
        round_zero = round_zero_frame(tokenizer, messages, enable_thinking=config.enable_thinking, tools=tools)
    texts = {"chat": frame.texts} | ({} if round_zero is frame else {"round_zero": round_zero.texts})
    summary: dict[str, Any] = {"summary_source": "", "summary_segments": [], "summary_segment_token_ids": []}
    if config.carry == "summary":
        summary, texts["summary"] = _summary_fields(tokenizer, messages, config)
    judge = judge_segments(problem) if config.answer_selection == "tournament" else []
    closes_thinking = config.closes_thinking and info.closes_thinking
    offered = offered_tools(chat, engine)
    tool_tokens = offered.form.tokens.values() if offered else ()
    return RunSetupEvent(
        run_id=run_id,
        seed=seed,
        messages=[record_message(message) for message in messages],
        prompt_text=round_zero.prefix + question + round_zero.suffix,
        prompt_token_ids=encode_framed(tokenizer, [question], round_zero)[0],
        template_name=template.name,
        template_source=template.source,
        chat_prefix=frame.prefix,
        chat_suffix=frame.suffix,
        segments=[list(pieces) for pieces in segments.texts],
        segment_token_ids=[[list(ids) for ids in pieces] for pieces in segments.token_ids],
        quote_token_ids=list(segments.quote_ids),
        end_of_thinking=[tokenizer.encode(marks.end)] if marks else [],
        end_of_thinking_texts=[marks.end] if marks else [],
        eos_token_ids=sorted(tokenizer.eos_ids),
        control_token_ids=sorted({*tokenizer.control_ids, *tool_tokens}),
        package_version=package_version(),
        lineage_version=LINEAGE_VERSION,
        engine=info.engine,
        engine_version=info.engine_version,
        dtype=info.dtype,
        context_length=info.context_length,
        max_rows=info.max_rows,
        memory_limit_bytes=info.memory_limit_bytes,
        answer_rules=ANSWER_RULES,
        tokenizer=info.tokenizer,
        tokenizer_digest=info.tokenizer_digest,
        closing_token_ids=tokenizer.encode(marks.closing) if marks and closes_thinking else [],
        thinking_marks=marks.to_dict() if marks else {},
        frame_texts={
            name: [[list(place) for place in places] for places in pair] for name, pair in texts.items() if pair
        },
        kv_bits=info.kv_bits,
        adapter_digest=info.adapter_digest if config.aggregation_adapter is not None else "",
        response_schema=config.response_schema,
        model_digest=info.model_digest,
        tools=list(offered.offered) if offered else [],
        tool_form=offered.to_dict() if offered else {},
        judge_segments=framed(judge, frame) if judge else [],
        judge_segment_token_ids=encode_framed(tokenizer, judge, frame) if judge else [],
        **summary,
    )


#: A question for setups of which only the lengths count.
ANY_QUESTION = (ChatMessage(role="user", content="x"),)


def setup_without_engine(
    prompt: Chat | Sequence[ChatMessage], config: RSAConfig, tokenizer: Tokenizer
) -> RunSetupEvent:
    """Make the setup of a run for its lengths, before an engine is loaded. Facts of the engine are empty."""
    info = EngineInfo("", "none", "", "", "none", context_length=None, max_rows=None, memory_limit_bytes=None)
    return make_setup(
        run_id="",
        seed=0,
        prompt=prompt,
        config=config,
        engine=cast(Engine, SimpleNamespace(info=info, tokenizer=tokenizer)),
    )


def lengths_for_question(setup: RunSetupEvent, tokenizer: Tokenizer, tokens: int) -> PromptLengths:
    """Return the lengths for an unknown question of so many tokens, from a setup for `ANY_QUESTION`."""
    return prompt_lengths(setup).longer(tokens - len(tokenizer.encode(ANY_QUESTION[0]["content"])), tokens)


def _summary_fields(
    tokenizer: Tokenizer, messages: Sequence[ChatMessage], config: RSAConfig
) -> tuple[dict[str, Any], tuple[Places, Places] | None]:
    """Return the setup's fields about summaries, and the places of texts in their frame."""
    template = summary_template(config.summary_prompt)
    # A summary needs no thinking, so render the chat without it where the model can do that.
    inner, quiet = (
        summary_segments(template, question_of(messages)),
        chat_frame(tokenizer, messages, enable_thinking=False),
    )
    fields = {
        "summary_source": template.source,
        "summary_segments": framed(inner, quiet),
        "summary_segment_token_ids": encode_framed(tokenizer, inner, quiet),
    }
    return fields, quiet.texts


def call_grammar(tools: Tools | None, engine: Engine) -> CallGrammar | None:
    """Return the grammar of a call of the tools, if the engine can bind calls."""
    if tools is None or not engine.info.binds_calls:
        return None
    begin, tokenizer = tools.form.begin, engine.tokenizer
    token = tools.form.tokens.get(begin)
    ids = encode_text(tokenizer, begin) if token is None else [token]
    return CallGrammar(tuple(ids), tuple(tools.call_schemas()), required=tools.choice == "required")


def check_schema(config: RSAConfig, engine: Engine, tools: Sequence[Any] = ()) -> None:
    """Raise `SchemaError` if the engine cannot bind answers to the schema of the run. May take seconds."""
    if config.response_schema is None:
        return
    if not engine.info.binds_answers:
        raise SchemaError(
            f"{engine.info.engine} cannot bind answers to a JSON Schema (response_schema). Leave it out, and ask for "
            "the form in the prompt."
        )
    if tools and not (engine.info.binds_calls or engine.info.writes_calls):
        raise SchemaError(
            f"{engine.info.engine} cannot leave a choice between an answer with a JSON Schema (response_schema) and a "
            "call of a tool. Leave out one of them."
        )
    engine.check_schema(config.response_schema)


def offered_tools(chat: Chat, engine: Engine) -> Tools | None:
    """Return the tools of a chat with the form in which the traces of an engine call them, or None without tools."""
    if not chat.tools:
        return None
    form = GENERIC if engine.info.writes_calls else form_of(engine.tokenizer)
    return Tools(chat.tools, form, chat.tool_choice, chat.parallel_tool_calls)


def check_fits(config: RSAConfig, setup: RunSetupEvent, engine: Engine) -> None:
    """Raise `ContextLengthError` or `MemoryLimitError` if a sequence of the run could be too long for the engine."""
    lengths = prompt_lengths(setup)
    if (error := context_error(config, lengths, engine.info.context_length)) is not None:
        raise error
    longest = longest_sequence(config, lengths).tokens
    needed, limit = engine.memory_estimate_bytes(1, longest), engine.info.memory_limit_bytes
    if limit is not None and needed > limit:
        raise MemoryLimitError(
            f"One trace of this run can need {longest:,} tokens, {size(needed)} with the model's weights, and "
            f"the limit is {size(limit)}. Lower thinking_tokens, tail_tokens, final_tokens or aggregation_size."
        )


class Prompts:
    """Builds every prompt of a run from its recorded setup."""

    def __init__(self, tokenizer: Tokenizer, setup: RunSetupEvent) -> None:
        self._chat = tuple(map(recorded_message, setup.messages))
        self._frame = recorded_frame(setup)
        self._setup = setup
        segments = Segments(setup.segments, setup.segment_token_ids, setup.quote_token_ids)
        self._builder = PromptBuilder(tokenizer, segments, self._frame)
        judge = pair_segments(setup.judge_segments, setup.judge_segment_token_ids, setup.quote_token_ids)
        self._judge = PromptBuilder(tokenizer, judge, self._frame)
        self.summary_frame = summary_frame(setup)
        self.round_zero = Prompt(question_of(self._chat), setup.prompt_text, tuple(setup.prompt_token_ids))

    def aggregation(self, tails: Sequence[Tail]) -> Prompt:
        """Return the prompt that shows these tails."""
        return self._builder.build(tails)

    def beginning(self, tails: Sequence[Tail], count: int) -> tuple[int, ...]:
        """Return the ids of the prompt with `count` tails, of which these are the first, before the next one."""
        return self._builder.beginning(tails, count)

    def judgement(self, a: Tail, b: Tail) -> Prompt:
        """Return the prompt that asks to compare two attempts."""
        return self._judge.build([a, b])

    def recorded(self, text: str, token_ids: Sequence[int]) -> Prompt:
        """Return an aggregation prompt that an earlier session recorded."""
        return Prompt(self._frame.content_of(text), text, tuple(token_ids))

    def summary(self, notes: Tail) -> Prompt:
        """Return the prompt that asks for a summary of a trace's thinking."""
        (before, after), (ids_before, ids_after) = self._setup.summary_segments, self._setup.summary_segment_token_ids
        text = before + notes.text + after
        return Prompt(self.summary_frame.content_of(text), text, (*ids_before, *notes.token_ids, *ids_after))

    def messages(self, prompt: Prompt) -> tuple[ChatMessage, ...]:
        """Return the prompt as a chat, for engines that take no token ids."""
        if prompt is self.round_zero:
            return self._chat
        return (*earlier_messages(self._chat), user_message(self._chat, prompt.content))

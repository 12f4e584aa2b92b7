"""Check the setup of a run and its aggregation prompts.

The static texts of the prompts are rendered again from their template, and a prompt is built again from them and the
recorded tails, as text and as ids. With a tokenizer, the ids and the rendering of the chat are checked as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from ...errors import MarkovianRSAError, TemplateError
from ...marks import TABLE, ThinkingMarks
from ...method.answers import ANSWER_RULES
from ...method.context import longest_sequence
from ...method.lineage import LINEAGE_VERSION, Lineage
from ...method.prompts import (
    QUOTE,
    SUMMARY_VARIABLES,
    ChatFrame,
    Places,
    PromptBuilder,
    PromptTemplate,
    Segments,
    chat_frame,
    encode_framed,
    encode_segments,
    framed,
    judge_segments,
    marker_lines,
    question_in_frame,
    quote_markers,
    recorded_frame,
    recorded_round_zero,
    round_zero_frame,
    static_segments,
    summary_frame,
    summary_segments,
    summary_template,
)
from ...method.tails import Tail, TraceParser
from ...tokenizer import Tokenizer, encode_text, reserve_marks
from ...tools import (
    GENERIC,
    ToolForm,
    Tools,
    ends_with_question,
    form_of,
    question_of,
    recorded_message,
    waits_for_answer,
)
from ..events import AggregationPromptEvent, RunSetupEvent
from ..state import prompt_lengths
from .state import LIMIT, VerifierState, Violation, check

#: The work that the settings of a short file may cause, in traces and draws of parents, and what each line adds to it.
_FREE_DRAWS, _DRAWS_PER_LINE = 200_000, 200


def check_setup(state: VerifierState, event: RunSetupEvent) -> None:
    """Check the seed, the chat, the markers and the static texts of the prompts."""
    config, start = state.run.config, state.run.start
    assert start is not None
    check(event.lineage_version == LINEAGE_VERSION, f"lineage version {event.lineage_version} is unknown")
    check(1 <= event.answer_rules <= ANSWER_RULES, f"version {event.answer_rules} of the answer rules is unknown")
    check(0 <= event.seed < LIMIT, "the seed is out of range")
    check(config.seed is None or event.seed == config.seed, f"the seed is not the setting's, {config.seed}")
    question = _check_messages(event)
    check(question == start.prompt, "the last message of the user is not the run's prompt")
    _check_tools(event)
    check(event.template_name == config.template, f"the template is not the setting's, {config.template}")
    check(event.response_schema == config.response_schema, "response_schema is not that of the settings")
    check(all(event.end_of_thinking), "an end-of-thinking marker is empty")
    check(len(event.end_of_thinking_texts) == len(event.end_of_thinking), "not one text for each marker")
    if event.thinking_marks:
        _check_marks(state, event)
    elif not state.is_older:
        check(not event.end_of_thinking, "thinking_marks are missing")
    if ends_with_question(event.messages):
        _check_prompt_text(event, question)
    check(event.prompt_token_ids, "prompt_token_ids is empty")
    has_digest = re.fullmatch("[0-9a-f]{64}", event.adapter_digest) is not None
    has_adapter = config.aggregation_adapter is not None
    check(has_digest if has_adapter else not event.adapter_digest, "adapter_digest is not that of aggregation_adapter")
    check(event.kv_bits == config.kv_bits, f"kv_bits is not the setting's, {config.kv_bits}")
    _check_closing_ids(state, event)
    _check_bounds(state, event)
    try:
        _check_segments(state, event)
        _check_summary(state, event)
        _check_judge(state, event)
        if event.frame_texts:
            _check_frame_texts(event)
    except TemplateError as error:
        raise Violation(str(error)) from error
    if state.tokenizer is not None:
        _check_setup_tokens(state, event, state.tokenizer)


def _check_messages(event: RunSetupEvent) -> str:
    """Check that the messages are a chat that ends with a question, or with results after it. Return the question."""
    try:
        messages = list(map(recorded_message, event.messages))
    except ValueError as error:
        raise Violation(f"messages are not a chat: {error}") from error
    check(waits_for_answer(messages), "messages do not end with a question, or with results of calls after it")
    return question_of(messages)


def _check_tools(event: RunSetupEvent) -> None:
    """Check that tools are recorded with the form of their calls, whose marks no tail has."""
    tools = Tools.of(event.tools, event.tool_form)
    if tools is None:
        check(not event.tools and not event.tool_form, "tools or their form are invalid")
        return
    check(event.tool_form == tools.to_dict(), "tool_form has missing fields or fields of another type")
    marks = tools.form.tokens
    check(set(marks) <= set(tools.form.marks), "tool_form has tokens that are not among its marks")
    check(set(marks.values()) <= set(event.control_token_ids), "marks of tools are not among the control ids")


def _check_prompt_text(event: RunSetupEvent, question: str) -> None:
    text, before, after = event.prompt_text, event.chat_prefix, event.chat_suffix
    framed_text = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
    shown = text[len(before) : len(text) - len(after)].strip()  # a chat template may strip it
    is_framed = framed_text and shown == question.strip()
    check(is_framed, "prompt_text is not the chat frame around the last message")


def _check_closing_ids(state: VerifierState, event: RunSetupEvent) -> None:
    """Check that there are closing ids exactly if the run may have to close thinking, and that they end it."""
    config, ids = state.run.config, event.closing_token_ids
    applies = config.closes_thinking and event.end_of_thinking
    if not ids:
        # Other engines cannot put ids into a trace.
        can_close = event.engine == "mlx-lm" or "prompts as ids" in event.engine_version
        check(not (applies and can_close), "closing_token_ids are missing")
        return
    check(applies, "closing_token_ids although no thinking is ever closed")
    is_open = TraceParser(event).is_open(ids)
    check(not is_open, "closing_token_ids do not end the thinking")
    check(not {*event.eos_token_ids} & {*ids}, "an EOS id among the closing_token_ids")


def _check_bounds(state: VerifierState, event: RunSetupEvent) -> None:
    """Check that the run fits into the context, and that its lineage can be derived quickly for a file of this size."""
    config = state.run.config
    traces, draws = Lineage.of(config, event.seed).max_traces_and_draws()
    is_derivable = traces + draws <= _FREE_DRAWS + _DRAWS_PER_LINE * state.lines
    check(is_derivable, f"its settings allow {traces} traces, too many to derive for a file of {state.lines} lines")
    longest = longest_sequence(config, prompt_lengths(event)).tokens
    fits = event.context_length is None or longest <= event.context_length
    check(fits, f"context_length is {event.context_length}, and the run can need {longest} tokens")


def _check_marks(state: VerifierState, event: RunSetupEvent) -> None:
    """Check that the marks are those of the setting or known ones, and that the ids of their parts are ids."""
    marks = ThinkingMarks.from_dict(event.thinking_marks)
    if marks is None or event.thinking_marks != marks.to_dict():
        raise Violation("thinking_marks have missing fields or fields of another type")
    named = state.run.config.thinking_marks
    check(named is None or (marks.begin, marks.end) == named, f"the thinking marks are not the setting's, {named}")
    row = next((row for row in TABLE if (row.begin, row.end) == (marks.begin, marks.end)), None)
    check(row is not None or named is not None, f"no model is known to have the thinking marks {marks.begin!r}")
    belongs = marks.belongs_to(row or ThinkingMarks(marks.begin, marks.end))
    check(belongs, "thinking_marks are not those of the known model")
    ids = list(marks.tokens.values())
    check(all(0 <= i < LIMIT for i in ids) and len({*ids}) == len(ids), "the tokens of the marks have no ids")
    check(marks.end in marks.closing, "closing does not have the end of the thinking")
    end = marks.tokens.get(marks.end)
    check(event.end_of_thinking_texts == [marks.end], "end_of_thinking_texts is not the end mark")
    check(end is None or event.end_of_thinking == [[end]], "end_of_thinking is not the token of the end mark")


def _check_segments(state: VerifierState, event: RunSetupEvent) -> None:
    template = PromptTemplate(event.template_source, event.template_name)
    frame = ChatFrame(event.chat_prefix, event.chat_suffix)
    check_built_in(event.template_name, event.template_source)
    problem, carry = question_of(event.messages), state.run.config.carry
    largest = Lineage.of(state.run.config, event.seed).max_parents
    check(len(event.segments) == largest, f"segments are not for 1 to {largest} attempts")
    for count, pieces in enumerate(event.segments, start=1):
        rendered = framed(static_segments(template, problem, carry, count), frame)
        check(pieces == rendered, f"segments for {count} attempts are not what the template gives")
    check(len(event.segment_token_ids) == largest, f"segment_token_ids are not for 1 to {largest} attempts")
    for pieces, ids in zip(event.segments, event.segment_token_ids, strict=True):
        _check_ids(pieces, ids, "segment_token_ids")


def _check_summary(state: VerifierState, event: RunSetupEvent) -> None:
    pieces = event.summary_segments
    if state.run.config.carry != "summary":
        unused = (event.summary_source, pieces, event.summary_segment_token_ids)
        check(not any(unused), "summary texts although the carry is not summary")
        return
    wording = state.run.config.summary_prompt
    expected = summary_template(wording).source
    check(event.summary_source == expected, "summary_source does not match the setting summary_prompt")
    template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
    before, after = summary_segments(template, question_of(event.messages))
    check(len(pieces) == 2, "summary_segments are not two")
    # The file does not have their frame, which is the chat rendered without thinking. So check the inner edges.
    check(pieces[0].endswith(before) and pieces[1].startswith(after), "summary_segments do not fit their template")
    _check_ids(pieces, event.summary_segment_token_ids, "summary_segment_token_ids")


def _check_judge(state: VerifierState, event: RunSetupEvent) -> None:
    """Check that a run with a tournament has the texts around two attempts, and no other run."""
    if state.run.config.answer_selection != "tournament":
        unused = (event.judge_segments, event.judge_segment_token_ids)
        check(not any(unused), "judge_segments although answer_selection is not tournament")
        return
    rendered = framed(judge_segments(question_of(event.messages)), ChatFrame(event.chat_prefix, event.chat_suffix))
    check(event.judge_segments == rendered, "judge_segments are not what the template gives")
    _check_ids(event.judge_segments, event.judge_segment_token_ids, "judge_segment_token_ids")


def check_built_in(name: str, source: str) -> None:
    """Check the source of a template that the package has. Its name holds a version, so the text never changes."""
    built_in = PromptTemplate.built_in(name)
    check(built_in is None or source == built_in.source, f"template_source is not the built-in {name}")


def _check_ids(pieces: list[str], ids: list[list[int]], name: str) -> None:
    check(len(ids) == len(pieces), f"{name} are not one for each text")
    check(all(bool(i) == bool(text) for i, text in zip(ids, pieces, strict=True)), f"{name} are missing for a text")


def _check_setup_tokens(state: VerifierState, event: RunSetupEvent, tokenizer: Tokenizer) -> None:
    """Check the chat frame, the marks and the ids of all static texts with the tokenizer."""
    marks = tokenizer.find_marks(state.run.config.thinking_marks)
    tokenizer = reserve_marks(tokenizer, marks)
    try:
        _check_rendered_chat(state, event, tokenizer)
    except MarkovianRSAError as error:
        raise Violation(str(error)) from error
    by_server = event.engine.startswith("upstream") and not event.tokenizer_digest  # its own tokenizer shows less
    marks = _check_marks_of_model(state, event, tokenizer, marks, by_server=by_server)
    check(event.eos_token_ids == sorted(tokenizer.eos_ids), "other EOS ids than the model's")
    _check_control_ids(event, tokenizer, marks, by_server=by_server)
    _check_static_ids(state, event, tokenizer)


def _check_rendered_chat(state: VerifierState, event: RunSetupEvent, tokenizer: Tokenizer) -> None:
    """Check the frames and the prompt of round 0 against the rendered chat. May raise errors of the template."""
    messages, thinking = list(map(recorded_message, event.messages)), state.run.config.enable_thinking
    frame = recorded_frame(event)
    rendered_frame = chat_frame(tokenizer, messages, enable_thinking=thinking, tools=event.tools)
    _check_frame(tokenizer, frame, rendered_frame)
    if ends_with_question(messages):
        shown = question_in_frame(
            tokenizer, messages, enable_thinking=thinking, frame=rendered_frame, tools=event.tools
        )
        check(frame.content_of(event.prompt_text) == shown, "prompt_text is not the chat of the messages")
    else:
        rendered_chat = round_zero_frame(tokenizer, messages, enable_thinking=thinking, tools=event.tools)
        _check_frame(tokenizer, recorded_round_zero(event), rendered_chat)
    if inner := _inner_summary(event):
        quiet = summary_frame(event)
        check(event.summary_segments == framed(inner, quiet), "summary_segments are not what the template gives")
        _check_frame(tokenizer, quiet, chat_frame(tokenizer, messages, enable_thinking=False))


def _check_marks_of_model(
    state: VerifierState, event: RunSetupEvent, tokenizer: Tokenizer, marks: ThinkingMarks | None, *, by_server: bool
) -> ThinkingMarks | None:
    """Check the recorded marks against those of the model, and return the latter as this run could see them."""
    end = [tokenizer.encode(marks.end)] if marks else []
    # Older versions did not know the marks of all models, but this one.
    if event.thinking_marks or event.end_of_thinking or (marks is not None and marks.end.strip() == "</think>"):
        check(event.end_of_thinking == end, "other end-of-thinking markers than the model's")
        texts = [marks.end, tokenizer.decode(end[0])] if marks else []  # older versions recorded what an id shows
        check(set(event.end_of_thinking_texts) <= {*texts}, "end_of_thinking_texts are not those of the markers")
    seen = ThinkingMarks.from_dict(event.thinking_marks)
    if marks and seen and by_server:
        # A server's own tokenizer shows rendered chats, not the template that has these line breaks.
        same = seen.closing.replace("\n", "") == marks.closing.replace("\n", "")
        marks = replace(marks, closing=seen.closing if same else marks.closing)
    # Older versions expected a thinking wherever the template ends one.
    if marks and seen and (by_server or state.is_older):
        marks = replace(marks, expected=seen.expected)
    if event.thinking_marks or not (state.is_older or by_server):
        expected_marks = marks.to_dict() if marks else {}
        check(event.thinking_marks == expected_marks, "other thinking marks than the model's")
    if event.closing_token_ids:
        closing = tokenizer.encode(marks.closing) if marks else []
        check(event.closing_token_ids == closing, "other closing ids than the model's")
    return marks


def _check_control_ids(
    event: RunSetupEvent, tokenizer: Tokenizer, marks: ThinkingMarks | None, *, by_server: bool
) -> None:
    """Check the form of tool calls, and that the control ids are the model's and those of its marks."""
    control, known = set(event.control_token_ids), set(marks.tokens.values() if marks else ())
    # Older versions did not know that some parts of marks are control ids.
    tolerated = known if by_server or not event.thinking_marks else set[int]()
    form = ToolForm.from_dict(event.tool_form)
    if form is not None:
        expected_form = (
            GENERIC.of_vocabulary(tokenizer.reserved.get) if form.parser == "generic" else form_of(tokenizer)
        )
        check(by_server or form == expected_form, "another form of tool calls than the model's")
    marks_of_tools = set(form.tokens.values()) if form else set[int]()
    check(control - tokenizer.control_ids <= tolerated | marks_of_tools, "other control ids than the model's")
    check(by_server or tokenizer.control_ids - control <= tolerated, "control ids of the model are missing")


def _check_static_ids(state: VerifierState, event: RunSetupEvent, tokenizer: Tokenizer) -> None:
    """Check that all recorded ids of texts are those that the tokenizer gives."""
    frame, round_zero, inner = recorded_frame(event), recorded_round_zero(event), _inner_summary(event)
    question, problem = round_zero.content_of(event.prompt_text), question_of(event.messages)
    template = PromptTemplate(event.template_source, event.template_name)
    rendered = [
        static_segments(template, problem, state.run.config.carry, count) for count in range(1, len(event.segments) + 1)
    ]
    quote = tokenizer.encode(QUOTE) if frame.texts is None else encode_text(tokenizer, QUOTE)
    encoded = {
        "prompt_token_ids": (event.prompt_token_ids, encode_framed(tokenizer, [question], round_zero)[0]),
        "segment_token_ids": (event.segment_token_ids, encode_segments(tokenizer, rendered, frame)),
        "summary_segment_token_ids": (
            event.summary_segment_token_ids,
            encode_framed(tokenizer, inner, summary_frame(event)) if inner else [],
        ),
        "quote_token_ids": (event.quote_token_ids, quote),
        "judge_segment_token_ids": (
            event.judge_segment_token_ids,
            encode_framed(tokenizer, judge_segments(problem), frame) if event.judge_segments else [],
        ),
    }
    for name, (recorded, expected) in encoded.items():
        check(recorded == expected, f"{name} are not those of the text")


def _inner_summary(event: RunSetupEvent) -> list[str]:
    """Return the summary prompt's texts within its frame, none for a run without summaries."""
    return summary_segments(_summary_template(event), question_of(event.messages)) if event.summary_source else []


def _summary_template(event: RunSetupEvent) -> PromptTemplate:
    return PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)


#: A word or number of a date or a time, and several of them in a row.
_DATE_WORD = (
    r"(?<![^\W_])(?:\d[\w:/.,+-]*|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|January|February|March|April|May|June|"
    r"July|August|September|October|November|December|(?:Mon|Tues?|Wed|Wednes|Thu|Thurs|Fri|Sat|Satur|Sun)(?:day)?|"
    r"AM|PM|UTC|GMT)\b[.,]?)"
)
_DATE = re.compile(rf"{_DATE_WORD}(?:[^\S\n]+{_DATE_WORD})*")


def _check_frame(tokenizer: Tokenizer, recorded: ChatFrame, rendered: ChatFrame) -> None:
    """Check a recorded frame against the template. Dates that a template reads from the clock may differ."""
    reads_clock = not tokenizer.template or re.search(r"strftime|\bnow\b", tokenizer.template)
    sides = zip((recorded.prefix, recorded.suffix), (rendered.prefix, rendered.suffix), strict=True)
    for index, (text, again) in enumerate(sides):
        own = rendered.texts[index] if rendered.texts is not None else ()
        places = recorded.texts[index] if recorded.texts is not None else None
        if text == again:
            is_same = places is None or [tuple(place) for place in places] == [tuple(place) for place in own]
            check(is_same, "frame_texts are not where the template shows messages")
            continue
        match = re.fullmatch(_dated_pattern(again, own), text) if reads_clock else None
        if match is None:
            raise Violation("another chat frame")
        is_same = places is None or [tuple(place) for place in places] == list(match.regs[1:])
        check(is_same, "frame_texts are not where the template shows messages")


def _dated_pattern(text: str, messages: Places) -> str:
    """Return a pattern of this side of a frame with any dates in the template's own text, and a group per message."""
    pattern, at = "", 0
    for start, end in [*messages, (len(text), len(text))]:
        pattern += _DATE.pattern.join(re.escape(piece) for piece in _DATE.split(text[at:start]))
        pattern += f"({re.escape(text[start:end])})" if end > start else ""
        at = end
    return pattern


def _check_frame_texts(event: RunSetupEvent) -> None:
    """Check that the places of messages are within the frames, in order."""
    names = ["chat", *(["round_zero"] if not ends_with_question(event.messages) else [])]
    names += ["summary"] if event.summary_segments else []
    check(list(event.frame_texts) == names, f"frame_texts are not for {names}")
    check(all(len(sides) == 2 for sides in event.frame_texts.values()), "frame_texts are not of prefix and suffix")
    frames = {"chat": recorded_frame(event), "round_zero": recorded_round_zero(event), "summary": summary_frame(event)}
    for name, sides in event.frame_texts.items():
        for text, places in zip((frames[name].prefix, frames[name].suffix), sides, strict=True):
            check(all(len(place) == 2 for place in places), "a place in frame_texts is not a begin and an end")
            ends = [0, *(at for place in places for at in place), len(text)]
            check(ends == sorted(ends), "frame_texts are not within the frame, in order")


def check_prompt(state: VerifierState, event: AggregationPromptEvent) -> None:
    """Check that a trace gets its prompt once, after its parents, and that the prompt shows all their tails.

    Render the text again. Without a tokenizer, the ids of quotes may be anywhere between the ids of a tail.
    """
    key, setup = state.key(event.trace_id, event.round), state.setup
    check(key.round >= 1, "round 0 has no aggregation prompt")
    check(state.run.trace(key).prompt is None, f"{key} has its prompt already")
    readable = [str(parent) for parent in state.readable_parents(key)]
    check(readable, f"no parent of {key} left a tail")
    read = event.selected_tail_trace_ids
    check(read == readable, f"lists {read}; the lineage and the failed traces leave {readable}")
    tails = [tail for parent in read if (tail := state.run.trace(parent).tail) is not None]
    pieces, piece_ids = setup.segments[len(tails) - 1], setup.segment_token_ids[len(tails) - 1]
    markers = marker_lines(pieces)
    quoted = [quote_markers(tail.tail_text, markers) for tail in tails]
    text = pieces[0] + "".join(tail + piece for tail, piece in zip(quoted, pieces[1:], strict=True))
    check(event.prompt_text == text, "prompt_text is not the template around the tails")
    added = [quotes_in(now) - quotes_in(tail.tail_text) for now, tail in zip(quoted, tails, strict=True)]
    spliced = is_spliced(
        event.prompt_token_ids,
        pieces=piece_ids,
        tails=[tail.tail_token_ids for tail in tails],
        quote=setup.quote_token_ids,
        quotes=added,
    )
    check(spliced, "prompt_token_ids are not the segments' ids with the tails' between")
    if state.tokenizer is not None:
        segments = Segments(setup.segments, setup.segment_token_ids, setup.quote_token_ids)
        builder = PromptBuilder(state.tokenizer, segments, ChatFrame(setup.chat_prefix, setup.chat_suffix))
        prompt = builder.build([Tail(tuple(tail.tail_token_ids), tail.tail_text) for tail in tails])
        check(prompt.text == event.prompt_text, "prompt_text is not the template around the tails")
        check(list(prompt.token_ids) == event.prompt_token_ids, "prompt_token_ids are not the tokenizer's")


def quotes_in(text: str) -> int:
    """Return the number of lines that begin with a quote."""
    return text.count("\n" + QUOTE) + text.startswith(QUOTE)


def is_spliced(
    ids: Sequence[int],
    *,
    pieces: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    quote: Sequence[int],
    quotes: Sequence[int],
) -> bool:
    """Return True if `ids` are the pieces with the tails between them, tail k with exactly `quotes[k]` quotes."""
    position = len(pieces[0])
    if list(ids[:position]) != list(pieces[0]):
        return False
    for tail, piece, count in zip(tails, pieces[1:], quotes, strict=True):
        end = position + len(tail) + count * len(quote)
        if not _is_quoted(ids[position:end], tail, quote, count):
            return False
        position = end + len(piece)
        if list(ids[end:position]) != list(piece):
            return False
    return position == len(ids)


def _is_quoted(ids: Sequence[int], tail: Sequence[int], quote: Sequence[int], count: int) -> bool:
    """Return True if `ids` are the tail with `count` quotes inserted between its ids.

    Only a tokenizer knows the exact places. `reached` are the lengths of the tail that fit so far, by the number of
    quotes used.
    """
    if not count:
        return list(ids) == list(tail)
    reached = {0}
    for used in range(count + 1):
        further = set()
        for start in reached:
            at = start
            while at < len(tail) and ids[at + used * len(quote)] == tail[at]:
                further.add(at)
                at += 1
            further.add(at)
        if used == count:
            return len(tail) in further
        shift = used * len(quote)
        reached = {at for at in further if list(ids[at + shift : at + shift + len(quote)]) == list(quote)}
    return False

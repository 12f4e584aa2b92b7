"""The second line: settings, seed, and prompts' static texts rendered anew from their template.

Aggregation prompts: the recorded static texts with the recorded tails between, as text and as ids.

What only the model's tokenizer can tell: texts from ids, ids from texts, and the chat's rendering.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import MarkovianRSAError, TemplateError
from ...method.lineage import LINEAGE_VERSION, Lineage, TraceKey
from ...method.prompts import (
    QUOTE,
    SUMMARY_VARIABLES,
    ChatFrame,
    PromptBuilder,
    PromptTemplate,
    Segments,
    chat_frame,
    framed,
    marker_lines,
    quote_markers,
    static_segments,
    summary_segments,
    summary_template,
)
from ...method.tails import Tail
from ...tokenizer import ChatMessage, Tokenizer
from ..events import AggregationPromptEvent, RunSetupEvent, SummaryCompleteEvent, TailExtractedEvent, TraceCompleteEvent
from .state import VerifierState, Violation, check


def check_setup(ledger: VerifierState, event: RunSetupEvent) -> None:
    """The seed, the chat and the marks."""
    config, start = ledger.config, ledger.history.start
    assert start is not None
    check(event.lineage_version == LINEAGE_VERSION, f"lineage version {event.lineage_version} is not known here")
    check(0 <= event.seed < 2**63, "the seed is out of range")
    check(config.seed is None or event.seed == config.seed, f"the seed is not the setting's, {config.seed}")
    check(event.messages and all(set(m) == {"role", "content"} for m in event.messages), "messages are not a chat")
    last = event.messages[-1]
    check(last["role"] == "user" and last["content"] == start.prompt, "the last message is not the run's prompt")
    check(event.template_name == config.template, f"the template is not the setting's, {config.template}")
    check(all(event.end_of_thinking), "an end-of-thinking marker is empty")
    check(len(event.end_of_thinking_texts) == len(event.end_of_thinking), "not one text for each marker")
    _check_question(event)
    try:
        _check_segments(ledger, event)
        _check_summary(ledger, event)
    except TemplateError as error:
        raise Violation(str(error)) from error


def _check_question(event: RunSetupEvent) -> None:
    """Round 0's prompt is the chat frame around the question (chat templates may trim it)."""
    text, before, after = event.prompt_text, event.chat_prefix, event.chat_suffix
    fits = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
    question = text[len(before) : len(text) - len(after)]
    check(
        fits and question.strip() == event.messages[-1]["content"].strip(),
        "prompt_text is not the chat frame around the last message",
    )
    check(event.prompt_token_ids, "prompt_token_ids is empty")


def _check_segments(ledger: VerifierState, event: RunSetupEvent) -> None:
    template = PromptTemplate(event.template_source, event.template_name)
    frame = ChatFrame(event.chat_prefix, event.chat_suffix)
    problem, carry = event.messages[-1]["content"], ledger.config.carry
    largest = Lineage.of(ledger.config, event.seed).max_parents
    check(len(event.segments) == largest, f"segments are not for 1 to {largest} attempts")
    for count, pieces in enumerate(event.segments, start=1):
        rendered = framed(static_segments(template, problem, carry, count), frame)
        check(pieces == rendered, f"segments for {count} attempts are not what the template gives")
    check(len(event.segment_token_ids) == largest, f"segment_token_ids are not for 1 to {largest} attempts")
    for pieces, ids in zip(event.segments, event.segment_token_ids, strict=True):
        _check_ids(pieces, ids, "segment_token_ids")


def _check_summary(ledger: VerifierState, event: RunSetupEvent) -> None:
    pieces = event.summary_segments
    if ledger.config.carry != "summary":
        unused = (event.summary_source, pieces, event.summary_segment_token_ids)
        check(not any(unused), "summary texts although the carry is no summary")
        return
    wording = ledger.config.summary_prompt
    wanted = event.summary_source if wording is None else summary_template(wording).source
    check(event.summary_source == wanted, "summary_source does not ask what the setting summary_prompt says")
    template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
    before, after = summary_segments(template, event.messages[-1]["content"])
    check(len(pieces) == 2, "summary_segments are not two")
    # The frame is the chat rendered without thinking, which the file does not hold: the inner edges must fit.
    check(pieces[0].endswith(before) and pieces[1].startswith(after), "summary_segments do not fit their template")
    _check_ids(pieces, event.summary_segment_token_ids, "summary_segment_token_ids")


def _check_ids(pieces: list[str], ids: list[list[int]], name: str) -> None:
    check(len(ids) == len(pieces), f"{name} are not one for each text")
    check(all(bool(i) == bool(text) for i, text in zip(ids, pieces, strict=True)), f"{name} are missing for a text")


def check_prompt(ledger: VerifierState, event: AggregationPromptEvent) -> None:
    """The text is re-rendered; the ids are the segments' with the tails' between, quotes aside."""
    tails = [_tail(ledger, parent) for parent in event.selected_tail_trace_ids]
    pieces = ledger.setup.segments[len(tails) - 1]
    markers = marker_lines(pieces)
    quoted = [quote_markers(tail.tail_text, markers) for tail in tails]
    text = pieces[0] + "".join(tail + piece for tail, piece in zip(quoted, pieces[1:], strict=True))
    check(event.prompt_text == text, "prompt_text is not the template around the tails")
    quotes = [after.count("\n> ") + after.startswith("> ") for after in quoted]
    before = [tail.tail_text.count("\n> ") + tail.tail_text.startswith("> ") for tail in tails]
    added = [now - then for now, then in zip(quotes, before, strict=True)]
    check(
        _is_spliced(
            event.prompt_token_ids,
            ledger.setup.segment_token_ids[len(tails) - 1],
            [tail.tail_token_ids for tail in tails],
            ledger.setup.quote_token_ids,
            added,
        ),
        "prompt_token_ids are not the segments' ids with the tails' between",
    )


def _tail(ledger: VerifierState, trace_id: str) -> TailExtractedEvent:
    tail = ledger.trace(TraceKey.parse(trace_id)).tail
    assert tail is not None
    return tail


def _is_spliced(
    ids: Sequence[int],
    pieces: Sequence[Sequence[int]],
    tails: Sequence[Sequence[int]],
    quote: Sequence[int],
    quotes: Sequence[int],
) -> bool:
    """Whether `ids` are the pieces with the tails between, tail k holding exactly `quotes[k]` quotes."""
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
    """Whether `ids` are the tail with `count` quotes put somewhere between its ids.

    Where exactly only a tokenizer can say; `reached` are the lengths of the tail that fit so far, by the
    number of quotes used.
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


def check_setup_tokens(ledger: VerifierState, event: RunSetupEvent, tokenizer: Tokenizer) -> None:
    """The chat frame, the marks, and the ids of all static texts are the tokenizer's."""
    thinking = ledger.config.enable_thinking
    messages = [ChatMessage(role=m["role"], content=m["content"]) for m in event.messages]
    try:
        frame = chat_frame(tokenizer, messages, thinking)
        check((event.chat_prefix, event.chat_suffix) == (frame.prefix, frame.suffix), "another chat frame")
        check(event.prompt_text == tokenizer.render_chat(messages, thinking), "prompt_text is not the chat's rendering")
        if event.summary_source:
            template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
            pieces = framed(
                summary_segments(template, event.messages[-1]["content"]), chat_frame(tokenizer, messages, False)
            )
            check(event.summary_segments == pieces, "summary_segments are not what the template gives")
    except MarkovianRSAError as error:
        raise Violation(str(error)) from error
    _check_marks(event, tokenizer)
    _check_encoded(tokenizer, [event.prompt_text], [event.prompt_token_ids], "prompt_token_ids")
    for texts, ids in zip(event.segments, event.segment_token_ids, strict=True):
        _check_encoded(tokenizer, texts, ids, "segment_token_ids")
    _check_encoded(tokenizer, event.summary_segments, event.summary_segment_token_ids, "summary_segment_token_ids")
    _check_encoded(tokenizer, [QUOTE], [event.quote_token_ids], "quote_token_ids")


def check_text(event: TraceCompleteEvent | SummaryCompleteEvent, tokenizer: Tokenizer) -> None:
    """The text is that of the ids."""
    check(event.text == tokenizer.decode(event.token_ids), "the text is not that of the ids")


def check_prompt_tokens(ledger: VerifierState, event: AggregationPromptEvent, tokenizer: Tokenizer) -> None:
    """The quotes stand where they belong."""
    setup = ledger.setup
    segments = Segments(setup.segments, setup.segment_token_ids, setup.quote_token_ids)
    prompter = PromptBuilder(tokenizer, segments, ChatFrame(setup.chat_prefix, setup.chat_suffix))
    events = [ledger.history.trace(parent).tail for parent in event.selected_tail_trace_ids]
    prompt = prompter.build([Tail(tuple(t.tail_token_ids), t.tail_text) for t in events if t is not None])
    check(prompt.text == event.prompt_text, "prompt_text is not the template around the tails")
    check(list(prompt.token_ids) == event.prompt_token_ids, "prompt_token_ids are not the tokenizer's")


def _check_marks(event: RunSetupEvent, tokenizer: Tokenizer) -> None:
    markers = [list(marker) for marker in tokenizer.end_of_thinking]
    check(event.end_of_thinking == markers, "other end-of-thinking markers than the model's")
    check(event.end_of_thinking_texts == [tokenizer.decode(m) for m in markers], "other texts of the markers")
    check(event.eos_token_ids == sorted(tokenizer.eos_ids), "other EOS ids than the model's")
    check(event.control_token_ids == sorted(tokenizer.control_ids), "other control ids than the model's")


def _check_encoded(tokenizer: Tokenizer, texts: Sequence[str], ids: Sequence[Sequence[int]], name: str) -> None:
    for text, recorded in zip(texts, ids, strict=True):
        check(list(recorded) == tokenizer.encode(text), f"{name} are not those of the text")

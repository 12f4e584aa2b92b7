"""Check the setup of a run and its aggregation prompts.

The static texts of the prompts are rendered again from their template, and a prompt is built again from them and the
recorded tails, as text and as ids. With a tokenizer, the ids and the rendering of the chat are checked as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import MarkovianRSAError, TemplateError
from ...method.lineage import LINEAGE_VERSION, Lineage
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
from ..events import AggregationPromptEvent, RunSetupEvent
from .order import LIMIT
from .state import VerifierState, Violation, check


def check_setup(state: VerifierState, event: RunSetupEvent) -> None:
    """Check the seed, the chat, the markers and the static texts of the prompts."""
    config, start = state.run.config, state.run.start
    assert start is not None
    check(event.lineage_version == LINEAGE_VERSION, f"lineage version {event.lineage_version} is unknown")
    check(0 <= event.seed < LIMIT, "the seed is out of range")
    check(config.seed is None or event.seed == config.seed, f"the seed is not the setting's, {config.seed}")
    check(event.messages and all(set(m) == {"role", "content"} for m in event.messages), "messages are not a chat")
    last = event.messages[-1]
    check(last["role"] == "user" and last["content"] == start.prompt, "the last message is not the run's prompt")
    check(event.template_name == config.template, f"the template is not the setting's, {config.template}")
    check(all(event.end_of_thinking), "an end-of-thinking marker is empty")
    check(len(event.end_of_thinking_texts) == len(event.end_of_thinking), "not one text for each marker")
    text, before, after = event.prompt_text, event.chat_prefix, event.chat_suffix
    framed_text = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
    question = text[len(before) : len(text) - len(after)].strip()  # a chat template may strip it
    is_framed = framed_text and question == last["content"].strip()
    check(is_framed, "prompt_text is not the chat frame around the last message")
    check(event.prompt_token_ids, "prompt_token_ids is empty")
    try:
        _check_segments(state, event)
        _check_summary(state, event)
    except TemplateError as error:
        raise Violation(str(error)) from error
    if state.tokenizer is not None:
        _check_setup_tokens(state, event, state.tokenizer)


def _check_segments(state: VerifierState, event: RunSetupEvent) -> None:
    template = PromptTemplate(event.template_source, event.template_name)
    frame = ChatFrame(event.chat_prefix, event.chat_suffix)
    problem, carry = event.messages[-1]["content"], state.run.config.carry
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
    expected = event.summary_source if wording is None else summary_template(wording).source
    check(event.summary_source == expected, "summary_source does not match the setting summary_prompt")
    template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
    before, after = summary_segments(template, event.messages[-1]["content"])
    check(len(pieces) == 2, "summary_segments are not two")
    # The file does not have their frame, which is the chat rendered without thinking. So check the inner edges.
    check(pieces[0].endswith(before) and pieces[1].startswith(after), "summary_segments do not fit their template")
    _check_ids(pieces, event.summary_segment_token_ids, "summary_segment_token_ids")


def _check_ids(pieces: list[str], ids: list[list[int]], name: str) -> None:
    check(len(ids) == len(pieces), f"{name} are not one for each text")
    check(all(bool(i) == bool(text) for i, text in zip(ids, pieces, strict=True)), f"{name} are missing for a text")


def _check_setup_tokens(state: VerifierState, event: RunSetupEvent, tokenizer: Tokenizer) -> None:
    """Check the chat frame, the markers and the ids of all static texts with the tokenizer."""
    thinking = state.run.config.enable_thinking
    messages = [ChatMessage(role=m["role"], content=m["content"]) for m in event.messages]
    try:
        frame = chat_frame(tokenizer, messages, thinking)
        check((event.chat_prefix, event.chat_suffix) == (frame.prefix, frame.suffix), "another chat frame")
        check(event.prompt_text == tokenizer.render_chat(messages, thinking), "prompt_text is not the rendered chat")
        if event.summary_source:
            template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
            unframed = summary_segments(template, event.messages[-1]["content"])
            pieces = framed(unframed, chat_frame(tokenizer, messages, False))
            check(event.summary_segments == pieces, "summary_segments are not what the template gives")
    except MarkovianRSAError as error:
        raise Violation(str(error)) from error
    markers = [list(marker) for marker in tokenizer.end_of_thinking]
    check(event.end_of_thinking == markers, "other end-of-thinking markers than the model's")
    check(event.end_of_thinking_texts == [tokenizer.decode(m) for m in markers], "other texts of the markers")
    check(event.eos_token_ids == sorted(tokenizer.eos_ids), "other EOS ids than the model's")
    check(event.control_token_ids == sorted(tokenizer.control_ids), "other control ids than the model's")
    encoded: list[tuple[str, Sequence[str], Sequence[Sequence[int]]]] = [
        ("prompt_token_ids", [event.prompt_text], [event.prompt_token_ids]),
        *(("segment_token_ids", *pair) for pair in zip(event.segments, event.segment_token_ids, strict=True)),
        ("summary_segment_token_ids", event.summary_segments, event.summary_segment_token_ids),
        ("quote_token_ids", [QUOTE], [event.quote_token_ids]),
    ]
    for name, texts, ids in encoded:
        for text, recorded in zip(texts, ids, strict=True):
            check(list(recorded) == tokenizer.encode(text), f"{name} are not those of the text")


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
    added = [_quotes(now) - _quotes(tail.tail_text) for now, tail in zip(quoted, tails, strict=True)]
    is_spliced = _is_spliced(
        event.prompt_token_ids,
        pieces=piece_ids,
        tails=[tail.tail_token_ids for tail in tails],
        quote=setup.quote_token_ids,
        quotes=added,
    )
    check(is_spliced, "prompt_token_ids are not the segments' ids with the tails' between")
    if state.tokenizer is not None:
        segments = Segments(setup.segments, setup.segment_token_ids, setup.quote_token_ids)
        builder = PromptBuilder(state.tokenizer, segments, ChatFrame(setup.chat_prefix, setup.chat_suffix))
        prompt = builder.build([Tail(tuple(tail.tail_token_ids), tail.tail_text) for tail in tails])
        check(prompt.text == event.prompt_text, "prompt_text is not the template around the tails")
        check(list(prompt.token_ids) == event.prompt_token_ids, "prompt_token_ids are not the tokenizer's")


def _quotes(text: str) -> int:
    return text.count("\n" + QUOTE) + text.startswith(QUOTE)


def _is_spliced(
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

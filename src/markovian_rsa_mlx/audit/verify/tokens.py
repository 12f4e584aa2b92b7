"""What only the model's tokenizer can tell: texts from ids, ids from texts, and the chat's rendering."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import MarkovianRSAError
from ...method.codec import ChatMessage, Codec
from ...method.prompts import (
    QUOTE,
    SUMMARY_VARIABLES,
    AggregationPrompter,
    PromptTemplate,
    chat_frame,
    framed,
    summary_segments,
)
from ...method.tails import Tail
from ..events import AggregationPromptEvent, RunSetupEvent, SummaryCompleteEvent, TraceCompleteEvent
from .ledger import Broken, Ledger, require


def check_setup_tokens(ledger: Ledger, event: RunSetupEvent, codec: Codec) -> None:
    """The chat frame, the marks, and the ids of all static texts are the tokenizer's."""
    thinking = ledger.config.enable_thinking
    messages = [ChatMessage(role=m["role"], content=m["content"]) for m in event.messages]
    try:
        frame = chat_frame(codec, messages, thinking)
        require((event.chat_prefix, event.chat_suffix) == (frame.prefix, frame.suffix), "another chat frame")
        require(event.prompt_text == codec.render_chat(messages, thinking), "prompt_text is not the chat's rendering")
        if event.summary_source:
            template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
            pieces = framed(
                summary_segments(template, event.messages[-1]["content"]), chat_frame(codec, messages, False)
            )
            require(event.summary_segments == pieces, "summary_segments are not what the template gives")
    except MarkovianRSAError as error:
        raise Broken(str(error)) from error
    _check_marks(event, codec)
    _check_encoded(codec, [event.prompt_text], [event.prompt_token_ids], "prompt_token_ids")
    for texts, ids in zip(event.segments, event.segment_token_ids, strict=True):
        _check_encoded(codec, texts, ids, "segment_token_ids")
    _check_encoded(codec, event.summary_segments, event.summary_segment_token_ids, "summary_segment_token_ids")
    _check_encoded(codec, [QUOTE], [event.quote_token_ids], "quote_token_ids")


def check_text(event: TraceCompleteEvent | SummaryCompleteEvent, codec: Codec) -> None:
    """The text is that of the ids."""
    require(event.text == codec.decode(event.token_ids), "the text is not that of the ids")


def check_prompt_tokens(ledger: Ledger, event: AggregationPromptEvent, codec: Codec) -> None:
    """The quotes stand where they belong."""
    setup = ledger.setup
    prompter = AggregationPrompter.recorded(codec, setup.segments, setup.segment_token_ids, setup.quote_token_ids)
    events = [ledger.history.trace(parent).tail for parent in event.selected_tail_trace_ids]
    prompt = prompter.build([Tail(tuple(t.tail_token_ids), t.tail_text) for t in events if t is not None])
    require(prompt.text == event.prompt_text, "prompt_text is not the template around the tails")
    require(list(prompt.token_ids) == event.prompt_token_ids, "prompt_token_ids are not the tokenizer's")


def _check_marks(event: RunSetupEvent, codec: Codec) -> None:
    markers = [list(marker) for marker in codec.end_of_thinking]
    require(event.end_of_thinking == markers, "other end-of-thinking markers than the model's")
    require(event.end_of_thinking_texts == [codec.decode(m) for m in markers], "other texts of the markers")
    require(event.eos_token_ids == sorted(codec.eos_ids), "other EOS ids than the model's")
    require(event.control_token_ids == sorted(codec.control_ids), "other control ids than the model's")


def _check_encoded(codec: Codec, texts: Sequence[str], ids: Sequence[Sequence[int]], name: str) -> None:
    for text, recorded in zip(texts, ids, strict=True):
        require(list(recorded) == codec.encode(text), f"{name} are not those of the text")

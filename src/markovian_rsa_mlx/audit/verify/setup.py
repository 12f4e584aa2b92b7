"""The second line: settings, seed, and prompts' static texts rendered anew from their template."""

from __future__ import annotations

from ...errors import TemplateError
from ...method.lineage import LINEAGE_VERSION, Lineage
from ...method.prompts import (
    SUMMARY_VARIABLES,
    ChatFrame,
    PromptTemplate,
    framed,
    static_segments,
    summary_segments,
    summary_template,
)
from ..events import RunSetupEvent
from .ledger import Broken, Ledger, require


def check_setup(ledger: Ledger, event: RunSetupEvent) -> None:
    """The seed, the chat and the marks."""
    config, start = ledger.config, ledger.history.start
    assert start is not None
    require(event.lineage_version == LINEAGE_VERSION, f"lineage version {event.lineage_version} is not known here")
    require(0 <= event.seed < 2**63, "the seed is out of range")
    require(config.seed is None or event.seed == config.seed, f"the seed is not the setting's, {config.seed}")
    require(event.messages and all(set(m) == {"role", "content"} for m in event.messages), "messages are not a chat")
    last = event.messages[-1]
    require(last["role"] == "user" and last["content"] == start.prompt, "the last message is not the run's prompt")
    require(event.template_name == config.template, f"the template is not the setting's, {config.template}")
    require(all(event.end_of_thinking), "an end-of-thinking marker is empty")
    require(len(event.end_of_thinking_texts) == len(event.end_of_thinking), "not one text for each marker")
    _check_question(event)
    try:
        _check_segments(ledger, event)
        _check_summary(ledger, event)
    except TemplateError as error:
        raise Broken(str(error)) from error


def _check_question(event: RunSetupEvent) -> None:
    """Round 0's prompt is the chat frame around the question (chat templates may trim it)."""
    text, before, after = event.prompt_text, event.chat_prefix, event.chat_suffix
    fits = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
    question = text[len(before) : len(text) - len(after)]
    require(
        fits and question.strip() == event.messages[-1]["content"].strip(),
        "prompt_text is not the chat frame around the last message",
    )
    require(event.prompt_token_ids, "prompt_token_ids is empty")


def _check_segments(ledger: Ledger, event: RunSetupEvent) -> None:
    template = PromptTemplate(event.template_source, event.template_name)
    frame = ChatFrame(event.chat_prefix, event.chat_suffix)
    problem, carry = event.messages[-1]["content"], ledger.config.carry
    largest = Lineage.of(ledger.config, event.seed).largest_parent_count
    require(len(event.segments) == largest, f"segments are not for 1 to {largest} attempts")
    for count, pieces in enumerate(event.segments, start=1):
        rendered = framed(static_segments(template, problem, carry, count), frame)
        require(pieces == rendered, f"segments for {count} attempts are not what the template gives")
    require(len(event.segment_token_ids) == largest, f"segment_token_ids are not for 1 to {largest} attempts")
    for pieces, ids in zip(event.segments, event.segment_token_ids, strict=True):
        _check_ids(pieces, ids, "segment_token_ids")


def _check_summary(ledger: Ledger, event: RunSetupEvent) -> None:
    pieces = event.summary_segments
    if ledger.config.carry != "summary":
        unused = (event.summary_source, pieces, event.summary_segment_token_ids)
        require(not any(unused), "summary texts although the carry is no summary")
        return
    wording = ledger.config.summary_prompt
    wanted = event.summary_source if wording is None else summary_template(wording).source
    require(event.summary_source == wanted, "summary_source does not ask what the setting summary_prompt says")
    template = PromptTemplate(event.summary_source, "summary", SUMMARY_VARIABLES)
    before, after = summary_segments(template, event.messages[-1]["content"])
    require(len(pieces) == 2, "summary_segments are not two")
    # The frame is the chat rendered without thinking, which the file does not hold: the inner edges must fit.
    require(pieces[0].endswith(before) and pieces[1].startswith(after), "summary_segments do not fit their template")
    _check_ids(pieces, event.summary_segment_token_ids, "summary_segment_token_ids")


def _check_ids(pieces: list[str], ids: list[list[int]], name: str) -> None:
    require(len(ids) == len(pieces), f"{name} are not one for each text")
    require(all(bool(i) == bool(text) for i, text in zip(ids, pieces, strict=True)), f"{name} are missing for a text")

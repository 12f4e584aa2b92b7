"""The parts of replies that the dialects read: finish reasons, events without a choice, content parts."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.backends.upstream.dialects import (
    ChatDialect,
    CompletionReply,
    VLLMDialect,
    read_parts,
    token_ids,
)
from markovian_rsa_mlx.backends.upstream.errors import ProtocolError
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.errors import UpstreamError


def read(*events: Any) -> CompletionReply:
    reply = CompletionReply(Sampling())
    for event in events:
        ChatDialect().read(event, reply)
    return reply


def event(content: Any = None, finish: Any = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": content, **delta}, "finish_reason": finish}]}


@pytest.mark.parametrize(
    "word",
    [
        "stop",
        "STOP",
        "eos",
        "eos_token",
        "end_turn",
        "stop_sequence",
        "Stop-Sequence",
        "endTurn",
        "FINISH_REASON_STOP",
        "FinishReason.STOP",
        "eos_token_id",
        "eosFound",
        "stopStringFound",
        "word",
        {"type": "stop"},
    ],
)
def test_words_for_a_stop(word: Any) -> None:
    assert read(event("a", word)).finish == "stop"


@pytest.mark.parametrize(
    "word",
    ["length", "max_tokens", "MAX_TOKENS", "maxOutputTokens", "model_length", "maxPredictedTokensReached"],
)
def test_words_for_the_length(word: str) -> None:
    assert read(event("a", word)).finish == "length"


@pytest.mark.parametrize("word", [None, "", "null", "None", " "])
def test_words_for_no_reason(word: Any) -> None:
    reply = read(event("a", word), event("b", word), event(finish="stop"), event(finish=word))
    assert (reply.content, reply.finish) == ("ab", "stop")


@pytest.mark.parametrize("word", ["content_filter", "tool_calls", "SAFETY", "abort", "novelty", 7, 0, False])
def test_other_words_are_named(word: Any) -> None:
    with pytest.raises(ProtocolError, match=str(word)):
        read(event("a", word))


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        [],
        3,
        {"type": "ping"},
        {"choices": None},
        {"choices": []},
        {"choices": [None]},
        {"choices": {}},
        {"choices": [{}]},
        {"choices": [{"delta": None}]},
        {"usage": None},
        {"choices": [{"index": 1, "delta": {"content": "x"}}]},
    ],
)
def test_events_without_a_choice_are_passed_over(odd: Any) -> None:
    reply = read(event("a"), odd, event("b", "stop"))
    assert (reply.content, reply.finish) == ("ab", "stop")


def test_the_index_of_a_choice_may_be_a_text() -> None:
    choices = [{"index": str(index), "delta": {"content": f"{index}"}, "finish_reason": "stop"} for index in (1, 0)]
    reply = read({"choices": choices})
    assert (reply.content, reply.finish) == ("0", "stop")


@pytest.mark.parametrize("extra", [{}, {"choices": None}, {"choices": []}])
def test_usage_of_an_event_without_a_choice_counts(extra: dict[str, Any]) -> None:
    reply = read(event("a", "stop"), {"usage": {"prompt_tokens": 3, "completion_tokens": 9}, **extra})
    assert (reply.prompt_tokens, reply.generated_tokens) == (3, 9)


@pytest.mark.parametrize(
    ("content", "reasoning", "text"),
    [
        ("plain", "", "plain"),
        (None, "", ""),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}], "hm", "4"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]}], "hm", ""),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, "4"], "hm", "4"),
        ([{"type": "output_text", "text": "4", "annotations": []}], "", "4"),
        ([{"type": "thinking_delta", "thinking": "hm"}, {"type": "text_delta", "text": "4"}], "hm", "4"),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "4"}], "", "4"),
        ({"type": "text", "text": "4"}, "", "4"),
        ({"text": "4"}, "", "4"),
        ([{"type": "text", "text": {"value": "4"}}], "", "4"),
        ([{"type": "text", "text": ""}, {"type": "thinking", "thinking": ""}], "", ""),
    ],
)
def test_content_parts(content: Any, reasoning: str, text: str) -> None:
    assert read_parts(content) == (reasoning, text)


@pytest.mark.parametrize("kind", ["image_url", "audio", "tool_use", "input_audio", "reasoning.encrypted"])
def test_other_parts_are_refused_by_their_type(kind: str) -> None:
    with pytest.raises(UpstreamError, match=kind):
        read(event([{"type": "text", "text": "a"}, {"type": kind, kind: "?"}]))


@pytest.mark.parametrize("value", [3, [3], True])
def test_content_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(UpstreamError):
        read(event(value))


def test_parts_within_each_other_without_end_are_refused() -> None:
    nested: Any = "a"
    for _ in range(400):
        nested = {"type": "text", "text": [nested]}
    with pytest.raises(UpstreamError):
        read(event(nested))


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_keys_of_separate_reasoning(key: str) -> None:
    reply = read(
        event(None, **{key: "hm "}), event(None, **{key: [{"type": "text", "text": "so"}]}), event("4", "stop")
    )
    assert (reply.reasoning, reply.content) == ("hm so", "4")


def test_reasoning_in_two_fields_counts_once() -> None:
    assert read(event(None, reasoning="hm", reasoning_content="hm")).reasoning == "hm"


ENCRYPTED = {"type": "reasoning.encrypted", "data": "gAAA", "id": "rs_1", "format": "openai-responses-v1", "index": 0}


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"reasoning": None, "reasoning_details": [ENCRYPTED]}, ""),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}, ENCRYPTED]}, "hm"),
        ({"reasoning_details": [ENCRYPTED, {"type": "reasoning.text", "text": "hm", "signature": "s"}]}, "hm"),
        ({"reasoning_details": [{"type": "reasoning.novel", "text": "hm"}]}, "hm"),
        ({"thinking": [{"type": "redacted_thinking", "data": "gAAA"}, {"type": "thinking", "thinking": "hm"}]}, "hm"),
        ({"reasoning": [ENCRYPTED], "reasoning_content": "hm"}, "hm"),
        ({"reasoning": ENCRYPTED}, ""),
    ],
)
def test_encrypted_reasoning_is_passed_over(fields: dict[str, Any], reasoning: str) -> None:
    reply = read(event(None, **fields), event("4", "stop", **fields))
    assert (reply.reasoning, reply.content) == (2 * reasoning, "4")


@pytest.mark.parametrize("value", [3, [3], True])
def test_reasoning_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(UpstreamError):
        read(event(None, reasoning=value))


def test_refusal_is_an_error_and_not_an_empty_answer() -> None:
    with pytest.raises(ProtocolError, match="cannot help"):
        read(event(None, refusal="I cannot help with that"))


def test_halves_of_a_character_in_two_pieces_are_joined() -> None:
    assert read(event("\ud83d"), event("\ude42"), event("\ud83d")).content == "🙂\ufffd"


@pytest.mark.parametrize(("tokens", "finish"), [(5, "length"), (4, "stop")])
def test_end_without_a_reason_follows_from_the_length(tokens: int, finish: str) -> None:
    reply = CompletionReply(Sampling())
    VLLMDialect().read({"choices": [{"token_ids": list(range(tokens)), "finish_reason": ""}]}, reply)
    reply.end_without_reason(5)
    assert reply.finish == finish


@pytest.mark.parametrize("ids", [[-1], [2**31], [True], [1.0], ["1"], "12", None, {"0": 1}])
def test_token_ids_must_be_token_ids(ids: Any) -> None:
    with pytest.raises(ProtocolError):
        token_ids(ids)

"""Splitting a trace into thinking and answer, and taking its tail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.tails import ParsedTrace, parse_trace, take_tail
from tests.support.fakes import ASSISTANT, EOS, THINK_END, USER, ByteTokenizer, CharacterTokenizer

CHARACTERS, BYTES = CharacterTokenizer(), ByteTokenizer()
MARKER = BYTES.end_of_thinking[0]


def test_thinking_ends_at_the_first_marker() -> None:
    parsed = parse_trace(CHARACTERS.encode("one</think>two</think>three"), CHARACTERS.end_of_thinking)
    assert CHARACTERS.decode(parsed.thinking_ids) == "one"
    assert CHARACTERS.decode(parsed.answer_ids) == "two</think>three"
    assert parsed.has_answer


@given(thinking=st.text(max_size=40).filter(lambda t: "<" not in t), answer=st.text(max_size=40))
def test_a_marker_of_several_tokens_splits_exactly(thinking: str, answer: str) -> None:
    ids = [*BYTES.encode(thinking), *MARKER, *BYTES.encode(answer)]
    parsed = parse_trace(ids, BYTES.end_of_thinking)
    assert parsed.has_answer
    assert (*parsed.thinking_ids, *MARKER, *parsed.answer_ids) == tuple(ids)
    assert BYTES.decode(parsed.thinking_ids) == thinking


@given(cut=st.integers(0, len(MARKER) - 1))
def test_a_truncated_marker_ends_nothing(cut: int) -> None:
    ids = [*BYTES.encode(r"so \boxed{7}"), *MARKER[:cut]]
    assert parse_trace(ids, BYTES.end_of_thinking) == ParsedTrace(tuple(ids), ())


def test_the_earliest_of_several_markers_counts() -> None:
    parsed = parse_trace([10, 8, 9, 11, 7, 12], [(7,), (8, 9)])
    assert parsed == ParsedTrace((10,), (11, 7, 12), marker=1)


def test_a_trace_that_ends_before_any_marker_has_no_answer() -> None:
    parsed = parse_trace([*CHARACTERS.encode(r"\boxed{7}"), EOS], CHARACTERS.end_of_thinking)
    assert parsed.answer_ids == ()
    assert not parsed.has_answer


@pytest.mark.parametrize(("markers", "thinking"), [((), True), ((), False), (CHARACTERS.end_of_thinking, False)])
def test_without_markers_or_thinking_the_whole_trace_is_thinking_and_answer(
    markers: tuple[tuple[int, ...], ...], thinking: bool
) -> None:
    ids = tuple(CHARACTERS.encode("some text"))
    parsed = parse_trace(ids, markers, thinking=thinking)
    assert parsed == ParsedTrace(ids, ids, undivided=True)
    assert parsed.has_answer


@given(
    text=st.text(alphabet="ab</think>", max_size=30).map(lambda text: text + "</think>" * (len(text) % 2)),
    markers=st.booleans(),
    thinking=st.booleans(),
)
def test_locate_divides_the_text_as_the_ids_are_divided(text: str, markers: bool, thinking: bool) -> None:
    ids = CHARACTERS.encode(text)
    parsed = parse_trace(ids, CHARACTERS.end_of_thinking if markers else (), thinking=thinking)
    end, start = parsed.locate(CHARACTERS.decode(ids), ["</think>"])
    assert CHARACTERS.decode(ids)[:end] == CHARACTERS.decode(parsed.thinking_ids)
    assert CHARACTERS.decode(ids)[start:] == CHARACTERS.decode(parsed.answer_ids)


def test_a_marker_without_text_leaves_the_whole_text_to_both_parts() -> None:
    assert parse_trace([1, 7, 2], [(7,)]).locate("ab", [""]) == (2, 0)


CONTROLS = frozenset({EOS, USER, ASSISTANT})


@given(
    ids=st.lists(st.one_of(st.sampled_from(sorted(CONTROLS)), st.integers(100, 200)), max_size=60),
    tau=st.integers(1, 70),
)
def test_controls_are_dropped_first_then_the_last_ids_taken(ids: list[int], tau: int) -> None:
    tail = take_tail(ids, tau, CONTROLS, CHARACTERS.decode)
    assert tail.token_ids == tuple([i for i in ids if i not in CONTROLS][-tau:])
    assert tail.text == CHARACTERS.decode(tail.token_ids)


def test_controls_do_not_use_up_the_window() -> None:
    ids = [*CHARACTERS.encode("abc"), EOS, USER, EOS]
    assert take_tail(ids, 2, CONTROLS, CHARACTERS.decode).text == "bc"


@given(text=st.text(max_size=40), tau=st.integers(1, 80))
def test_a_tail_begins_with_a_whole_character(text: str, tau: int) -> None:
    ids = BYTES.encode(text)
    tail = take_tail(ids, tau, CONTROLS, BYTES.decode)
    assert len(tail.token_ids) <= tau
    assert tuple(ids[len(ids) - len(tail.token_ids) :]) == tail.token_ids  # a run of real ids, the last ones
    assert text.endswith(tail.text)
    dropped = min(tau, len(ids)) - len(tail.token_ids)
    assert dropped <= 3


@pytest.mark.parametrize(
    ("tau", "text"), [(1, ""), (3, ""), (4, "\U0001f642"), (5, "\U0001f642"), (8, "ab\u00e9\U0001f642")]
)
def test_the_torn_bytes_of_a_character_are_dropped(tau: int, text: str) -> None:
    assert take_tail(BYTES.encode("ab\u00e9\U0001f642"), tau, CONTROLS, BYTES.decode).text == text


def test_a_real_replacement_character_is_kept() -> None:
    assert take_tail(CHARACTERS.encode("a\ufffd\ufffd\ufffd\ufffdb"), 5, CONTROLS, CHARACTERS.decode).text == (
        "\ufffd\ufffd\ufffd\ufffdb"
    )


def test_tokens_are_counted_not_words_or_characters() -> None:
    ids = BYTES.encode("\u00e9" * 10)  # ten characters, one word, twenty tokens
    assert len(take_tail(ids, 8, CONTROLS, BYTES.decode).token_ids) == 8


def test_the_marker_itself_is_never_part_of_a_tail() -> None:
    parsed = parse_trace(CHARACTERS.encode("think</think>answer"), CHARACTERS.end_of_thinking)
    assert THINK_END not in take_tail(parsed.thinking_ids, 100, CONTROLS, CHARACTERS.decode).token_ids

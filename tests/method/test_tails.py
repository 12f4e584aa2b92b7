"""Where the reasoning ends, and its last tau tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.tails import split_thinking, take_tail
from tests.support.fakes import ASSISTANT, EOS, THINK_END, USER, ByteTokenizer, CharacterTokenizer

CHARACTERS, BYTES = CharacterTokenizer(), ByteTokenizer()
MARKER = BYTES.end_of_thinking[0]


def test_reasoning_ends_at_the_first_marker() -> None:
    ids = CHARACTERS.encode("one</think>two</think>three")
    split = split_thinking(ids, CHARACTERS.end_of_thinking, stopped=True)
    assert CHARACTERS.decode(split.reasoning_ids) == "one"
    assert CHARACTERS.decode(split.answer_ids) == "two</think>three"
    assert split.finished


@given(
    reasoning=st.text(max_size=40).filter(lambda t: "<" not in t), answer=st.text(max_size=40), stopped=st.booleans()
)
def test_a_marker_of_several_tokens_splits_exactly(reasoning: str, answer: str, stopped: bool) -> None:
    ids = [*BYTES.encode(reasoning), *MARKER, *BYTES.encode(answer)]
    split = split_thinking(ids, BYTES.end_of_thinking, stopped=stopped)
    assert split.finished
    assert (*split.reasoning_ids, *MARKER, *split.answer_ids) == tuple(ids)
    assert BYTES.decode(split.reasoning_ids) == reasoning


@given(cut=st.integers(0, len(MARKER) - 1))
def test_a_marker_that_is_cut_off_ends_nothing(cut: int) -> None:
    ids = [*BYTES.encode(r"so \boxed{7}"), *MARKER[:cut]]
    split = split_thinking(ids, BYTES.end_of_thinking, stopped=False)
    assert not split.finished
    assert split.reasoning_ids == tuple(ids)
    assert split.answer_ids == ()


def test_the_earliest_of_several_markers_counts() -> None:
    split = split_thinking([10, 8, 9, 11, 7, 12], [(7,), (8, 9)], stopped=True)
    assert split.reasoning_ids == (10,)
    assert split.answer_ids == (11, 7, 12)


def test_a_trace_that_stopped_before_any_marker_has_no_answer_either() -> None:
    split = split_thinking([*CHARACTERS.encode(r"\boxed{7}"), EOS], CHARACTERS.end_of_thinking, stopped=True)
    assert split.answer_ids == ()
    assert not split.finished


@pytest.mark.parametrize("stopped", [True, False])
def test_without_markers_the_whole_text_is_reasoning_and_answer(stopped: bool) -> None:
    ids = tuple(CHARACTERS.encode("some</think>text"))
    split = split_thinking(ids, (), stopped=stopped)
    assert split.reasoning_ids == split.answer_ids == ids
    assert split.finished is stopped


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
    split = split_thinking(CHARACTERS.encode("think</think>answer"), CHARACTERS.end_of_thinking, stopped=True)
    assert THINK_END not in take_tail(split.reasoning_ids, 100, CONTROLS, CHARACTERS.decode).token_ids

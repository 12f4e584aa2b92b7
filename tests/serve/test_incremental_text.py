"""The pieces of a growing trace add up to the finished trace, however its ids arrive."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.marks import ThinkingMarks, find_marks
from markovian_rsa_mlx.method.tails import TraceParser
from markovian_rsa_mlx.serve.incremental_text import LiveTrace

from ..support.fakes import ByteTokenizer, CharacterTokenizer

CHARACTERS, BYTES = CharacterTokenizer(), ByteTokenizer()
PLAIN = find_marks("<think></think>", {}.get)
UNEXPECTED = replace(PLAIN, expected=False) if PLAIN else None
PIECES = ["a", 45 * "long", "é", "🙂", " ", "\n", "<", "</th", "<think>", "</think>", "<response>", "</response>"]


@dataclass
class Setup:
    """The marks as a run records them."""

    thinking_marks: dict[str, Any]
    chat_suffix: str = ""
    end_of_thinking: list[list[int]] = field(default_factory=list)
    end_of_thinking_texts: list[str] = field(default_factory=list)
    tool_form: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("tokenizer", "marks"), [(CHARACTERS, CHARACTERS.find_marks()), (BYTES, PLAIN), (BYTES, UNEXPECTED), (BYTES, None)]
)
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=14),
    step=st.integers(1, 7),
    thinking=st.booleans(),
    suffix=st.sampled_from(["", "<think>\n", "<think></think>"]),
)
def test_pieces_add_up_to_the_trace(
    tokenizer: CharacterTokenizer,
    marks: ThinkingMarks | None,
    pieces: list[str],
    step: int,
    thinking: bool,
    suffix: str,
) -> None:
    ids = tokenizer.encode("".join(pieces))
    live = LiveTrace(tokenizer.decode, marks, suffix=suffix, thinking=thinking)
    found = [live.add(ids[start : start + step]) for start in range(0, len(ids), step)]
    found.append(live.end())
    setup = Setup(marks.to_dict() if marks else {}, suffix)
    whole = TraceParser(setup, tokenizer.decode).parse(ids, thinking=thinking)
    assert "".join(piece for _, piece in found) == whole.answer.strip()
    assert "".join(piece for piece, _ in found) == ("" if whole.undivided else whole.thinking.strip())


@pytest.mark.parametrize(
    ("text", "suffix", "finished", "answer"),
    [
        ("2+2=4, so it is 4. ", "", True, "2+2=4, so it is 4."),
        ("2+2=4, so it is 4. ", "", False, ""),
        ("2+2=4, so it is 4.", "<think>\n", True, ""),
        ("<think>2+2=4, so it is 4.", "", True, ""),
        ("2+2=4, so it is </think>4.", "", True, "4."),
        ("The root is <response>. Done.", "", True, "The root is <response>. Done."),
        ("Write <|begin_of_solution|> and </response>.", "", True, "Write <|begin_of_solution|> and </response>."),
        ("The mark <think> begins it.", "", True, "The mark <think> begins it."),
        ("The root is <response>. Done.", "", False, ""),
        ("The root is <response>.</think>Done.", "", True, "Done."),
    ],
)
def test_a_finished_trace_without_any_mark_is_an_answer(text: str, suffix: str, finished: bool, answer: str) -> None:
    assert PLAIN is not None
    marks, ids = replace(PLAIN, expected=True), BYTES.encode(text)
    live = LiveTrace(BYTES.decode, marks, suffix=suffix)
    found = [live.add([token]) for token in ids] + [live.end(finished=finished)]
    assert "".join(piece for _, piece in found) == answer
    parser = TraceParser(Setup(marks.to_dict(), suffix), BYTES.decode)
    whole = parser.parse(ids, thinking=True, finished=finished)
    assert whole.answer.strip() == answer
    assert whole.has_answer == bool(answer)
    assert parser.parse(ids, text, thinking=True, finished=finished) == whole


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The root is <response>. Done.", "The root is <response>. Done."),
        ("The root is <|begin_of_solution|>. Done.", "The root is <|begin_of_solution|>. Done."),
        ("<think>The root is <response>. Done.", ""),
        ("The root is <response>.</think>Done.", "Done."),
    ],
)
def test_marks_that_are_ordinary_text_are_no_marks_of_a_finished_trace(text: str, answer: str) -> None:
    """The marks of the thinking are tokens, and those around an answer are not."""
    marks = CHARACTERS.find_marks()
    assert marks is not None
    assert "<response>" not in marks.tokens
    live, ids = LiveTrace(CHARACTERS.decode, marks), CHARACTERS.encode(text)
    assert (live.add(ids)[1] + live.end(finished=True)[1]).strip() == answer
    parser = TraceParser(Setup(marks.to_dict()), CHARACTERS.decode)
    assert parser.parse(ids, thinking=True, finished=True).answer.strip() == answer


@pytest.mark.parametrize("step", [1, 5])
def test_undecided_text_is_held_back_until_the_mark(step: int) -> None:
    live = LiveTrace(CHARACTERS.decode, CHARACTERS.find_marks(), thinking=False)
    ids = CHARACTERS.encode("secret thoughts")
    assert {live.add(ids[start : start + step]) for start in range(0, len(ids), step)} == {("", "")}
    assert live.add(CHARACTERS.encode("</think>7")) == ("secret thoughts", "7")


@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize(("expected", "held"), [(True, 100), (False, 0)])
def test_an_ordinary_answer_flows(step: int, expected: bool, held: int) -> None:
    marks = CHARACTERS.find_marks()
    assert marks is not None
    live = LiveTrace(CHARACTERS.decode, replace(marks, expected=expected), thinking=not expected)
    ids, sent = CHARACTERS.encode("Paris<" * 50), ""
    for start in range(0, len(ids), step):
        reasoning, answer = live.add(ids[start : start + step])
        sent += answer
        assert not reasoning
        assert len(sent) >= start - 1 or start + step <= held + 1  # no more than a possible mark waits

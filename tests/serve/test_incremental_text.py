"""The pieces of a growing trace add up to the finished trace, however its ids arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.tails import parse_trace
from markovian_rsa_mlx.serve.incremental_text import LiveTrace

from ..support.fakes import ByteTokenizer, CharacterTokenizer

TEXT = st.text(alphabet="ab \né", max_size=12)


@given(TEXT, TEXT, st.booleans(), st.integers(1, 7), st.sampled_from(["on", "off", "uncertain"]), st.booleans())
def test_pieces_add_up_to_the_trace(before: str, after: str, marked: bool, step: int, mode: str, wide: bool) -> None:
    tokenizer = ByteTokenizer() if wide else CharacterTokenizer()
    thinking = mode == "on"
    if mode == "off" and marked:  # the text before the marker was sent as the answer already
        return
    ids = tokenizer.encode(before + ("</think>" if marked else "") + after)
    live = LiveTrace(tokenizer, thinking, uncertain=mode == "uncertain")
    pieces = [live.add(ids[start : start + step]) for start in range(0, len(ids), step)]
    pieces.append(live.end())
    parsed = parse_trace(ids, tokenizer.end_of_thinking, thinking=thinking)
    answer = tokenizer.decode(parsed.answer_ids).strip()
    reasoning = tokenizer.decode(parsed.thinking_ids).strip() if marked or thinking else ""
    assert "".join(piece for piece, _ in pieces) == reasoning
    assert "".join(piece for _, piece in pieces) == answer


@pytest.mark.parametrize("step", [1, 5])
def test_uncertain_text_is_held_back_until_the_marker(step: int) -> None:
    tokenizer = CharacterTokenizer()
    live = LiveTrace(tokenizer, False, uncertain=True)
    ids = tokenizer.encode("secret thoughts")
    assert {live.add(ids[start : start + step]) for start in range(0, len(ids), step)} == {("", "")}
    assert live.add(tokenizer.encode("</think>7")) == ("secret thoughts", "7")

"""Pieces of a trace in the making add up to what the finished trace says, however its ids come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.tails import split_thinking
from markovian_rsa_mlx.serve.live import LiveTrace

from ..fakes import ByteCodec, CharacterCodec

TEXT = st.text(alphabet="ab \né", max_size=12)


@given(TEXT, TEXT, st.booleans(), st.integers(1, 7), st.sampled_from(["on", "off", "uncertain"]), st.booleans())
def test_the_pieces_are_the_whole(before: str, behind: str, marked: bool, step: int, mode: str, wide: bool) -> None:
    codec = ByteCodec() if wide else CharacterCodec()
    thinking = mode == "on"
    if mode == "off" and marked:  # the model was told not to think: what it says first has gone out as the answer
        return
    ids = codec.encode(before + ("</think>" if marked else "") + behind)
    live = LiveTrace(codec, thinking, uncertain=mode == "uncertain")
    pieces = [live.add(ids[start : start + step]) for start in range(0, len(ids), step)]
    pieces.append(live.end())
    split = split_thinking(ids, codec.end_of_thinking, stopped=True, thinking=thinking)
    answer = codec.decode(split.answer_ids).strip()
    reasoning = codec.decode(split.reasoning_ids).strip() if marked or thinking else ""
    assert "".join(piece for piece, _ in pieces) == reasoning
    assert "".join(piece for _, piece in pieces) == answer


@pytest.mark.parametrize("step", [1, 5])
def test_what_may_be_reasoning_is_held_back_until_the_marker(step: int) -> None:
    codec = CharacterCodec()
    live = LiveTrace(codec, False, uncertain=True)
    ids = codec.encode("secret thoughts")
    assert {live.add(ids[start : start + step]) for start in range(0, len(ids), step)} == {("", "")}
    assert live.add(codec.encode("</think>7")) == ("secret thoughts", "7")

"""What is reasoning and what is answer, with a tokenizer and template like ZAYA1-8B's."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer

from markovian_rsa_mlx.backends.mlx.codec import MLXCodec
from markovian_rsa_mlx.method.tails import split_thinking, take_tail

from . import zaya_tokenizer
from .test_zaya_config import HUB_8B

QUESTION = [{"role": "user", "content": "What is 6*7?"}]
TRACE = "So 6*7 is\nforty two.</think>\n\nIt is \\boxed{42}.<|im_end|>"


@pytest.fixture(params=[True, False], ids=["tokens", "written-out"])
def codec(request: pytest.FixtureRequest, tmp_path: Path) -> MLXCodec:
    zaya_tokenizer.write(tmp_path, marks=request.param)
    return MLXCodec(load_tokenizer(tmp_path, eos_token_ids=HUB_8B["eos_token_id"]))


def parts(codec: MLXCodec, text: str, *, stopped: bool, thinking: bool = True) -> tuple[str, str, bool]:
    split = split_thinking(codec.encode(text), codec.end_of_thinking, stopped=stopped, thinking=thinking)
    return codec.decode(split.reasoning_ids), codec.decode(split.answer_ids), split.finished


def test_thinking_is_opened_in_the_prompt(codec: MLXCodec) -> None:
    text = codec.render_chat(QUESTION, True)
    assert text == "<bos><|im_start|>user\nWhat is 6*7?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert codec.encode(text)[:2] == [zaya_tokenizer.BOS, zaya_tokenizer.TURN]


def test_reasoning_stands_before_the_mark_and_the_answer_behind_it(codec: MLXCodec) -> None:
    assert parts(codec, TRACE, stopped=True) == ("So 6*7 is\nforty two.", "\n\nIt is \\boxed{42}.", True)


def test_a_trace_cut_off_in_mid_thought_is_all_reasoning(codec: MLXCodec) -> None:
    assert parts(codec, "So 6*7 is\nforty", stopped=False) == ("So 6*7 is\nforty", "", False)


def test_without_thinking_the_whole_trace_is_the_answer(codec: MLXCodec) -> None:
    assert codec.render_chat(QUESTION, False).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    whole = "It is \\boxed{42}."
    assert parts(codec, whole + "<|im_end|>", stopped=True, thinking=False) == (whole, whole, True)


def test_a_model_that_thinks_unasked_is_understood_all_the_same(codec: MLXCodec) -> None:
    assert parts(codec, TRACE, stopped=True, thinking=False)[1] == "\n\nIt is \\boxed{42}."


def test_a_tail_holds_no_turns_and_ends_where_the_thinking_does(codec: MLXCodec) -> None:
    ids = codec.encode("<think>\n" + TRACE)
    reasoning = split_thinking(ids, codec.end_of_thinking, stopped=True).reasoning_ids
    tail = take_tail(reasoning, 10, codec.control_ids, codec.decode)
    assert tail.text == "forty two."


def test_the_end_of_a_turn_ends_a_trace(codec: MLXCodec) -> None:
    assert codec.eos_ids == {zaya_tokenizer.END_OF_TURN}
    assert zaya_tokenizer.TURN in codec.control_ids


def test_a_wrong_eos_of_generation_config_does_not_hide_the_turns_end(tmp_path: Path) -> None:
    """Some copies of the model say 1 there, mlx-lm reads it, and the model would write on behind its turn."""
    zaya_tokenizer.write(tmp_path)
    codec = MLXCodec(load_tokenizer(tmp_path, eos_token_ids=zaya_tokenizer.EOS_OF_TEXT))
    assert codec.eos_ids == {zaya_tokenizer.EOS_OF_TEXT, zaya_tokenizer.END_OF_TURN}

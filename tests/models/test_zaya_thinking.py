"""Splitting thinking from answer with a tokenizer and template like those of ZAYA1-8B."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer

from markovian_rsa_mlx.backends.tokenizers import MLXTokenizer
from markovian_rsa_mlx.method.tails import parse_trace, take_tail

from . import zaya_tokenizer
from .test_zaya_config import HUB_8B

QUESTION = [{"role": "user", "content": "What is 6*7?"}]
TRACE = "So 6*7 is\nforty two.</think>\n\nIt is \\boxed{42}.<|im_end|>"


@pytest.fixture(params=[True, False], ids=["tokens", "written-out"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> MLXTokenizer:
    zaya_tokenizer.write(tmp_path, marks=request.param)
    return MLXTokenizer(load_tokenizer(tmp_path, eos_token_ids=HUB_8B["eos_token_id"]))


def parts(tokenizer: MLXTokenizer, text: str, *, thinking: bool = True) -> tuple[str, str, bool]:
    parsed = parse_trace(tokenizer.encode(text), tokenizer.end_of_thinking, thinking=thinking)
    return tokenizer.decode(parsed.thinking_ids), tokenizer.decode(parsed.answer_ids), parsed.has_answer


def test_thinking_is_opened_in_the_prompt(tokenizer: MLXTokenizer) -> None:
    text = tokenizer.render_chat(QUESTION, True)
    assert text == "<bos><|im_start|>user\nWhat is 6*7?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.encode(text)[:2] == [zaya_tokenizer.BOS, zaya_tokenizer.TURN]


def test_the_mark_separates_reasoning_from_answer(tokenizer: MLXTokenizer) -> None:
    assert parts(tokenizer, TRACE) == ("So 6*7 is\nforty two.", "\n\nIt is \\boxed{42}.", True)


def test_a_trace_truncated_before_the_mark_is_all_reasoning(tokenizer: MLXTokenizer) -> None:
    assert parts(tokenizer, "So 6*7 is\nforty") == ("So 6*7 is\nforty", "", False)


def test_without_thinking_the_whole_trace_is_the_answer(tokenizer: MLXTokenizer) -> None:
    assert tokenizer.render_chat(QUESTION, False).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    whole = "It is \\boxed{42}."
    assert parts(tokenizer, whole + "<|im_end|>", thinking=False) == (whole, whole, True)


def test_thinking_is_split_even_if_it_was_disabled(tokenizer: MLXTokenizer) -> None:
    assert parts(tokenizer, TRACE, thinking=False)[1] == "\n\nIt is \\boxed{42}."


def test_a_tail_has_no_turn_markers_and_ends_with_the_thinking(tokenizer: MLXTokenizer) -> None:
    ids = tokenizer.encode("<think>\n" + TRACE)
    thinking_ids = parse_trace(ids, tokenizer.end_of_thinking).thinking_ids
    tail = take_tail(thinking_ids, 10, tokenizer.control_ids, tokenizer.decode)
    assert tail.text == "forty two."


def test_the_end_of_a_turn_ends_a_trace(tokenizer: MLXTokenizer) -> None:
    assert tokenizer.eos_ids == {zaya_tokenizer.END_OF_TURN}
    assert zaya_tokenizer.TURN in tokenizer.control_ids


def test_the_end_of_a_turn_is_eos_despite_a_wrong_generation_config(tmp_path: Path) -> None:
    """Some copies of the model have 1 there. mlx-lm reads it, and the model would continue after its turn."""
    zaya_tokenizer.write(tmp_path)
    tokenizer = MLXTokenizer(load_tokenizer(tmp_path, eos_token_ids=zaya_tokenizer.EOS_OF_TEXT))
    assert tokenizer.eos_ids == {zaya_tokenizer.EOS_OF_TEXT, zaya_tokenizer.END_OF_TURN}

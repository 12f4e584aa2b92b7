"""The tokenizer of mlx-lm models: ids, spaces, marks and chat templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from markovian_rsa_mlx.backends.tokenizers import MLXTokenizer
from markovian_rsa_mlx.errors import PromptError

from . import tiny_models


def tokenizer(folder: Path, **options: Any) -> MLXTokenizer:
    folder.mkdir(exist_ok=True)
    tiny_models.write_tokenizer(folder, **options)
    return MLXTokenizer(load_tokenizer(folder, eos_token_ids=[tiny_models.EOS]))


@pytest.fixture
def plain(tmp_path: Path) -> MLXTokenizer:
    return tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["a b", "  two  spaces ,  and a stop .", "\n\nx\t", "naïve 漢字 🙂", "", "I 'm n't"])
def test_text_survives_the_round_trip(plain: MLXTokenizer, text: str) -> None:
    assert plain.decode(plain.encode(text)) == text


def test_marks_are_eos_control_or_end_of_thinking(plain: MLXTokenizer) -> None:
    assert plain.end_of_thinking == ((tiny_models.END_THINK,),)
    assert plain.eos_ids == {tiny_models.EOS}
    assert {tiny_models.EOS, tiny_models.BOT, tiny_models.THINK} <= plain.control_ids
    assert tiny_models.END_THINK not in plain.control_ids
    assert not plain.control_ids & set(range(256))


def test_control_ids_decode_to_no_text(plain: MLXTokenizer) -> None:
    ids = [tiny_models.BOT, *plain.encode("hi "), tiny_models.EOS, *plain.encode("you"), tiny_models.EOS]
    assert plain.decode(ids) == "hi you"
    assert plain.decode([tiny_models.END_THINK]) == "</think>"


def test_a_torn_character_becomes_a_replacement(plain: MLXTokenizer) -> None:
    text = plain.decode(plain.encode("🙂 ok")[2:])
    assert text.startswith("\ufffd")
    assert text.endswith(" ok")
    text.encode("utf-8")


@pytest.mark.parametrize("thinking", [True, False])
def test_the_chat_template_receives_enable_thinking(plain: MLXTokenizer, thinking: bool) -> None:
    rendered = plain.render_chat([{"role": "user", "content": "hi"}], thinking)
    assert rendered == "<|bot|>user: hi\n<|bot|>" + ("<think>" if thinking else "")
    assert plain.encode(rendered)[0] == tiny_models.BOT


@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_may_name_the_switch_thinking(tmp_path: Path, thinking: bool) -> None:
    switch = "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
    own = tokenizer(tmp_path, chat_template=f"{switch}{{{{ '<think>' if thinking else '</think>' }}}}")
    assert own.render_chat([{"role": "user", "content": "hi"}], thinking) == ("<think>" if thinking else "</think>")


def test_without_a_template_the_prompt_is_the_text(tmp_path: Path) -> None:
    untemplated = tokenizer(tmp_path, chat_template=None)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert untemplated.render_chat(chat, True) == "Be brief.\n\nhi"  # type: ignore[arg-type]


def test_a_template_that_refuses_the_chat_raises(tmp_path: Path) -> None:
    strict = tokenizer(tmp_path, chat_template="{{ raise_exception('no system message') }}")
    with pytest.raises(PromptError, match=r"refuses this chat: .*no system message"):
        strict.render_chat([{"role": "user", "content": "hi"}], True)


def test_a_tail_keeps_its_first_space_under_a_sentencepiece_decoder(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "▁a": 1, "▁b": 2, "a": 3, "b": 4, "▁": 5, "</s>": 6}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path)
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    wrapped = MLXTokenizer(TokenizerWrapper(PreTrainedTokenizerFast.from_pretrained(tmp_path)))
    assert wrapped.decode([2, 1]) == " b a"
    assert wrapped.decode([3, 2]) == "a b"
    assert wrapped.end_of_thinking == ()

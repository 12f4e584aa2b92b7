"""The tokenizer of mlx-lm models: ids, spaces, marks and chat templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.tokenizers import MLXTokenizer, files_digest, processor_template
from markovian_rsa_mlx.backends.tokenizers import load_tokenizer as load_ours
from markovian_rsa_mlx.errors import PromptError
from markovian_rsa_mlx.tokenizer import ChatMessage

from . import tiny_models

MESSAGES = (ChatMessage(role="user", content="Hi"),)


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


def processor_folder(folder: Path) -> Path:
    """Write a model whose chat template is in `chat_template.json` alone."""
    tiny_models.write(folder, chat_template=None)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": tiny_models.CHAT}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("has_config", [True, False])
def test_the_template_of_the_processor_is_read(tmp_path: Path, has_config: bool) -> None:
    folder = processor_folder(tmp_path / "legacy")
    if not has_config:
        (folder / "tokenizer_config.json").unlink()
    expected = load_ours(tiny_models.write(tmp_path / "usual"))
    for found in (load_ours(folder), MLXTokenizer(load_model(folder).tokenizer)):
        assert found.render_chat(MESSAGES, True) == expected.render_chat(MESSAGES, True)
        assert (found.find_marks(), found.template) == (expected.find_marks(), expected.template)


@pytest.mark.parametrize("content", ["[]", "{}", '{"chat_template": ["x"]}', "{", "[" * 100_000])
def test_another_form_of_the_processors_template_is_none(tmp_path: Path, content: str) -> None:
    folder = processor_folder(tmp_path)
    (folder / "chat_template.json").write_text(content, encoding="utf-8")
    assert processor_template(folder) is None
    assert load_ours(folder).template == ""


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_tokenizers_own_template_comes_first(tmp_path: Path, place: str) -> None:
    """The digest of such a tokenizer does not depend on the other one."""
    folder, own = processor_folder(tmp_path), "{{ messages[0].content }}"
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | {"chat_template": own}
    (folder / place).write_text(own if place.endswith("jinja") else json.dumps(config), encoding="utf-8")
    tokenizer, digest = load_ours(folder), files_digest(folder)
    assert tokenizer.template == own
    (folder / "chat_template.json").unlink()
    assert files_digest(folder) == digest


def test_the_digest_depends_on_all_that_shapes_the_tokenizer(tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, chat_template=None)
    digests = [files_digest(folder)]
    (folder / "chat_template.json").write_text('{"chat_template": "x"}', encoding="utf-8")
    digests.append(files_digest(folder))
    (folder / "generation_config.json").write_text('{"temperature": 0.6}', encoding="utf-8")
    assert files_digest(folder) == digests[-1]
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', encoding="utf-8")
    digests.append(files_digest(folder))
    assert len(set(digests)) == 3


def test_a_fetched_tokenizer_has_all_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is downloaded as a whole has the same tokenizer, and the same digest."""
    whole = processor_folder(tmp_path / "whole")
    (whole / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', encoding="utf-8")

    def snapshot(*_: object, allow_patterns: list[str], **options: bool) -> str:
        fetched = tmp_path / "fetched"
        fetched.mkdir(exist_ok=True)
        for path in whole.iterdir():
            if not options.get("local_files_only") and any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, fetched)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("markovian_rsa_mlx.hub._repository_info", lambda *_, **__: None)
    tokenizer = load_ours("me/model")
    assert tokenizer.eos_ids == load_ours(whole).eos_ids > {1, 2}
    assert tokenizer.digest == files_digest(whole)
    assert tokenizer.template == tiny_models.CHAT


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

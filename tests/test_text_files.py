"""Text of any editor: byte order marks are read, other encodings are named."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ConfigError, TemplateError
from markovian_rsa_mlx.method.prompts import PromptTemplate
from markovian_rsa_mlx.text_files import NotTextError, decode_text, read_text


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_are_read_and_removed(codec: str, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes("Größe?\r\nJa.".encode(codec))
    assert read_text(tmp_path / "q.txt") == "Größe?\nJa."


def test_latin_1_is_refused_with_its_place_and_a_remedy() -> None:
    with pytest.raises(NotTextError, match=r"byte 0xfc in line 2.*iconv -f latin1"):
        decode_text("a\nGrüße".encode("latin-1"))
    with pytest.raises(NotTextError):
        decode_text(codecs.BOM_UTF16_LE + b"\x00")


def test_settings_and_templates_take_marks_and_refuse_latin_1(tmp_path: Path) -> None:
    settings, template = tmp_path / "s.toml", tmp_path / "t.j2"
    settings.write_bytes(codecs.BOM_UTF8 + b"rounds = 3\n")
    assert RSAConfig.from_toml(settings).rounds == 3
    settings.write_bytes("# Größe\nrounds = 3\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="iconv"):
        RSAConfig.from_toml(settings)
    template.write_bytes("Grüße {{ tails }}".encode("latin-1"))
    with pytest.raises(TemplateError, match="iconv"):
        PromptTemplate.load(str(template))

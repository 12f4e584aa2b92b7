"""Text of any editor: byte order marks are read, other encodings are named."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ConfigError, TemplateError
from markovian_rsa_mlx.method.prompts import PromptTemplate
from markovian_rsa_mlx.text_files import NotTextError, decode_text, read_text, write_private_text


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


def test_files_are_written_whole_and_private(tmp_path: Path) -> None:
    path, link = tmp_path / "page.html", tmp_path / "link.html"
    write_private_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600
    link.symlink_to(path)
    write_private_text(link, "through the link")
    assert link.is_symlink()
    assert path.read_text() == "through the link"
    with pytest.raises(OSError, match="directory"):
        write_private_text(tmp_path, "x")
    with pytest.raises(UnicodeEncodeError):
        write_private_text(path, "half \ud800")
    assert path.read_text() == "through the link"
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_private_text(path, "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert path.is_fifo()

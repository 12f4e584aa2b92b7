"""Read text that users wrote with any editor: UTF-8, with or without a byte order mark, or UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

#: Byte order marks and the codec that reads what follows, without the mark.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class NotTextError(ValueError):
    """The content is in another encoding. The message names the place, and how to convert it."""


def read_text(path: Path) -> str:
    """Return the text of a file with the line ends of Unix. Raise `OSError`, and `NotTextError` for other encodings."""
    return decode_text(path.read_bytes()).replace("\r\n", "\n")


def decode_text(content: bytes) -> str:
    """Decode text. Latin-1 and similar encodings cannot be distinguished, so they raise `NotTextError`."""
    codec = next((codec for mark, codec in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotTextError(
            f"not UTF-8 text (byte 0x{content[error.start]:02x} in line {line}). If it is Latin-1, convert it with "
            "iconv -f latin1 -t utf-8"
        ) from error

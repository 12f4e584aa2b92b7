"""Read text that users wrote with any editor, and write text for them.

Read is UTF-8, with or without a byte order mark, or UTF-16 with one.
"""

from __future__ import annotations

import codecs
import os
from contextlib import suppress
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


def write_private_text(path: Path, text: str) -> None:
    """Write a file completely or not at all, readable by its owner only. Raise `OSError`.

    A symbolic link is followed. A device or a pipe is written to, never replaced.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_text(text, encoding="utf-8")
        return
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise

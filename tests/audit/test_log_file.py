"""The writer: the contract of spec/audit.md, and what we add on top."""

from __future__ import annotations

import errno
import gc
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import AuditWriter, ErrorEvent, RunEndEvent, read_events, scan_file
from markovian_rsa_mlx.audit.log_file import LogTail, first_event, last_events
from markovian_rsa_mlx.errors import AuditError
from markovian_rsa_mlx.locks import is_locked


def event(message: str = "hello") -> ErrorEvent:
    return ErrorEvent("run", "stage", message, True)


def messages(path: Path) -> list[str]:
    return [json.loads(line)["message"] for line in path.read_text(encoding="utf-8").splitlines()]


def open_files() -> set[str]:
    return {str(link.resolve()) for link in Path("/proc/self/fd").iterdir()}


def test_write_returned_line_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "run.jsonl"
    writer = AuditWriter(path)
    writer.write(event("œ 你好 \u2028"))
    content = path.read_text(encoding="utf-8")
    assert content == json.dumps(event("œ 你好 \u2028").to_dict(), ensure_ascii=False) + "\n"
    writer.close()


def test_mode_w_truncates_and_mode_a_appends(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for mode, expected in (("w", ["1"]), ("a", ["1", "2"]), ("w", ["3"])):
        writer = AuditWriter(str(path), mode)  # type: ignore[arg-type]
        assert (path.read_bytes() == b"") == (mode == "w")
        writer.write(event(expected[-1]))
        writer.close()
        assert messages(path) == expected


def test_writer_without_path_writes_nothing() -> None:
    writer = AuditWriter(None)
    writer.write(event())
    writer.sync()
    writer.close()
    writer.write(event())
    writer.close()


def test_write_after_close_raises_value_error(tmp_path: Path) -> None:
    writer = AuditWriter(tmp_path / "run.jsonl")
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match=r"^AuditWriter is closed$"):
        writer.write(event())


def test_context_closes_and_propagates_exceptions(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def fail() -> None:
        with AuditWriter(path) as writer:
            opened.append(writer)
            writer.write(event())
            raise KeyError

    opened: list[AuditWriter] = []
    with pytest.raises(KeyError):
        fail()
    (writer,) = opened
    with pytest.raises(ValueError, match="closed"):
        writer.write(event())
    assert messages(path) == ["hello"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_dropped_writer_closes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    writer = AuditWriter(path)
    assert str(path) in open_files()
    del writer
    gc.collect()
    assert str(path) not in open_files()
    AuditWriter(path).close()  # and unlocks it


def test_unknown_mode_raises_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be"):
        AuditWriter(tmp_path / "run.jsonl", "r")  # type: ignore[arg-type]


def test_unrepresentable_values_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with AuditWriter(path) as writer:
        writer.write(event("a\ud800b\udfff"))
        writer.write(RunEndEvent("run", float("nan"), 3, 4))
        writer.write(RunEndEvent("run", float("-inf"), 3, 4))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["message"] == "a\ufffdb\ufffd"
    assert [json.loads(line)["elapsed_s"] for line in lines[1:]] == [None, None]


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    AuditWriter(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="flock")
def test_second_writer_fails_before_it_truncates(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    code = (
        "import sys; from markovian_rsa_mlx.audit import AuditWriter, ErrorEvent\n"
        "w = AuditWriter(sys.argv[1]); w.write(ErrorEvent('run', 's', 'first', True))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for mode in ("w", "a"):
            with pytest.raises(AuditError, match="is being written by another run"):
                AuditWriter(path, mode)  # type: ignore[arg-type]
        assert messages(path) == ["first"]
        other.communicate()
    AuditWriter(path, "a").close()


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_forked_child_keeps_the_lock(tmp_path: Path) -> None:
    writer = AuditWriter(tmp_path / "run.jsonl")
    child = os.fork()
    if child == 0:
        writer.close()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(AuditError, match="another run"):
        AuditWriter(tmp_path / "run.jsonl", "a")
    writer.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_raises_audit_error() -> None:
    with (
        pytest.raises(AuditError, match=r"^The audit file /dev/full cannot be written: No space left on device\.$"),
        AuditWriter("/dev/full") as writer,
    ):
        writer.write(event())


def test_impossible_path_raises_audit_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "run.jsonl", tmp_path):
        with pytest.raises(AuditError, match=r"^The audit file .* cannot be written: .*\.$"):
            AuditWriter(path)


def test_half_written_line_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    writer = AuditWriter(path)
    writer.write(event("kept"))
    real = os.write
    left = [10]

    def full_disk(fd: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(AuditError, match="No space left"):
        writer.write(event("lost"))
    assert messages(path) == ["kept"]
    monkeypatch.setattr(os, "write", real)
    writer.write(event("after"))
    assert messages(path) == ["kept", "after"]
    writer.close()


def test_half_written_line_is_removed_by_the_next_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    writer = AuditWriter(path)
    writer.write(event("kept"))
    real_write, real_truncate = os.write, os.ftruncate
    calls: list[Any] = []

    def half(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return real_write(fd, data[:7])

    def broken(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", half)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(AuditError, match="Input/output"):
        writer.write(event("lost"))
    monkeypatch.setattr(os, "write", real_write)
    monkeypatch.setattr(os, "ftruncate", real_truncate)
    writer.write(event("after"))
    writer.close()
    assert messages(path) == ["kept", "after"]


def test_append_to_a_line_without_newline_starts_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    line = json.dumps(event("whole").to_dict())
    path.write_text(line)  # an editor took the last newline away
    with AuditWriter(path, "a") as writer:
        assert path.read_text() == line  # opening alone changes nothing
        writer.write(event("next"))
    assert messages(path) == ["whole", "next"]
    assert len(read_events(path)) == 2


@pytest.mark.parametrize(("size", "mode"), [(0, 0o600), (1, 0o644)])
def test_existing_file_cannot_be_written_by_others(size: int, mode: int, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\n" * size)
    path.chmod(0o666)
    with AuditWriter(path, "a"):
        assert path.stat().st_mode & 0o777 == mode


def test_pipe_is_refused_by_every_reader_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    os.mkfifo(path)
    with pytest.raises(AuditError, match="not a regular file"):
        scan_file(path)
    for read in (first_event, lambda path: last_events(path, 1), lambda path: LogTail(path).read(), is_locked):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)

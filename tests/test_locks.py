"""Locks on open files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from markovian_rsa_mlx.locks import is_locked, try_lock, unlock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock")


def test_lock_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        assert not is_locked(path)
        assert try_lock(first)
        assert is_locked(path)
        assert not try_lock(second)
        unlock(first)
        assert not is_locked(path)
        assert try_lock(second)
    finally:
        os.close(first)
        os.close(second)


def test_concurrent_probes_do_not_see_each_other(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        assert not is_locked(path)


def test_file_system_without_locks_counts_as_unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, **_: object) -> bool:
        raise OSError("no locks here")

    monkeypatch.setattr("filelock.lock_descriptor", unsupported)
    with (tmp_path / "file").open("wb") as file:
        assert try_lock(file.fileno())

"""The default limits on Macs of several sizes, whose figures a fake device reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.backends.mlx import device
from markovian_rsa_mlx.backends.mlx.engine import MLXEngine

#: Recommended working sets that macOS reports, by memory in GiB.
WORKING_SETS = {8: 5_726_623_061, 16: 11_453_251_584, 24: 17_179_885_568, 32: 22_906_503_168, 128: 103_079_215_104}


class FakeMac:
    """MLX's functions for a device with this working set. The limits start at MLX's defaults."""

    def __init__(self, working_set: int) -> None:
        self.working_set, self.memory, self.wired = working_set, int(1.5 * working_set), 0

    def device_info(self) -> dict[str, Any]:
        return {"device_name": "Apple M4", "max_recommended_working_set_size": self.working_set}

    def set_memory_limit(self, limit: int) -> int:
        self.memory, before = limit, self.memory
        return before

    def set_wired_limit(self, limit: int) -> int:
        assert limit <= self.working_set
        self.wired, before = limit, self.wired
        return before


@pytest.fixture(params=WORKING_SETS.values(), ids=WORKING_SETS)
def mac(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeMac:
    fake = FakeMac(request.param)
    for name in ("device_info", "set_memory_limit", "set_wired_limit"):
        monkeypatch.setattr(device.mx, name, getattr(fake, name))
    return fake


def test_weights_and_caches_take_at_most_seven_tenths(mac: FakeMac) -> None:
    assert device.available_memory_bytes() == int(0.7 * mac.working_set)
    device.set_allocator_limits(0)
    assert max(mac.memory, mac.wired) <= 0.7 * mac.working_set


@pytest.mark.parametrize(("share", "wires"), [(0.1, True), (0.59, True), (0.61, False), (2.0, False)])
def test_memory_is_wired_next_to_small_weights_only(mac: FakeMac, share: float, wires: bool) -> None:
    restore = device.set_allocator_limits(int(share * mac.working_set))
    assert (mac.wired > 0) == wires
    restore()
    assert (mac.wired, mac.memory) == (0, int(1.5 * mac.working_set))


def test_a_limit_of_the_user_replaces_the_default(mac: FakeMac, engine: MLXEngine) -> None:
    before = engine.admission.memory_limit_bytes
    for limit in (10**9, 2 * mac.working_set):
        engine.limit(None, limit)
        engine._worker.call(lambda: None).result()
        assert mac.memory == limit
        assert mac.wired == min(limit, int(0.7 * mac.working_set))
    engine.limit(None, before)
    engine._worker.call(lambda: None).result()


GIB = 2**30


def write_container(folder: Path, limit: str, used: int, **stat: int) -> Path:
    """Write the files of a cgroup with this limit and use of memory."""
    lines = [f"{name} {value}" for name, value in stat.items()]
    for name, content in (("max", limit), ("current", str(used)), ("stat", "\n".join(lines))):
        (folder / f"memory.{name}").write_text(f"{content}\n")
    return folder


@pytest.mark.parametrize(
    ("used", "stat", "free"),
    [
        (15 * GIB, {"anon": GIB, "file": 14 * GIB, "inactive_file": 10 * GIB, "active_file": 4 * GIB}, 15 * GIB),
        (15 * GIB, {"anon": GIB, "file": 14 * GIB, "shmem": 14 * GIB, "inactive_file": 0, "active_file": 0}, GIB),
        (15 * GIB, {"inactive_file": 2 * GIB}, 3 * GIB),
        (15 * GIB, {}, GIB),
        (17 * GIB, {"inactive_file": 0}, 0),
        # the counters are not read at the same instant
        (2 * GIB, {"inactive_file": 3 * GIB}, 16 * GIB),
    ],
)
def test_cached_files_of_a_container_are_free(tmp_path: Path, used: int, stat: dict[str, int], free: int) -> None:
    folder = write_container(tmp_path, str(16 * GIB), used, **stat)
    assert device.container_free_bytes(99 * GIB, folder) == free


def test_a_container_without_a_limit_leaves_the_free_memory(tmp_path: Path) -> None:
    assert device.container_free_bytes(7, tmp_path / "none") == 7
    assert device.container_free_bytes(7, write_container(tmp_path, "max", 3 * GIB)) == 7
    write_container(tmp_path, str(4 * GIB), 3 * GIB)
    (tmp_path / "memory.stat").unlink()
    assert device.container_free_bytes(7, tmp_path) == GIB


def test_other_systems_keep_the_limits_of_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.mx, "device_info", lambda: {"architecture": "x86_64"})
    for name in ("set_memory_limit", "set_wired_limit"):
        monkeypatch.setattr(device.mx, name, lambda _: pytest.fail("a limit was set"))
    device.set_allocator_limits(10**9)()
    device.set_memory_limit(10**9, 0)
    assert 10**8 < device.available_memory_bytes() < 10**14

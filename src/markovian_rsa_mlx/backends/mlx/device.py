"""The memory that a device provides: the default limit for weights and caches, and MLX's own limits on a Mac.

Macs with memory wired up to the recommended working set for hours have had kernel panics (public reports on mlx, mlx-lm
and LM Studio). Therefore the default leaves a part of it free, and memory is wired only next to small weights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

#: The share of the recommended working set that weights and caches may take by default.
MEMORY_SHARE = 0.70
#: Memory is wired if the weights alone fit into this share of the recommended working set.
WIRED_SHARE = 0.60
#: The limits of a Linux container (cgroup v2), seen from within.
CGROUP = Path("/sys/fs/cgroup")


def working_set_bytes() -> int | None:
    """Return the working set that macOS recommends for the GPU, or None on other systems."""
    size = mx.device_info().get("max_recommended_working_set_size")
    return int(size) if size else None


def chip_name() -> str:
    """Return the device's name, like "Apple M4 Pro", or ""."""
    return str(mx.device_info().get("device_name") or "")


def default_limit_bytes(working_set: int) -> int:
    """Return the default limit for weights and caches on a Mac with this recommended working set."""
    return int(MEMORY_SHARE * working_set)


def wired_limit_bytes(working_set: int, weight_bytes: int) -> int | None:
    """Return how much memory to wire on such a Mac, or None if the weights are too large for it."""
    return default_limit_bytes(working_set) if weight_bytes <= WIRED_SHARE * working_set else None


def available_memory_bytes() -> int:
    """Return the memory that this process should use at most: a part of the working set, or most of the free RAM."""
    working_set = working_set_bytes()
    if working_set is not None:
        return default_limit_bytes(working_set)
    if mx.default_device() == mx.gpu:
        device = mx.device_info()
        total = device.get("total_memory") or device.get("memory_size")
        if total:
            return int(0.9 * int(total))
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    return int(0.8 * min(free, container_free_bytes(free)))


def container_free_bytes(default: int, folder: Path = CGROUP) -> int:
    """Return the memory that the limit of a Linux container leaves, or `default` without a limit.

    Cached files are free, as in MemAvailable: the kernel drops them where memory is needed. Those in shared memory
    stay.
    """
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return default
    if not (limit.isdigit() and used.isdigit()):
        return default
    cached = 0
    with contextlib.suppress(OSError, ValueError):
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cached = sum(int(fields.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, int(limit) - max(0, int(used) - cached))


def set_memory_limit(limit_bytes: int, weight_bytes: int) -> None:
    """Let MLX keep freed buffers, and wire memory next to these weights, up to this limit on a Mac.

    Waits for the work of the calling thread, which should be the one that runs the model. Other systems keep MLX's
    limits.
    """
    working_set = working_set_bytes()
    if working_set is None:
        return
    mx.synchronize()  # the wired limit must not change under a step
    mx.set_memory_limit(limit_bytes)
    if (wired := wired_limit_bytes(working_set, weight_bytes)) is not None:
        mx.set_wired_limit(min(wired, limit_bytes))


def set_allocator_limits(weight_bytes: int) -> Callable[[], None]:
    """Set MLX's limits on a Mac for a model of this size. Return a function that sets them back.

    MLX keeps freed buffers until it reaches its memory limit, which is above the recommended working set by default.
    Nothing may be under way when the limits are set back.
    """
    working_set = working_set_bytes()
    if working_set is None:
        return lambda: None
    memory_before = mx.set_memory_limit(default_limit_bytes(working_set))
    wired = wired_limit_bytes(working_set, weight_bytes)
    wired_before = None if wired is None else mx.set_wired_limit(wired)

    def restore() -> None:
        mx.set_memory_limit(memory_before)
        if wired_before is not None:
            mx.set_wired_limit(wired_before)

    return restore

"""The fused functions compiled as on a GPU: for changing shapes, types and engines (each has a thread of its own)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from markovian_rsa_mlx.models import cca, fused, zaya

#: The arguments of each function for [B, L] of 16 channels, in 2 groups of 8.
ARGUMENTS: dict[Callable[..., mx.array], Callable[[tuple[int, int], mx.Dtype], list[Any]]] = {
    fused.gelu: lambda shape, dtype: [array(*shape, 16, dtype=dtype)],
    fused.swiglu: lambda shape, dtype: [array(*shape, 16, dtype=dtype)] * 2,
    zaya._scaled_sum: lambda shape, dtype: [
        array(*shape, 16, dtype=dtype),
        array(*shape, 16),
        *[array(16, dtype=dtype) for _ in range(4)],
    ],
    cca._weighted_sum: lambda shape, dtype: [
        array(16, dtype=dtype),
        [array(*shape, 16, dtype=dtype) for _ in range(3)],
        [array(16, dtype=dtype) for _ in range(3)],
    ],
    cca._add_mean: lambda shape, dtype: [
        array(*shape, 2, 8, dtype=dtype),
        array(2, 8, dtype=dtype),
        array(*shape, 2, 8),
        array(*shape, 2, 8, dtype=dtype),
    ],
}


def array(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(len(shape))).astype(dtype)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for a CPU with g++")
@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)
def test_a_compiled_function_gives_the_same_in_every_thread(function: Callable[..., mx.array]) -> None:
    plain: Any = function.__wrapped__  # type: ignore[attr-defined]
    compiled = mx.compile(plain, shapeless=True)
    differences: list[float] = []

    def compare() -> None:
        for dtype in (mx.float32, mx.bfloat16):
            for shape in ((1, 7), (1, 1), (5, 1), (2, 3)):
                arguments = ARGUMENTS[function](shape, dtype)
                one, other = compiled(*arguments), plain(*arguments)
                assert one.dtype == other.dtype
                differences.append(float(mx.max(mx.abs(one.astype(mx.float32) - other.astype(mx.float32)))))
        mx.synchronize()
        mx.clear_streams()  # as a worker does at its end

    for _ in range(2):
        thread = threading.Thread(target=compare)
        thread.start()
        thread.join()
    assert len(differences) == 16
    # One kernel rounds once to 16 bits, where the single operations round several times.
    assert max(differences) < 0.05

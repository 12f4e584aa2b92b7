"""Fuse elementwise operations into one kernel where that is faster.

On a GPU each small operation costs a launch, and `mx.compile` makes one kernel of many. On the CPU it would call a C++
compiler for every new signature, which takes seconds and is not installed everywhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import mlx.core as mx

Function = Callable[..., mx.array]


def fused(function: Function) -> Function:
    """Return `function`, compiled at its first call on a GPU."""
    compiled = mx.compile(function, shapeless=True)

    @functools.wraps(function)
    def call(*arrays: mx.array | list[mx.array]) -> mx.array:
        return (function if mx.default_device() == mx.cpu else compiled)(*arrays)

    return call


@fused
def gelu(x: mx.array) -> mx.array:
    """Return the exact GELU, by the error function."""
    return x * (1 + mx.erf(x * (1 / math.sqrt(2)))) * 0.5


@fused
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Return silu(gate) * up."""
    return gate * mx.sigmoid(gate) * up

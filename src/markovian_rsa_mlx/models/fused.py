"""Elementwise steps as one kernel where that pays.

On a GPU each small step costs a launch, and `mx.compile` makes one of many. On the CPU it would call a C++
compiler for every new signature: seconds each, and not every machine has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

Function = Callable[..., mx.array]


def fused(function: Function) -> Function:
    """`function`, compiled at its first call on a GPU."""
    compiled = mx.compile(function, shapeless=True)

    def call(*arrays: mx.array | list[mx.array]) -> mx.array:
        return (function if mx.default_device() == mx.cpu else compiled)(*arrays)

    return call


@fused
def gelu(x: mx.array) -> mx.array:
    """The exact one, by the error function."""
    return x * (1 + mx.erf(x * (1 / math.sqrt(2)))) * 0.5


@fused
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    return gate * mx.sigmoid(gate) * up

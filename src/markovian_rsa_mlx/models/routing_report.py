"""Summarise the counts of `routing` as figures and as text. Must not import MLX, so that `runs show` starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(counts: list[list[int]]) -> dict[str, Any]:
    """Return figures for a report: shares of all tokens, and the busiest expert relative to an even load.

    `skipped` and `skipped_by_layer` are shares of 1. `busiest_by_layer` is 1 if all experts are used equally.
    """
    tokens = [sum(row) for row in counts]
    used = [sum(row[:-1]) for row in counts]
    return {
        "tokens": max(tokens, default=0),
        "skipped": sum(row[-1] for row in counts) / max(1, sum(tokens)),
        "skipped_by_layer": [row[-1] / max(1, total) for row, total in zip(counts, tokens, strict=True)],
        "busiest_by_layer": [
            max(row[:-1]) * (len(row) - 1) / max(1, total) for row, total in zip(counts, used, strict=True)
        ],
        "unused_experts": sum(1 for row in counts for load in row[:-1] if load == 0),
        "counts": counts,
    }


def describe(figures: Mapping[str, Any]) -> str:
    """Format a `summary` as a few lines for a terminal."""
    skipped, busiest = figures["skipped_by_layer"], figures["busiest_by_layer"]
    if not skipped or not figures["tokens"]:
        return "no tokens were counted"
    most, least = max(skipped), min(skipped)
    uneven = max(range(len(busiest)), key=busiest.__getitem__)
    return "\n".join(
        (
            f"tokens counted    {figures['tokens']:,} a layer",
            f"skipped an expert {figures['skipped']:.1%} (by layer {least:.1%} to {most:.1%})",
            f"busiest expert    {busiest[uneven]:.1f} times an even load, in layer {uneven}; "
            f"{sum(busiest) / len(busiest):.1f} on average over the layers",
            f"never chosen      {figures['unused_experts']:,} experts of all layers",
        )
    )

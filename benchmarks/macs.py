"""ZAYA1-8B on Macs of several sizes, by prediction: limits, traces at once, and minutes per problem.

    python -m benchmarks.macs [--write docs/running.md]

No Mac is needed: the limits follow from the working sets that macOS reports, the memory from the model's config, and
the minutes from the simulator with published speeds (see `predict.expected`). With `--write`, the tables replace those
between the markers of the file.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlx_lm.utils import quantize_model

from markovian_rsa_mlx.backends.mlx.device import default_limit_bytes, wired_limit_bytes
from markovian_rsa_mlx.backends.mlx.memory import build_lazily, footprint_of
from markovian_rsa_mlx.backends.policy import DEFAULT_MAX_ROWS, MemoryBudget
from markovian_rsa_mlx.cli.estimate import decode_work
from markovian_rsa_mlx.config import PROFILES
from markovian_rsa_mlx.convert.recipe import Recipe
from markovian_rsa_mlx.method.context import PromptLengths, longest_sequence
from markovian_rsa_mlx.predict.expected import Prospect
from markovian_rsa_mlx.predict.length_data import PUBLISHED

#: Memory in GiB, a chip that is sold with it, and the share of it that macOS recommends as the working set.
MACS = (
    (8, "M2", 2 / 3),
    (16, "M4", 2 / 3),
    (24, "M4 Pro", 2 / 3),
    (32, "M4", 2 / 3),
    (64, "M4 Max", 3 / 4),
    (128, "M4 Max", 3 / 4),
)
#: The share of the working set that nothing may exceed.
MAX_SHARE = 0.70
WEIGHTS = {"4-bit": Recipe(4), "MXFP4": Recipe(mode="mxfp4"), "8-bit": Recipe(8), "bfloat16": Recipe()}
CONFIG = {"model_type": "zaya", "dtype": "bfloat16", "tie_word_embeddings": True}
QUESTION_TOKENS = 1_000
_BEGIN, _END = "<!-- macs: begin -->", "<!-- macs: end -->"


@dataclass(frozen=True)
class Cell:
    """A profile on a Mac: traces at once, the bytes they need, and the expected minutes per problem."""

    rows: int
    required_bytes: int
    minutes: tuple[float, float] | None


@cache
def model_of(weights: str) -> Any:
    """Return the 8B with these weights, unevaluated."""
    recipe, model = WEIGHTS[weights], build_lazily(CONFIG)
    if recipe.quantizes:
        predicate = recipe.predicate(model)
        with contextlib.redirect_stdout(io.StringIO()):
            model, _ = quantize_model(model, dict(CONFIG), **recipe.default, quant_predicate=predicate)
    return model


def working_set_of(memory_gib: int, share: float) -> int:
    return int(share * memory_gib * 2**30)


def cell(memory_gib: int, chip: str, share: float, weights: str, profile: str) -> Cell:
    """Predict one profile."""
    limit, config, model = default_limit_bytes(working_set_of(memory_gib, share)), PROFILES[profile], model_of(weights)
    most = min(DEFAULT_MAX_ROWS, decode_work(config).at_once)
    budget = MemoryBudget(footprint_of(model), most, limit)
    longest = longest_sequence(config, PromptLengths.without_template(config, QUESTION_TOKENS)).tokens
    rows = next((rows for rows in range(most, 0, -1) if budget.required_bytes(rows, longest) <= limit), 0)
    if rows == 0:
        return Cell(0, 0, None)
    time = Prospect.of_model(chip, model).seconds_per_problem(config, QUESTION_TOKENS, PUBLISHED, budget)
    assert time.low is not None
    assert time.high is not None
    return Cell(rows, budget.required_bytes(rows, longest), (time.low / 60, time.high / 60))


def tables() -> str:
    """Return the limits of all Macs, and the profiles on them, as Markdown."""
    limits = ["| memory | working set | limit | wired with weights up to |", "|---|---|---|---|"]
    for memory, _, share in MACS:
        working_set = working_set_of(memory, share)
        wired = next(size for size in range(working_set, 0, -(10**8)) if wired_limit_bytes(working_set, size))
        figures = (working_set, default_limit_bytes(working_set), wired)
        limits.append(f"| {memory} GB | {' | '.join(f'{each / 1e9:.1f} GB' for each in figures)} |")
    names = [name for name in PROFILES if name != "embedded"]
    rows = [
        f"| memory, chip | weights | {' | '.join(f'`{name}`' for name in names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for memory, chip, share in MACS:
        for weights in WEIGHTS:
            cells = [cell(memory, chip, share, weights, name) for name in names]
            if any(each.rows for each in cells):
                assert max(each.required_bytes for each in cells) <= MAX_SHARE * working_set_of(memory, share)
                rows.append(f"| {memory} GB, {chip} | {weights} | {' | '.join(map(_text, cells))} |")
        if not rows[-1].startswith(f"| {memory} GB"):
            rows.append(f"| {memory} GB, {chip} | none fits | {' | '.join('-' for _ in names)} |")
    return "\n".join([*limits, "", *rows])


def _text(found: Cell) -> str:
    """Return rows and minutes, the latter with two digits, since they are estimates."""
    if found.minutes is None:
        return "-"
    low, high = (float(f"{each:.2g}") for each in found.minutes)
    return f"{found.rows}: {low:,.0f}-{high:,.0f}"


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        path = Path(sys.argv[2])
        text = path.read_text(encoding="utf-8")
        block = f"{_BEGIN}\n{tables()}\n{_END}"
        path.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: block, text, flags=re.DOTALL), encoding="utf-8")
    else:
        print(tables())


if __name__ == "__main__":
    main()

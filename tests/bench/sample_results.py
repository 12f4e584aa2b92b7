"""Make up results like those of a benchmark with the embedded profile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from markovian_rsa_mlx.bench.experiment import method_settings
from markovian_rsa_mlx.bench.methods import DEFAULT_METHODS, Grid, plan
from markovian_rsa_mlx.bench.results import Results, RoundRecord, RunRecord, Variant
from markovian_rsa_mlx.bench.summary import comparisons, summarize
from markovian_rsa_mlx.config import RSAConfig

#: The effect of a round by variant, as an exponent on the share of wrong candidates.
GAINS = {"markovian": 2.5, "delethink": 1.4}


def sample_results(
    count: int = 12,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    epochs: int = 1,
    seed: int = 0,
    skill: float = 0.0,
    base: RSAConfig | None = None,
    grid: Grid | None = None,
) -> Results:
    """Return made-up results. `skill` raises the chance of every problem."""
    planned = plan(base or RSAConfig.embedded(), methods, grid)
    rng = np.random.default_rng(seed)
    chances = np.clip(np.random.default_rng(77).beta(1.2, 1.2, count) + skill, 0, 1)
    cells = []
    for name, config in planned.configs.items():
        records = [
            record(rng, name, config, index, epoch, chances[index])
            for epoch in range(1, epochs + 1)
            for index in range(count)
        ]
        cells.append(Variant(name, method_settings(config), tuple(records)))
    return Results(
        task="embedded-countdown#1",
        model="embedded-reasoner-v1",
        seed=1,
        epochs=epochs,
        problems=count,
        limit=str(count),
        engine={"engine": "mlx-lm", "engine_version": "0.32", "dtype": "float32", "quantization": None},
        package_version="0.1.0",
        methods=planned.methods,
        cells=tuple(cells),
        table=summarize(planned.methods, cells),
        comparisons=comparisons(planned.methods, cells),
        generated_once=12_345,
        command="mrsa bench countdown --limit 12",
    )


def record(rng: np.random.Generator, cell: str, config: RSAConfig, index: int, epoch: int, chance: float) -> RunRecord:
    rounds, tokens = [], 0
    for number in range(config.rounds + 1):
        wrong = (1 - chance) ** (GAINS.get(cell.split()[0], 1.0) ** number)
        right = float(rng.binomial(config.population, 1 - wrong)) / config.population
        tokens += 48 * config.population
        rounds.append(
            RoundRecord(
                round=number,
                traces=config.population,
                mean=right,
                vote=float(right > 0.5),
                any=float(right > 0),
                finished=0.5,
                answered=config.population,
                distinct=3,
                generated_tokens=tokens,
                prefill_tokens=2 * tokens,
                wall_s=3.0 * (number + 1),
                tokens_per_s=tokens / 3.0 / (number + 1),
            )
        )
    return RunRecord(
        index=index,
        problem_id=str(3 * index + 2),
        epoch=epoch,
        seed=1,
        trail=f"trails/{cell}/{index + 1:05d}-{epoch}.jsonl",
        rounds=tuple(rounds),
        answer="1 + 2 * 3",
        correct=rounds[-1].vote,
        badges=("budget_hit",) if index % 3 == 0 else (),
        generated_tokens=tokens,
        new_tokens=tokens,
        prefill_tokens=2 * tokens,
        wall_s=9.0,
        trace_s=1.5,
        peak_memory_bytes=120_000_000,
    )

"""Compare schedules on other machines, by simulation: `python -m benchmarks.schedules`.

A loop over rounds that generates every trace, against pruning (only ancestors of the final candidates are generated)
and overlap (no trace waits for a round). The simulated engines range from memory-bound, whose step hardly grows with
its rows, to compute-bound, whose step is proportional to them. No model is loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from markovian_rsa_mlx.cli.settings_options import load_settings_files
from markovian_rsa_mlx.cli.terminal import table
from markovian_rsa_mlx.cli.tune import read_speeds
from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.predict.costs import Costs, LinearCosts
from markovian_rsa_mlx.predict.lengths import Lengths, LogNormal
from markovian_rsa_mlx.predict.simulator import simulate
from markovian_rsa_mlx.predict.workload import SCHEDULES, PromptShape, Schedule, workload

#: The largest number of tails that a prompt of any settings shows.
_MAX_TAILS: Final = 10_000


class _Segments(Sequence[tuple[int, ...]]):
    """The static parts of prompts for any number of tails, made on demand."""

    def __len__(self) -> int:
        return _MAX_TAILS

    def __getitem__(self, place: Any) -> Any:
        return (320, *[20] * range(_MAX_TAILS)[place], 80)


@dataclass(frozen=True)
class RowLimit:
    """A capacity in rows alone, for engines whose memory is unknown. Its "bytes" are tokens of storage."""

    max_rows: int
    prefix_bytes: int = 2**60

    def required_bytes(self, rows: int, longest: int) -> int:
        return rows * longest

    def fits(self, lengths: Iterable[int], newcomer: int, other_bytes: int = 0) -> bool:
        return len(list(lengths)) < self.max_rows


#: A question of 200 tokens in a template of about 170.
SHAPE: Final = PromptShape(210, 205, _Segments())


def compute_bound_at(rows: float) -> LinearCosts:
    """Return costs of an engine for which, at `rows` rows, computing takes as long as reading the weights.

    A step of n rows takes 1 + n / rows, a prompt token as long as a row. Seconds are in steps of an empty batch.
    """
    return LinearCosts(base_s=1.0, row_s=1 / rows, token_s=1 / rows)


#: From memory-bound (a step hardly grows with its rows) to compute-bound (its time is proportional to them).
MACHINES: Final[dict[str, Costs]] = {
    "memory-bound": compute_bound_at(256),
    "between": compute_bound_at(16),
    "compute-bound": LinearCosts(base_s=0.0, row_s=1.0, token_s=1.0),
}


@dataclass(frozen=True)
class ScheduleResult:
    """Means over the simulated batches of problems: seconds until the last one is solved, tokens, rows per step."""

    schedule: Schedule
    seconds: float
    generated_tokens: float
    traces: float
    mean_rows: float


def compare(
    config: RSAConfig,
    lengths: Lengths,
    costs: Costs,
    *,
    servers: int = 1,
    rows: int = 64,
    problems: int = 1,
    batches: int = 20,
    shape: PromptShape = SHAPE,
    schedules: Sequence[Schedule] = SCHEDULES,
) -> list[ScheduleResult]:
    """Simulate `problems` concurrent problems on `servers` engines of `rows` rows each, `batches` times."""
    found = []
    for schedule in schedules:
        runs = [
            [
                workload(config, batch * problems + problem, shape=shape, lengths=lengths, schedule=schedule)
                for problem in range(problems)
            ]
            for batch in range(batches)
        ]
        results = [simulate(each, costs, RowLimit(rows), servers=servers) for each in runs]
        steps = [[step for engine in result.steps for step in engine] for result in results]
        mean_rows = [
            sum(rows * count for rows, count in each) / max(1, sum(count for _, count in each)) for each in steps
        ]
        found.append(
            ScheduleResult(
                schedule,
                statistics.mean(result.seconds for result in results),
                statistics.mean(result.generated_tokens for result in results),
                statistics.mean(sum(map(len, each)) for each in runs),
                statistics.mean(mean_rows),
            )
        )
    return found


Results = dict[str, list[ScheduleResult]]


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    machines = dict(MACHINES)
    if options.speeds is not None:
        model, _, speeds = read_speeds(options.speeds)
        machines[f"measured ({model.rsplit('/', 1)[-1]})"] = speeds.costs()
    lengths = LogNormal(options.length_mean, options.length_sigma)
    sizes = {"servers": options.servers, "rows": options.rows, "problems": options.problems, "batches": options.batches}
    report: list[tuple[str, RSAConfig, Results]] = []
    for name, config in settings(options.profile, options.config).items():
        print(f"Simulating {name} ...", file=sys.stderr)
        results = {machine: compare(config, lengths, costs, **sizes) for machine, costs in machines.items()}
        report.append((name, config, results))
    if options.json:
        print(json.dumps([to_dict(*each) for each in report], indent=2))
        return
    lines = [line for name, _, results in report for line in to_lines(name, results)]
    heads = ["settings", "schedule", "traces", "tokens", *machines]
    print(table(heads, lines, frozenset(heads[2:])))
    problems = f"{options.problems} concurrent problem{'s' if options.problems > 1 else ''}"
    engines = f"{options.servers} engine{'s' if options.servers > 1 else ''} of {options.rows} rows"
    print(
        "\nTime until all problems are solved, as a speed-up over the first line of each setting. Means over "
        f"{options.batches} simulations.\n"
        f"{problems} on {engines}. Lengths: log-normal, mean {lengths.mean:,.0f} tokens, sigma {lengths.sigma:g},\n"
        "truncated at max_tokens, the same in all rounds.\n"
        "A step takes 1 + rows / 256 (memory-bound), 1 + rows / 16 (between), or in proportion to its rows "
        "(compute-bound).\nA prompt token takes the same as one more row. Equal beginnings of prompts are read once."
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="append", default=[], metavar="NAME", help="a profile (repeatable)")
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE.toml", help="own settings")
    for name, default, text in (
        ("servers", 1, "engines"),
        ("rows", 64, "rows of each engine's batch"),
        ("problems", 1, "problems solved concurrently"),
        ("batches", 20, "simulations, each with other seeds"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--length-mean", type=float, default=12_000.0, help="mean of the log-normal lengths")
    parser.add_argument("--length-sigma", type=float, default=0.8, help="deviation of the lengths' logarithm")
    parser.add_argument("--speeds", type=Path, metavar="FILE.json", help="add an engine measured by mrsa tune --json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    for name in ("servers", "rows", "problems", "batches", "length_mean"):
        if not getattr(options, name) >= 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1 (got {getattr(options, name):g})")
    if not 0 <= options.length_sigma <= 3:
        parser.error(f"--length-sigma must be from 0 to 3 (got {options.length_sigma:g})")
    return options


def settings(profiles: Sequence[str], files: Sequence[Path]) -> dict[str, RSAConfig]:
    """Return settings by name: profiles with one final candidate and with N (by default the published ones), files."""
    names = profiles or ([] if files else [name for name in PROFILES if name.startswith(("paper-", "apex-"))])
    found = {
        f"{name} {label}": RSAConfig.profile(name).replace(final_candidates=finals)
        for name in names
        for finals, label in ((1, "F=1"), (0, "F=N"))
    }
    return found | load_settings_files(files, {*names, *found}, "default-16gb")


def to_lines(name: str, results: Results) -> list[list[str]]:
    columns = list(results.values())
    lines = []
    for place, row in enumerate(columns[0]):
        speedups = [f"{column[0].seconds / column[place].seconds:.2f}x" for column in columns]
        figures = [f"{row.traces:.0f}", f"{row.generated_tokens:,.0f}", *speedups]
        lines.append(["" if place else name, str(row.schedule), *figures])
    return lines


def to_dict(name: str, config: RSAConfig, results: Results) -> dict[str, Any]:
    machines = {
        machine: [
            {**vars(row), "schedule": str(row.schedule), "speedup": rows[0].seconds / row.seconds} for row in rows
        ]
        for machine, rows in results.items()
    }
    return {"name": name, "config": config.to_dict(), "machines": machines}


if __name__ == "__main__":
    main()

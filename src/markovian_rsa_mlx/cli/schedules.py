"""`mrsa schedules`: what pruning and overlap save on engines of any number and kind, simulated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import PROFILES, RSAConfig
from .command import PATH, Command, FiniteFloat, json_option, option
from .options import load_settings_files
from .terminal import print_status, table
from .tune import read_speeds

if TYPE_CHECKING:
    from ..predict.schedules import ScheduleResult


@click.command("schedules", cls=Command)
@option("--profile", multiple=True, metavar="NAME", help="A profile, once for each; unset: the published ones.")
@option("--config", type=PATH, multiple=True, metavar="FILE.toml", help="Settings of your own, once for each.")
@option("--servers", type=click.IntRange(min=1), default=1, metavar="K", help="Engines.")
@option("--rows", type=click.IntRange(min=1), default=64, metavar="R", help="Rows of each engine's batch.")
@option("--problems", type=click.IntRange(min=1), default=1, metavar="P", help="Problems solved concurrently.")
@option(
    "--length-mean",
    type=FiniteFloat(min=1),
    default=12_000.0,
    metavar="TOKENS",
    help="Mean of the log-normal lengths before any cut.",
)
@option(
    "--length-sigma",
    type=FiniteFloat(0, 3),
    default=0.8,
    metavar="X",
    help="Standard deviation of the lengths' logarithm.",
)
@option("--batches", type=click.IntRange(min=1), default=20, metavar="B", help="Simulations, each with other seeds.")
@option(
    "--speeds",
    type=PATH,
    metavar="FILE.json",
    help="An engine measured by mrsa tune --json, as a further column.",
)
@json_option("Print JSON.")
def schedules(
    profile: tuple[str, ...],
    config: tuple[Path, ...],
    servers: int,
    rows: int,
    problems: int,
    length_mean: float,
    length_sigma: float,
    batches: int,
    speeds: Path | None,
    json_output: bool,
) -> None:
    """Compare schedules on other machines, by simulation.

    A loop over rounds that generates every trace against pruning (only ancestors of the final candidates) and overlap
    (no trace waits for a round), for engines whose step hardly grows with its rows to such where it is proportional to
    them. Nothing is loaded or measured.
    """
    from ..predict.lengths import LogNormal
    from ..predict.schedules import MACHINES, compare

    machines = dict(MACHINES)
    if speeds is not None:
        model, found = read_speeds(speeds)
        machines[f"measured ({model.rsplit('/', 1)[-1]})"] = found.costs()
    lengths = LogNormal(length_mean, length_sigma)
    report = []
    for name, each in _settings(profile, config).items():
        print_status(f"Simulating {name} ...")
        results = {
            machine: compare(each, lengths, costs, servers=servers, rows=rows, problems=problems, batches=batches)
            for machine, costs in machines.items()
        }
        report.append((name, each, results))
    if json_output:
        print(json.dumps([_to_dict(*each) for each in report], indent=2))
        return
    lines = [line for name, _, results in report for line in _lines(name, results)]
    heads = ["settings", "schedule", "traces", "tokens", *machines]
    print(f"{table(heads, lines, frozenset(heads[2:]))}\n\n" + _assumptions(servers, rows, problems, lengths, batches))


def _settings(profiles: Sequence[str], files: Sequence[Path]) -> dict[str, RSAConfig]:
    """By name; each profile with one final candidate and with N."""
    names = list(profiles) or ([] if files else [name for name in PROFILES if name.startswith(("paper-", "apex-"))])
    found = {}
    for name in names:
        for finals, label in ((1, "F=1"), (0, "F=N")):
            found[f"{name} {label}"] = RSAConfig.profile(name).replace(final_candidates=finals)
    return found | load_settings_files(files, {*names, *found})


def _lines(name: str, results: dict[str, list[ScheduleResult]]) -> list[list[str]]:
    columns = list(results.values())
    lines = []
    for place, row in enumerate(columns[0]):
        speedups = [f"{column[0].seconds / column[place].seconds:.2f}x" for column in columns]
        lines.append(
            ["" if place else name, str(row.schedule), f"{row.traces:.0f}", f"{row.generated_tokens:,.0f}", *speedups]
        )
    return lines


def _to_dict(name: str, config: RSAConfig, results: dict[str, list[ScheduleResult]]) -> dict[str, Any]:
    return {
        "name": name,
        "config": config.to_dict(),
        "machines": {
            machine: [
                {**vars(row), "schedule": str(row.schedule), "speedup": rows[0].seconds / row.seconds} for row in rows
            ]
            for machine, rows in results.items()
        },
    }


def _assumptions(servers: int, rows: int, problems: int, lengths: Any, batches: int) -> str:
    return (
        "Time until all problems are done, as a speed-up over the first line of each setting; means over "
        f"{batches} simulations.\n"
        f"{problems} problem{'s' if problems > 1 else ''} at once on {servers} engine{'s' if servers > 1 else ''} of "
        f"{rows} rows. Lengths: log-normal, mean {lengths.mean:,.0f} tokens, sigma {lengths.sigma:g},\n"
        "cut at the budgets, the same in all rounds.\n"
        "A step takes 1 + rows / 256 (memory-bound), 1 + rows / 16 (between), or in proportion to its rows "
        "(compute-bound);\na prompt's token takes what a row adds; equal beginnings of prompts are read once."
    )

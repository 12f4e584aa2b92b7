"""`mrsa schedules`: what pruning and overlap save on engines of any number and kind, simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import PROFILES, RSAConfig
from .options import finite, own_settings
from .terminal import print_status, table
from .tune import read_speeds

if TYPE_CHECKING:
    from ..predict.schedules import ScheduleResult


def schedules(
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", metavar="NAME", help="A profile, once for each; unset: the published ones."),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", metavar="FILE.toml", help="Settings of your own, once for each."),
    ] = None,
    servers: Annotated[int, typer.Option("--servers", metavar="K", min=1, help="Engines.")] = 1,
    rows: Annotated[int, typer.Option("--rows", metavar="R", min=1, help="Traces that each decodes at once.")] = 64,
    problems: Annotated[int, typer.Option("--problems", metavar="P", min=1, help="Problems solved at once.")] = 1,
    length_mean: Annotated[
        float,
        typer.Option(
            "--length-mean",
            metavar="TOKENS",
            min=1,
            help="Mean of the log-normal lengths before any cut.",
            callback=finite,
        ),
    ] = 12_000,
    length_sigma: Annotated[
        float,
        typer.Option(
            "--length-sigma",
            metavar="X",
            min=0,
            max=3,
            help="Standard deviation of the lengths' logarithm.",
            callback=finite,
        ),
    ] = 0.8,
    batches: Annotated[
        int, typer.Option("--batches", metavar="B", min=1, help="How often to simulate, each time with other seeds.")
    ] = 20,
    speeds: Annotated[
        Path | None,
        typer.Option(
            "--speeds", metavar="FILE.json", help="An engine measured by mrsa tune --json, as a further column."
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
    for name, each in _settings(profile or [], config or []).items():
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


def _settings(profiles: list[str], files: list[Path]) -> dict[str, RSAConfig]:
    """By name; each profile with one final candidate and with N."""
    names = profiles or ([] if files else [name for name in PROFILES if name.startswith(("paper-", "apex-"))])
    found = {}
    for name in names:
        for finals, label in ((1, "F=1"), (0, "F=N")):
            found[f"{name} {label}"] = RSAConfig.profile(name).replace(final_candidates=finals)
    return found | own_settings(files, {*names, *found})


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

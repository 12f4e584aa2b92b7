"""`mrsa export`: write a run for other tools."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .. import run_store
from ..errors import AuditError
from ..text_files import write_private_text
from .command import PATH, Command, option
from .runs import RUN_HELP
from .terminal import clean, print_status


@click.command(
    "export",
    cls=Command,
    examples=(
        "mrsa export --format jsonl > traces.jsonl",
        "mrsa export my-run.jsonl --format inspect --out logs/run.json",
    ),
)
@click.argument("run", required=False, help=RUN_HELP)
@option(
    "--format",
    "format_name",
    type=click.Choice(["inspect", "otel", "jsonl"]),
    required=True,
    help="inspect: a log for inspect view; otel: OpenTelemetry spans (OTLP JSON); jsonl: a flat row per trace.",
)
@option("--out", type=PATH, metavar="FILE", help="File to write; unset: standard output.")
def export(run: str | None, format_name: str, out: Path | None) -> None:
    """Write a run for inspect_ai, for OpenTelemetry, or as rows.

    The run may be unfinished. Damaged lines of its trail are left out and counted.
    """
    from ..audit import RunState, read_lenient
    from ..export import export as export_run

    path = run_store.find_run(run)
    log = read_lenient(path)
    state = RunState(log.events)
    if state.start is None:
        raise AuditError(f"{path} has no run_start, so it cannot be exported.")
    if log.problems:
        print_status(f"warning: {path} is damaged; {len(log.problems):,} of its lines are left out or read in part.")
    text = export_run(state, format_name)
    if out is None:
        sys.stdout.write(clean(text) if sys.stdout.isatty() else text)
        return
    if out.resolve() == path.resolve():
        raise AuditError(f"The export would replace its trail {str(path)!r}. Choose another file with --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_private_text(out, text)  # like the trail, it has the texts of the run
    except OSError as error:
        raise AuditError(f"{out} cannot be written ({error.strerror}). Choose another file with --out.") from error
    print_status(f"Written: {out}")

"""`mrsa runs`: list, show, verify and remove the kept runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import run_store
from ..errors import AuditError, ConfigError, MarkovianRSAError
from ..locks import is_locked
from ..tokenizer import Tokenizer
from .command import Group, json_option, option
from .terminal import amount, clean, count, one_line, print_status, table

if TYPE_CHECKING:
    from ..audit.verify import Report


RUN_HELP = "The start of a run's id or of its file name, or a path; unset: the newest run."


@click.group("runs", cls=Group)
def runs() -> None:
    """List, show, check and remove the trails of runs."""


@runs.command("list")
@json_option("Print a JSON list.")
def list_runs(json_output: bool) -> None:
    """List the kept runs, the newest first."""
    entries = [run_store.describe(path) for path in run_store.run_paths()]
    if json_output:
        print(json.dumps([entry.to_dict() for entry in entries], ensure_ascii=False, indent=2))
        return
    if not entries:
        print_status(f"There are no runs in {run_store.runs_folder()} yet.")
        return
    head = ("run", "when (UTC)", "model", "state", "tokens", "answer")
    rows, questions = [], []
    for entry in entries:
        if entry.state == "damaged":
            rows.append((Path(entry.path).stem, "", "", "damaged", "", ""))
            questions.append(entry.problem)
            continue
        when = one_line(entry.created_at[:16].replace("T", " "))
        model, answer = one_line(Path(entry.model_id).name, 24), one_line(entry.answer, 16)
        rows.append((clean(entry.run_id)[:8], when, model, entry.state, count(entry.generated_tokens), answer))
        questions.append(entry.prompt)
    used = len(table(head, rows).split("\n")[0])
    width = max(shutil.get_terminal_size((120, 24)).columns - used - 2, 20)
    lines = [(*row, one_line(question, width)) for row, question in zip(rows, questions, strict=True)]
    print(table((*head, "question"), lines, frozenset({"tokens"})))


@runs.command("show")
@click.argument("run", required=False, help=RUN_HELP)
@option("--full", is_flag=True, help="Show every trace and every tail in full.")
@option("--model-stats", is_flag=True, help="Statistics of the model's routers: skipped experts and their load.")
def show(run: str | None, full: bool, model_stats: bool) -> None:
    """Show how a run found its answer.

    Prints the settings, the rounds with their votes, the lineage of the winner, the tails it read, and errors. The file
    may be unfinished or damaged.
    """
    from ..audit import read_lenient
    from .show import format_run

    path = run_store.find_run(run)
    print(clean(format_run(path, read_lenient(path), full=full, model_stats=model_stats)))


@runs.command("verify")
@click.argument("run", nargs=-1, help=RUN_HELP)
@option("--model", metavar="MODEL", help="Also check texts and chat rendering with this model's tokenizer.")
def verify(run: tuple[str, ...], model: str | None) -> int:
    """Check that a trail is consistent.

    Derives lineage, seeds, order, tails, prompts, counts, the vote and the choice again. If a line does not follow from
    the lines before it, prints the first such line and exits with 1.
    """
    tokenizer = tokenizer_of(model) if model is not None else None
    failed = 0
    for found in [run_store.find_run(name) for name in run] if run else [run_store.find_run(None)]:
        try:
            report = verify_run(found, tokenizer)
            print(f"{found}: {report.verdict}.")
            for assumed in report.assumed:
                print_status(f"  taken on trust: {clean(assumed)}")
        except MarkovianRSAError as error:
            failed += 1
            print(f"{found}: {clean(str(error))}")
    return 1 if failed else 0


@runs.command("path")
@click.argument("run", required=False, help="Print this run's file instead.")
def path(run: str | None) -> None:
    """Print the folder of the kept runs, or the file of one run."""
    print(run_store.find_run(run) if run is not None else run_store.runs_folder())


@runs.command("rm")
@click.argument("run", nargs=-1, required=True, help=RUN_HELP.removesuffix("; unset: the newest run.") + ".")
@option("--yes", "-y", is_flag=True, help="Do not ask.")
def rm(run: tuple[str, ...], yes: bool) -> None:
    """Remove runs that are not being written."""
    paths = list(dict.fromkeys(run_store.find_run(name) for name in run))
    for found in paths:
        entry = run_store.describe(found) if found.is_file() else None
        if entry is None or (entry.state == "damaged" and found.parent != run_store.runs_folder()):
            raise AuditError(f"{found} is not an audit file; it was not removed.")
        if is_locked(found):
            raise AuditError(f"{found} is being written by a run; stop that run first.")
    if not yes and not sys.stdin.isatty():
        raise ConfigError("There is no terminal for the question; --yes removes without asking.")
    if not yes:
        for found in paths:
            print_status(f"  {found}  {one_line(run_store.describe(found).prompt)}")
        click.confirm(f"Remove {amount(len(paths), 'run')}?", abort=True, err=True)
    for found in paths:
        found.unlink()
        if found.parent == run_store.runs_folder():
            found.with_suffix(".html").unlink(missing_ok=True)  # the page of `mrsa view`
    print_status(f"Removed {amount(len(paths), 'run')}.")


def verify_run(path: Path, tokenizer: Tokenizer | None = None) -> Report:
    """Check a file. Raises `VerificationError` with the first line that does not follow from the lines before it."""
    from ..audit.verify import verify_file
    from ..equivalence import MathEquivalence

    with MathEquivalence() as equivalent:
        return verify_file(path, equivalent=equivalent, codec=tokenizer)


def tokenizer_of(model: str) -> Tokenizer:
    """Load the tokenizer of a model, without its weights. Raises `ModelError`."""
    from .. import reasoner
    from ..backends.tokenizers import load_tokenizer

    return load_tokenizer(reasoner.model_path() if model == reasoner.MODEL_ID else model)

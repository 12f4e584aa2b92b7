"""`mrsa runs`: list, show, verify and remove the kept runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from .. import run_store
from ..errors import AuditError, ConfigError, MarkovianRSAError, ModelError
from ..locks import is_locked
from ..tokenizer import Tokenizer
from .command import Group, json_option, option
from .runs_table import runs_table
from .terminal import amount, clean, one_line, print_lines, print_status, width_of

if TYPE_CHECKING:
    from ..audit.verify import Report


RUN_HELP = "The start of a run's id or of its file name, or a path; unset: the newest run."


@click.group("runs", cls=Group, examples=("mrsa runs list --limit 10", "mrsa runs show"))
def runs() -> None:
    """List, show, check and remove the trails of runs."""


@runs.command("list", examples=("mrsa runs list --limit 10", "mrsa runs list --state unfinished --since 7d"))
@option("--limit", type=click.IntRange(1, 1_000_000), metavar="K", help="The newest K of those that match; unset: all.")
@option("--state", type=click.Choice(get_args(run_store.RunStatus)), help="Only runs in this state.")
@option("--model", metavar="TEXT", help="Only runs whose model's name contains this.")
@option("--since", metavar="WHEN", help="Only runs that started since 30m, 12h, 7d, or a date such as 2026-11-29.")
@json_option("Print a JSON list.")
def list_runs(limit: int | None, state: str | None, model: str | None, since: str | None, json_output: bool) -> None:
    """List the kept runs, the newest first."""
    start = None if since is None else _parse_since(since, datetime.now().astimezone())
    described = (run_store.describe(path) for path in run_store.run_paths())
    matching = (entry for entry in described if _matches(entry, state, model, start))
    entries = list(itertools.islice(matching, limit))
    if json_output:
        print(json.dumps([entry.to_dict() for entry in entries], ensure_ascii=False, indent=2))
        return
    if not entries:
        filtered = any(value is not None for value in (state, model, since))
        none = "No run matches" if filtered and run_store.run_paths() else "There are no runs yet"
        print_status(f"{none} in {run_store.runs_folder()}.")
        return
    print(runs_table(entries, width_of(sys.stdout)))


_AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _parse_since(text: str, now: datetime) -> datetime:
    """Return the time that `text` names: an age like 12h, or a date, with or without a time, in the user's zone."""
    if age := re.fullmatch(r"(\d{1,5})([mhdw])", text.strip()):
        return now - timedelta(**{_AGES[age[2]]: int(age[1])})
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--since must be an age like 30m, 12h, 7d or 2w, or a date like 2026-11-29 (got {text!r})."
        ) from None


def _matches(entry: run_store.RunEntry, state: str | None, model: str | None, since: datetime | None) -> bool:
    if (state is not None and entry.state != state) or (model or "").lower() not in entry.model_id.lower():
        return False
    try:
        return since is None or datetime.fromisoformat(entry.created_at).astimezone() >= since
    except (ValueError, OverflowError, OSError):  # a damaged file
        return False


@runs.command("show", examples=("mrsa runs show", "mrsa runs show my-run.jsonl --full"))
@click.argument("run", required=False, help=RUN_HELP)
@option("--full", is_flag=True, help="Show every trace and every tail in full.")
@option("--model-stats", is_flag=True, help="Statistics of the model's routers: skipped experts and their load.")
def show(run: str | None, full: bool, model_stats: bool) -> None:
    """Show how a run found its answer.

    Prints the settings, the rounds with their votes, the lineage of the answer, the tails it read, and errors. The file
    may be unfinished or damaged.
    """
    from ..audit import read_lenient
    from .show import format_run

    path = run_store.find_run(run)
    print_lines(format_run(path, read_lenient(path), full=full, model_stats=model_stats), has_texts=True)


@runs.command("verify", examples=("mrsa runs verify", "mrsa runs verify my-run.jsonl --json"))
@click.argument("run", nargs=-1, help=RUN_HELP)
@option(
    "--tokenizer",
    "--model",
    metavar="MODEL",
    help="Folder, hub id or GGUF file of the model's tokenizer; unset: the recorded one, if it is on this machine.",
)
@option("--allow-unchecked-text", is_flag=True, help="Exit with 0, not 3, where there is no tokenizer.")
@json_option("Print a JSON list: what was checked, what was not, and what has to be trusted.")
def verify(run: tuple[str, ...], tokenizer: str | None, allow_unchecked_text: bool, json_output: bool) -> int:
    """Check that a trail is consistent.

    Derives lineage, seeds, order, tails, prompts, counts, the vote and the choice again, and with the tokenizer the
    texts. If a line does not follow from the lines before it, prints the first such line and exits with 1. Exits with 3
    if everything follows, and a tokenizer to check the texts against the token ids is missing.
    """
    given = tokenizer_of(tokenizer) if tokenizer is not None else None
    results: list[dict[str, Any]] = []
    codes = {0}
    for found in map(run_store.find_run, run or (None,)):
        try:
            report = verify_run(found, given)
        except MarkovianRSAError as error:
            codes.add(1)
            results.append({"path": str(found), "valid": False, "verdict": str(error).removeprefix(f"{found}, ")})
            continue
        results.append(report.to_dict())
        if not report.is_complete and not allow_unchecked_text:
            codes.add(3)
    if json_output:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    for result in [] if json_output else results:
        if not result["valid"]:
            print_lines(f"{result['path']}: {result['verdict']}")
            continue
        print_lines(f"{result['path']}: {result['verdict']}.")
        for unchecked in result["unchecked"]:
            print_status(f"  not checked: {clean(unchecked)}")
        if not result["texts_checked"] and tokenizer is None:
            print_status("  Its tokenizer is not on this machine; name it with --tokenizer.")
    return next(code for code in (1, 3, 0) if code in codes)


@runs.command("path", examples=("mrsa runs path", 'cp "$(mrsa runs path 3fa9)" my-run.jsonl'))
@click.argument("run", required=False, help="Print this run's file instead.")
def path(run: str | None) -> None:
    """Print the folder of the kept runs, or the file of one run."""
    print(run_store.find_run(run) if run is not None else run_store.runs_folder())


@runs.command("rm", examples=("mrsa runs rm 3fa9", "mrsa runs rm 3fa9 7c21 --yes"))
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
    """Check a file with this tokenizer, or with the recorded one if it is on this machine.

    Raises `VerificationError` with the first line that does not follow from the lines before it.
    """
    from ..audit.verify import verify_file
    from ..equivalence import MathEquivalence

    with MathEquivalence() as equivalent:
        return verify_file(path, equivalent=equivalent, codec=tokenizer or _recorded_tokenizer(path))


@functools.lru_cache(4)
def tokenizer_of(model: str) -> Tokenizer:
    """Load the tokenizer of a model, without its weights. Raises `ModelError`."""
    from .. import reasoner
    from ..backends.tokenizers import load_tokenizer
    from ..backends.upstream.tokenizers import local_tokenizer

    return load_tokenizer(reasoner.model_path()) if model == reasoner.MODEL_ID else local_tokenizer(model)


def _recorded_tokenizer(path: Path) -> Tokenizer | None:
    """Return the tokenizer of a run: of the embedded model, or one on this machine that has the recorded digest."""
    from .. import reasoner
    from ..audit import RunSetupEvent, RunStartEvent, scan_file
    from ..backends.tokenizers import cached_tokenizer

    events = scan_file(path, on_error="stop").events[:2]
    model = next((event.model_id for event in events if isinstance(event, RunStartEvent)), "")
    with contextlib.suppress(ModelError):  # without MLX
        if model == reasoner.MODEL_ID:
            return tokenizer_of(model)
    setup = next((event for event in events if isinstance(event, RunSetupEvent)), None)
    sources = dict.fromkeys((setup.tokenizer, model)) if setup is not None else ()
    found = (cached_tokenizer(source, setup.tokenizer_digest) for source in sources if setup is not None)
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)

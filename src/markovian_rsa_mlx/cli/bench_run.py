"""Carrying out `mrsa bench run`: the order, its folder, the model where something is left to run, the files."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.extra import library
from ..bench.folder import Folder, default_folder
from ..bench.grid import Grid, plan, read_grid
from ..bench.methods import DEFAULT_METHODS
from ..bench.runner import Unit
from ..bench.sitting import Order, Sitting
from ..config import RSAConfig
from ..errors import ConfigError
from . import session
from .bench_table import table_text, to_json
from .bench_view import watch
from .text import amount, clean, say

if TYPE_CHECKING:
    from ..bench.results import Results
    from ..bench.tasks.base import Task

INTERRUPTED = 130
#: What the embedded reasoner was made for, by the name that a user would say.
_EMBEDDED_TASKS = {"countdown": "embedded-countdown", "chain_sum": "embedded-chain-sum"}


@dataclass(frozen=True)
class Wanted:
    """The command as given: `words` is all that stood behind `mrsa bench`."""

    words: tuple[str, ...]
    task: str
    task_options: Mapping[str, str]
    limit: str
    epochs: int
    seed: int
    methods: tuple[str, ...]
    grid: Path | None
    config: RSAConfig
    choice: session.ModelChoice
    at_once: int | None
    out: Path | None
    fresh: bool
    only_failed: bool
    json_output: bool
    quiet: bool


def carry_out(wanted: Wanted) -> int:
    """Run what is left, write the files, print the table; returns the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    library("pyarrow")  # better now than after hours
    with _task(wanted) as task:
        order, path = _order(wanted, task)
        if not wanted.quiet:
            _tell(wanted, order, path)
        with Folder(path, order.identity, fresh=wanted.fresh) as folder:
            sitting = Sitting.begin(order, folder)
            if wanted.only_failed and not sitting.records:
                raise ConfigError(f"{path} holds no results of these methods; leave --resume-only-failed out.")
            units = sitting.missing(only_failed=wanted.only_failed)
            stopped = bool(units) and _run(wanted, sitting, units)
            results = sitting.finish()
    return _conclude(wanted, results, path, stopped)


@contextmanager
def _task(wanted: Wanted) -> Iterator[Task]:
    from ..bench.tasks import load_task

    name = wanted.task
    if wanted.choice.embedded and not wanted.task_options:
        name = _EMBEDDED_TASKS.get(name, name)
    task = load_task(name, wanted.task_options, wanted.seed)
    try:
        yield task
    finally:
        task.close()


def _order(wanted: Wanted, task: Task) -> tuple[Order, Path]:
    grid = read_grid(wanted.grid) if wanted.grid else Grid(points=({},))
    base = wanted.config.replace(answer_kind=task.answer_kind, seed=None, concurrency="auto", memory_limit_gb=None)
    for name in ("token_budget", "time_budget_s"):
        if getattr(base, name) is not None:
            raise ConfigError(
                f"{name} is {getattr(base, name)}; methods are compared by their decode budgets, unset it."
            )
    methods = wanted.methods or grid.methods or DEFAULT_METHODS
    wanted_plan = plan(base, methods, grid)
    order = Order(
        task,
        task.problems(_limit(wanted.limit)),
        wanted_plan,
        wanted.choice.model_id,
        wanted.seed,
        wanted.epochs,
        wanted.limit,
        _command(wanted.words),
    )
    points = None if wanted.grid is None else [grid.points, grid.combinations]
    path = wanted.out or default_folder(task.name, wanted.choice.model_id, wanted.seed, base, points)
    return order, path


def _command(words: Sequence[str]) -> str:
    """The command line that gives the same results, wherever they go and however they are shown."""
    kept = list(words)
    for flag in ("--fresh", "--resume-only-failed", "--json", "--quiet", "-q"):
        kept = [word for word in kept if word != flag]
    for place in [i for i, word in enumerate(kept) if word == "--out"][::-1]:
        del kept[place : place + 2]
    return shlex.join(["mrsa", "bench", *(word for word in kept if not word.startswith("--out="))])


def _limit(text: str) -> tuple[int, int] | None:
    """`10` is the first ten, `10-20` the tenth to the twentieth."""
    if not text:
        return None
    first, dash, last = text.partition("-")
    with suppress(ValueError):
        low, high = (int(first), int(last)) if dash else (1, int(first))
        if 1 <= low <= high:
            return low, high
    raise ConfigError(f"--limit is {text!r}; allowed: a number from 1, or two as in 10-20.")


def _run(wanted: Wanted, sitting: Sitting, units: list[Unit]) -> bool:
    """Load the model and run; whether Ctrl-C stopped it."""
    from ..equivalence import MathEquivalence, equivalence_for
    from ..run.sync import run_sync

    orchestrator, config = session.load(wanted.choice, quiet=wanted.quiet), wanted.config
    backend = orchestrator.backend
    try:
        rows, memory = config.concurrency, config.memory_limit_gb
        backend.limit(None if rows == "auto" else int(rows), None if memory is None else int(memory * 1e9))
        backend.reset_peak_memory()
        with MathEquivalence() as math, watch(sitting, units, wanted.quiet) as progress:
            equivalent = equivalence_for(sitting.order.task.answer_kind, math)
            run_sync(sitting.run(units, backend, equivalent, progress, wanted.at_once))
    except KeyboardInterrupt:
        return True
    finally:
        orchestrator.close()
    return False


def _tell(wanted: Wanted, order: Order, path: Path) -> None:
    configs = order.plan.configs
    runs = len(order.problems) * order.epochs * len(configs)
    say(f"{order.task.name}: {amount(len(order.problems), 'problem')}, {amount(runs, 'run')}, seed {order.seed}.")
    say(f"Model {order.model}; settings: {', '.join(configs)}.")
    say(f"Results: {path}")
    for note in order.plan.notes:
        say(f"warning: {note}")
    for warning in wanted.config.warnings(published_model=not wanted.choice.embedded):
        say(f"warning: {warning}")


def _conclude(wanted: Wanted, results: Results, path: Path, stopped: bool) -> int:
    if wanted.json_output:
        print(json.dumps(to_json(results, path), ensure_ascii=False, indent=2), flush=True)
    elif results.table:
        print(table_text(results), flush=True)
    records = [record for cell in results.cells for record in cell.records]
    failed = [f"the first on {record.problem_id}: {record.error}" for record in records if record.error]
    unscored = [why for record in records for why in record.unscored]
    mishaps = [what for record in records for what in record.mishaps]
    said = []
    if failed:
        said.append(f"warning: {amount(len(failed), 'run')} failed, {failed[0]}")
        said.append("The same command tries them again (with --resume-only-failed nothing else).")
    if unscored:
        said.append(f"warning: {amount(len(unscored), 'answer')} could not be scored and count as wrong: {unscored[0]}")
    if mishaps:
        said.append(f"warning: {amount(len(mishaps), 'mishap')} in runs that went on: {mishaps[0]}")
    if stopped:
        said.append("Stopped. To go on: the same command.")
    elif not wanted.quiet:
        said.append(f"Report: {path / 'report.html'}")
    if said:
        say("\n" + clean("\n".join(said)))
    return INTERRUPTED if stopped else 1 if failed or unscored else 0

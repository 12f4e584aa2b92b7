"""Carrying out `mrsa bench run`: the order, its folder, the model where something is left to run, the files."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.extra import library
from ..bench.folder import Folder
from ..bench.runner import Unit
from ..bench.sitting import Order, Sitting
from ..bench.unicode import mended
from ..errors import ConfigError, MarkovianRSAError
from . import session
from .bench_order import Wanted, check_embedded, located, make_order, open_task, weights_of
from .bench_table import table_text, to_json
from .bench_view import watch
from .engine import ModelChoice
from .text import amount, clean, say

if TYPE_CHECKING:
    from ..backends.base import Backend
    from ..bench.results import Results
    from ..orchestrator import MarkovianRSAOrchestrator

INTERRUPTED = 130


class _Engine:
    """The engine of a sitting, opened when it is first asked for: a finished benchmark needs none."""

    def __init__(self, choice: ModelChoice, quiet: bool) -> None:
        self._choice, self._quiet = choice, quiet
        self._opened: MarkovianRSAOrchestrator | None = None

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.close()

    @property
    def backend(self) -> Backend:
        if self._opened is None:
            self._opened = session.load(self._choice, quiet=self._quiet)
        return self._opened.backend

    def served(self) -> str:
        """The model that it is, as an upstream says."""
        return self.backend.info.model_id


def carry_out(wanted: Wanted) -> int:
    """Run what is left, write the files, print the table; returns the exit code."""
    library("pyarrow")  # better now than after hours
    wanted = replace(wanted, choice=located(wanted.choice))
    with open_task(wanted) as task, _Engine(wanted.choice, wanted.quiet) as engine:
        order, path = make_order(wanted, task, engine.served)
        if wanted.choice.embedded and (warning := check_embedded(order.problems)):
            say(f"warning: {warning}")
        _tell(wanted, order, path)
        with Folder(path, order.identity, fresh=wanted.fresh) as folder:
            sitting = Sitting.begin(order, folder)
            if wanted.only_failed and not sitting.records:
                raise ConfigError(
                    f"The last command in {path} measured other methods, or nothing; ask for its methods, or leave "
                    "--resume-only-failed out."
                )
            units, stopped = sitting.missing(only_failed=wanted.only_failed), False
            try:
                if units:
                    backend = engine.backend
                    folder.check(replace(order, weights=weights_of(wanted.choice)).identity)  # known after a download
                    stopped = _run(wanted, sitting, units, backend)
            except Exception:
                _save(wanted, sitting, path)
                raise
            results = sitting.finish()
    return _conclude(wanted, results, path, stopped)


def _run(wanted: Wanted, sitting: Sitting, units: list[Unit], backend: Backend) -> bool:
    """Run the units; whether Ctrl-C stopped it."""
    from ..equivalence import MathEquivalence, equivalence_for
    from ..run.sync import run_sync

    rows, memory = wanted.config.concurrency, wanted.config.memory_limit_gb
    try:
        backend.limit(None if rows == "auto" else int(rows), None if memory is None else int(memory * 1e9))
        backend.reset_peak_memory()
        with MathEquivalence() as math, watch(sitting, units, wanted.quiet) as progress:
            equivalent = equivalence_for(sitting.order.task.answer_kind, math)
            run_sync(sitting.run(units, backend, equivalent, progress, wanted.at_once))
    except KeyboardInterrupt:
        return True
    return False


def _save(wanted: Wanted, sitting: Sitting, path: Path) -> None:
    """What there is, in all files and in the table, before the error that ended the benchmark is told."""
    if sitting.records:
        with suppress(MarkovianRSAError):  # the disk may be full: the first error is the one to tell
            _conclude(wanted, sitting.finish(), path, stopped=False)


def _tell(wanted: Wanted, order: Order, path: Path) -> None:
    """What is about to be run, unless quiet; warnings in any case."""
    if not wanted.quiet:
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
        print(mended(json.dumps(to_json(results, path), ensure_ascii=False, indent=2)), flush=True)
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
        said.append("The same command scores them again; nothing is generated for that.")
    if mishaps:
        said.append(f"warning: {amount(len(mishaps), 'mishap')} in runs that went on: {mishaps[0]}")
    if stopped:
        said.append("Stopped. To go on: the same command.")
    elif not wanted.quiet:
        said.append(f"Report: {path / 'report.html'}")
    if said:
        say("\n" + clean("\n".join(said)))
    return INTERRUPTED if stopped else 1 if failed or unscored else 0

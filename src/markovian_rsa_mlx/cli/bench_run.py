"""Carrying out `mrsa bench run`: the order, its folder, the model where something is left to run, the files.

From the command `mrsa bench run` to an order: its task, its problems, its plan and its folder.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..bench.experiment import ExperimentDir, content_digest, default_folder
from ..bench.methods import DEFAULT_METHODS, Grid, plan, read_grid
from ..bench.runner import Benchmark, BenchmarkSpec, Unit
from ..bench.utils import require_extra
from ..config import RSAConfig
from ..errors import ConfigError, MarkovianRSAError, PromptError
from ..json_strict import replace_surrogates
from .bench_output import table_text, to_json, watch
from .options import ModelChoice
from .terminal import amount, clean, print_status

if TYPE_CHECKING:
    from ..backends.base import Engine
    from ..bench.results import Results
    from ..bench.tasks.base import Problem, Task
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
    def backend(self) -> Engine:
        if self._opened is None:
            from .run import load_orchestrator

            self._opened = load_orchestrator(self._choice, quiet=self._quiet)
        return self._opened.backend

    def served(self) -> str:
        """The model that it is, as an upstream says."""
        return self.backend.info.model_id


def run_benchmark(wanted: BenchOptions) -> int:
    """Run what is left, write the files, print the table; returns the exit code."""
    require_extra("pyarrow")  # better now than after hours
    wanted = replace(wanted, choice=with_absolute_paths(wanted.choice))
    with open_task(wanted) as task, _Engine(wanted.choice, wanted.quiet) as engine:
        order, path = make_order(wanted, task, engine.served)
        if wanted.choice.embedded and (warning := check_embedded(order.problems)):
            print_status(f"warning: {warning}")
        _print_plan(wanted, order, path)
        with ExperimentDir(path, order.identity, fresh=wanted.fresh) as folder:
            sitting = Benchmark.begin(order, folder)
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


def _run(wanted: BenchOptions, sitting: Benchmark, units: list[Unit], backend: Engine) -> bool:
    """Run the units; whether Ctrl-C stopped it."""
    from ..equivalence import MathEquivalence, equivalence_for
    from ..run.sync import run_sync

    try:
        backend.limit(*wanted.config.engine_limits())
        backend.reset_peak_memory()
        with MathEquivalence() as math, watch(sitting, units, wanted.quiet) as progress:
            equivalent = equivalence_for(sitting.order.task.answer_kind, math)
            run_sync(sitting.run(units, backend, equivalent, progress, wanted.at_once))
    except KeyboardInterrupt:
        return True
    return False


def _save(wanted: BenchOptions, sitting: Benchmark, path: Path) -> None:
    """What there is, in all files and in the table, before the error that ended the benchmark is told."""
    if sitting.records:
        with suppress(MarkovianRSAError):  # the disk may be full: the first error is the one to tell
            _conclude(wanted, sitting.finish(), path, stopped=False)


def _print_plan(wanted: BenchOptions, order: BenchmarkSpec, path: Path) -> None:
    """What is about to be run, unless quiet; warnings in any case."""
    if not wanted.quiet:
        configs = order.plan.configs
        runs = len(order.problems) * order.epochs * len(configs)
        print_status(
            f"{order.task.name}: {amount(len(order.problems), 'problem')}, {amount(runs, 'run')}, seed {order.seed}."
        )
        print_status(f"Model {order.model}; settings: {', '.join(configs)}.")
        print_status(f"Results: {path}")
    for note in order.plan.notes:
        print_status(f"warning: {note}")
    for warning in wanted.config.warnings(published_model=not wanted.choice.embedded):
        print_status(f"warning: {warning}")


def _conclude(wanted: BenchOptions, results: Results, path: Path, stopped: bool) -> int:
    if wanted.json_output:
        print(replace_surrogates(json.dumps(to_json(results, path), ensure_ascii=False, indent=2)), flush=True)
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
        print_status("\n" + clean("\n".join(said)))
    return INTERRUPTED if stopped else 1 if failed or unscored else 0


#: What the embedded reasoner was made for, by the name that a user would say.
_EMBEDDED_TASKS = {"countdown": "embedded-countdown", "chain_sum": "embedded-chain-sum"}
#: Settings that a benchmark decides, the values that are no contradiction, and why.
_SETTLED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "seed": ((None,), "a benchmark's seed is --seed"),
    "final_candidates": ((None, 0), "methods are compared with all N final candidates"),
    "answer_selection": (("single",), "a selection is asked for as in --methods markovian:majority"),
    "token_budget": ((None,), "methods are compared by their decode budgets"),
    "time_budget_s": ((None,), "methods are compared by their decode budgets"),
}


@dataclass(frozen=True)
class BenchOptions:
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
    choice: ModelChoice
    at_once: int | None
    out: Path | None
    fresh: bool
    only_failed: bool
    json_output: bool
    quiet: bool


@contextmanager
def open_task(wanted: BenchOptions) -> Iterator[Task]:
    """The task, and its verifier's end."""
    from ..bench.tasks.loader import load_task

    name = wanted.task
    if wanted.choice.embedded and not wanted.task_options:
        name = _EMBEDDED_TASKS.get(name, name)
    task = load_task(name, wanted.task_options, wanted.seed)
    try:
        yield task
    finally:
        task.close()


def make_order(wanted: BenchOptions, task: Task, served: Callable[[], str]) -> tuple[BenchmarkSpec, Path]:
    """The order and the folder that it goes to. `served` asks an upstream for its model.

    Raises `ConfigError` or `TaskError`, and what `served` raises.
    """
    _refuse_what_is_settled(wanted.config)
    grid = read_grid(wanted.grid) if wanted.grid else Grid(points=({},))
    base = wanted.config.replace(answer_kind=task.answer_kind, seed=None, concurrency="auto", memory_limit_gb=None)
    methods = wanted.methods or grid.methods or DEFAULT_METHODS
    wanted_plan, problems = plan(base, methods, grid), task.problems(_limit(wanted.limit))
    command, weights = _command(wanted.words), weights_of(wanted.choice)
    model = _model(wanted.choice) if wanted.choice.upstream is None else served()
    order = BenchmarkSpec(
        task, problems, wanted_plan, model, wanted.seed, wanted.epochs, wanted.limit, command, weights
    )
    points = None if wanted.grid is None else [grid.points, grid.combinations]
    return order, wanted.out or default_folder(task.name, model, wanted.seed, base, points)


def _refuse_what_is_settled(config: RSAConfig) -> None:
    """A settings file or a profile may hold what a benchmark has no use for."""
    for name, (allowed, why) in _SETTLED.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r} in the settings, but {why}; take it out.")


def with_absolute_paths(choice: ModelChoice) -> ModelChoice:
    """The choice with whole paths: in another working directory the same words are another model."""
    if choice.upstream is not None or choice.embedded:
        return choice
    folder = Path(choice.model_id).expanduser()
    adapter = None if choice.adapter is None else str(Path(choice.adapter).expanduser().resolve())
    return replace(choice, model_id=str(folder.resolve()) if folder.is_dir() else choice.model_id, adapter=adapter)


def weights_of(choice: ModelChoice) -> str:
    """Which content_digest the model's name stands for here; "" for a server's, and for what is not downloaded yet."""
    from .. import reasoner

    if choice.upstream is not None:
        return ""
    model = str(reasoner.model_path()) if choice.embedded else choice.model_id
    return content_digest(model, choice.revision, choice.adapter)


def _model(choice: ModelChoice) -> str:
    """The model as results name it: what was put on it makes it another one."""
    revision = f"@{choice.revision}" if choice.revision else ""
    return f"{choice.model_id}{revision}{f' with {choice.adapter}' if choice.adapter else ''}"


def check_embedded(problems: Sequence[Problem]) -> str:
    """A warning where the embedded reasoner was not made for some problems; `PromptError` where for none."""
    from .. import reasoner

    able = sum(reasoner.can_answer(problem.question) for problem in problems)
    if not able:
        raise PromptError(
            f"The embedded reasoner is not made for these problems. {reasoner.CAPABILITIES} Name a model, as in "
            "--model Zyphra/ZAYA1-8B, or take countdown or chain_sum without parameters."
        )
    missed = len(problems) - able
    return f"the embedded reasoner is not made for {amount(missed, 'problem')} of {len(problems)}" if missed else ""


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

"""Run `mrsa bench run`: make the benchmark from the options, run its missing parts, write and print the results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..bench.compare import read_folder
from ..bench.experiment import ExperimentDir, content_digest, default_folder
from ..bench.methods import DEFAULT_METHODS, Grid, plan, read_grid
from ..bench.recommend import COMPARED, recommend
from ..bench.runner import QUESTION_TOKENS, Benchmark, BenchmarkSpec, Unit
from ..bench.tasks.options import PLAIN_WORDING
from ..bench.utils import require_extra
from ..config import RSAConfig
from ..errors import AuditError, ConfigError, MarkovianRSAError, PromptError, TaskError, UpstreamError
from ..json_strict import replace_surrogates
from ..run_store import runs_folder
from .bench_output import changes_text, table_text, to_json, watch
from .bench_report import INTERRUPTED, add_pages
from .engine_options import ModelChoice, absolute_folder, benchmarked_name, with_absolute_paths
from .estimate import known_context
from .terminal import amount, clean, print_lines, print_status

if TYPE_CHECKING:
    from ..backends.base import Engine
    from ..bench.results import Change, Results
    from ..bench.tasks.base import Problem, Task
    from ..orchestrator import MarkovianRSAOrchestrator

#: The tasks that the embedded reasoner was trained for, by the names that users write.
_EMBEDDED_TASKS = {"countdown": "embedded-countdown", "chain_sum": "embedded-chain-sum"}
#: Settings that a benchmark decides, the values that do not contradict it, and the reason.
_SETTLED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "seed": ((None,), "the seed of a benchmark is --seed"),
    "final_candidates": ((None, 0), "methods are compared with all N final candidates"),
    "answer_selection": (("single",), "a selection is part of the method, as in --methods markovian:majority"),
    "early_stop": (("off",), "it is part of the method, as in --methods markovian+agreement,vote+posterior"),
    "token_budget": ((None,), "methods are compared by their decode budgets"),
    "time_budget_s": ((None,), "methods are compared by their decode budgets"),
}


@dataclass(frozen=True)
class BenchOptions:
    """The options of `mrsa bench run`, under the names that click uses. `words` follow `mrsa bench`."""

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
    recommend: bool
    pages: bool | None
    json_output: bool
    quiet: bool


def run_benchmark(options: BenchOptions) -> int:
    """Run the missing parts, write the files, print the table, and return the exit code."""
    for package in ("pyarrow", "scipy"):  # the results need them: fail now rather than after hours
        require_extra(package)
    config = options.config
    if (adapter := config.aggregation_adapter) is not None:
        config = config.replace(aggregation_adapter=absolute_folder(adapter))
    options = replace(options, choice=with_absolute_paths(options.choice), config=config)
    choice = options.choice
    with (
        _open_task(options.task, options.task_options, options.seed, embedded=choice.embedded) as task,
        _LazyEngine(choice, options.config, options.quiet) as engine,
    ):
        if options.recommend and not options.methods and options.grid is None:
            options = replace(options, methods=_compared_methods(options.config, engine))
        spec, path = _make_spec(options, task, lambda: _served_model(options, engine))
        if choice.embedded and (warning := check_embedded(spec.problems)):
            print_status(f"warning: {warning}")
        _print_plan(options, spec, path)
        with ExperimentDir(path, spec.identity, fresh=options.fresh) as folder:
            benchmark = Benchmark.open(spec, folder)
            if options.only_failed and not benchmark.records:
                raise ConfigError(
                    f"The folder {path} has no results of these methods; name the methods of the last command, or "
                    "leave --resume-only-failed out."
                )
            if benchmark.outdated is not None:
                print_status(changes_text(_rescore(benchmark), spec.plan.methods))
            units, stopped = benchmark.missing(only_failed=options.only_failed), False
            try:
                if units:
                    loaded = engine.get()
                    # The content of a hub model is known only after its download.
                    folder.check(replace(spec, weights=_weights_of(choice)).identity)
                    stopped = _run_units(options, benchmark, units, loaded)
            except Exception:
                if benchmark.records:  # write and print the results so far before the error
                    with suppress(MarkovianRSAError):  # the disk may be full: the first error is the one to report
                        _report(options, benchmark.finish(), path, stopped=False)
                raise
            results = benchmark.finish()
            try:
                stopped = stopped or add_pages(folder, results, options.pages, quiet=options.quiet)
            except AuditError as error:  # the results are complete without pages
                print_status(f"warning: {error}")
    return _report(options, results, path, stopped)


class _LazyEngine:
    """The engine of a session, loaded at first use: a finished benchmark does not need it."""

    def __init__(self, choice: ModelChoice, config: RSAConfig, quiet: bool) -> None:
        self._choice, self._config, self._quiet = choice, config, quiet
        self._orchestrator: MarkovianRSAOrchestrator | None = None

    def __enter__(self) -> _LazyEngine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._orchestrator is not None:
            self._orchestrator.close()

    def get(self) -> Engine:
        if self._orchestrator is None:
            from .run import load_orchestrator

            adapter = self._config.aggregation_adapter
            self._orchestrator = load_orchestrator(
                self._choice, kv_bits=self._config.kv_bits, aggregation_adapter=adapter, quiet=self._quiet
            )
        return self._orchestrator.backend


def _compared_methods(config: RSAConfig, engine: _LazyEngine) -> tuple[str, ...]:
    """Return the methods that a recommendation compares: one long trace only where the model's context holds it."""
    context = engine.get().info.context_length
    longest = config.rounds * config.thinking_tokens + config.final_tokens + QUESTION_TOKENS
    if context is None or longest <= context:
        return COMPARED
    print_status(f"One long trace is left out: it takes up to {longest:,} tokens, and the context has {context:,}.")
    return tuple(name for name in COMPARED if name != "long")


@contextmanager
def _open_task(name: str, options: Mapping[str, str], seed: int, *, embedded: bool) -> Iterator[Task]:
    from ..bench.tasks.embedded import TASKS
    from ..bench.tasks.loader import load_task

    if embedded and not options:
        name = _EMBEDDED_TASKS.get(name, name)
    if embedded and name not in TASKS:
        options = {"wording": PLAIN_WORDING, **options}  # the only one that the embedded reasoner reads
    task = load_task(name, options, seed)
    try:
        yield task
    finally:
        task.close()


def rescore_folder(
    path: Path, recorded: Results, name: str, options: Mapping[str, str], *, embedded: bool, json_output: bool
) -> None:
    """Score the runs of a benchmark's folder again, write its files, and print the table and the changes.

    `name` and `options` are those of the task.
    """
    from ..bench.rescore import rescore
    from ..bench.runner import write_files
    from ..equivalence import MathEquivalence, equivalence_for

    indices = {record.index for variant in recorded.cells for record in variant.records}
    if not indices:
        raise ConfigError(f"The folder {path} has no runs; continue the benchmark first.")
    with (
        ExperimentDir.existing(path) as folder,
        _open_task(name, options, recorded.seed, embedded=embedded) as task,
        MathEquivalence() as math,
    ):
        problems = task.problems((min(indices) + 1, max(indices) + 1))
        results = rescore(
            recorded, path, task=task, problems=problems, equivalent=equivalence_for(task.answer_kind, math)
        )
        write_files(folder, results)
        add_pages(folder, results, None)
    if json_output:
        print_json({**to_json(results, path), "changes": [asdict(change) for change in results.changes]})
        return
    print_lines(table_text(results))
    print_status("\n" + changes_text(results.changes, results.methods))


def _served_model(options: BenchOptions, engine: _LazyEngine) -> str:
    """Return the model that the server reports, or the one of earlier results if no server can be reached."""
    try:
        return engine.get().info.model_id
    except UpstreamError as error:
        folders = [options.out] if options.out else list((runs_folder().parent / "bench").glob("*"))
        for folder in folders:
            with suppress(TaskError):
                results = read_folder(folder)
                if options.out or results.command == _command(options.words):
                    print_status(f"{error} The results so far are those of {clean(results.model)}.")
                    return results.model
        raise


def _rescore(benchmark: Benchmark) -> Sequence[Change]:
    from ..equivalence import MathEquivalence, equivalence_for

    with MathEquivalence() as math:
        return benchmark.rescore(equivalence_for(benchmark.spec.task.answer_kind, math))


def _make_spec(options: BenchOptions, task: Task, served_model: Callable[[], str]) -> tuple[BenchmarkSpec, Path]:
    """Return the benchmark and its folder. `served_model` asks an upstream server for the name of its model.

    Raises `ConfigError`, `TaskError`, and the errors of `served_model`.
    """
    for name, (allowed, reason) in _SETTLED.items():  # a settings file or a profile may contain them
        value = getattr(options.config, name)
        if value not in allowed:
            raise ConfigError(f"The settings contain {name} = {value!r}, but {reason}; remove it.")
    choice = options.choice
    grid = read_grid(options.grid) if options.grid else Grid(points=({},))
    base = options.config.replace(answer_kind=task.answer_kind, seed=None, concurrency="auto", memory_limit_gb=None)
    wanted = plan(base, options.methods or grid.methods or DEFAULT_METHODS, grid)
    problems = task.problems(_parse_limit(options.limit))
    model = benchmarked_name(choice) if choice.upstream is None else served_model()
    spec = BenchmarkSpec(
        task=task,
        problems=problems,
        plan=wanted,
        model=model,
        seed=options.seed,
        epochs=options.epochs,
        limit=options.limit,
        command=_command(options.words),
        weights=_weights_of(choice),
    )
    points = None if options.grid is None else [grid.points, grid.combinations]
    return spec, options.out or default_folder(task.name, model, seed=options.seed, base=base, points=points)


def _parse_limit(text: str) -> tuple[int, int] | None:
    """Parse `10` (the first ten) or `10-20` (the tenth to the twentieth)."""
    if not text:
        return None
    first, dash, last = text.partition("-")
    with suppress(ValueError):
        low, high = (int(first), int(last)) if dash else (1, int(first))
        if 1 <= low <= high:
            return low, high
    raise ConfigError(f"--limit must be a number from 1, or a range as in 10-20 (got {text!r}).")


def _command(words: Sequence[str]) -> str:
    """Return the command line without the options that do not change the results: output, display and resuming."""
    kept = list(words)
    for flag in ("--fresh", "--resume-only-failed", "--pages", "--no-pages", "--json", "--quiet", "-q"):
        kept = [word for word in kept if word != flag]
    for place in [i for i, word in enumerate(kept) if word == "--out"][::-1]:
        del kept[place : place + 2]
    return shlex.join(["mrsa", "bench", *(word for word in kept if not word.startswith("--out="))])


def _weights_of(choice: ModelChoice) -> str:
    """Return the digest of the model's files, or "" for a server and for a model that is not downloaded yet."""
    from .. import reasoner

    if choice.upstream is not None:
        return ""
    model = str(reasoner.model_path()) if choice.embedded else choice.model_id
    return content_digest(model, choice.revision, choice.adapter)


def check_embedded(problems: Sequence[Problem]) -> str:
    """Return a warning if the embedded reasoner was not trained for some problems, otherwise "".

    Raises `PromptError` if it was trained for none.
    """
    from .. import reasoner
    from .estimate import suggested_model

    able = sum(reasoner.can_answer(problem.question) for problem in problems)
    if not able:
        raise PromptError(
            f"The embedded reasoner was not trained for these problems. {reasoner.CAPABILITIES} Name a model, as in "
            f"--model {suggested_model()}, or run countdown or chain_sum without parameters."
        )
    missed = len(problems) - able
    if not missed:
        return ""
    return f"the embedded reasoner was not trained for {amount(missed, 'problem')} of {len(problems):,}"


def _print_plan(options: BenchOptions, spec: BenchmarkSpec, path: Path) -> None:
    """Print the runs ahead unless quiet, and warnings in any case."""
    if not options.quiet:
        configs = spec.plan.configs
        runs = len(spec.problems) * spec.epochs * len(configs)
        problems = amount(len(spec.problems), "problem")
        print_status(f"{spec.task.name}: {problems}, {amount(runs, 'run')}, seed {spec.seed}.")
        print_status(f"Model {spec.model}; methods: {', '.join(method.name for method in spec.plan.methods)}.")
        print_status(f"Results: {path}")
    warnings = options.config.warnings(
        published_model=not options.choice.embedded, context_length=known_context(options.choice)
    )
    for warning in (*spec.plan.notes, *warnings):
        print_status(f"warning: {warning}")


def _run_units(options: BenchOptions, benchmark: Benchmark, units: list[Unit], engine: Engine) -> bool:
    """Run the units. Return True if Ctrl-C stopped them."""
    from ..equivalence import MathEquivalence, equivalence_for
    from ..run.sync import run_sync

    limits = options.config.engine_limits()
    try:
        engine.limit(limits.max_rows, limits.memory_limit_bytes)
        engine.reset_peak_memory()
        with MathEquivalence() as math, watch(benchmark, units, options.quiet) as progress:
            equivalent = equivalence_for(benchmark.spec.task.answer_kind, math)
            run_sync(benchmark.run(units, engine, equivalent, progress, options.at_once))
    except KeyboardInterrupt:
        return True
    return False


def print_json(value: Mapping[str, Any]) -> None:
    print(replace_surrogates(json.dumps(value, ensure_ascii=False, indent=2)), flush=True)


def _report(options: BenchOptions, results: Results, path: Path, stopped: bool) -> int:
    """Print the results and a summary of failures, and return the exit code."""
    advice = recommend(results) if options.recommend and results.table else None
    if options.json_output:
        print_json({**to_json(results, path), **({"recommendation": advice.to_dict()} if advice else {})})
    elif results.table:
        print_lines(table_text(results))
        if advice:
            print_lines(f"\n{clean(advice.sentence)}")
    records = [record for variant in results.cells for record in variant.records]
    failed = [f"the first on {record.problem_id}: {record.error}" for record in records if record.error]
    unscored = [reason for record in records for reason in record.unscored]
    errors = [message for record in records for message in record.mishaps]
    lines = []
    if failed:
        lines.append(f"warning: {amount(len(failed), 'run')} failed, {failed[0]}")
        lines.append("The same command repeats them (with --resume-only-failed, nothing else).")
    if unscored:
        lines.append(f"warning: {amount(len(unscored), 'answer')} without a score count as wrong: {unscored[0]}")
        lines.append("The same command scores them again without generating anything.")
    if errors:
        lines.append(f"warning: {amount(len(errors), 'error')} in runs that continued: {errors[0]}")
    if stopped:
        lines.append("Stopped. Continue with the same command.")
    elif not options.quiet:
        lines.append(f"Report: {path / 'report.html'}")
    if lines:
        print_status("\n" + clean("\n".join(lines)))
    return INTERRUPTED if stopped else 1 if failed or unscored else 0

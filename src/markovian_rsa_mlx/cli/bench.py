"""`mrsa bench`: methods on a task, side by side."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bench.tasks.options import OPTIONS, TaskOption, read_params
from .bench_compare import compare
from .options import MODEL, ModelChoice, config_option, profile_option, resolve, with_engine, with_settings

TASK, METHODS, OUTPUT = "The task", "The methods", "Results"
HELP = "Compare methods on a task: mrsa bench TASK, or mrsa bench compare A B."
#: What a benchmark settles itself: methods are compared at F = N and by their decode budgets alone.
_SETTLED = ("seed", "final_candidates", "answer_selection", "token_budget", "time_budget_s", "answer_kind")
#: Where the command line's words are kept for the results.
_WORDS = "markovian_rsa_mlx.bench"


def group(base: type[Any]) -> type[Any]:
    """A group in which `bench TASK` is `bench run TASK`."""

    class Bench(base):  # type: ignore[misc]
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            known = args and (args[0] in self.commands or args[0] == "--help")
            ctx.meta[_WORDS] = args[1:] if known else args
            rest: list[str] = super().parse_args(ctx, args if known or not args else ["run", *args])
            return rest

    return Bench


def with_task_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of tasks; those given reach it as the dict `task_options`."""
    own = inspect.signature(command)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "task_options"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {option.name: values.pop(option.name) for option in OPTIONS}
        params = read_params(given.pop("param") or ())
        told = {name: value for name, value in given.items() if value is not None}
        command(**values, task_options=params | told)

    place = next(i for i, parameter in enumerate(kept) if parameter.kind is inspect.Parameter.KEYWORD_ONLY)
    parameters = [*kept[:place], *map(_task_option, OPTIONS), *kept[place:]]
    wrapper.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper


def _task_option(option: TaskOption) -> inspect.Parameter:
    flag = "--" + option.name.replace("_", "-")
    info = typer.Option(flag, metavar=option.metavar, help=option.help, rich_help_panel=TASK)
    annotation: Any = Annotated[list[str] | None, info] if option.repeatable else Annotated[str | None, info]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@with_task_options
@functools.partial(with_settings, without=_SETTLED)
@with_engine
def run(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A reasoning-gym data set (countdown), a set by name (aime-2025), a hub id, or a file with the "
            "columns problem and answer (JSONL, CSV, Parquet).",
        ),
    ],
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit", metavar="K|A-B", help="The first K problems, or those from A to B.", rich_help_panel=TASK
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option("--epochs", metavar="K", min=1, help="Times each problem is run.", rich_help_panel=TASK)
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="SEED",
            min=0,
            max=2**63 - 1,
            help="Of all runs, and of problems that are drawn.",
            rich_help_panel=TASK,
        ),
    ] = 1,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B,...",
            help="Of single, vote, pass, vote-equal, delethink, full-chain, markovian, pacore, summary; the last five "
            "also as METHOD:single, METHOD:majority or METHOD:final_aggregation "
            "(unset: single,vote,pass,vote-equal,delethink,markovian).",
            rich_help_panel=METHODS,
        ),
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid",
            metavar="FILE.toml",
            help="Every method at every point of a grid over N, C, T, beta, tau.",
            rich_help_panel=METHODS,
        ),
    ] = None,
    profile: Annotated[str | None, profile_option(METHODS)] = None,
    config: Annotated[Path | None, config_option(METHODS)] = None,
    *,
    choice: ModelChoice,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            metavar="K",
            min=1,
            help="Problems that share the engine (unset: as many as fill its rows).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where results and trails go; the same command goes on there. Unset: a folder of its own for each "
            "task, model, seed and settings, beside the one that mrsa runs path prints.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what the folder holds and begin anew.", rich_help_panel=OUTPUT)
    ] = False,
    resume_only_failed: Annotated[
        bool,
        typer.Option(
            "--resume-only-failed",
            help="Run only the problems again that failed or could not be scored.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the table as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only errors and warnings on standard error.", rich_help_panel=OUTPUT)
    ] = False,
    task_options: Mapping[str, str] = {},
    settings: Mapping[str, Any] = {},
) -> None:
    """Run methods on a task and compare them.

    The word run may be left out. The table goes to standard output, everything else to standard error.

    Ctrl-C stops within a step, and the same command goes on. Methods, problems and epochs may be added to a folder.
    """
    from .bench_run import BenchOptions, run_benchmark

    raise typer.Exit(
        run_benchmark(
            BenchOptions(
                task=task,
                task_options=task_options,
                words=tuple(context.meta[_WORDS]),
                limit=limit or "",
                epochs=epochs,
                seed=seed,
                methods=tuple(methods.split(",")) if methods else (),
                grid=grid,
                config=resolve(profile, config, settings, choice.default_profile),
                choice=choice,
                at_once=at_once,
                out=out,
                fresh=fresh,
                only_failed=resume_only_failed,
                json_output=json_output,
                quiet=quiet,
            )
        )
    )


COMMANDS: dict[str, Callable[..., Any]] = {"run": run, "compare": compare}

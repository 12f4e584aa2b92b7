"""The commands of `mrsa bench`: compare methods on a task, and compare two benchmarks.

Loaded for `--help`, so the functions import what they run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..bench.methods import DEFAULT_METHODS, SELECTIONS
from ..bench.methods import METHODS as FAMILIES
from ..bench.tasks.options import OPTIONS, read_params
from .command import PATH, Decorator, Group, json_option, option, option_group
from .engine_options import MODEL, ModelChoice, choose_model, engine_options
from .settings_options import profile_options, resolve, settings_options

TASK, METHODS, OUTPUT = "The task", "The methods", "Results"
#: Settings that a benchmark decides: methods are compared at F = N and by their decode budgets alone.
_SETTLED = (
    "seed", "final_candidates", "answer_selection", "early_stop", "token_budget", "time_budget_s", "answer_kind",
    "response_schema",
)  # fmt: skip
#: The key of the command line's words in click's `meta`, from where the results record them.
_WORDS = "markovian_rsa_mlx.bench"
_FOLDER = "A folder that mrsa bench TASK wrote."


class _BenchGroup(Group):
    """A group in which `bench TASK` is `bench run TASK`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        ctx.meta[_WORDS] = args[1:] if known else args
        return super().parse_args(ctx, args if known or not args else ["run", *args])


@click.group(
    "bench",
    cls=_BenchGroup,
    examples=("mrsa bench countdown --limit 5", "mrsa bench compare first-folder second-folder"),
)
def bench() -> None:
    """Compare methods on a task: mrsa bench TASK, or mrsa bench compare A B."""


def _read_task_options(param: Sequence[str], **given: str | None) -> dict[str, str]:
    return read_params(param) | {name: value for name, value in given.items() if value is not None}


def _task_options() -> Decorator:
    """The options of tasks. The command receives those given as the dict `task_options`."""
    options = {
        each.name: option(
            "--" + each.name.replace("_", "-"),
            multiple=each.repeatable,
            metavar=each.metavar,
            help=each.help,
            panel=TASK,
        )
        for each in OPTIONS
    }
    return option_group("task_options", options, _read_task_options)


def _methods_help() -> str:
    selectable = ", ".join(name for name, family in FAMILIES.items() if not family.parallel)
    return (
        f"Of {', '.join(FAMILIES)}. With a selection ({', '.join(SELECTIONS)}), as in markovian:majority: {selectable} "
        f"(unset: {','.join(DEFAULT_METHODS)})."
    )


def _pages_option(panel: str = "Options") -> Decorator:
    return option(
        "--pages/--no-pages",
        default=None,
        help="Write a page for each run, to which the report links; unset: if the audit logs are small.",
        panel=panel,
    )


@bench.command(
    "run",
    examples=(
        "mrsa bench run countdown --limit 5",
        "mrsa bench run countdown --methods vote-equal,markovian --out results --recommend",
    ),
)
@click.argument(
    "task",
    help="A reasoning-gym data set (countdown), a known set (aime-2025), a hub id, or a file with the "
    "columns problem and answer (JSONL, CSV, Parquet).",
)
@option("--limit", metavar="K|A-B", help="The first K problems, or those from A to B.", panel=TASK)
@option("--epochs", type=click.IntRange(min=1), default=1, metavar="K", help="Runs of each problem.", panel=TASK)
@option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=1,
    metavar="SEED",
    help="Seed of all runs, and of procedural problems.",
    panel=TASK,
)
@_task_options()
@option(
    "--methods",
    metavar="A,B,...",
    help=_methods_help(),
    panel=METHODS,
)
@option(
    "--recommend",
    is_flag=True,
    help="End with the method to use, how sure that is, and how many problems would settle it. Without --methods, runs "
    "those that it compares.",
    panel=METHODS,
)
@option(
    "--grid",
    type=PATH,
    metavar="FILE.toml",
    help="Run every method at every point of a grid over N, C, T, beta, tau.",
    panel=METHODS,
)
@profile_options(METHODS)
@engine_options()
@option(
    "--at-once",
    type=click.IntRange(min=1),
    metavar="K",
    help="Concurrent problems on the engine (unset: as many as fill its rows).",
    panel=MODEL,
)
@option(
    "--out",
    type=PATH,
    metavar="DIR",
    help="Folder of results and trails; the same command resumes there. Unset: a folder of its own for each "
    "task, model, seed and settings, next to the one that mrsa runs path prints.",
    panel=OUTPUT,
)
@option("--fresh", is_flag=True, help="Remove the content of the folder and start again.", panel=OUTPUT)
@option(
    "--resume-only-failed",
    "only_failed",
    is_flag=True,
    help="Repeat only the problems that failed or could not be scored.",
    panel=OUTPUT,
)
@_pages_option(OUTPUT)
@json_option("Print the table as one JSON object.", OUTPUT)
@option("--quiet", "-q", is_flag=True, help="Print only errors and warnings on standard error.", panel=OUTPUT)
@settings_options(without=_SETTLED)
@click.pass_context
def run(
    context: click.Context,
    /,
    limit: str | None,
    methods: str | None,
    profile: str | None,
    config: Path | None,
    choice: ModelChoice,
    settings: Mapping[str, Any],
    **options: Any,
) -> int:
    """Run methods on a task and compare them.

    The word run may be left out. The table goes to standard output, everything else to standard error.

    Ctrl-C stops within a step, and the same command continues. Methods, problems and epochs may be added to a folder.
    """
    from .bench_run import BenchOptions, run_benchmark

    return run_benchmark(
        BenchOptions(
            words=tuple(context.meta[_WORDS]),
            limit=limit or "",
            methods=tuple(methods.split(",")) if methods else (),
            config=resolve(profile=profile, file=config, settings=settings, default=choice.default_profile),
            choice=choice,
            **options,
        )
    )


@bench.command("rescore", examples=("mrsa bench rescore results", "mrsa bench rescore results --json"))
@click.argument("folder", type=PATH, metavar="DIR", help=_FOLDER)
@option("--task", metavar="TASK", help="Where the task is now, if its file or folder has moved.")
@json_option("Print the table and the changes as one JSON object.")
def rescore(folder: Path, task: str | None, json_output: bool) -> None:
    """Score the runs of a benchmark again by the rules of this version.

    Reads the audit logs and the task, and needs neither a model nor a server. Lists the answers and scores that
    changed, and replaces the results and the report.
    """
    from ..bench.compare import read_folder
    from .bench_run import rescore_folder

    recorded = read_folder(folder)
    words = shlex.split(recorded.command)[2:] or [task or recorded.task]
    given = run.make_context("run", words[1:] if words[:1] == ["run"] else words).params
    options = _read_task_options(**{each.name: given[each.name] for each in OPTIONS})
    embedded = not given["upstream"] and choose_model(given["model"]).embedded
    rescore_folder(folder, recorded, task or given["task"], options, embedded=embedded, json_output=json_output)


@bench.command("report", examples=("mrsa bench report results", "mrsa bench report results --pages"))
@click.argument("folder", type=PATH, metavar="DIR", help=_FOLDER)
@_pages_option()
def report(folder: Path, pages: bool | None) -> int:
    """Write the report of a benchmark again, with a page for each run.

    Only pages of new and changed runs are written. Needs neither a model nor a server.
    """
    from .bench_report import report_folder

    return report_folder(folder, pages)


@bench.command("recommend", examples=("mrsa bench recommend results", "mrsa bench recommend results --json"))
@click.argument("folder", type=PATH, metavar="DIR", help=_FOLDER)
@json_option("Print the recommendation as one JSON object.")
def recommend(folder: Path, json_output: bool) -> None:
    """Recommend a method from the results of a benchmark.

    Says which method to use with this model on this task, at how many tokens, how sure that is, and how many more
    problems would settle it. Needs neither a model nor a server.
    """
    from ..bench.compare import read_folder
    from ..bench.recommend import recommend
    from .bench_run import print_json
    from .terminal import clean, print_lines

    found = recommend(read_folder(folder))
    if json_output:
        print_json(found.to_dict())
    else:
        print_lines(clean(found.sentence))


@bench.command("votes", examples=("mrsa bench votes results", "mrsa bench votes results --json"))
@click.argument("folder", type=PATH, metavar="DIR", help=_FOLDER)
@json_option("Print the scores and the comparisons as one JSON object.")
def votes(folder: Path, json_output: bool) -> None:
    """Compare votes weighted by the confidence of traces with plain votes.

    Replays the votes of a benchmark that ran with --trace-confidence: weighted by the mean and by the lowest windowed
    log-probability of each trace, and plain among the surer half of the traces. Needs neither a model nor a server.
    """
    from .bench_votes import compare_votes

    compare_votes(folder, json_output=json_output)


@bench.command("compare", examples=("mrsa bench compare first second", "mrsa bench compare first second --json"))
@click.argument("first", type=PATH, metavar="A", help=_FOLDER)
@click.argument("second", type=PATH, metavar="B", help=_FOLDER)
@json_option("Print one JSON object instead of the table.")
def compare(first: Path, second: Path, json_output: bool) -> None:
    """Compare two benchmarks, method by method.

    Prints B minus A on the problems that both have, with intervals and exact tests. Other differences between the
    benchmarks go to standard error.
    """
    from ..bench.compare import compare, read_folder
    from .bench_output import comparison_text
    from .terminal import clean, print_lines, print_status

    found = compare(read_folder(first), read_folder(second))
    if json_output:
        print(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
        return
    for difference in found.differing:
        print_status(clean(f"not the same: {difference}"))
    for names, where in ((found.only_first, "A"), (found.only_second, "B")):
        if names:
            print_status(clean(f"only in {where}: {', '.join(names)}"))
    print_lines(comparison_text(found))

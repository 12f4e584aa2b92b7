"""The application: its commands, plain help that answers at once, and one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import MarkovianRSAError
from .terminal import clean, print_status

INTERRUPTED = 130
HELP_WIDTH = {"max_content_width": 100}


class Command(TyperCommand):
    """Help with the options in their groups, as plain text."""

    def get_help_option(self, ctx: Any) -> Any:
        return _with_plain_default(super().get_help_option(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                name = parameter.metavar or (parameter.name or "").upper()
                groups.setdefault("Arguments", []).append((name, getattr(parameter, "help", None) or ""))
            elif (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Group(TyperGroup):
    """Commands in the order in which they are defined."""

    def get_help_option(self, ctx: Any) -> Any:
        return _with_plain_default(super().get_help_option(ctx))


def build() -> typer.Typer:
    """The application with all its commands."""
    from . import bench, convert, demo, plan, profiles, runs, schedules, serve, solve, tune, view

    app = _typer(
        help="Better answers from the model on your own machine: Markovian RSA on MLX, with an audit trail.",
        epilog="Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted. MRSA_DEBUG=1 shows tracebacks; "
        "MRSA_HOME moves the folder that runs are kept in.",
    )
    app.callback()(_options)
    for name, command in (
        ("solve", solve.solve),
        ("serve", serve.serve),
        ("demo", demo.demo),
        ("view", view.view),
        ("plan", plan.plan),
        ("tune", tune.tune),
        ("schedules", schedules.schedules),
        ("profiles", profiles.profiles),
        ("convert", convert.convert),
    ):
        app.command(name, cls=Command, context_settings=HELP_WIDTH)(command)
    group = _typer(help="List, read, check and remove the trails of runs.")
    for name, command in runs.COMMANDS.items():
        group.command(name, cls=Command, context_settings=HELP_WIDTH)(command)
    app.add_typer(group, name="runs")
    benches = _typer(cls=bench.group(Group), help=bench.HELP)
    for name, command in bench.COMMANDS.items():
        benches.command(name, cls=Command, context_settings=HELP_WIDTH)(command)
    app.add_typer(benches, name="bench")
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; every error that is raised on purpose becomes one sentence and its exit code."""
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except MarkovianRSAError as error:
        if _debugging():
            raise
        print_status(f"error: {clean(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        print_status("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _debugging():
            raise
        print_status(
            f"error: {type(error).__name__}: {clean(str(error))}. This is a bug; MRSA_DEBUG=1 shows the traceback."
        )
        return 1


def _invoke(arguments: Sequence[str] | None) -> int:
    try:
        build()(args=None if arguments is None else list(arguments), prog_name="mrsa")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return 0


def _with_plain_default(option: Any) -> Any:
    """A help option that is False when it is not given: a None would have Typer load Pydantic, a quarter second."""
    if option is not None:
        option.default = False
    return option


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"markovian-rsa-mlx {version('markovian-rsa-mlx')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has done all


def _typer(cls: type[TyperGroup] = Group, **values: Any) -> typer.Typer:
    return typer.Typer(
        cls=cls,
        context_settings=HELP_WIDTH,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        add_completion=False,
        **values,
    )


def _debugging() -> bool:
    return os.environ.get("MRSA_DEBUG", "") not in ("", "0")

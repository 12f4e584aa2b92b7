"""Click commands whose `--help` lists options under headings, and the option types that commands share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from .invocation import as_started

PATH = click.Path(path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Formatter(click.HelpFormatter):
    """Writes the commands in a help text as the user started this program, before it breaks the lines."""

    def write_text(self, text: str) -> None:
        super().write_text(as_started(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl([(name, as_started(text)) for name, text in rows], col_max, col_spacing)


class _Context(click.Context):
    formatter_class = _Formatter


class _WithExamples(click.Command):
    """A command whose help shows `examples`, each on a line of its own so that it can be copied and run."""

    context_class = _Context

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **values: Any) -> None:
        # Not only on the outermost group: click keeps the help option of the first context, which may lack that group.
        values["context_settings"] = {"help_option_names": ["-h", "--help"]} | values.get("context_settings", {})
        super().__init__(*arguments, **values)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {as_started(example)}\n" for example in self.examples))
        super().format_epilog(ctx, formatter)


class Command(_WithExamples):
    """A command whose help lists options under the headings that `option(..., panel=)` gives them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                panels.setdefault(getattr(parameter, "panel", "Options"), []).append(record)
        for heading, records in panels.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Group(_WithExamples, click.Group):
    """A group that lists its commands in the order in which they were added."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their whole first sentence; click cuts it off at the width of a line."""
        rows = [(name, command.get_short_help_str(limit=1_000)) for name, command in self.commands.items()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class _Option(click.Option):
    def __init__(self, *arguments: Any, panel: str = "Options", **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.panel = panel


class FiniteFloat(click.FloatRange):
    """A number that is neither nan nor infinite; a range alone accepts nan."""

    def _describe_range(self) -> str:
        """Return the range for the help, without click's "x<=None" for a number without bounds."""
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def option(*flags: str, panel: str = "Options", **values: Any) -> Decorator:
    """`click.option`, listed under the heading `panel`."""
    return click.option(*flags, cls=_Option, panel=panel, **values)


def json_option(meaning: str, panel: str = "Options") -> Decorator:
    """`--json`, which the command receives as `json_output`."""
    return option("--json", "json_output", is_flag=True, help=meaning, panel=panel)


def combine(*decorators: Decorator) -> Decorator:
    """Apply several decorators; the options that they add are listed in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda inner, decorator: decorator(inner), reversed(decorators), command)

    return decorate


def option_group(parameter: str, options: Mapping[str, Decorator], make: Callable[..., Any]) -> Decorator:
    """Add `options` by name; the command receives `make(**values)` as its argument `parameter`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_group(**values: Any) -> Any:
            own = {name: values.pop(name) for name in options}
            return command(**values, **{parameter: make(**own)})

        return combine(*options.values())(with_group)

    return decorate

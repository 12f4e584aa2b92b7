"""The application `mrsa`: its commands, and the conversion of errors to exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from ..errors import MarkovianRSAError
from .bench import bench
from .command import Group
from .convert import convert
from .demo import demo
from .plan import plan
from .profiles import profiles
from .runs import runs
from .serve import serve
from .solve import solve
from .terminal import clean, print_status
from .tune import tune
from .view import view

INTERRUPTED = 130


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="Exit codes: 0 done, 1 failure, 2 usage, 130 interrupted. MRSA_DEBUG=1 shows tracebacks; "
    "MRSA_HOME moves the folder that runs are kept in.",
)
@click.version_option(
    package_name="markovian-rsa-mlx", message="markovian-rsa-mlx %(version)s", help="Print the version and exit."
)
def mrsa() -> None:
    """Better answers from the model on your own machine: Markovian RSA on MLX, with an audit trail."""


for command in (solve, serve, demo, view, plan, tune, profiles, convert, runs, bench):
    mrsa.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run a command line. Print an expected error as one sentence and return its exit code."""
    try:
        code = mrsa.main(arguments, prog_name="mrsa", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except SystemExit as stop:  # shell completion, and a closed pipe that click has noticed
        return stop.code if isinstance(stop.code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print_status(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        print_status(f"error: {clean(error.format_message())}")
        if isinstance(error, click.UsageError) and error.ctx is not None:
            print_status(f"Try '{error.ctx.command_path} --help' for help.")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:  # click turns most interrupts into Abort
        interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
        print_status("Interrupted." if interrupted else "Aborted.")
        return INTERRUPTED if interrupted else 1
    except BrokenPipeError:
        # The reader closed the pipe. Redirect stdout so that Python's flush at exit does not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("MRSA_DEBUG", "") not in ("", "0"):
            raise
        if isinstance(error, MarkovianRSAError):
            print_status(f"error: {clean(str(error))}")
            return error.exit_code
        print_status(
            f"error: {type(error).__name__}: {clean(str(error))}. This is a bug; MRSA_DEBUG=1 shows the traceback."
        )
        return 1

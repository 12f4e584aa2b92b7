"""The application `mrsa`: its commands, and the conversion of errors to exit codes."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Sequence

import click

from ..errors import ContextLengthError, MarkovianRSAError
from ..redact import redact
from .bench import bench
from .command import Group
from .completion import completion
from .convert import convert
from .demo import demo
from .doctor import doctor
from .export import export
from .models import models
from .plan import plan
from .profiles import profiles
from .resume import resume
from .runs import runs
from .serve import serve
from .settings_options import as_options
from .solve import solve
from .terminal import clean, drop_output, prepare_streams, print_status
from .tune import tune
from .view import view

INTERRUPTED = 130
#: A longer command is not printed again with further options.
_LONGEST_COMMAND = 500
#: Faults of the machine that any read or write may meet: a full device, a quota, a broken disk, too many open files.
_SYSTEM_FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EBADF}
)


@click.group(
    cls=Group,
    context_settings={"max_content_width": 100, "show_default": True},
    epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 texts not checked (runs verify), 130 interrupted. "
    "MRSA_DEBUG=1 shows tracebacks; "
    "MRSA_HOME moves the folder that runs are kept in.",
    examples=("mrsa demo", 'mrsa solve "What is 12 + 30 - 17?"'),
)
@click.version_option(
    package_name="markovian-rsa-mlx", message="markovian-rsa-mlx %(version)s", help="Print the version and exit."
)
@click.option("--verbose", is_flag=True, help="Print decisions that are otherwise silent, like the BLAS in use.")
def mrsa(verbose: bool) -> None:
    """Better answers from the model on your own machine: Markovian RSA on MLX, with an audit trail."""
    if verbose:
        import logging

        logging.basicConfig(format="%(message)s")
        logging.getLogger("markovian_rsa_mlx").setLevel(logging.INFO)


for command in (
    solve,
    resume,
    serve,
    demo,
    view,
    plan,
    doctor,
    tune,
    models,
    profiles,
    convert,
    runs,
    bench,
    export,
    completion,
):
    mrsa.add_command(command)


def _message(error: MarkovianRSAError, words: Sequence[str]) -> str:
    """Return the message of an error, with a remedy in options where the command has them."""
    command = mrsa.commands.get(words[0]) if words else None
    if not isinstance(error, ContextLengthError) or not error.settings or command is None:
        return str(error)
    if not error.settings.keys() <= {parameter.name for parameter in command.params}:
        return str(error)
    given, end = [*words], "--"
    place = given.index(end) if end in given else len(given)  # of options that are given twice the last one counts
    given[place:place] = as_options(error.settings).split()
    line = shlex.join(["mrsa", *given])
    if "\n" in line or len(line) > _LONGEST_COMMAND:
        return f"{error.facts} With {as_options(error.settings)} it fits."
    return f"{error.facts} With these options it fits:\n  {line}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run a command line. Print an expected error as one sentence and return its exit code."""
    prepare_streams()
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
        message = error.format_message().replace("\n\t", " ")  # click lists the choices of a missing option with tabs
        print_status(f"error: {clean(message)}")
        if isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--"):
            print_status('Text that begins with - goes after --, as in mrsa solve -- "-3 + 5".')
        if isinstance(error, click.UsageError) and error.ctx is not None:
            print_status(f"Try '{error.ctx.command_path} --help' for help.")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:  # click turns most interrupts into Abort
        interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
        print_status("Interrupted." if interrupted else "Aborted.")
        return INTERRUPTED if interrupted else 1
    except BrokenPipeError:
        drop_output()
        return 1
    except Exception as error:
        if os.environ.get("MRSA_DEBUG", "") not in ("", "0"):
            raise
        if isinstance(error, MarkovianRSAError):
            print_status(f"error: {clean(_message(error, sys.argv[1:] if arguments is None else arguments))}")
            return error.exit_code
        if isinstance(error, OSError) and error.errno in _SYSTEM_FAULTS:
            drop_output()
            place = f" ({error.filename})" if error.filename else ""
            print_status(f"error: The system refused to read or write{clean(place)}: {error.strerror}.")
            return 1
        message = clean(redact(str(error)))
        print_status(f"error: {type(error).__name__}: {message}. This is a bug; MRSA_DEBUG=1 shows the traceback.")
        return 1

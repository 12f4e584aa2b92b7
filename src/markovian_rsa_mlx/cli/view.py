"""The command `mrsa view`: write a run as one page for the browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..errors import AuditError, ConfigError
from ..locks import is_locked
from .command import PATH, Command, option
from .runs import RUN_HELP
from .terminal import one_line, print_status, size


@click.command(
    "view",
    cls=Command,
    examples=(
        "mrsa view --open",
        "mrsa view --out run.html",
    ),
)
@click.argument("run", required=False, help=RUN_HELP)
@option("--out", type=PATH, metavar="FILE.html", help="File of the page; unset: next to the trail.")
@option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@option(
    "--reference",
    metavar="ANSWER",
    help="The right answer, to mark right traces; not needed for puzzles of the embedded reasoner.",
)
@option(
    "--with-trail/--without-trail",
    default=None,
    help="Include the raw trail in the page, for download; unset: if it is small.",
)
def view(run: str | None, out: Path | None, open_page: bool, reference: str | None, with_trail: bool | None) -> None:
    """Show a run in the browser.

    Writes one HTML file that needs no network: the answer and its path, every prompt, trace and tail.
    """
    from .. import run_store
    from ..audit import read_lenient
    from ..viewer import file_page

    path = run_store.find_run(run)
    target = out or path.with_suffix(".html")
    if target.resolve() == path.resolve():
        raise ConfigError(f"The page would replace its trail {str(path)!r}. Choose another file with --out.")
    log = read_lenient(path)
    with _judge(log.start.prompt if log.start else "", reference) as judge:
        page = file_page(
            log,
            path=str(path),
            running=is_locked(path),
            reference=reference or "",
            judge=judge,
            with_trail=with_trail,
        )
    _write(target, page)
    for problem in log.problems:
        place = f"line {problem.line}" if problem.line else "the file"
        print_status(f"{path}, {place}: {one_line(problem.reason, 200)}.")
    print_status(f"One page of {size(len(page.encode()))}, for any browser, no network needed:")
    print(target)
    if open_page and not webbrowser.open(target.resolve().as_uri()):
        print_status("No browser could be started. Open the file in one.")


@contextmanager
def _judge(question: str, reference: str | None) -> Iterator[Callable[[str], bool] | None]:
    """Yield a check of answers: by equality with the reference, or by exact arithmetic for a puzzle of the reasoner."""
    if reference is None:
        from ..reasoner import answer_checker

        yield answer_checker(question)
        return
    from ..equivalence import MathEquivalence

    with MathEquivalence() as equivalent:
        yield lambda answer: equivalent(reference, answer)


def _write(target: Path, page: str) -> None:
    from ..viewer import write_page

    try:
        write_page(target, page)
    except OSError as error:
        message = f"The page {target} cannot be written ({error.strerror}). Choose another file with --out."
        raise AuditError(message) from error

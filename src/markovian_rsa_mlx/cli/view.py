"""`mrsa view`: a run as one page for the browser."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from ..errors import AuditError, ConfigError
from ..locks import is_locked
from .command import PATH, Command, option
from .runs import RUN_HELP
from .terminal import one_line, print_status, size


@click.command("view", cls=Command)
@click.argument("run", required=False, help=RUN_HELP)
@option("--out", type=PATH, metavar="FILE.html", help="Where the page goes; unset: beside the trail.")
@option("--open", "open_page", is_flag=True, help="Show it in the browser.")
@option(
    "--reference",
    metavar="ANSWER",
    help="The right answer, so that the page marks right traces; puzzles of the embedded reasoner need none.",
)
@option(
    "--with-trail/--without-trail",
    default=None,
    help="Put the raw trail into the page, for download; unset: if it is small.",
)
def view(run: str | None, out: Path | None, open_page: bool, reference: str | None, with_trail: bool | None) -> None:
    """Show a run in the browser.

    Writes one HTML file that needs no network: the answer and how it came about, every prompt, trace and tail.
    """
    from .. import run_store
    from ..audit import read_lenient
    from ..viewer import file_page

    path = run_store.find_run(run)
    trail = read_lenient(path)
    target = _target(path, out)
    with _judge(trail.start.prompt if trail.start else "", reference) as judge:
        page = file_page(
            trail,
            path=str(path),
            running=is_locked(path),
            reference=reference or "",
            judge=judge,
            with_trail=with_trail,
        )
    _write(target, page)
    for problem in trail.problems:
        print_status(
            f"{path}, {f'line {problem.line}' if problem.line else 'the file'}: {one_line(problem.reason, 200)}."
        )
    print_status(f"One page of {size(len(page.encode()))}, for any browser, no network needed:")
    print(target)
    if open_page and not webbrowser.open(target.resolve().as_uri()):
        print_status("No browser could be started here; open the file in one.")


@contextmanager
def _judge(question: str, reference: str | None) -> Iterator[Callable[[str], bool] | None]:
    """What tells a right answer: equality with the one given, else exact arithmetic for a puzzle of the reasoner."""
    if reference is None:
        from ..reasoner import answer_checker

        yield answer_checker(question)
        return
    from ..equivalence import MathEquivalence

    with MathEquivalence() as equivalent:
        yield lambda answer: equivalent(reference, answer)


def _target(path: Path, out: Path | None) -> Path:
    """Where the page goes: never over its own trail, which nothing could bring back."""
    target = out or path.with_suffix(".html")
    if target.resolve() == path.resolve():
        raise ConfigError(f"The page would replace its trail {str(path)!r}; give another place with --out.")
    return target


def _write(target: Path, page: str) -> None:
    """All of it or nothing, and, like the trail, for its owner's eyes only."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)
        draft.write_text(page, encoding="utf-8")
        draft.replace(target)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise AuditError(
            f"The page {target} cannot be written ({error.strerror}); give another place with --out."
        ) from error

"""Write the pages of a benchmark's runs, and its report with links to them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from ..bench.compare import read_folder
from ..bench.experiment import ExperimentDir
from ..bench.report.pages import MAX_LOG_BYTES, write_pages
from ..bench.results import Results
from ..bench.runner import write_report
from .terminal import count, print_status

INTERRUPTED: Final = 130
#: Seconds between lines about the progress.
_INTERVAL_S: Final = 5.0


def report_folder(path: Path, pages: bool | None) -> int:
    """Write the report of a benchmark's folder again, print its path, and return the exit code."""
    results = read_folder(path)
    with ExperimentDir.existing(path) as folder:
        write_report(folder, results)
        stopped = add_pages(folder, results, pages)
    print(path / "report.html")
    return INTERRUPTED if stopped else 0


def add_pages(folder: ExperimentDir, results: Results, pages: bool | None, *, quiet: bool = False) -> bool:
    """Write the pages of the runs, and the report again if any was written. Return True if Ctrl-C stopped it.

    `pages` is the choice of the user. Without one, pages are written unless the audit logs are large. Raises
    `AuditError` if a page cannot be written.
    """
    if pages is False:
        return False
    shown_s = time.monotonic()
    started = False

    def on_page(number: int, total: int) -> None:
        nonlocal shown_s, started
        started = True
        if not quiet and time.monotonic() >= shown_s + _INTERVAL_S:
            shown_s = time.monotonic()
            print_status(f"Pages: {count(number)} of {count(total)}. Ctrl-C leaves the others out.")

    stopped, missing = False, 0
    try:
        missing = write_pages(folder.path, results, max_log_bytes=None if pages else MAX_LOG_BYTES, listener=on_page)
    except KeyboardInterrupt:
        stopped = True
    if started:
        write_report(folder, results)
    elif missing and not quiet:
        print_status(
            "The audit logs are large, so the report links to these and not to pages. To write a page for each run: "
            f"mrsa bench report {folder.path} --pages"
        )
    return stopped

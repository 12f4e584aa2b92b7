"""Write a page for each run in a report, so that the report can link to it.

    pages/viewer-DIGEST.js          the script and the styles of all pages
    pages/CELL/PROBLEM-EPOCH.html   the page of the run with the audit log trails/CELL/PROBLEM-EPOCH.jsonl

The last line of a page identifies what the page was made from, so that a page is written again only if that changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...audit import read_lenient
from ...errors import AuditError
from ...run.setup import package_version
from ...viewer import Links, file_page, shared_script, write_page
from ..results import Results, RunRecord
from .charts import shown_records

#: The default limit for the audit logs of all pages together: about a minute on one core.
MAX_LOG_BYTES: Final = 250_000_000
#: Paths of audit logs as `ExperimentDir.trail` makes them. Results from elsewhere may name any other file.
_TRAIL: Final = re.compile(r"trails/([A-Za-z0-9=@-][A-Za-z0-9.=@-]*)/([0-9]+-[0-9]+)\.jsonl")
_FOLDER: Final = "pages"

#: Called before each page with the number of pages written and the number of all.
Listener = Callable[[int, int], None]


def page_of(trail: str) -> str:
    """Return the path of the page of an audit log, both relative to the folder of the benchmark, or ""."""
    found = _TRAIL.fullmatch(trail)
    return f"{_FOLDER}/{found[1]}/{found[2]}.html" if found else ""


def linked_pages(folder: Path, results: Results) -> dict[str, str]:
    """Return the pages of a report that exist and are up to date, by audit log, as paths relative to the folder."""
    found = (page.record.trail for page in _pages(folder, results) if page.is_current())
    return {trail: page_of(trail) for trail in found}


def write_pages(
    folder: Path, results: Results, *, max_log_bytes: int | None = None, listener: Listener = lambda *_: None
) -> int:
    """Write the missing and outdated pages of a report. Return how many are still missing.

    Those of logs that cannot be read are left out. If all logs together have more than `max_log_bytes`, no page is
    written. Raises `AuditError` if a page cannot be written.
    """
    pages = list(_pages(folder, results))
    missing = [page for page in pages if not page.is_current()]
    if not missing or (max_log_bytes is not None and sum(page.log_bytes for page in pages) > max_log_bytes):
        return len(missing)
    name, script = shared_script()
    path = folder / _FOLDER / name
    unreadable = 0
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_page(path, script)
        for number, page in enumerate(missing):
            listener(number, len(missing))
            try:
                content = page.content()
            except AuditError:
                unreadable += 1
                continue
            path = page.path
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_page(path, content)
    except OSError as error:
        raise AuditError(f"The page {path} cannot be written: {error.strerror}.") from error
    return unreadable


@dataclass(frozen=True)
class _Page:
    """The page of a run at `path`, to be made from `log`."""

    record: RunRecord
    log: Path
    log_bytes: int
    path: Path
    stamp: bytes  #: the last line

    def is_current(self) -> bool:
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(-len(self.stamp), os.SEEK_END)
            return file.read() == self.stamp and (self.path.parents[1] / shared_script()[0]).exists()
        return False

    def content(self) -> str:
        """Return the page. Raises `AuditError` if the log cannot be read."""
        record = self.record
        page = file_page(
            read_lenient(self.log),
            path=record.trail,
            reference=record.reference if record.traces else "",  # only the task knows what equals it
            verdicts=_verdicts(record),
            links=Links(scripts="../", trail=f"../../{record.trail}", home="../../report.html"),
        )
        return page + self.stamp.decode()


def _pages(folder: Path, results: Results) -> Iterator[_Page]:
    """Yield the pages of the runs that a report shows and whose audit logs exist."""
    for record in shown_records(results):
        if path := page_of(record.trail):
            log = folder / record.trail
            with suppress(OSError):
                seen = log.stat()
                parts = (package_version(), shared_script()[0], seen.st_size, seen.st_mtime_ns, record.reference)
                digest = hashlib.sha256(json.dumps([*parts, _verdicts(record)]).encode()).hexdigest()
                yield _Page(record, log, seen.st_size, folder / path, f"<!-- {digest} -->\n".encode())


def _verdicts(record: RunRecord) -> dict[str, bool]:
    return {trace.trace_id: trace.correct == 1.0 for trace in record.traces}

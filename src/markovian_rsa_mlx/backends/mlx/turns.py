"""The line of waiting traces. Runs that share the engine take turns; within a run, first come, first served.

Whoever is next stays next until there is room: nobody overtakes, so that a large trace cannot starve.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from .jobs import Job


class Turns:
    """Waiting jobs. `returned` ones, which were inside before, go ahead of all turns."""

    def __init__(self) -> None:
        self._returned: deque[Job] = deque()
        self._lines: dict[str, deque[Job]] = {}  # by run, the run whose turn it is first

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Job]:
        yield from self._returned
        for line in self._lines.values():
            yield from line

    @property
    def next(self) -> Job:
        """Whose turn it is. Raises IndexError where nobody waits."""
        return self._returned[0] if self._returned else self._first_line()[0]

    def add(self, job: Job) -> None:
        """Stand in the run's own line; a run that did not wait yet has its turn after the others."""
        self._lines.setdefault(job.request.run_id, deque()).append(job)

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Let jobs that were inside go first, in this order."""
        self._returned.extendleft(reversed(list(jobs)))

    def take(self) -> Job:
        """Take out whose turn it is; the next turn is another run's, where one waits."""
        if self._returned:
            return self._returned.popleft()
        line = self._first_line()
        job = line.popleft()
        del self._lines[job.request.run_id]
        if line:
            self._lines[job.request.run_id] = line
        return job

    def remove(self, job: Job) -> None:
        """Forget a job, if it waits here."""
        if job in self._returned:
            self._returned.remove(job)
        line = self._lines.get(job.request.run_id)
        if line is not None and job in line:
            line.remove(job)
            if not line:
                del self._lines[job.request.run_id]

    def clear(self) -> None:
        self._returned.clear()
        self._lines.clear()

    def _first_line(self) -> deque[Job]:
        for line in self._lines.values():
            return line
        raise IndexError("nobody waits")

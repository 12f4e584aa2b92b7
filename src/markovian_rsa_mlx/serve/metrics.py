"""What `GET /metrics` tells, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from .active import ActiveRun

_PREFIX = "mrsa_"


class Metrics:
    """Counts since the server began. Seconds and tokens only grow, so that rates can be taken."""

    def __init__(self) -> None:
        self._runs: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._first_token: list[float] = [0.0, 0.0]  # sum, count
        self.tokens = 0  #: of runs that ended

    def run_ended(self, kind: str, outcome: str, seconds: float) -> None:
        """A run ended: `kind` rsa or plain; `outcome` ok, failed, cancelled, disconnected or stopped."""
        self._runs[kind, outcome] += 1
        self._seconds[kind] += seconds  # type: ignore[assignment]

    def answered(self, route: str, status: int) -> None:
        self._requests[route, status] += 1

    def first_token(self, seconds: float) -> None:
        self._first_token[0] += seconds
        self._first_token[1] += 1

    @property
    def mean_run_seconds(self) -> float:
        """Of the runs so far, 1 before there was any."""
        count = sum(self._runs.values())
        return sum(self._seconds.values()) / count if count else 1.0

    def text(self, runs: Sequence[ActiveRun], queue: int) -> str:
        """The page; `runs` are under way, at most `queue` of them."""
        return "\n".join(self._lines(runs, queue)) + "\n"

    def _lines(self, runs: Sequence[ActiveRun], queue: int) -> Iterator[str]:
        yield from _head("runs_total", "counter", "Runs that ended, by kind and outcome.")
        for (kind, outcome), count in sorted(self._runs.items()):
            yield f'{_PREFIX}runs_total{{kind="{kind}",outcome="{outcome}"}} {count}'
        yield from _head("run_seconds_total", "counter", "Seconds that ended runs took.")
        for kind, seconds in sorted(self._seconds.items()):
            yield f'{_PREFIX}run_seconds_total{{kind="{kind}"}} {seconds:.3f}'
        yield from _head("requests_total", "counter", "Requests answered, by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'{_PREFIX}requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("first_token_seconds", "summary", "Seconds from a run's start to its first token.")
        yield f"{_PREFIX}first_token_seconds_sum {self._first_token[0]:.3f}"
        yield f"{_PREFIX}first_token_seconds_count {self._first_token[1]:.0f}"
        inside = sum(bool(run.rows) for run in runs)
        tokens = self.tokens + sum(run.generated for run in runs)
        for name, kind, value, meaning in (
            ("generated_tokens_total", "counter", tokens, "Tokens generated."),
            ("runs_active", "gauge", inside, "Runs with a trace in the engine."),
            ("runs_waiting", "gauge", len(runs) - inside, "Runs that wait for the engine."),
            ("engine_rows", "gauge", sum(len(run.rows) for run in runs), "Traces in the engine."),
            ("queue_limit", "gauge", queue, "Most runs at once."),
        ):
            yield from _head(name, kind, meaning)
            yield f"{_PREFIX}{name} {value}"


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}{name} {meaning}"
    yield f"# TYPE {_PREFIX}{name} {kind}"

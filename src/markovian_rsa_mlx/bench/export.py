"""The results in other programs' formats: CSV and Parquet, a line for each round of each run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ..json_strict import replace_surrogates
from .results import Results, RoundRecord
from .utils import require_extra

_RUN = ("index", "problem_id", "epoch", "seed", "answer", "correct", "badges", "error", "peak_memory_bytes", "trail")
_ROUND = tuple(f.name for f in fields(RoundRecord))
_COLUMNS = ("task", "model", "cell", *_RUN, *_ROUND)


def lines(results: Results) -> Iterator[dict[str, Any]]:
    """A dict for each round; one with empty figures for a run that failed."""
    for cell in results.cells:
        for record in cell.records:
            run = {"task": results.task, "model": results.model, "cell": cell.name}
            run |= {name: getattr(record, name) for name in _RUN} | {"badges": " ".join(record.badges)}
            run = {name: replace_surrogates(value) if isinstance(value, str) else value for name, value in run.items()}
            for entry in record.rounds:
                yield run | {name: getattr(entry, name) for name in _ROUND}
            if not record.rounds:
                yield run | dict.fromkeys(_ROUND)


def to_csv(results: Results) -> bytes:
    """UTF-8, with a head line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(results))
    return text.getvalue().encode()


def to_parquet(results: Results) -> bytes:
    """The same lines with types. Needs pyarrow; raises `TaskError` without it."""
    arrow, parquet = require_extra("pyarrow"), require_extra("pyarrow.parquet")
    table = arrow.Table.from_pylist(list(lines(results)), schema=_schema(arrow))
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def _schema(arrow: Any) -> Any:
    texts = {"task", "model", "cell", "problem_id", "answer", "badges", "error", "trail"}
    reals = {"correct", "mean", "vote", "any", "finished", "wall_s", "tokens_per_s"}
    types = {name: arrow.string() if name in texts else arrow.float64() for name in texts | reals}
    return arrow.schema([(name, types.get(name, arrow.int64())) for name in _COLUMNS])

"""Export results to CSV and Parquet, one line per round of each run."""

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
_TEXT_COLUMNS = frozenset({"task", "model", "cell", "problem_id", "answer", "badges", "error", "trail"})
_FLOAT_COLUMNS = frozenset({"correct", "mean", "vote", "any", "finished", "wall_s", "tokens_per_s"})


def lines(results: Results) -> Iterator[dict[str, Any]]:
    """Yield one dict per round, and one without figures for a failed run."""
    for variant in results.cells:
        for record in variant.records:
            run = {"task": results.task, "model": results.model, "cell": variant.name}
            run |= {name: getattr(record, name) for name in _RUN} | {"badges": " ".join(record.badges)}
            run = {name: replace_surrogates(value) if isinstance(value, str) else value for name, value in run.items()}
            for entry in record.rounds:
                yield run | {name: getattr(entry, name) for name in _ROUND}
            if not record.rounds:
                yield run | dict.fromkeys(_ROUND)


def to_csv(results: Results) -> bytes:
    """Return the lines as UTF-8 CSV with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(results))
    return text.getvalue().encode()


def to_parquet(results: Results) -> bytes:
    """Return the lines as Parquet. Raises `TaskError` without pyarrow."""
    arrow, parquet = require_extra("pyarrow"), require_extra("pyarrow.parquet")
    types = {name: arrow.string() for name in _TEXT_COLUMNS} | {name: arrow.float64() for name in _FLOAT_COLUMNS}
    schema = arrow.schema([(name, types.get(name, arrow.int64())) for name in _COLUMNS])
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(lines(results)), schema=schema), sink)
    return sink.getvalue()

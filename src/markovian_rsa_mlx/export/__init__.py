"""Export a recorded run to other tools: flat rows, an inspect_ai log, or OpenTelemetry spans.

Everything follows from the audit file. The formats are written without the libraries that read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..audit.state import RunState
from ..json_strict import replace_surrogates
from . import inspect_log, otel, rows

__all__ = ["FORMATS", "export"]


def _lines(values: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


#: The formats by name, and the functions that write a run in them.
FORMATS: Final[dict[str, Callable[[RunState], str]]] = {
    "jsonl": lambda state: _lines(rows.rows(state)),
    "inspect": lambda state: json.dumps(inspect_log.log(state), ensure_ascii=False, indent=2) + "\n",
    "otel": lambda state: json.dumps(otel.request(state), ensure_ascii=False) + "\n",
}


def export(state: RunState, format_name: str) -> str:
    """Return a run, which may be unfinished, in one of `FORMATS`. Its `run_start` must have been read."""
    assert state.start is not None
    return replace_surrogates(FORMATS[format_name](state))

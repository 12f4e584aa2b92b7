"""Check that the answers of a run with a JSON Schema fit it."""

from __future__ import annotations

from ...method.answers import find_answer
from ...method.lineage import TraceKey
from ...method.schema_fit import fits_schema
from ..events import TraceCompleteEvent
from .generations import split
from .state import VerifierState, check

_TRUSTED = "that answers fit the JSON Schema of the run"


def check_answer(state: VerifierState, key: TraceKey, event: TraceCompleteEvent) -> None:
    """Check that the answer of a finished trace is JSON that fits the schema of its round, if there is one.

    Servers know fewer keywords than this engine, so of theirs only the form is checked.
    """
    schema = state.run.config.schema_at(key.round)
    if schema is None or event.finish_reason != "eos":
        return
    answer = split(state, event).answer
    if state.run.tools is not None and state.run.tools.canonical(answer.strip(), finished=True):
        return
    check(find_answer(answer, "json").text, f"the answer of {key} is not JSON, and the run has a JSON Schema")
    if state.setup.engine != "mlx-lm":
        return
    fits = fits_schema(schema, answer)
    check(fits is not False, f"the answer of {key} does not fit the JSON Schema of the run")
    if fits is None:
        state.trust(_TRUSTED)

"""What is wrong with a run's file, and what it lacks: the end of a story."""

from __future__ import annotations

from collections.abc import Iterator

from ..viewer.reading import Problem, Trail
from .text import amount, count, one_line
from .told import Told

#: Problems, and unknown types of events, that are named unless all are asked for.
_NAMED = 5


def problems(trail: Trail, full: bool) -> Iterator[str]:
    """How many lines of the file are damaged, and what the first of them are."""
    found = trail.problems
    if not found:
        return
    yield f"\nThe file is damaged, {amount(len(found), 'problem')}:"
    named = found if full else found[:_NAMED]
    yield from (f"  {_said(problem)}" for problem in named)
    if len(named) < len(found):
        yield f"  ... and {count(len(found) - len(named))} more (--full)"


def gaps(told: Told, running: bool) -> Iterator[str]:
    """What the file does not hold, and what is not told of it; a sentence each."""
    notes = list(_gaps(told, running))
    if notes:
        yield ""
        yield from notes


def _gaps(told: Told, running: bool) -> Iterator[str]:
    history = told.history
    if history.start is None:
        yield "There is no run_start: the question, the model and the settings are not known."
    if told.refused:
        yield "The settings are not allowed ones: they are told as recorded, and no trace is foreseen from them."
    if history.setup is None:
        yield "There is no run_setup: where the thinking ends is not known, so answers are sought in whole texts."
    if not told.rows and not told.unlisted:
        yield "No trace has begun."
    if told.unlisted:
        yield f"Too many traces to list, up to {count(told.unlisted)}: only those that the file mentions are told."
    silent = sum(map(told.unrecorded, told.rows.values()))
    if silent:
        yield f"{amount(silent, 'trace')} ended without a trace_complete in the file: their texts are missing."
    if history.selection is not None and history.final is None and not running:
        yield "There is no final: the text of the answer is missing."
    if told.chosen is not None and not history.finished and not running:
        yield "The file ends before its run_end: how long the run took is known as far as its traces tell."
    yield from _unknown(told)


def _unknown(told: Told) -> Iterator[str]:
    for name, times in list(told.unknown.items())[:_NAMED]:
        yield f"{amount(times, 'line')} of the unknown type {one_line(name, 40)} left out."
    if len(told.unknown) > _NAMED:
        yield f"Lines of {count(len(told.unknown) - _NAMED)} more unknown types left out."


def _said(problem: Problem) -> str:
    place = f"line {count(problem.line)}: " if problem.line else ""
    return f"{place}{one_line(problem.reason, 200)} ({'shown as far as it can be' if problem.shown else 'left out'})"

"""How the chosen trace's answer came about: whose tails carried it on, and what each of its ancestors read."""

from __future__ import annotations

from collections.abc import Iterator

from ..method.answers import normalise
from .descent import descent_of
from .text import one_line
from .told import Told


def descent_lines(told: Told) -> Iterator[str]:
    """The way of the answer, from the trace that found it; nothing where there is but one round."""
    winner = told.chosen
    descent = descent_of(winner, told.parents, _answer_keys(told)) if winner in told.rows else None
    if descent is None or len(told.rounds) < 2:
        return
    yield "\nhow it came about"
    found, *readers = descent.chain
    yield f"  {one_line(found)} found it" + ("" if not told.parents(found) else ", though no tail that it read had it")
    yield from (f"  {one_line(reader)} read that tail and answered the same" for reader in readers)
    if descent.found_anew:
        yield f"  found anew by {', '.join(one_line(trace_id) for trace_id in descent.found_anew)}"
    if descent.lost:
        yield f"  read in a tail and not taken over by {', '.join(_said(told, trace_id) for trace_id in descent.lost)}"


def lineage_lines(told: Told) -> Iterator[str]:
    """Which traces the chosen one read, which these read, and so on to round 0."""
    winner = told.chosen
    if winner not in told.rows or not told.parents(winner):
        return
    yield "\nlineage of the winner"
    generation, seen = [winner], {winner}
    while generation:
        parents: dict[str, None] = {}
        for trace_id in generation:
            if read := told.parents(trace_id):
                yield f"  {one_line(trace_id)} read {', '.join(_said(told, parent) for parent in read)}"
            parents |= dict.fromkeys(read)
        generation = [parent for parent in parents if parent not in seen]  # a damaged trail can lead in circles
        seen.update(generation)


def _answer_keys(told: Told) -> dict[str, str]:
    """What is equal for equal answers: the selection's classes decide, elsewhere the normalised text."""
    keys = {row.trace_id: normalise(row.answer) for row in told.rows.values() if told.ended(row)}
    classes = told.history.selection.classes if told.history.selection else []
    same = {keys.get(t, ""): keys.get(members[0], "") for members in classes for t in members}
    return {trace_id: same.get(key, key) for trace_id, key in keys.items()}


def _said(told: Told, trace_id: str) -> str:
    row = told.rows.get(trace_id)
    return f"{one_line(trace_id)} ({one_line(row.answer, 12) if row is not None and row.answer else 'no answer'})"

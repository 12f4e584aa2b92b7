"""Whose tails carried the winning answer on, and which ancestors of the winner read it and answered otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Parents = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Descent:
    """`chain` is one way of the answer, from a trace that found it to the winner."""

    chain: tuple[str, ...]
    found_anew: tuple[str, ...]
    lost: tuple[str, ...]


def descent_of(winner: str, parents: Parents, keys: Mapping[str, str]) -> Descent | None:
    """The descent of the winner's answer; `keys` are equal for equal answers, and "" for none."""
    key = keys.get(winner, "")
    if not key:
        return None
    family = _with_ancestors(winner, parents)
    holders = {trace_id for trace_id in family if keys.get(trace_id, "") == key}
    carriers = _with_ancestors(winner, lambda trace_id: [p for p in parents(trace_id) if p in holders])
    chain = {winner: None}  # backwards
    while before := [parent for parent in parents(next(reversed(chain))) if parent in holders and parent not in chain]:
        chain[before[0]] = None
    origins = [trace_id for trace_id in carriers if not holders & set(parents(trace_id))]
    lost = [t for t in family if t in keys and t not in holders and holders & set(parents(t))]
    found = next(reversed(chain))
    return Descent(tuple(reversed(chain)), tuple(sorted(t for t in origins if t != found)), tuple(sorted(lost)))


def _with_ancestors(trace_id: str, parents: Parents) -> list[str]:
    found, open_ends = {trace_id}, [trace_id]
    for one in open_ends:  # grows while it is walked through
        for parent in parents(one):
            if parent not in found:
                found.add(parent)
                open_ends.append(parent)
    return open_ends

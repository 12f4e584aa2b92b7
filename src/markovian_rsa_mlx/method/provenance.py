"""Trace the answer of a run back to the traces that found it.

Pure functions over trace ids: who read whom (`parents`) and which traces gave the same answer (`keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .answers import normalise

Parents = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class AnswerProvenance:
    """The path of the winner's answer through the winner's ancestors.

    `chain` is one path from a trace that found the answer to the winner. `carriers` are the traces on all such paths.
    `independent` are the other traces that gave the answer although none of their tails had it. `dropped` are the
    ancestors that read it in a tail and answered otherwise.
    """

    chain: tuple[str, ...]
    carriers: tuple[str, ...]
    independent: tuple[str, ...]
    dropped: tuple[str, ...]


def answer_keys(answers: Mapping[str, str], classes: Iterable[Sequence[str]] = ()) -> dict[str, str]:
    """Return a key for the answer of each trace: the same for equal answers, "" for no answer.

    `classes` are the classes of equal answers that a selection recorded. They also decide for the same texts elsewhere.
    Other answers are compared as normalised text.
    """
    keys = {trace_id: normalise(answer) for trace_id, answer in answers.items()}
    same = {keys.get(trace_id, ""): keys.get(members[0], "") for members in classes for trace_id in members}
    return {trace_id: same.get(key, key) for trace_id, key in keys.items()}


def trace_answer(winner: str, parents: Parents, keys: Mapping[str, str]) -> AnswerProvenance | None:
    """Return the provenance of the winner's answer, or None if the winner has no answer."""
    key = keys.get(winner, "")
    if not key:
        return None
    family = with_ancestors(winner, parents)
    holders = {trace_id for trace_id in family if keys.get(trace_id, "") == key}
    carriers = with_ancestors(winner, lambda trace_id: [p for p in parents(trace_id) if p in holders])
    chain = {winner: None}  # from the winner backwards
    while before := [parent for parent in parents(next(reversed(chain))) if parent in holders and parent not in chain]:
        chain[before[0]] = None
    first = next(reversed(chain))
    origins = {trace_id for trace_id in carriers if not holders & set(parents(trace_id))}
    dropped = [t for t in family if t in keys and t not in holders and holders & set(parents(t))]
    return AnswerProvenance(
        chain=tuple(reversed(chain)),
        carriers=tuple(carriers),
        independent=tuple(sorted(origins - {first})),
        dropped=tuple(sorted(dropped)),
    )


def with_ancestors(trace_id: str, parents: Parents) -> list[str]:
    """Return the trace and all its ancestors, nearest first."""
    found, family = {trace_id}, [trace_id]
    for member in family:  # grows during the iteration
        for parent in parents(member):
            if parent not in found:
                found.add(parent)
                family.append(parent)
    return family

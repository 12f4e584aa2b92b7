"""Choose the winner of a vote with the confidence of its traces, by one of three rules.

Every rule keeps what the plain vote does: only answers of the strongest level vote, and of several answers with the
same weight the earliest one wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from ..confidence import Confidence
from ..method.lineage import TraceKey
from ..method.selection import Candidate, Equivalent, Vote, vote

#: mean_logprob: a vote weighs the geometric mean of the probabilities of the trace's tokens. lowest_window_logprob: the
#: same over the least probable window. top_half: the half of the votes with the highest lowest windows count one each,
#: as in DeepConf (arXiv:2508.15260).
Rule = Literal["mean_logprob", "lowest_window_logprob", "top_half"]
_Choose = Callable[[Vote, Mapping[str, Confidence], Equivalent], Candidate | None]


def _by_mean(votes: Vote, confidence: Mapping[str, Confidence], equivalent: Equivalent) -> Candidate | None:
    return _heaviest(votes, {trace_id: each.mean_logprob for trace_id, each in confidence.items()})


def _by_lowest_window(votes: Vote, confidence: Mapping[str, Confidence], equivalent: Equivalent) -> Candidate | None:
    return _heaviest(votes, {trace_id: each.lowest_window_logprob for trace_id, each in confidence.items()})


def _heaviest(votes: Vote, logprobs: Mapping[str, float]) -> Candidate | None:
    """Return the first member of the class with the largest sum of probabilities, of the earliest one if equal."""

    def weight(members: Sequence[Candidate]) -> float:
        return math.fsum(math.exp(logprobs[member.trace_id]) for member in members)

    return max(votes.classes, key=weight)[0] if votes.classes else None


def _by_top_half(votes: Vote, confidence: Mapping[str, Confidence], equivalent: Equivalent) -> Candidate | None:
    """Return the winner among the surer half of the votes, rounded up. Of equally sure ones the earlier ones stay."""
    voters = sorted((member for members in votes.classes for member in members), key=_index)
    surest = sorted(voters, key=lambda voter: -confidence[voter.trace_id].lowest_window_logprob)
    kept = surest[: math.ceil(len(surest) / 2)]
    return vote(sorted(kept, key=_index), equivalent).winner


def _index(candidate: Candidate) -> int:
    return TraceKey.parse(candidate.trace_id).index


#: The winner among the classes of a vote by the confidence of each trace that votes; None without votes.
RULES: Final[Mapping[Rule, _Choose]] = {
    "mean_logprob": _by_mean,
    "lowest_window_logprob": _by_lowest_window,
    "top_half": _by_top_half,
}

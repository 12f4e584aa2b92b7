"""Run `mrsa bench votes`: print what votes with weights would have scored next to the plain ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from ..bench.compare import read_folder
from ..bench.summary import few_problems
from ..bench.vote_rules import Rule
from ..bench.weighted_votes import MethodVotes, WeightedVotes, weighted_votes
from ..confidence import WINDOW
from ..equivalence import MathEquivalence, equivalence_for
from .bench_output import points_text, share_text
from .bench_run import print_json
from .terminal import amount, clean, count, print_lines, print_status, table, width_of

_NAMES: Final[Mapping[Rule, str]] = {
    "mean_logprob": "mean",
    "lowest_window_logprob": "lowest window",
    "top_half": "top half",
}


def compare_votes(path: Path, *, json_output: bool) -> None:
    """Print the votes of a benchmark's folder, or of its `results.json`."""
    folder = path if path.is_dir() else path.parent
    with MathEquivalence() as math:
        found = weighted_votes(read_folder(path), folder, partial(equivalence_for, math=math))
    for warning in found.warnings:
        print_status(clean(f"warning: {warning}"))
    if json_output:
        print_json(found.to_dict())
    else:
        print_lines(votes_text(found, width_of(sys.stdout)))


def votes_text(found: WeightedVotes, width: int | None) -> str:
    """Return a table for each method in at most `width` columns, and what to conclude."""
    parts = [_method_text(of_method, width) for of_method in found.methods]
    significant = [
        f"Significantly {'better' if each.comparison.difference.mean > 0 else 'worse'} than the plain vote: "
        f"{of_method.method} by {_NAMES[each.rule]}."
        for of_method in found.methods
        for each in of_method.weighted
        if not each.comparison.within_noise
    ]
    parts.append("\n".join(significant) or "No weights differ significantly from the plain vote.")
    notes = [
        f"95% intervals over problems; p adjusted for {amount(len(found.comparisons), 'comparison')}. "
        "The earliest of equally heavy answers wins. Traces without an answer do not vote."
    ]
    if found.same_windows:
        notes.append(f"No trace has more than {WINDOW} tokens: mean and lowest window are the same.")
    if few := few_problems({each.method: each.problems for each in found.methods}):
        notes.append(few)
    return clean("\n\n".join([*parts, "\n".join(notes)]))


def _method_text(votes: MethodVotes, width: int | None) -> str:
    rows = [
        {
            "weights": _NAMES[each.rule],
            "score": share_text(each.score),
            "minus the vote": points_text(each.comparison.difference),
            "better / worse": f"{each.comparison.wins} / {each.comparison.losses}",
            "p": f"{each.comparison.p_adjusted:.2g}",
            "verdict": each.comparison.verdict,
        }
        for each in votes.weighted
    ]
    names = list(rows[0])
    cells = [[row[name] for name in names] for row in rows]
    head = (
        f"{votes.method}: the plain vote scores {share_text(votes.vote)} on {amount(votes.problems, 'problem')} "
        f"({count(votes.voting)} of {amount(votes.traces, 'trace')} vote, {count(votes.ties)} of "
        f"{amount(votes.runs, 'vote')} tied)"
    )
    of_rules = table(names, cells, frozenset(names[1:-1]), width=width, optional=("verdict", "better / worse"))
    return f"{head}\n{of_rules}"

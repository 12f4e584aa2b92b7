"""What a reader of a benchmark must know before its figures: what is missing, and how far to trust the intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..wording import amount
from .intervals import FEWEST_RESAMPLED, FEWEST_TRUSTED
from .results import Results


def whole_problems(results: Results) -> int:
    """Problems on which every run of every method has figures."""
    runs = len(results.cells) * results.epochs
    done = Counter(record.index for cell in results.cells for record in cell.records if not record.error)
    return sum(number == runs for number in done.values())


def problems_told(results: Results) -> str:
    """`50 problems`, or `3 of 50 problems` where some lack a result."""
    whole = whole_problems(results)
    return f"{'' if whole == results.problems else f'{whole:,} of '}{amount(results.problems, 'problem')}"


def incomplete(results: Results) -> str:
    """A sentence on what is missing, "" where nothing is."""
    if whole_problems(results) == results.problems:
        return ""
    return f"Incomplete: {problems_told(results)} with the results of all methods."


def few_problems(numbers: Mapping[str, int]) -> str:
    """A sentence on intervals over few problems, "" where there are enough; problems by method."""
    few = {name: number for name, number in numbers.items() if number < FEWEST_TRUSTED}
    if not few:
        return ""
    whose = "" if len(few) == len(numbers) else f" ({', '.join(few)})"
    if min(few.values()) < FEWEST_RESAMPLED:
        return (
            f"Fewer than {FEWEST_RESAMPLED} problems{whose}: a bootstrap sees too little, so intervals are bounds that "
            "hold for any scores, and wide."
        )
    return (
        f"Fewer than {FEWEST_TRUSTED} problems{whose}: intervals by bootstrap are somewhat too narrow, and hold the "
        "truth less often than 95%."
    )


def caveats(results: Results) -> list[str]:
    """Both, for a program."""
    found = (incomplete(results), few_problems({row.method: row.problems for row in results.table}))
    return [sentence for sentence in found if sentence]

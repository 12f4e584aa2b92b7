"""Compare the score of a real small model with a reading of its texts by hand: `python -m benchmarks.read_by_hand`.

`data/smollm2_sums.jsonl` has 192 texts of SmolLM2-135M-Instruct on the 24 sums of `data/one_step_sums.jsonl` (N = 8,
T = 0), and for each whether a person who reads it calls its answer right. The model seldom writes the box that it is
asked for, so the score is that of the rules for weak answers. `--record DIR` takes the texts from the folder of a
benchmark of the sums and leaves the verdicts to fill in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.bench.compare import read_folder
from markovian_rsa_mlx.equivalence import MathEquivalence
from markovian_rsa_mlx.method.answers import find_answer

DATA = Path(__file__).parent / "data"


def record(folder: Path) -> list[dict[str, Any]]:
    """Return the texts of the first variant of a benchmark, without verdicts."""
    found: list[dict[str, Any]] = []
    for run in read_folder(folder).cells[0].records:
        state = RunState(read_events(folder / run.trail))
        for trace in run.traces:
            text = state.answer_text(state.trace(trace.trace_id))
            row = {"problem": run.problem_id, "trace": trace.trace_id, "reference": run.reference}
            found.append({**row, "text": text, "right": None})
    return found


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return both scores, the levels of the answers, the share of undecided comparisons, and the disagreements."""
    levels: Counter[str] = Counter()
    right = by_hand = undecided = 0
    disagreements = []
    with MathEquivalence() as equivalent:
        for row in rows:
            answer = find_answer(row["text"])
            levels[answer.level] += 1
            verdict = equivalent.compare(row["reference"], answer.text) if answer.text else "different"
            right += verdict == "same"
            by_hand += row["right"]
            undecided += verdict == "undecided"
            if (verdict == "same") != row["right"]:
                disagreements.append(f"{row['problem']} {row['trace']}: found {answer.text!r}, by hand {row['right']}")
    return {
        "texts": len(rows),
        "score": right / len(rows),
        "by_hand": by_hand / len(rows),
        "undecided": undecided / len(rows),
        "levels": dict(levels),
        "disagreements": disagreements,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, metavar="DIR", help="Print the texts of a benchmark instead.")
    options = parser.parse_args(arguments)
    if options.record:
        for row in record(options.record):
            print(json.dumps(row, ensure_ascii=False))
        return 0
    with (DATA / "smollm2_sums.jsonl").open(encoding="utf-8") as file:
        print(json.dumps(judge([json.loads(line) for line in file]), ensure_ascii=False, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

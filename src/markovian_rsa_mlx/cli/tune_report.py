"""What `mrsa tune` prints: measured speeds, a line for each profile, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..bench.tune.measure import Speeds
from ..bench.tune.predict import Prediction, recommend
from .text import count, duration, size, table

#: Numbers of rows in the table of speeds.
_COLUMNS = 8


@dataclass(frozen=True)
class Report:
    """`minutes` is the time for one problem, where one was given."""

    model: str
    speeds: Speeds
    lengths: str
    predictions: Sequence[Prediction]
    minutes: float | None

    @property
    def recommended(self) -> Prediction | None:
        return None if self.minutes is None else recommend(self.predictions, 60 * self.minutes)

    def to_dict(self) -> dict[str, Any]:
        chosen = self.recommended
        return {
            "model": self.model,
            "lengths": self.lengths,
            "speeds": self.speeds.to_dict(),
            "profiles": [each.to_dict() for each in self.predictions],
            "minutes": self.minutes,
            "recommended": None if chosen is None else chosen.profile,
        }

    def to_text(self) -> str:
        parts = [self._speeds(), self._profiles()]
        if any(each.refused for each in self.predictions):
            parts.append("\n".join(f"{p.profile}: {p.refused}." for p in self.predictions if p.refused))
        if self.minutes is not None:
            parts.append(self._advice(self.minutes))
        return "\n\n".join(parts)

    def _speeds(self) -> str:
        rows = sorted({point.rows for point in self.speeds.decodes})
        shown = (
            [rows[round(i * (len(rows) - 1) / (_COLUMNS - 1))] for i in range(_COLUMNS)] if rows[_COLUMNS:] else rows
        )
        heads = ["rows at once", *map(str, shown)]
        by_place = {(point.rows, point.context): point.step_s for point in self.speeds.decodes}
        lines = []
        for context in sorted({context for _, context in by_place}):
            cells = [f"{n / by_place[n, context]:.0f}" if (n, context) in by_place else "-" for n in shown]
            lines.append([f"tokens/s at {count(context)} tokens", *cells])
        tokens, _, seconds = max(read for read in self.speeds.reads if read[1] == 0)
        reading = f"Prompts: {tokens / seconds:.0f} tokens/s ({count(tokens)} tokens in one go)."
        return f"{table(heads, lines, frozenset(heads[1:]))}\n{reading}"

    def _profiles(self) -> str:
        heads = ["profile", "a problem", "9 in 10 within", "generated", "read", "traces", "at once", "memory"]
        lines = [
            [
                each.profile,
                duration(each.seconds),
                duration(each.seconds_p90),
                count(each.generated_tokens),
                count(each.prefill_tokens),
                f"{each.traces:.1f}",
                str(each.rows),
                size(each.memory_bytes),
            ]
            for each in self.predictions
            if not each.refused
        ]
        if not lines:
            return "None of the profiles runs here."
        return table(heads, lines, frozenset(heads[1:]))

    def _advice(self, minutes: float) -> str:
        time = f"With {minutes:g} minute{'' if minutes == 1 else 's'} a problem"
        chosen = self.recommended
        runnable = [each for each in self.predictions if not each.refused]
        if chosen is None:
            if not runnable:
                return f"{time}: nothing."
            quickest = min(runnable, key=lambda each: each.seconds_p90)
            return (
                f"{time}: none is done in time in 9 runs of 10; the quickest, {quickest.profile}, takes "
                f"{duration(quickest.seconds_p90)}. --time-budget-s stops any run with its best answer so far."
            )
        larger = [each for each in runnable if each.generated_tokens > chosen.generated_tokens]
        beyond = min(larger, key=lambda each: each.seconds_p90, default=None)
        more = f"; {beyond.profile} would take {duration(beyond.seconds_p90)}" if beyond else ""
        taken = f"{duration(chosen.seconds)} on average, 9 in 10 within {duration(chosen.seconds_p90)}"
        return f"{time}: {chosen.profile} ({taken}{more})."

"""Make the tables of measured figures from reports of `mrsa doctor --report`.

    python -m benchmarks.doctor_tables REPORT.json ...

Prints Markdown: speeds with the bound and the expected range, memory with the plan, correctness, and the routers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markovian_rsa_mlx.cli.doctor_report import FORMAT


class Report:
    """One report, with its figures by kind of check."""

    def __init__(self, facts: dict[str, Any]) -> None:
        if facts.get("format") != FORMAT:
            raise SystemExit(f"A report has the format {facts.get('format')!r}, and {FORMAT} is needed.")
        self.facts, self.lines = facts, facts["lines"]

    def figures(self, kind: int, key: str) -> Iterator[dict[str, Any]]:
        """Yield the figures of this kind that have `key`."""
        return (line["figures"] for line in self.lines if line["kind"] == kind and key in line["figures"])

    def figure(self, kind: int, key: str, otherwise: Any = None) -> Any:
        """Return the first figure `key` of this kind, or `otherwise`."""
        return next((each[key] for each in self.figures(kind, key)), otherwise)

    @property
    def name(self) -> str:
        """The device and the weights, which begin each row."""
        return f"{self.figure(1, 'device', '?')} | {self.facts['model']} {self.figure(2, 'quantization', '')}"


def table(heads: str, rows: list[str]) -> str:
    columns = [each.strip() for each in f"device | model | {heads}".split("|")]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {row} |" for row in rows)])


def speeds(reports: list[Report]) -> str:
    rows = []
    for report in reports:
        decode = report.figure(7, "decode", {})
        expected = report.figure(7, "expected", {}).get("tokens_per_second", {}).get("1")
        likely = "-"
        if expected:
            low, high = expected["low"], expected["high"]
            likely = (
                f"{low:.0f}-{high:.0f}, at most {expected['bound']:.0f}" if low else f"at most {expected['bound']:.0f}"
            )
        measured = [f"{decode[count]:,.0f}" if count in decode else "-" for count in ("1", "4", "16")]
        reading = report.figure(7, "reading")
        rows.append(f"{report.name} | {' | '.join(measured)} | {f'{reading:,.0f}' if reading else '-'} | {likely}")
    return table("1 trace | 4 | 16 | reading | expected for 1", rows)


def memory(reports: list[Report]) -> str:
    rows = [
        f"{report.name} | {each['part']} | {each['planned_bytes'] / 1e9:.2f} | {each['measured_bytes'] / 1e9:.2f}"
        for report in reports
        for each in report.figures(7, "planned_bytes")
    ]
    return table("part | planned, GB | measured, GB", rows)


def checks(reports: list[Report]) -> str:
    rows = []
    for report in reports:
        states = [line["state"] for line in report.lines]
        difference, fork = report.figure(5, "batch_difference"), report.figure(5, "fork_difference")
        shown = ["-" if each is None else f"{each:.1g}" for each in (difference, fork)]
        counted = " | ".join(str(states.count(state)) for state in ("ok", "warn", "FAIL"))
        rows.append(f"{report.name} | {counted} | {' | '.join(shown)} | {report.figure(10, 'verdict', '-')}")
    return table("ok | warn | FAIL | rows against alone | fork | run", rows)


def routers(reports: list[Report]) -> str:
    rows = [
        f"{report.name} | {each['skipped']:.1%} | {max(each['skipped_by_layer']):.1%} | "
        f"{max(each['busiest_by_layer']):.1f} | {each['unused_experts']}"
        for report in reports
        for each in report.figures(9, "skipped_by_layer")
    ]
    return table("skipped | most in a layer | busiest expert, times even | never chosen", rows) if rows else ""


def main(files: list[str]) -> None:
    reports = [Report(json.loads(Path(file).read_text(encoding="utf-8"))) for file in files]
    print("\n\n".join(filter(None, (make(reports) for make in (speeds, memory, checks, routers)))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""`mrsa runs show` on files that are damaged, unfinished or another program's: what is there is told, gaps are said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx import RSAConfig
from markovian_rsa_mlx.audit import read_lenient
from markovian_rsa_mlx.cli.show import RunSummary, summarize

from ..viewer.trails import FIXED, Lines, lines_of, write_lines
from .conftest import Run


def foreign(path: Path) -> Lines:
    """The fixed events alone, as another implementation writes them: no setup, no clock, no selection."""
    return [line for line in lines_of(path) if line["event"] in FIXED]


@pytest.fixture
def show(mrsa: Run, tmp_path: Path) -> Callable[..., str]:
    def told(lines: Lines, *options: str) -> str:
        ran = mrsa("runs", "show", str(write_lines(tmp_path / "odd.jsonl", lines)), *options)
        assert (ran.code, ran.err) == (0, "")
        return ran.out

    return told


Show = Callable[..., str]


def test_the_fixed_events_alone_tell_rounds_answer_and_lineage(show: Show, trail: Path) -> None:
    out = show(foreign(trail))
    assert "T=1 N=3 C=2" in out
    assert "round 0: 2 of 2 traces" in out
    assert "round 1: 1 of 1 trace, " in out
    assert "reads r0-00 r0-02  answer 2" in out
    assert "answer     2, of r1-00 (single)" in out
    assert "tally      not recorded" in out
    assert "\\boxed{2}" in out
    assert "r1-00 read r0-00 (2), r0-02 (2)" in out
    assert "tail of r0-02" in out
    assert "no run_setup" in out
    assert "No answer" not in out


def test_token_ids_are_no_condition_for_an_answer(show: Show, trail: Path) -> None:
    lines = foreign(trail)
    for line in lines:
        if line["event"] == "trace_complete":
            line["token_ids"] = []
    assert show(lines).count("answer 2") == 3


def test_traces_have_any_ids_and_stand_in_their_rounds(show: Show, trail: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in foreign(trail))
    lines = [json.loads(line) for line in text.replace("r0-00", "a\\nround 7: b").replace("r1-00", "z").splitlines()]
    out = show(lines)
    assert "round 0: 2 of 2 traces" in out
    assert "  z read a round 7: b (2), r0-02 (2)" in out
    assert "\nround 7" not in out


def test_settings_that_are_not_recorded_are_not_made_up(show: Show, trail: Path) -> None:
    lines = foreign(trail)
    lines[0]["config"] = {"population": 3, "rsa_k": 2, "more": {"deep": []}}
    assert "settings   N=3, rsa_k 2, more (nested)\n" in show(lines)
    lines[0]["config"] = {"population": "many\nround 9: lies", "rounds": 1}
    out = show(lines)
    assert "settings   T=1 N=many round 9: lies\n" in out
    assert "What is 1+1?" in out
    assert "round 0: 2 of 2 traces" in out
    assert "line 1: config of run_start is refused" in out


def test_a_damaged_line_is_passed_over_and_named(mrsa: Run, trail: Path) -> None:
    lines = trail.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"trace_complete"' in line)
    lines[at] = "{}\n"
    trail.write_text("".join(lines))
    ran = mrsa("runs", "show", str(trail))
    assert ran.code == 0
    assert "answer     2, of r1-00 (single)" in ran.out
    assert "r1-00 read r0-00 (no answer), r0-02 (2)" in ran.out
    assert "r0-00  ended             ? tokens" in ran.out
    assert "round 0: 2 of 2 traces" in ran.out
    assert f'damaged, 1 problem:\n  line {at + 1}: no "event"' in ran.out
    assert "1 trace ended without a trace_complete" in ran.out


def test_the_first_problems_stand_for_many(mrsa: Run, trail: Path) -> None:
    trail.write_text(trail.read_text() + "\x1b[2J{\n" * 9)
    ran = mrsa("runs", "show", str(trail))
    assert "damaged, 9 problems" in ran.out
    assert ran.out.count("  line ") == 5
    assert "and 4 more" in ran.out
    assert mrsa("runs", "show", str(trail), "--full").out.count("  line ") == 9


@pytest.mark.parametrize("lost", range(20))
def test_any_line_can_be_lost(lost: int, show: Show, trail: Path) -> None:
    lines = lines_of(trail)
    left = [line for number, line in enumerate(lines) if number != lost]
    out = show(left)
    assert "round 0: 2 of 2 traces" in out
    assert "round 1: 1 of 1 trace, " in out
    assert "answer     2, of r1-00 (single)" in out
    assert ("What is 1+1?" in out) == (lost != 0)


def test_without_its_start_a_run_is_told_all_the_same(show: Show, trail: Path) -> None:
    out = show(foreign(trail)[1:])
    assert "There is no run_start" in out
    assert "answer     2, of r1-00 (single)" in out


def test_what_no_version_knows_is_counted(show: Show, trail: Path) -> None:
    lines = foreign(trail)
    lines += [{"event": f"theirs\x1b[2J{n}", "run_id": lines[0]["run_id"]} for n in range(9)]
    out = show(lines)
    assert "1 line of the unknown type theirs0 left out." in out
    assert "Lines of 4 more unknown types left out." in out


@pytest.mark.parametrize(
    "settings",
    [
        {"population": 10_000, "rounds": 1_000, "aggregation_size": 100},
        {"population": 10_000, "rounds": 2, "aggregation_size": 2, "final_candidates": 0},
        {"population": 10_000, "rounds": 1, "aggregation_size": 10_000, "final_candidates": 0},
        {"population": 3_000, "rounds": 1, "aggregation_size": 900, "final_candidates": 900},
    ],
)
def test_settings_of_many_traces_are_told_at_once(settings: dict[str, int], show: Show, trail: Path) -> None:
    lines = lines_of(trail)[:-4]
    lines[0]["config"] = RSAConfig(**settings).to_dict()
    started = time.perf_counter()
    out = show(lines)
    assert time.perf_counter() - started < 2
    assert "Too many traces to list, up to " in out
    assert "round 0: 2 of 2 traces" in out


def test_many_answers_and_long_chains_are_told_in_time(show: Show, trail: Path) -> None:
    """Every trace in a round of its own, or all in one with answers of their own: neither takes the square of them."""
    start, *_, end = foreign(trail)
    run_id, lines = start["run_id"], [start]
    for n in range(4_000):
        head = {"run_id": run_id, "round": n if n < 2_000 else 5_000, "trace_id": f"t{n}"}
        lines.append(
            {
                "event": "generation_start",
                **head,
                "seed": n,
                "prompt_token_count": 1,
                "max_tokens": 9,
                "parent_trace_ids": [f"t{n - 1}"] if 0 < n < 2_000 else [],
            }
        )
        lines.append(
            {
                "event": "trace_complete",
                **head,
                "text": f"\\boxed{{{7 if n < 2_000 else n}}}",
                "token_ids": [],
                "generated_tokens": 1,
                "finish_reason": "eos",
                "elapsed_s": 1.0,
            }
        )
    final = {"final_trace_id": "t1999", "final_text": "7", "all_final_trace_ids": [], "answer_selection": "single"}
    lines += [{"event": "final", "run_id": run_id, **final}, end]
    started = time.perf_counter()
    out = show(lines)
    assert time.perf_counter() - started < 5
    assert "round 1999: 1 of 1 trace" in out
    assert "t0 found it" in out


def test_figures_beyond_all_measure_are_no_bug(show: Show, trail: Path) -> None:
    lines = foreign(trail)
    for line in lines:
        huge = {
            "generated_tokens": 10**400,
            "elapsed_s": 1e308,
            "peak_memory_bytes": 10**400,
            "tail_tokens": -(10**400),
        }
        huge["total_generated_tokens"] = 10**4000
        line.update({name: value for name, value in huge.items() if name in line})
    out = show(lines)
    assert "cost       over 10^18 tokens in over 10^18 s, peak memory over 10^18 B" in out


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00\xff" * 99, b'{"event": "run_sta', b"[" * 99_999])
def test_what_is_no_trail_is_refused_in_a_sentence(content: bytes, mrsa: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    ran = mrsa("runs", "show", str(path))
    assert (ran.code, ran.out) == (1, "")
    assert "is not an audit trail" in ran.err


def test_settings_nested_too_deeply_are_no_bug(trail: Path, tmp_path: Path) -> None:
    """What could just be parsed cannot be quoted from a few calls further down."""
    start, begun, *_ = foreign(trail)
    start["config"]["rounds"] = "@"
    path = tmp_path / "deep.jsonl"
    for depth in range(700, 1_000, 5):
        write_lines(path, [start, begun])
        path.write_text(path.read_text().replace('"@"', "[" * depth + "]" * depth))
        read = read_lenient(path)
        told = further_down(30, lambda read=read: summarize(read))
        assert len(told.state.traces) == 1
        assert told.refused or told.state.start is None


def further_down(calls: int, do: Callable[[], RunSummary]) -> RunSummary:
    return further_down(calls - 1, do) if calls else do()

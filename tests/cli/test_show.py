"""Tests of `mrsa runs show` on files that are damaged, unfinished or written by another program."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx import RSAConfig
from markovian_rsa_mlx.audit import read_lenient
from markovian_rsa_mlx.cli.show import RunSummary, summarize
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.support.fakes import FakeEngine

from ..viewer.trails import FIXED, Lines, lines_of, write_lines
from .conftest import Run


def foreign(path: Path) -> Lines:
    """Return the fixed events alone, as another implementation writes them: no setup, no clock, no selection."""
    return [line for line in lines_of(path) if line["event"] in FIXED]


@pytest.fixture
def show(mrsa: Run, tmp_path: Path) -> Callable[..., str]:
    def run_show(lines: Lines, *options: str) -> str:
        ran = mrsa("runs", "show", str(write_lines(tmp_path / "odd.jsonl", lines)), *options)
        assert (ran.code, ran.err) == (0, "")
        return ran.out

    return run_show


Show = Callable[..., str]


def test_fixed_events_alone_show_rounds_answer_and_lineage(show: Show, trail: Path) -> None:
    out = show(foreign(trail))
    assert "T=1 N=3 C=2" in out
    assert "round 0: 2 of 2 traces" in out
    assert "round 1: 1 of 1 trace, " in out
    assert "reads r0-00 r0-02  answer 2" in out
    assert "answer     2, of r1-00 (single)" in out
    assert "votes      not recorded" in out
    assert "\\boxed{2}" in out
    assert "r1-00 read r0-00 (2), r0-02 (2)" in out
    assert "tail of r0-02" in out
    assert "no run_setup" in out
    assert "No answer" not in out


def test_traces_of_a_live_run_are_not_interrupted(show: Show, trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(trail)
    begun = [line["event"] for line in lines].index("generation_start")
    trace_id, lines = lines[begun]["trace_id"], lines[: begun + 1]
    assert f"  {trace_id}  interrupted" in show(lines)
    monkeypatch.setattr("markovian_rsa_mlx.cli.show.is_locked", lambda path: True)
    out = show(lines)
    assert f"  {trace_id}  running " in out
    assert "interrupted" not in out
    assert "not started" in out


def test_answers_are_shown_without_token_ids(show: Show, trail: Path) -> None:
    lines = foreign(trail)
    for line in lines:
        if line["event"] == "trace_complete":
            line["token_ids"] = []
    assert show(lines).count("answer 2") == 3


def test_foreign_trace_ids_are_shown_in_their_rounds(show: Show, trail: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in foreign(trail))
    lines = [json.loads(line) for line in text.replace("r0-00", "a\\nround 7: b").replace("r1-00", "z").splitlines()]
    out = show(lines)
    assert "round 0: 2 of 2 traces" in out
    assert "  z read a round 7: b (2), r0-02 (2)" in out
    assert "\nround 7" not in out


def test_settings_are_shown_as_recorded(show: Show, trail: Path) -> None:
    lines = foreign(trail)
    lines[0]["config"] = {"population": 3, "rsa_k": 2, "more": {"deep": []}}
    assert "settings   N=3, rsa_k 2, more (nested)\n" in show(lines)
    lines[0]["config"] = {"population": "many\nround 9: lies", "rounds": 1}
    out = show(lines)
    assert "settings   T=1 N=many round 9: lies\n" in out
    assert "What is 1+1?" in out
    assert "round 0: 2 of 2 traces" in out
    assert "line 1: config of run_start is refused" in out


def test_damaged_line_is_skipped_and_named(mrsa: Run, trail: Path) -> None:
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


def test_only_the_first_problems_are_listed_without_full(mrsa: Run, trail: Path) -> None:
    trail.write_text(trail.read_text() + "\x1b[2J{\n" * 9)
    ran = mrsa("runs", "show", str(trail))
    assert "damaged, 9 problems" in ran.out
    assert ran.out.count("  line ") == 5
    assert "and 4 more" in ran.out
    assert mrsa("runs", "show", str(trail), "--full").out.count("  line ") == 9


@pytest.mark.parametrize("lost", range(20))
def test_rounds_and_answer_are_shown_if_a_line_is_lost(lost: int, show: Show, trail: Path) -> None:
    lines = lines_of(trail)
    left = [line for number, line in enumerate(lines) if number != lost]
    out = show(left)
    assert "round 0: 2 of 2 traces" in out
    assert "round 1: 1 of 1 trace, " in out
    assert "answer     2, of r1-00 (single)" in out
    assert ("What is 1+1?" in out) == (lost != 0)


def test_a_run_without_an_answer_has_no_winner(show: Show, trail: Path) -> None:
    assert "lineage of the winner" in show(lines_of(trail))
    lines = [{**line, "answer": ""} if line["event"] == "selection" else line for line in lines_of(trail)]
    out = show(lines)
    assert "lineage of r1-00" in out
    assert "winner" not in out


def test_one_hidden_line_is_in_the_singular(show: Show, trail: Path) -> None:
    lines = lines_of(trail)
    lines[0]["prompt"] = "\n".join("1234567")
    assert "... 1 more line (--full)" in show(lines)


def test_run_without_its_start_is_shown(show: Show, trail: Path) -> None:
    out = show(foreign(trail)[1:])
    assert "There is no run_start" in out
    assert "answer     2, of r1-00 (single)" in out


def test_unknown_events_are_counted(show: Show, trail: Path) -> None:
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
def test_run_with_too_many_traces_is_shown_quickly(settings: dict[str, int], show: Show, trail: Path) -> None:
    lines = lines_of(trail)[:-4]
    lines[0]["config"] = RSAConfig(**settings).to_dict()
    started = time.process_time()
    out = show(lines)
    assert time.process_time() - started < 2
    assert "Too many traces to list, up to " in out
    assert "round 0: 2 of 2 traces" in out


def test_many_answers_and_long_chains_are_shown_quickly(show: Show, trail: Path) -> None:
    """Half of the traces form a chain over as many rounds; the others, in one round, have different answers."""
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
    started = time.process_time()
    out = show(lines)
    assert time.process_time() - started < 5
    assert "round 1999: 1 of 1 trace" in out
    assert "t0 found it" in out


def test_huge_figures_are_shown_as_bounds(show: Show, trail: Path) -> None:
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


def test_huge_counts_of_guesses_are_shown_as_bounds(show: Show, trail: Path) -> None:
    lines = lines_of(trail)
    for line in lines:
        if line["event"] == "trace_clock" and line["phase"] == "ended":
            line.update(dict.fromkeys(("steps", "drafted", "accepted"), 10**400))
    assert "over 10^18 of over 10^18 guessed tokens accepted" in show(lines)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00\xff" * 99, b'{"event": "run_sta', b"[" * 99_999])
def test_other_files_exit_1_with_an_error(content: bytes, mrsa: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    ran = mrsa("runs", "show", str(path))
    assert (ran.code, ran.out) == (1, "")
    assert "is not an audit trail" in ran.err


def test_deeply_nested_settings_are_skipped(trail: Path, tmp_path: Path) -> None:
    """A value that can just be parsed cannot be quoted a few calls deeper in the stack."""
    start, begun, *_ = foreign(trail)
    start["config"]["rounds"] = "@"
    path = tmp_path / "deep.jsonl"
    for depth in range(700, 1_000, 5):
        write_lines(path, [start, begun])
        path.write_text(path.read_text().replace('"@"', "[" * depth + "]" * depth))
        read = read_lenient(path)
        summary = further_down(30, lambda read=read: summarize(read))
        assert len(summary.state.traces) == 1
        assert summary.settings_invalid or summary.state.start is None


def further_down(calls: int, do: Callable[[], RunSummary]) -> RunSummary:
    return further_down(calls - 1, do) if calls else do()


def test_weak_answers_are_marked(mrsa: Run, tmp_path: Path) -> None:
    path, answers = tmp_path / "run.jsonl", {"r0-00": "So it is 18.", "r0-01": "12 + 6 = 18"}
    engine = FakeEngine(lambda request, _: f"hm</think>{answers[request.trace_id]}")
    config = RSAConfig(rounds=0, population=2, aggregation_size=1, answer_selection="majority")
    with MarkovianRSAOrchestrator(engine) as orchestrator:
        result = orchestrator.run("12 + 6?", config, audit_path=path)
    assert (result.answer, result.tally) == ("18", [("18", 2)])
    out = mrsa("runs", "show", str(path)).out
    assert out.count("answer 18 (weak)") == 2
    assert "answer     18 (weak), of r0-00 (majority)" in out

"""Tests of `mrsa view`."""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner
from tests.viewer.pages import data

from .conftest import SMALL, Run


def solved(mrsa: Run, *more: str) -> None:
    assert mrsa("solve", "What is it?", *SMALL, "-q", *more).code == 0


def test_newest_run_becomes_a_page_next_to_its_trail(mrsa: Run, fake_model: Callable[..., None], home: Path) -> None:
    solved(mrsa)
    ran = mrsa("view")
    assert ran.code == 0
    page = Path(ran.out.strip())
    assert page.parent == home / "runs"
    assert page.stat().st_mode & 0o777 == 0o600
    assert data(page.read_text(encoding="utf-8"))["lines"][0]["prompt"] == "What is it?"
    assert [path.suffix for path in sorted((home / "runs").iterdir())] == [".html", ".jsonl"]
    assert mrsa("runs", "rm", "-y", page.stem).code == 0
    assert not list((home / "runs").iterdir())


def test_reference_is_compared_by_value(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    solved(mrsa)
    out = tmp_path / "run.html"
    assert mrsa("view", "--reference", "4/2", "--out", str(out)).code == 0
    about = data(out.read_text(encoding="utf-8"))["about"]
    assert about["reference"] == "4/2"
    assert about["verdicts"]["r0-00"] is True
    assert set(about["verdicts"].values()) <= {True, False}


def test_open_shows_the_page_in_the_browser(
    mrsa: Run, fake_model: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved(mrsa)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or False)
    ran = mrsa("view", "--open", "--out", str(tmp_path / "a page.html"))
    assert opened == [(tmp_path / "a page.html").as_uri()]
    assert ran.code == 0
    assert "No browser could be started" in ran.err


def test_unreadable_trail_prints_one_error_line(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    assert "There are no runs" in mrsa("view").err
    notes = tmp_path / "notes.txt"
    notes.write_text("hello\n")
    ran = mrsa("view", str(notes))
    assert ran.code == 1
    assert re.fullmatch(r"error: .*notes\.txt is not an audit trail.*\n", ran.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]
    solved(mrsa)
    ran = mrsa("view", "--out", str(tmp_path / "nowhere" / "x.html"))
    assert ran.code == 1
    assert "--out" in ran.err


def test_page_at_the_path_of_its_trail_is_refused(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    trail = tmp_path / "run.html"
    solved(mrsa, "--audit", str(trail))
    before = trail.read_bytes()
    for words in (["view", str(trail)], ["view", str(trail), "--out", str(tmp_path / "." / "run.html")]):
        ran = mrsa(*words)
        assert ran.code == 2
        assert "would replace its trail" in ran.err
        assert trail.read_bytes() == before


def test_unwritable_page_prints_one_error_line(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    solved(mrsa)
    (tmp_path / "file").write_text("mine")
    ran = mrsa("view", "--out", str(tmp_path / "file" / "x.html"))
    assert ran.code == 1
    assert re.fullmatch(r"error: The page .*file/x\.html cannot be written .*--out\.\n", ran.err)


def test_damaged_line_is_printed_and_the_rest_shown(mrsa: Run, fake_model: Callable[..., None], tmp_path: Path) -> None:
    trail = tmp_path / "run.jsonl"
    solved(mrsa, "--audit", str(trail))
    lines = trail.read_bytes().split(b"\n")
    lines[4] = b"\x1b[31m not JSON"
    trail.write_bytes(b"\n".join(lines))
    ran = mrsa("view", str(trail))
    assert ran.code == 0
    assert "line 5" in ran.err
    assert "\x1b" not in ran.err


def test_solve_prints_the_command_for_the_page(mrsa: Run, fake_model: Callable[..., None]) -> None:
    ran = mrsa("solve", "What is it?", *SMALL)
    assert re.search(r"mrsa view [0-9a-f]{8} --open", ran.err)


@pytest.mark.parametrize("seed", range(6))
def test_puzzle_answers_are_checked_without_a_reference(seed: int) -> None:
    puzzle = reasoner.demo_puzzle(seed)
    judge = reasoner.answer_checker(puzzle.question)
    assert judge is not None
    from markovian_rsa_mlx.reasoner.puzzles import solutions

    first, steps = solutions(puzzle.numbers, puzzle.target)[0]
    expression = str(first)
    for op, number in steps:
        expression = f"({expression} {op} {number})"
    assert judge(expression)
    assert not judge(f"{expression} + 1")


def test_only_questions_of_the_reasoner_are_checked_without_a_reference() -> None:
    judge = reasoner.answer_checker("State the final answer to the following arithmetic problem: 12 + 34 - 56 =")
    assert judge is not None
    assert [judge(answer) for answer in ("-10", " -10 ", "10", "", "1/0")] == [True, True, False, False, False]
    assert reasoner.answer_checker("What is it?") is None

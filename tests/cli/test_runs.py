"""Tests of `mrsa runs` on finished, unfinished, damaged and locked files."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit import AuditWriter
from markovian_rsa_mlx.backends.tokenizers import files_digest
from markovian_rsa_mlx.cli import runs as check
from markovian_rsa_mlx.cli.runs_table import runs_table
from markovian_rsa_mlx.models.routing_report import summary
from markovian_rsa_mlx.reasoner import puzzles
from markovian_rsa_mlx.run_store import RunEntry

from ..support.fakes import CharacterTokenizer, boxed
from .conftest import SMALL, Run

TRAILS = Path(__file__).parents[1] / "trails"


def run_id(path: Path) -> str:
    return str(json.loads(path.read_text().splitlines()[0])["run_id"])


def cut(path: Path, lines: int, rest: str = "") -> None:
    """Keep the first lines, as a crash does."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]) + rest)


def test_list_shows_state_answer_and_question(mrsa: Run, trail: Path) -> None:
    ran = mrsa("runs", "list")
    assert ran.code == 0
    assert all(part in ran.out for part in (run_id(trail)[:8], "finished", "What is 1+1?", " 2 "))
    (entry,) = json.loads(mrsa("runs", "list", "--json").out)
    assert entry["run_id"] == run_id(trail)
    assert entry["answer"] == "2"
    assert entry["generated_tokens"] > 0


def test_list_without_runs_exits_0(mrsa: Run) -> None:
    ran = mrsa("runs", "list")
    assert (ran.code, ran.out) == (0, "")
    assert json.loads(mrsa("runs", "list", "--json").out) == []


def test_list_shows_unfinished_damaged_and_running_files(mrsa: Run, trail: Path) -> None:
    cut(trail, 8, '{"event": "trace_com')
    (trail.parent / "b.jsonl").write_text("no json at all\n")
    (trail.parent / "c.jsonl").write_text("")
    states = {Path(entry["path"]).name: entry["state"] for entry in json.loads(mrsa("runs", "list", "--json").out)}
    assert states == {trail.name: "unfinished", "b.jsonl": "damaged", "c.jsonl": "damaged"}
    with AuditWriter(trail, "a"):
        assert "running" in mrsa("runs", "list").out


def test_list_puts_the_newest_first(mrsa: Run, trail: Path, fake_model: object) -> None:
    an_hour_ago = trail.stat().st_mtime - 3600
    os.utime(trail, (an_hour_ago, an_hour_ago))
    mrsa("solve", "What is 1-1?", *SMALL)
    prompts = [entry["prompt"] for entry in json.loads(mrsa("runs", "list", "--json").out)]
    assert prompts == ["What is 1-1?", "What is 1+1?"]


def test_list_is_filtered(mrsa: Run, trail: Path) -> None:
    def listed(*options: str) -> int:
        ran = mrsa("runs", "list", "--json", *options)
        assert ran.code == 0
        return len(json.loads(ran.out))

    shutil.copy(trail, trail.with_name("copy.jsonl"))
    cut(trail.with_name("copy.jsonl"), 4)
    (trail.parent / "damaged.jsonl").write_text("no json\n")
    assert listed() == 3
    assert listed("--limit", "1") == 1
    assert [listed("--state", state) for state in ("finished", "unfinished", "running", "damaged")] == [1, 1, 0, 1]
    assert [listed("--model", name) for name in ("FAKE", "qwen")] == [2, 0]
    assert [listed("--since", when) for when in ("5m", "2026-01-01", "2999-01-01T12:00")] == [2, 2, 0]
    assert "No run matches" in mrsa("runs", "list", "--since", "2999-01-01").err
    refused = mrsa("runs", "list", "--since", "yesterday")
    assert (refused.code, refused.out) == (2, "")
    assert "7d" in refused.err


def test_list_shows_local_times_and_json_utc(mrsa: Run, trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        (entry,) = json.loads(mrsa("runs", "list", "--json").out)
        assert entry["created_at"].endswith("+00:00")
        local = datetime.fromisoformat(entry["created_at"]).astimezone(timezone(timedelta(hours=9)))
        for command in ("list", "show"):
            assert f"{local:%Y-%m-%d %H:%M} JST" in mrsa("runs", command).out
    finally:
        monkeypatch.undo()
        time.tzset()


def test_other_things_in_the_folder_do_not_stop_the_commands(mrsa: Run, trail: Path) -> None:
    os.mkfifo(trail.with_name("pipe.jsonl"))
    trail.with_name("folder.jsonl").mkdir()
    trail.with_name("loop.jsonl").symlink_to("loop.jsonl")
    (entry,) = json.loads(mrsa("runs", "list", "--json").out)
    assert entry["path"] == str(trail)
    assert mrsa("runs", "path", run_id(trail)).out == f"{trail}\n"
    for command in ("show", "verify"):
        for name in ("pipe.jsonl", "folder.jsonl", "loop.jsonl"):
            ran = mrsa("runs", command, str(trail.with_name(name)))
            assert (ran.code, "bug" in ran.err) == (1, False)
    assert mrsa("runs", "show", "x" * 10_000).code == 1


def test_list_shows_what_tells_questions_apart() -> None:
    def entry(prompt: str) -> RunEntry:
        return RunEntry("a.jsonl", "finished", "12345678", "2026-11-29T19:05:00+00:00", "model", prompt, "25", 1_000)

    alike = [f"Answer the following question of the second chapter: {name} how?" for name in ("who", "why")]
    sums = [puzzles.SUM_WORDING.format(terms=terms) for terms in ("12 + 30 - 17", "98 - 11 + 40")]
    shown = runs_table([entry(prompt) for prompt in (*alike, *sums)], 80).splitlines()
    assert max(map(len, shown)) <= 80
    for line, part in zip(shown[1:], ("…who how?", "…why how?", "12 + 30 - 17", "98 - 11 + 40"), strict=True):
        assert line.endswith(part)
    (_, one) = runs_table([entry(alike[0])], 80).splitlines()
    assert "Answer the" in one


@pytest.mark.parametrize("arguments", [("runs", "list"), ("profiles",)], ids=" ".join)
def test_a_pipe_has_the_columns_that_columns_names(
    arguments: tuple[str, ...], mrsa: Run, trail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(map(len, mrsa(*arguments).out.splitlines())) > 70
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, mrsa(*arguments).out.splitlines())) <= 70


def test_legend_of_profiles_explains_the_shown_columns(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mrsa("profiles").out.count("kept") == 2
    monkeypatch.setenv("COLUMNS", "80")
    assert "kept" not in mrsa("profiles").out


def test_show_prints_settings_rounds_lineage_and_answer(mrsa: Run, trail: Path) -> None:
    for name in (run_id(trail)[:6], trail.name[:12], str(trail)):
        ran = mrsa("runs", "show", name)
        assert ran.code == 0
        assert "T=1 N=3 C=2" in ran.out
        assert "r1-00 read r0-00 (2), r0-02 (2)" in ran.out
        assert "round 0: 2 of 2 traces" in ran.out
        assert "tail of r0-00" in ran.out
        assert "answer     2, of r1-00 (single)" in ran.out
    assert mrsa("runs", "show").out == ran.out


@pytest.mark.parametrize("lines", range(1, 16))
def test_show_reads_truncated_files(lines: int, mrsa: Run, trail: Path) -> None:
    cut(trail, lines, '{"event": "trace_comp')
    ran = mrsa("runs", "show", str(trail))
    assert ran.code == 0
    assert "What is 1+1?" in ran.out
    assert "unfinished" in ran.out
    assert "torn" in ran.out


def test_show_and_list_remove_control_characters(mrsa: Run, fake_model: Callable[..., None]) -> None:
    fake_model(boxed("2\x1b[2J\u202e", "so\r\x07"))
    mrsa("solve", "What\x1b[31m is 1+1?", *SMALL)
    shown = mrsa("runs", "show").out + mrsa("runs", "list").out
    assert not set("\x1b\x07\r\u202e") & set(shown)


def test_hostile_file_cannot_control_the_terminal(mrsa: Run, trail: Path) -> None:
    evil = "\\u001b[2J\\u009b31m"
    text = trail.read_text().replace(run_id(trail), evil).replace('"fake"', f'"{evil}"').replace('"total_gen', '"x')
    (trail.parent / "evil.jsonl").write_text(text)
    for command in (["list"], ["show", "evil"], ["verify", "evil"]):
        ran = mrsa("runs", *command)
        assert ran.code in (0, 1)
        assert not set("\x1b\x9b") & set(ran.out + ran.err)
        assert "bug" not in ran.err


def test_show_prints_model_stats_on_request(mrsa: Run, trail: Path) -> None:
    assert "has no model stats" in mrsa("runs", "show", "--model-stats").out
    lines = trail.read_text().splitlines(keepends=True)
    stats = {"event": "model_stats", "run_id": run_id(trail), "stats": summary([[6, 0, 2], [3, 3, 2]])}
    trail.write_text("".join([*lines[:-1], json.dumps(stats) + "\n", lines[-1]]))
    assert mrsa("runs", "verify", "--allow-unchecked-text").code == 0
    ran = mrsa("runs", "show", "--model-stats")
    assert "skipped an expert 25.0% (by layer 25.0% to 25.0%)" in ran.out
    assert "busiest expert    2.0 times an even load, in layer 0" in ran.out
    assert "skipped an expert" not in mrsa("runs", "show").out
    stats["stats"] = {"counts": "x\x1b[2J", "skipped_by_layer": 3}
    trail.write_text("".join([*lines[:-1], json.dumps(stats) + "\n", lines[-1]]))
    ran = mrsa("runs", "show", "--model-stats")
    assert ran.code == 0
    assert "The model stats are damaged: " in ran.out


def test_show_lists_resumes(mrsa: Run, trail: Path) -> None:
    cut(trail, 6)
    assert mrsa("solve", "What is 1+1?", *SMALL, "--audit", str(trail)).code == 0
    ran = mrsa("runs", "show")
    assert "resumed 1 time" in ran.out
    assert "errors and resumes" in ran.out


def test_verify_names_the_first_invalid_line(mrsa: Run, trail: Path) -> None:
    ran = mrsa("runs", "verify")
    assert ran.code == 3
    assert "structure verified; texts not checked" in ran.out
    lines = trail.read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if "tail_extracted" in line)
    lines[number] = lines[number].replace('"tail_text": "', '"tail_text": "x')
    trail.write_text("".join(lines))
    ran = mrsa("runs", "verify", str(trail), str(trail))
    assert ran.code == 1
    assert ran.out.count(f"line {number + 1}") == 2
    assert ran.out.count(str(trail)) == 2  # each verdict names its file once


def test_verify_with_model_loads_its_tokenizer(mrsa: Run, trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "tokenizer_of", lambda model: CharacterTokenizer())
    assert mrsa("runs", "verify", "--model", "fake/model").code == 0
    assert mrsa("runs", "verify", "--tokenizer", "fake/model").out.strip().startswith(f"{trail}: verified: ")
    lines = trail.read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if '"trace_complete"' in line and '"r1-00"' in line)
    changed = json.loads(lines[number])
    changed["text"] = "x" + changed["text"]  # nothing else follows from it
    trail.write_text("".join([*lines[:number], json.dumps(changed) + "\n", *lines[number + 1 :]]))
    assert mrsa("runs", "verify").code == 3
    assert mrsa("runs", "verify", "--tokenizer", "fake/model").code == 1
    (report,) = json.loads(mrsa("runs", "verify", "--tokenizer", "fake/model", "--json").out)
    assert (report["valid"], f"line {number + 1} " in report["verdict"]) == (False, True)
    missing = mrsa("runs", "verify", str(trail.with_name("none.jsonl")))
    assert missing.code == 1


def test_verify_takes_the_recorded_tokenizer_if_its_digest_matches(mrsa: Run, trail: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(reasoner.model_path(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    recorded = (TRAILS / "finished.jsonl").read_text(encoding="utf-8").replace(reasoner.MODEL_ID, str(folder))
    for digest, code in ((files_digest(folder), 0), ("0" * 64, 3), ("", 3)):
        head, setup, *rest = recorded.splitlines(keepends=True)
        fields = {**json.loads(setup), "tokenizer": str(folder), "tokenizer_digest": digest}
        trail.write_text("".join([head, json.dumps(fields) + "\n", *rest]))
        assert mrsa("runs", "verify", str(trail)).code == code


def test_path_prints_the_folder_or_the_file(mrsa: Run, trail: Path) -> None:
    assert mrsa("runs", "path").out == f"{trail.parent}\n"
    assert mrsa("runs", "path", run_id(trail)[:8]).out == f"{trail}\n"


def test_unknown_or_ambiguous_run_name_exits_1(mrsa: Run, trail: Path) -> None:
    assert "runs list" in mrsa("runs", "show", "zzz").err
    (trail.parent / (trail.stem + "x.jsonl")).write_text(trail.read_text())
    ran = mrsa("runs", "show", trail.name[:8])
    assert ran.code == 1
    assert "fits 2 runs" in ran.err


def test_rm_refuses_other_files_and_locked_runs(mrsa: Run, trail: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    assert mrsa("runs", "rm", str(other), "--yes").code == 1
    assert mrsa("runs", "rm", str(trail)).code == 2  # no terminal to ask
    with AuditWriter(trail, "a"):
        ran = mrsa("runs", "rm", str(trail), "--yes")
        assert (ran.code, "being written" in ran.err) == (1, True)
    assert trail.exists()
    assert other.exists()
    assert mrsa("runs", "rm", run_id(trail)[:8], "--yes").code == 0
    assert not trail.exists()

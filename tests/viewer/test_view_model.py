"""The view lines of a run: what is derived for the page, for a whole file and line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import read_lenient
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.lineage import Lineage
from markovian_rsa_mlx.viewer import ViewStream
from markovian_rsa_mlx.viewer.view_model import build_view

from ..support.fakes import FakeEngine
from ..support.runs import run, small
from .trails import lines_of, small_run, write_lines


@pytest.fixture(scope="module", params=["tail", "answer", "summary"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("view") / "run.jsonl", carry=request.param)


def view_lines(path: Path) -> list[dict[str, Any]]:
    return build_view(read_lenient(path).lines)[0]


def of_event(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == name]


def test_stream_sends_the_view_of_the_file(path: Path) -> None:
    stream = ViewStream()
    messages = [json.loads(stream.add(n, line)) for n, line in enumerate(path.read_bytes().splitlines(), start=1)]
    lines, texts = build_view(read_lenient(path).lines)
    assert [message["line"] for message in messages] == json.loads(json.dumps(lines))
    assert {key: text for message in messages for key, text in message["texts"].items()} == texts
    assert not [message for message in messages if "problems" in message]


def test_stream_skips_and_reports_damaged_and_foreign_lines(path: Path, tmp_path: Path) -> None:
    lines = lines_of(path)
    late = next(line for line in lines if line["event"] == "generation_start" and line["round"] == 1)
    late["parent_trace_ids"] = ["r2-00", *late["parent_trace_ids"]]
    lines[0]["config"]["rounds"] = "two"
    lines.insert(5, {**lines[4], "run_id": "abcd"})
    damaged = write_lines(tmp_path / "damaged.jsonl", lines)
    content = damaged.read_bytes().split(b"\n")
    content.insert(3, b'{"event": <b>')
    damaged.write_bytes(b"\n".join(content))
    stream = ViewStream()
    messages = [json.loads(stream.add(n, line)) for n, line in enumerate(content[:-1], start=1)]
    log = read_lenient(damaged)
    expected = [{"line": p.line, "reason": p.reason, "shown": p.shown} for p in log.problems]
    assert len(expected) == 4
    assert [message["problems"] for message in messages if "problems" in message][-1] == expected
    sent = [message["line"] for message in messages if "line" in message]
    assert sent == json.loads(json.dumps(build_view(log.lines)[0]))
    assert of_event(sent, "run_start")[0]["final_count"] is None
    assert of_event(sent, "run_setup")[0]["planned"] is None


def test_half_a_character_is_escaped_in_a_message(path: Path) -> None:
    line = path.read_bytes().splitlines()[0].replace(b"What is it?", b"half \\ud83d of it")
    message = ViewStream().add(1, line)
    assert "\\ud83d" in message
    assert json.loads(message)["line"]["prompt"] == "half \ud83d of it"


@pytest.mark.parametrize("seed", [0, 2**53 + 3, 2**63 - 1])
@pytest.mark.parametrize("answer_selection", ["majority", "final_aggregation"])
def test_setup_plans_all_needed_traces(path: Path, tmp_path: Path, seed: int, answer_selection: str) -> None:
    lines = lines_of(path)[:2]
    lines[0]["config"] |= {"answer_selection": answer_selection, "final_candidates": 3, "rounds": 3}
    lines[1]["seed"] = seed
    start, setup = view_lines(write_lines(tmp_path / "x.jsonl", lines))
    lineage = Lineage.of(RSAConfig(**lines[0]["config"]), seed)
    assert start["final_count"] == 3
    assert setup["seed"] == str(seed)
    assert dict(setup["planned"]) == {
        str(key): [str(parent) for parent in lineage.parents(key)] for keys in lineage.needed().values() for key in keys
    }


def test_setup_of_a_huge_run_plans_nothing(path: Path, tmp_path: Path) -> None:
    lines = lines_of(path)[:2]
    lines[0]["config"] |= {"population": 10_000, "rounds": 1000, "aggregation_size": 100, "final_candidates": 0}
    start, setup = view_lines(write_lines(tmp_path / "x.jsonl", lines))
    assert start["final_count"] == 10_000
    assert setup["planned"] is None


def test_selection_gives_equal_answers_one_key(path: Path, tmp_path: Path) -> None:
    lines = lines_of(path)
    (selection,) = of_event(lines, "selection")
    candidates = selection["candidate_trace_ids"]
    selection["answers"], selection["classes"] = ["1/2", "0.5", "", "7"], [candidates[:2], candidates[3:]]
    selection["chosen_trace_id"] = candidates[1]
    view = view_lines(write_lines(tmp_path / "x.jsonl", lines))
    (selection,) = of_event(view, "selection")
    assert [selection["keys"][candidate] for candidate in candidates] == ["1/2", "1/2", "", "7"]
    assert selection["path"]["chain"][-1] == candidates[1]
    assert set(selection["path"]["chain"]) <= set(selection["path"]["carriers"])
    assert "keys" not in of_event(view, "final")[0]


def test_final_without_a_selection_has_the_path(path: Path, tmp_path: Path) -> None:
    lines = [line for line in lines_of(path) if line["event"] != "selection"]
    (final,) = of_event(view_lines(write_lines(tmp_path / "x.jsonl", lines)), "final")
    assert final["path"]["chain"][-1] == final["final_trace_id"]


def test_prompt_names_the_tails_that_are_quoted(path: Path, tmp_path: Path) -> None:
    if not of_event(lines_of(path), "summary_complete"):
        text = "[end of attempt 1]\nso</think>\\boxed{1}"
        path = small_run(tmp_path / "run.jsonl", lambda request, rng: text)
    for line in of_event(view_lines(path), "aggregation_prompt"):
        assert line["rebuilt"]
        assert len(line["quoted"]) == len(line["selected_tail_trace_ids"])


def test_answers_in_json_are_compared_in_their_canonical_form(tmp_path: Path) -> None:
    writings = ['{"a": 1}', '{"a":1.0}', "cut off {"]
    engine = FakeEngine(lambda request, _: f"so</think>{writings[int(request.trace_id[-1])]}", binds_answers=True)
    settings = {"rounds": 0, "population": 3, "final_candidates": None, "max_retries": 0}
    run(engine, small(**settings, response_schema={"type": "object"}), tmp_path / "run.jsonl")
    lines = view_lines(tmp_path / "run.jsonl")
    traces = {line["trace_id"]: line for line in of_event(lines, "trace_complete")}
    assert [traces[f"r0-0{index}"]["answer"] for index in range(3)] == ['{"a":1}', '{"a":1}', ""]
    assert traces["r0-00"]["key"] == traces["r0-01"]["key"] != traces["r0-02"]["key"]

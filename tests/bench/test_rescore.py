"""Test scoring a benchmark again: only what the rules change changes, and every change is listed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.bench.rescore import rescore
from markovian_rsa_mlx.bench.results import Results, results_from_dict
from markovian_rsa_mlx.bench.runner import BenchmarkSpec
from markovian_rsa_mlx.errors import AuditError, ConfigError
from markovian_rsa_mlx.method.answers import ANSWER_RULES, equal_text
from tests.support.bench_harness import FakeTask, coin, make_spec, run_bench, settled
from tests.support.fakes import FakeEngine, boxed

#: Fields that earlier versions did not write.
NEW_IN_ROUND = ("boxed", "announced", "weak", "undecided", "not_found")


def outdated(results: Results, **scores: float) -> Results:
    """Return results as an earlier version wrote them, with these scores instead of those in each round and run."""
    values = json.loads(json.dumps(results.to_dict()))
    for name in ("notice", "answer_rules", "changes"):
        del values[name]
    for row in values["table"]:
        del row["answers"]
    for record in (record for cell in values["cells"] for record in cell["records"]):
        for name in ("reference", "content", "traces"):
            del record[name]
        for entry in record["rounds"]:
            for name in NEW_IN_ROUND:
                del entry[name]
            entry.update(scores)
    return results_from_dict(values)


def again(results: Results, folder: Path, spec: BenchmarkSpec) -> Results:
    return rescore(results, folder, task=spec.task, problems=spec.problems, equivalent=equal_text)


def figures(results: Results) -> Any:
    """Return all figures but those that only newer versions have."""
    return outdated(results).to_dict() | {"answer_rules": 0}


def test_nothing_changes_where_the_rules_agree(tmp_path: Path) -> None:
    spec = make_spec(methods=["single", "markovian:majority", "markovian:final_aggregation"])
    results = run_bench(tmp_path, spec)

    # This engine may generate in less time than a repetition of known ids takes.
    def timeless(found: Results) -> Any:
        return settled(json.loads(json.dumps(found.to_dict())))

    same = again(results, tmp_path, spec)
    assert timeless(same) == timeless(results)
    assert timeless(again(outdated(results), tmp_path, spec)) == timeless(results)


def test_a_newly_found_answer_changes_its_trace_alone(tmp_path: Path) -> None:
    """By the first rules a text answer is the whole text; today it is what the text announces."""
    statement = "I checked it twice.\nFinal answer: right"
    texts = [boxed("right"), f"so</think>{statement}", boxed("wrong"), boxed("wrong")]
    spec = make_spec(FakeTask(2), ["single", "vote"])
    engine = FakeEngine(lambda request, rng: texts[int(request.trace_id.split("-")[1])])
    results = run_bench(tmp_path, spec, engine)
    assert {record.rounds[0].mean for record in results.cells[0].records} == {0.5}
    old = outdated(results, mean=0.25, vote=0.0)
    new = again(old, tmp_path, spec)
    assert figures(new) == figures(results)
    assert new.answer_rules == ANSWER_RULES
    assert [
        (c.cell, c.problem_id, c.trace_id, c.before, c.after, c.correct_before, c.correct_after) for c in new.changes
    ] == [("parallel", name, "r0-01", statement, "right", 0.0, 1.0) for name in ("p0", "p1")]
    assert "announced" in new.changes[0].reason
    assert json.loads(json.dumps(new.to_dict()))["changes"] == [dataclasses.asdict(change) for change in new.changes]
    assert results_from_dict(json.loads(json.dumps(new.to_dict()))) == new


def test_new_verdicts_are_listed_by_trace_or_by_round(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(1), ["single"])
    texts = [boxed("right"), boxed("right"), boxed("wrong"), boxed("wrong")]
    engine = FakeEngine(lambda request, rng: texts[int(request.trace_id.split("-")[1])])
    results = run_bench(tmp_path, spec, engine)
    none_right = again(outdated(results, mean=0.0), tmp_path, spec).changes
    assert [(c.trace_id, c.before, c.after, c.correct_after) for c in none_right] == [
        ("r0-00", "right", "right", 1.0),
        ("r0-01", "right", "right", 1.0),
    ]
    one_right = again(outdated(results, mean=0.25), tmp_path, spec).changes
    assert [(c.trace_id, c.correct_before, c.correct_after) for c in one_right] == [("round 0", 0.25, 0.5)]
    # Results that record their traces need no guess.
    other = dataclasses.replace(spec, task=FakeTask(1, breaks="right"))
    failed = again(results, tmp_path, other).changes
    assert [(c.trace_id, c.correct_before, c.correct_after) for c in failed] == [
        ("r0-00", 1.0, 0.0),
        ("r0-01", 1.0, 0.0),
        ("", 1.0, 0.0),
    ]


def test_the_same_command_scores_outdated_results_again(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(2), ["single"])
    results = run_bench(tmp_path, spec)
    (tmp_path / "results.json").write_text(json.dumps({**outdated(results, mean=0.0).to_dict(), "answer_rules": 1}))
    engine = FakeEngine(coin)
    new = run_bench(tmp_path, spec, engine)
    assert engine.requests == []
    assert figures(new) == figures(results)
    assert new.changes
    assert run_bench(tmp_path, spec, engine).changes == new.changes


def test_runs_without_an_audit_log_keep_their_scores(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(2), ["single"])
    results = run_bench(tmp_path, spec)
    old = outdated(results, mean=0.0)
    (tmp_path / results.cells[0].records[0].trail).unlink()
    new = again(old, tmp_path, spec)
    assert new.cells[0].records[0] == old.cells[0].records[0]
    assert new.cells[0].records[1] == results.cells[0].records[1]
    assert "1 run could not be scored again" in new.warnings[-1]
    (tmp_path / results.cells[0].records[1].trail).unlink()
    with pytest.raises(AuditError):
        again(old, tmp_path, spec)


def test_other_problems_are_rejected(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(2), ["single"])
    results = run_bench(tmp_path, spec)
    for task in (FakeTask(2, name="other"), FakeTask(1)):
        with pytest.raises(ConfigError):
            rescore(results, tmp_path, task=task, problems=task.problems(None), equivalent=equal_text)

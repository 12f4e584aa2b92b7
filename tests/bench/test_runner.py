"""A benchmark that is stopped goes on; what fails on one problem leaves the others alone; folders are kept apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.base import EngineInfo, GenerationRequest
from markovian_rsa_mlx.bench.experiment import ExperimentDir
from markovian_rsa_mlx.bench.results import Results, problem_scores, results_from_dict
from markovian_rsa_mlx.bench.runner import Benchmark
from markovian_rsa_mlx.errors import AuditError, BackendError, ConfigError, RefusedError, ResumeError, UpstreamError
from tests.support.fakes import FakeBackend, boxed

from ..support.bench_harness import SMALL, FakeTask, bench, coin, order, settled


def test_figures_by_round_are_what_the_traces_say(tmp_path: Path) -> None:
    texts = ["right", "wrong", "right", "other"]
    backend = FakeBackend(lambda request, rng: boxed(texts[int(request.trace_id[-2:])]))
    results = bench(tmp_path, order(FakeTask(1), ["single", "vote", "pass"]), backend)
    (record,) = results.cells[0].records
    (only,) = record.rounds
    assert (only.traces, only.mean, only.vote, only.any, only.finished) == (4, 0.5, 1.0, 1.0, 1.0)
    assert (only.answered, only.distinct, only.diversity) == (4, 3, 0.75)
    assert [row.score.mean for row in results.table] == [0.5, 1.0, 1.0]
    assert (record.answer, record.correct, record.badges) == ("right", 1.0, ())


def test_traces_that_end_badly_are_badges_and_count_as_wrong(tmp_path: Path) -> None:
    texts = ["so " * 100, "so</think>", boxed("broken"), boxed("right")]
    backend = FakeBackend(lambda request, rng: texts[int(request.trace_id[-2:])])
    results = bench(tmp_path, order(FakeTask(1, breaks="broken"), ["single"]), backend)
    (record,) = results.cells[0].records
    assert (record.rounds[0].mean, record.rounds[0].finished, record.rounds[0].answered) == (0.25, 0.75, 2)
    assert record.badges == ("budget_hit", "parser_trouble")
    assert record.unscored == ("The verifier failed on 'broken'.",)
    assert results.table[0].badges == {"budget_hit": 1, "parser_trouble": 1}


def test_a_trace_that_is_given_up_does_not_shrink_the_population(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r0-01":
            raise BackendError("no")

    results = bench(
        tmp_path, order(FakeTask(1), ["single"]), FakeBackend(lambda request, rng: boxed("right"), fail=fail)
    )
    (record,) = results.cells[0].records
    assert (record.rounds[0].traces, record.rounds[0].mean) == (4, 0.75)
    assert record.badges == ("given_up",)
    assert record.mishaps == ("r0-01 was given up: BackendError: no",)


def test_each_answer_is_scored_once_and_by_the_verifier_alone(tmp_path: Path) -> None:
    task = FakeTask(1)
    bench(tmp_path, order(task), FakeBackend(coin))
    assert sorted(task.asked) == ["right", "wrong"]


def test_a_benchmark_that_is_stopped_goes_on_to_the_same_results(tmp_path: Path) -> None:
    wanted = order(FakeTask(4), ["single", "delethink", "markovian", "summary"])
    bench(tmp_path / "whole", wanted)
    for _ in range(2):
        bench(tmp_path / "parts", wanted, stop_after=lambda records: True)
    stopped = json.loads((tmp_path / "parts" / "results.json").read_text())
    assert 0 < len(stopped["cells"][-1]["records"]) < 4
    bench(tmp_path / "parts", wanted)
    assert settled(tmp_path / "parts" / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_without_its_results_file_a_benchmark_is_read_off_its_trails(tmp_path: Path) -> None:
    wanted = order()
    bench(tmp_path, wanted)
    before = settled(tmp_path / "results.json")
    (tmp_path / "results.json").unlink()
    backend = FakeBackend(coin)
    bench(tmp_path, wanted, backend)
    assert settled(tmp_path / "results.json") == before
    assert backend.requests == []


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"schema_version": 1}', ""])
def test_a_damaged_results_file_is_made_again_from_the_trails(tmp_path: Path, content: str) -> None:
    wanted = order()
    bench(tmp_path, wanted)
    before = settled(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(content)
    bench(tmp_path, wanted)
    assert settled(tmp_path / "results.json") == before


def test_a_damaged_trail_is_one_run_s_trouble(tmp_path: Path) -> None:
    wanted = order(FakeTask(3), ["single", "markovian"])
    bench(tmp_path, wanted)
    before = settled(tmp_path / "results.json")
    (tmp_path / "results.json").unlink()
    trail = tmp_path / "trails" / "markovian" / "00002-1.jsonl"
    sound = trail.read_bytes()
    trail.write_bytes(sound.replace(b'{"event": "run_setup"', b'{"event": ', 1))
    damaged = trail.read_bytes()

    results = bench(tmp_path, wanted)
    assert [(row.problems, row.failed) for row in results.table] == [(3, 0), (2, 1)]
    error = results.cells[1].records[1].error
    assert str(trail) in error
    assert "line 2" in error
    assert "remove" in error
    assert trail.read_bytes() == damaged

    trail.unlink()
    bench(tmp_path, wanted)
    assert settled(tmp_path / "results.json") == before


def test_problems_and_epochs_can_be_added(tmp_path: Path) -> None:
    methods = ["single", "markovian"]
    bench(tmp_path / "grown", order(FakeTask(4), methods, limit=(1, 2)))
    bench(tmp_path / "grown", order(FakeTask(4), methods, epochs=2))
    bench(tmp_path / "whole", order(FakeTask(4), methods, epochs=2))
    assert settled(tmp_path / "grown" / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_how_many_problems_run_at_once_changes_nothing_but_times(tmp_path: Path) -> None:
    engines = FakeBackend(coin), FakeBackend(coin)
    for engine, at_once in zip(engines, (1, 3), strict=True):
        bench(tmp_path / str(at_once), order(FakeTask(4), ["single"]), engine, at_once=at_once)
    assert engines[0].rows == 4
    assert 4 < engines[1].rows <= 12
    assert settled(tmp_path / "1" / "results.json") == settled(tmp_path / "3" / "results.json")


def test_a_problem_that_fails_leaves_the_others_alone_and_can_be_tried_again(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if "Question 1?" in request.messages[-1]["content"]:
            raise BackendError("out of order")

    wanted = order(FakeTask(3), ["single", "markovian"])
    results = bench(tmp_path, wanted, FakeBackend(coin, fail=fail))
    assert [(row.problems, row.failed) for row in results.table] == [(2, 1), (2, 1)]
    failed = results.cells[0].records[1]
    assert failed.problem_id == "p1"
    assert "No final candidate is left" in failed.error
    assert problem_scores(results, results.method("single")).keys() == {0, 2}

    backend = FakeBackend(coin)
    again = bench(tmp_path, wanted, backend)
    assert {request.messages[-1]["content"] for request in backend.requests if request.trace_id[:2] == "r0"} == {
        "Question 1?"
    }
    assert [(row.problems, row.failed) for row in again.table] == [(3, 0), (3, 0)]


def test_only_what_failed_is_run_where_that_is_asked_for(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if "Question 0?" in request.messages[-1]["content"]:
            raise BackendError("out of order")

    task = FakeTask(4)
    bench(tmp_path, order(task, ["single"], limit=(1, 2)), FakeBackend(coin, fail=fail))
    results = bench(tmp_path, order(task, ["single"]), only_failed=True)
    assert [record.problem_id for record in results.cells[0].records] == ["p0", "p1"]
    assert not any(record.error for record in results.cells[0].records)


def test_another_benchmark_s_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    bench(tmp_path, order(FakeTask(1), ["markovian"]))
    for other, words in (
        (order(FakeTask(1), ["markovian"], SMALL.replace(tail_tokens=30)), "tail_tokens of markovian: 40 there, 30"),
        (order(FakeTask(1), ["markovian"], seed=2), "seed: 1 there, 2 asked for"),
        (order(FakeTask(1, name="other"), ["markovian"]), "task: 'fake' there, 'other'"),
        (dataclasses.replace(order(FakeTask(1), ["markovian"]), model="big"), "model: 'fake' there, 'big'"),
    ):
        with pytest.raises(ResumeError, match=words):
            bench(tmp_path, other)


def test_settings_that_change_no_outcome_may_differ(tmp_path: Path) -> None:
    bench(tmp_path, order(FakeTask(1), ["markovian"]))
    backend = FakeBackend(coin)
    bench(tmp_path, order(FakeTask(1), ["markovian"], SMALL.replace(max_retries=5, concurrency=3)), backend)
    assert backend.requests == []


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="something else"):
            ExperimentDir(tmp_path, order().identity, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_is_written_by_one_benchmark_at_a_time(tmp_path: Path) -> None:
    with ExperimentDir(tmp_path, order().identity), pytest.raises(AuditError, match="another benchmark"):
        ExperimentDir(tmp_path, order().identity)
    ExperimentDir(tmp_path, order().identity).close()


def test_fresh_begins_anew(tmp_path: Path) -> None:
    bench(tmp_path, order(FakeTask(1), ["single"]))
    other = order(FakeTask(1), ["single"], seed=2)
    with ExperimentDir(tmp_path, other.identity, fresh=True) as folder:
        assert folder.trails(0, 1) == []
        assert not Benchmark.begin(other, folder).records


def test_results_can_be_read_again(tmp_path: Path) -> None:
    results = bench(tmp_path)
    assert results_from_dict(json.loads((tmp_path / "results.json").read_text())) == results


def test_results_of_another_version_are_not_taken_for_ours(tmp_path: Path) -> None:
    values = bench(tmp_path).to_dict()
    assert next(iter(values)) == "schema_version"
    with pytest.raises(ValueError, match="99"):
        results_from_dict(values | {"schema_version": 99})


def test_tables_for_other_programs_hold_a_line_for_each_round(tmp_path: Path) -> None:
    import csv

    import pyarrow.parquet

    results: Results = bench(tmp_path, order(FakeTask(2), ["single", "markovian"], epochs=2))
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * (1 + 3)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert [float(line["mean"]) for line in lines] == [line["mean"] for line in table]
    assert table[0]["generated_tokens"] == results.cells[0].records[0].rounds[0].generated_tokens


@dataclass
class Sized(FakeBackend):
    """An engine that says how many rows it has and what they need: a byte a token."""

    max_rows: int | None = None
    memory: int | None = None

    @property
    def info(self) -> EngineInfo:
        return dataclasses.replace(super().info, max_rows=self.max_rows, memory_limit_bytes=self.memory)


@pytest.mark.parametrize(
    ("max_rows", "memory", "problems"),
    [(None, None, 8), (32, None, 8), (10, None, 3), (32, 12 * 1_280, 3), (32, 1, 1), (1_000, None, 16)],
)
def test_as_many_problems_at_once_as_the_engine_has_room_for(
    tmp_path: Path, max_rows: int | None, memory: int | None, problems: int
) -> None:
    wanted = order(FakeTask(1), ["markovian"])  # N = 4; at the most 1,000 + 2 * 40 + 200 tokens a row
    with ExperimentDir(tmp_path, wanted.identity) as folder:
        assert Benchmark(wanted, folder).at_once(Sized(max_rows=max_rows, memory=memory)) == problems


def refuse(*places: int) -> Callable[[GenerationRequest], None]:
    """A server whose policy forbids these problems."""

    def fail(request: GenerationRequest) -> None:
        if any(f"Question {place}?" in request.messages[-1]["content"] for place in places):
            raise RefusedError("http://x answers 400 (content management policy).")

    return fail


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_problem_that_a_server_refuses_leaves_the_others_alone(tmp_path: Path, at_once: int) -> None:
    task = FakeTask(6)
    results = bench(tmp_path, order(task, ["single"]), FakeBackend(coin, fail=refuse(1, 3, 4, 5)), at_once=at_once)
    errors = {record.problem_id: record.error for record in results.cells[0].records}
    assert [name for name, error in errors.items() if error] == ["p1", "p3", "p4", "p5"]
    assert "content management policy" in errors["p1"]
    again = bench(tmp_path, order(task, ["single"]), FakeBackend(coin, fail=refuse(1, 3, 4)))
    assert [(row.problems, row.failed) for row in again.table] == [(3, 3)]


def test_problems_that_are_refused_at_once_do_not_outrun_one_that_passes(tmp_path: Path) -> None:
    backend = FakeBackend(coin, fail=refuse(0, 1, 2, 4), chunk=1)
    results = bench(tmp_path, order(FakeTask(6), ["single"]), backend, at_once=4)
    assert [(row.problems, row.failed) for row in results.table] == [(2, 4)]


@pytest.mark.parametrize("at_once", [1, 2, 6])
def test_a_server_that_refuses_all_problems_ends_the_benchmark(tmp_path: Path, at_once: int) -> None:
    backend = FakeBackend(coin, fail=refuse(*range(9)))
    with pytest.raises(UpstreamError, match=r"refused \d problems and let none pass: .*content management"):
        bench(tmp_path, order(FakeTask(9), ["single"]), backend, at_once=at_once)
    written = json.loads((tmp_path / "results.json").read_text())
    assert 3 <= len(written["cells"][0]["records"]) < 9


@pytest.mark.parametrize("only_failed", [False, True])
def test_answers_that_could_not_be_scored_are_scored_again_and_nothing_is_generated(
    tmp_path: Path, only_failed: bool
) -> None:
    methods = ["single", "markovian"]
    bench(tmp_path / "well", order(FakeTask(3), methods))
    ill = bench(tmp_path / "ill", order(FakeTask(3, breaks="right"), methods))
    assert any(record.unscored for cell in ill.cells for record in cell.records)
    backend = FakeBackend(coin)
    bench(tmp_path / "ill", order(FakeTask(3), methods), backend, only_failed=only_failed)
    assert backend.requests == []
    assert settled(tmp_path / "ill" / "results.json") == settled(tmp_path / "well" / "results.json")


def test_results_do_not_depend_on_when_the_verifier_was_ill_and_when_methods_came(tmp_path: Path) -> None:
    bench(tmp_path / "whole", order(FakeTask(4), ["single", "markovian"]))
    path = tmp_path / "parts"
    bench(path, order(FakeTask(4, breaks="right"), ["single"]), stop_after=lambda records: True)
    bench(path, order(FakeTask(4, breaks="wrong"), ["single"]))
    before = bench(path, order(FakeTask(4), ["single"])).cells[0]
    after = bench(path, order(FakeTask(4), ["single", "markovian"])).cells[0]
    assert settled(dataclasses.asdict(before)) == settled(dataclasses.asdict(after))
    assert settled(path / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_a_verifier_that_never_recovers_comes_to_an_end_each_time(tmp_path: Path) -> None:
    wanted = order(FakeTask(2, breaks="right"), ["single"])
    first, backend = bench(tmp_path, wanted), FakeBackend(coin)
    assert settled(bench(tmp_path, wanted, backend).to_dict()) == settled(first.to_dict())
    assert backend.requests == []


def test_text_that_utf_8_cannot_hold_loses_no_results(tmp_path: Path) -> None:
    wanted = dataclasses.replace(order(FakeTask(1), ["single"]), model="m\udcff", command="mrsa bench s\udcff")
    bench(tmp_path, wanted)
    backend = FakeBackend(coin)
    assert bench(tmp_path, wanted, backend).model == "m\udcff"
    assert backend.requests == []
    assert json.loads((tmp_path / "results.json").read_text())["model"] == "m\ufffd"

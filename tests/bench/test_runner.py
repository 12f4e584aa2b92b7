"""Test sessions of a benchmark: resuming, failures on single problems, and folders of other benchmarks."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import EngineInfo, GenerationRequest
from markovian_rsa_mlx.bench.experiment import ExperimentDir
from markovian_rsa_mlx.bench.methods import Grid
from markovian_rsa_mlx.bench.results import Results, problem_scores, results_from_dict
from markovian_rsa_mlx.bench.runner import Benchmark
from markovian_rsa_mlx.errors import AuditError, BackendError, ConfigError, RefusedError, ResumeError, UpstreamError
from tests.support.fakes import FakeBackend, boxed

from ..support.bench_harness import SMALL, FakeTask, coin, make_spec, run_bench, settled


def test_round_figures_follow_from_the_traces(tmp_path: Path) -> None:
    texts = ["right", "wrong", "right", "other"]
    backend = FakeBackend(lambda request, rng: boxed(texts[int(request.trace_id[-2:])]))
    results = run_bench(tmp_path, make_spec(FakeTask(1), ["single", "vote", "pass"]), backend)
    (record,) = results.cells[0].records
    (only,) = record.rounds
    assert (only.traces, only.mean, only.vote, only.any, only.finished) == (4, 0.5, 1.0, 1.0, 1.0)
    assert (only.answered, only.distinct, only.diversity) == (4, 3, 0.75)
    assert [row.score.mean for row in results.table] == [0.5, 1.0, 1.0]
    assert (record.answer, record.correct, record.badges) == ("right", 1.0, ())


def test_truncated_or_unreadable_traces_are_badges_and_count_as_wrong(tmp_path: Path) -> None:
    texts = ["so " * 100, "so</think>", boxed("broken"), boxed("right")]
    backend = FakeBackend(lambda request, rng: texts[int(request.trace_id[-2:])])
    spec = make_spec(FakeTask(1, breaks="broken"), ["single"], SMALL.replace(answer_tokens=0))
    results = run_bench(tmp_path, spec, backend)
    (record,) = results.cells[0].records
    assert (record.rounds[0].mean, record.rounds[0].finished, record.rounds[0].answered) == (0.25, 0.75, 2)
    assert record.badges == ("budget_hit", "parser_trouble")
    assert record.unscored == ("The verifier failed on 'broken'.",)
    assert results.table[0].badges == {"budget_hit": 1, "parser_trouble": 1}


def test_failed_trace_counts_as_wrong(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if request.trace_id == "r0-01":
            raise BackendError("no")

    results = run_bench(
        tmp_path, make_spec(FakeTask(1), ["single"]), FakeBackend(lambda request, rng: boxed("right"), fail=fail)
    )
    (record,) = results.cells[0].records
    assert (record.rounds[0].traces, record.rounds[0].mean) == (4, 0.75)
    assert record.badges == ("given_up",)
    (message,) = record.mishaps
    assert message.startswith("r0-01 ")
    assert message.endswith("BackendError: no")


def test_each_answer_is_scored_once(tmp_path: Path) -> None:
    task = FakeTask(1)
    run_bench(tmp_path, make_spec(task), FakeBackend(coin))
    assert sorted(task.scored) == ["right", "wrong"]


def test_stopped_benchmark_continues_to_the_same_results(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(4), ["single", "delethink", "markovian", "summary"])
    run_bench(tmp_path / "whole", spec)
    for _ in range(2):
        run_bench(tmp_path / "parts", spec, stop_after=lambda records: True)
    stopped = json.loads((tmp_path / "parts" / "results.json").read_text())
    assert 0 < len(stopped["cells"][-1]["records"]) < 4
    run_bench(tmp_path / "parts", spec)
    assert settled(tmp_path / "parts" / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_populations_by_round_are_compared_and_continued(tmp_path: Path) -> None:
    grid = Grid(combinations=({"population": [4, 3, 2]}, {"population": 4}))
    spec = make_spec(FakeTask(2), ["single", "vote-equal", "markovian"], grid=grid)
    run_bench(tmp_path, spec, stop_after=lambda records: True)
    results = run_bench(tmp_path, spec)
    by_round = next(cell for cell in results.cells if cell.name == "markovian N=4-3-2")
    assert by_round.config["population"] == [4, 3, 2]
    for record in by_round.records:
        assert record.rounds[2].traces == 2
        assert all(found.traces <= most for found, most in zip(record.rounds, [4, 3, 2], strict=True))
    assert results.generated_once < sum(
        record.rounds[-1].generated_tokens for cell in results.cells for record in cell.records
    )
    for trail in tmp_path.glob("trails/*/*.jsonl"):
        verify_file(trail)
    page = (tmp_path / "report.html").read_text()
    assert "<td>4,3,2</td>" in page
    assert "mean correctness over the 2 final candidates" in page
    assert run_bench(tmp_path, spec).cells == results.cells


def test_missing_results_are_rebuilt_from_the_audit_logs(tmp_path: Path) -> None:
    spec = make_spec()
    run_bench(tmp_path, spec)
    before = settled(tmp_path / "results.json")
    (tmp_path / "results.json").unlink()
    backend = FakeBackend(coin)
    run_bench(tmp_path, spec, backend)
    assert settled(tmp_path / "results.json") == before
    assert backend.requests == []


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"schema_version": 1}', ""])
def test_damaged_results_are_rebuilt_from_the_audit_logs(tmp_path: Path, content: str) -> None:
    spec = make_spec()
    run_bench(tmp_path, spec)
    before = settled(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(content)
    run_bench(tmp_path, spec)
    assert settled(tmp_path / "results.json") == before


def test_damaged_audit_log_fails_one_run(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(3), ["single", "markovian"])
    run_bench(tmp_path, spec)
    before = settled(tmp_path / "results.json")
    (tmp_path / "results.json").unlink()
    trail = tmp_path / "trails" / "markovian" / "00002-1.jsonl"
    sound = trail.read_bytes()
    trail.write_bytes(sound.replace(b'{"event": "run_setup"', b'{"event": ', 1))
    damaged = trail.read_bytes()

    results = run_bench(tmp_path, spec)
    assert [(row.problems, row.failed) for row in results.table] == [(3, 0), (2, 1)]
    error = results.cells[1].records[1].error
    assert str(trail) in error
    assert "line 2" in error
    assert "Remove that file" in error
    assert trail.read_bytes() == damaged

    trail.unlink()
    run_bench(tmp_path, spec)
    assert settled(tmp_path / "results.json") == before


def test_problems_and_epochs_can_be_added(tmp_path: Path) -> None:
    methods = ["single", "markovian"]
    run_bench(tmp_path / "grown", make_spec(FakeTask(4), methods, limit=(1, 2)))
    run_bench(tmp_path / "grown", make_spec(FakeTask(4), methods, epochs=2))
    run_bench(tmp_path / "whole", make_spec(FakeTask(4), methods, epochs=2))
    assert settled(tmp_path / "grown" / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_concurrency_changes_only_times(tmp_path: Path) -> None:
    engines = FakeBackend(coin), FakeBackend(coin)
    for engine, concurrency in zip(engines, (1, 3), strict=True):
        run_bench(tmp_path / str(concurrency), make_spec(FakeTask(4), ["single"]), engine, concurrency=concurrency)
    assert engines[0].rows == 4
    assert 4 < engines[1].rows <= 12
    assert settled(tmp_path / "1" / "results.json") == settled(tmp_path / "3" / "results.json")


def test_failed_problem_is_repeated_alone(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if "Question 1?" in request.messages[-1]["content"]:
            raise BackendError("out of order")

    spec = make_spec(FakeTask(3), ["single", "markovian"])
    results = run_bench(tmp_path, spec, FakeBackend(coin, fail=fail))
    assert [(row.problems, row.failed) for row in results.table] == [(2, 1), (2, 1)]
    failed = results.cells[0].records[1]
    assert failed.problem_id == "p1"
    assert failed.error
    assert problem_scores(results, results.method("single")).keys() == {0, 2}

    backend = FakeBackend(coin)
    again = run_bench(tmp_path, spec, backend)
    assert {request.messages[-1]["content"] for request in backend.requests if request.trace_id[:2] == "r0"} == {
        "Question 1?"
    }
    assert [(row.problems, row.failed) for row in again.table] == [(3, 0), (3, 0)]


def test_only_failed_runs_no_other_problem(tmp_path: Path) -> None:
    def fail(request: GenerationRequest) -> None:
        if "Question 0?" in request.messages[-1]["content"]:
            raise BackendError("out of order")

    task = FakeTask(4)
    run_bench(tmp_path, make_spec(task, ["single"], limit=(1, 2)), FakeBackend(coin, fail=fail))
    results = run_bench(tmp_path, make_spec(task, ["single"]), only_failed=True)
    assert [record.problem_id for record in results.cells[0].records] == ["p0", "p1"]
    assert not any(record.error for record in results.cells[0].records)


def test_folder_of_another_benchmark_is_rejected_with_the_difference(tmp_path: Path) -> None:
    run_bench(tmp_path, make_spec(FakeTask(1), ["markovian"]))
    for other, words in (
        (make_spec(FakeTask(1), ["markovian"], SMALL.replace(tail_tokens=30)), "tail_tokens of markovian: .*40.*30"),
        (make_spec(FakeTask(1), ["markovian"], seed=2), "seed: .*1.*2"),
        (make_spec(FakeTask(1, name="other"), ["markovian"]), "task: .*'fake'.*'other'"),
        (dataclasses.replace(make_spec(FakeTask(1), ["markovian"]), model="big"), "model: .*'fake'.*'big'"),
    ):
        with pytest.raises(ResumeError, match=words):
            run_bench(tmp_path, other)


def test_settings_without_effect_on_results_may_differ(tmp_path: Path) -> None:
    run_bench(tmp_path, make_spec(FakeTask(1), ["markovian"]))
    backend = FakeBackend(coin)
    run_bench(tmp_path, make_spec(FakeTask(1), ["markovian"], SMALL.replace(max_retries=5, concurrency=3)), backend)
    assert backend.requests == []


def test_setting_that_an_old_folder_lacks_was_off(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(1), ["single"], SMALL.replace(answer_tokens=0))
    run_bench(tmp_path, spec)
    identity = json.loads((tmp_path / "bench.json").read_text())
    for cell in identity["cells"].values():
        del cell["answer_tokens"]
    (tmp_path / "bench.json").write_text(json.dumps(identity))
    backend = FakeBackend(coin)
    run_bench(tmp_path, spec, backend)
    assert backend.requests == []
    with pytest.raises(ResumeError, match="answer_tokens"):
        run_bench(tmp_path, make_spec(FakeTask(1), ["single"], SMALL.replace(answer_tokens=5)))


def test_folder_with_other_files_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="is not the folder of a benchmark"):
            ExperimentDir(tmp_path, make_spec().identity, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_is_locked(tmp_path: Path) -> None:
    with ExperimentDir(tmp_path, make_spec().identity), pytest.raises(AuditError, match="another benchmark"):
        ExperimentDir(tmp_path, make_spec().identity)
    ExperimentDir(tmp_path, make_spec().identity).close()


def test_fresh_removes_earlier_runs(tmp_path: Path) -> None:
    run_bench(tmp_path, make_spec(FakeTask(1), ["single"]))
    other = make_spec(FakeTask(1), ["single"], seed=2)
    with ExperimentDir(tmp_path, other.identity, fresh=True) as folder:
        assert folder.trails(0, 1) == []
        assert not Benchmark.open(other, folder).records


def test_results_file_can_be_read_back(tmp_path: Path) -> None:
    results = run_bench(tmp_path)
    assert results_from_dict(json.loads((tmp_path / "results.json").read_text())) == results


def test_other_schema_version_is_rejected(tmp_path: Path) -> None:
    values = run_bench(tmp_path).to_dict()
    assert next(iter(values)) == "schema_version"
    with pytest.raises(ValueError, match="99"):
        results_from_dict(values | {"schema_version": 99})


def test_csv_and_parquet_have_a_line_per_round(tmp_path: Path) -> None:
    import csv

    import pyarrow.parquet

    results: Results = run_bench(tmp_path, make_spec(FakeTask(2), ["single", "markovian"], epochs=2))
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * (1 + 3)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert [float(line["mean"]) for line in lines] == [line["mean"] for line in table]
    assert table[0]["generated_tokens"] == results.cells[0].records[0].rounds[0].generated_tokens


@dataclass
class Sized(FakeBackend):
    """An engine with limits on rows and memory, where a token takes a byte."""

    max_rows: int | None = None
    memory: int | None = None

    @property
    def info(self) -> EngineInfo:
        return dataclasses.replace(super().info, max_rows=self.max_rows, memory_limit_bytes=self.memory)


@pytest.mark.parametrize(
    ("max_rows", "memory", "problems"),
    [(None, None, 8), (32, None, 8), (10, None, 3), (32, 12 * 1_280, 3), (32, 1, 1), (1_000, None, 16)],
)
def test_concurrency_fills_the_rows_that_fit_into_memory(
    tmp_path: Path, max_rows: int | None, memory: int | None, problems: int
) -> None:
    spec = make_spec(FakeTask(1), ["markovian"])  # N = 4; at most 1,000 + 2 * 40 + 200 tokens per row
    with ExperimentDir(tmp_path, spec.identity) as folder:
        assert Benchmark(spec, folder).concurrency(Sized(max_rows=max_rows, memory=memory)) == problems


def refuse(*places: int) -> Callable[[GenerationRequest], None]:
    """Return the failure of a server whose policy forbids these problems."""

    def fail(request: GenerationRequest) -> None:
        if any(f"Question {place}?" in request.messages[-1]["content"] for place in places):
            raise RefusedError("http://x answers 400 (content management policy).")

    return fail


@pytest.mark.parametrize("concurrency", [1, 4])
def test_refused_problem_fails_alone(tmp_path: Path, concurrency: int) -> None:
    task = FakeTask(6)
    results = run_bench(
        tmp_path, make_spec(task, ["single"]), FakeBackend(coin, fail=refuse(1, 3, 4, 5)), concurrency=concurrency
    )
    errors = {record.problem_id: record.error for record in results.cells[0].records}
    assert [name for name, error in errors.items() if error] == ["p1", "p3", "p4", "p5"]
    assert "content management policy" in errors["p1"]
    again = run_bench(tmp_path, make_spec(task, ["single"]), FakeBackend(coin, fail=refuse(1, 3, 4)))
    assert [(row.problems, row.failed) for row in again.table] == [(3, 3)]


def test_concurrent_refusals_wait_for_an_accepted_problem(tmp_path: Path) -> None:
    backend = FakeBackend(coin, fail=refuse(0, 1, 2, 4), chunk=1)
    results = run_bench(tmp_path, make_spec(FakeTask(6), ["single"]), backend, concurrency=4)
    assert [(row.problems, row.failed) for row in results.table] == [(2, 4)]


@pytest.mark.parametrize("concurrency", [1, 2, 6])
def test_server_that_refuses_all_problems_ends_the_benchmark(tmp_path: Path, concurrency: int) -> None:
    backend = FakeBackend(coin, fail=refuse(*range(9)))
    with pytest.raises(UpstreamError, match=r"refused \d problems and accepted none.*content management"):
        run_bench(tmp_path, make_spec(FakeTask(9), ["single"]), backend, concurrency=concurrency)
    written = json.loads((tmp_path / "results.json").read_text())
    assert 3 <= len(written["cells"][0]["records"]) < 9


@pytest.mark.parametrize("only_failed", [False, True])
def test_unscored_answers_are_scored_again_without_generating(tmp_path: Path, only_failed: bool) -> None:
    methods = ["single", "markovian"]
    run_bench(tmp_path / "sound", make_spec(FakeTask(3), methods))
    failing = run_bench(tmp_path / "failing", make_spec(FakeTask(3, breaks="right"), methods))
    assert any(record.unscored for cell in failing.cells for record in cell.records)
    backend = FakeBackend(coin)
    run_bench(tmp_path / "failing", make_spec(FakeTask(3), methods), backend, only_failed=only_failed)
    assert backend.requests == []
    assert settled(tmp_path / "failing" / "results.json") == settled(tmp_path / "sound" / "results.json")


def test_results_do_not_depend_on_verifier_failures_or_added_methods(tmp_path: Path) -> None:
    run_bench(tmp_path / "whole", make_spec(FakeTask(4), ["single", "markovian"]))
    path = tmp_path / "parts"
    run_bench(path, make_spec(FakeTask(4, breaks="right"), ["single"]), stop_after=lambda records: True)
    run_bench(path, make_spec(FakeTask(4, breaks="wrong"), ["single"]))
    before = run_bench(path, make_spec(FakeTask(4), ["single"])).cells[0]
    after = run_bench(path, make_spec(FakeTask(4), ["single", "markovian"])).cells[0]
    assert settled(dataclasses.asdict(before)) == settled(dataclasses.asdict(after))
    assert settled(path / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_permanently_failing_verifier_does_not_repeat_generations(tmp_path: Path) -> None:
    spec = make_spec(FakeTask(2, breaks="right"), ["single"])
    first, backend = run_bench(tmp_path, spec), FakeBackend(coin)
    assert settled(run_bench(tmp_path, spec, backend).to_dict()) == settled(first.to_dict())
    assert backend.requests == []


def test_lone_surrogates_do_not_lose_results(tmp_path: Path) -> None:
    spec = dataclasses.replace(make_spec(FakeTask(1), ["single"]), model="m\udcff", command="mrsa bench s\udcff")
    run_bench(tmp_path, spec)
    backend = FakeBackend(coin)
    assert run_bench(tmp_path, spec, backend).model == "m\udcff"
    assert backend.requests == []
    assert json.loads((tmp_path / "results.json").read_text())["model"] == "m\ufffd"


def test_early_stopping_saves_tokens_of_the_same_draws(tmp_path: Path) -> None:
    def mostly_right(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.choice(["right", "right", "right", "wrong"]), "so " * rng.randrange(1, 9))

    methods = ["vote", "vote+posterior", "markovian", "markovian+agreement"]
    config = SMALL.replace(population=16, concurrency=4)
    results = run_bench(tmp_path, make_spec(FakeTask(3), methods, config), FakeBackend(mostly_right))
    tokens = {row.method: row.generated_tokens for row in results.table}
    assert tokens["vote+posterior"] < 0.9 * tokens["vote"]
    assert tokens["markovian+agreement"] < 0.9 * tokens["markovian"]
    assert all(not record.error for variant in results.cells for record in variant.records)
    records = {variant.name: variant.records for variant in results.cells}
    for full, early in zip(records["parallel"], records["posterior"], strict=True):
        assert full.rounds[0].traces == 16
        assert early.rounds[0].traces < 16
        assert early.rounds[0].vote == full.rounds[0].vote
    for trail in tmp_path.glob("trails/*/*.jsonl"):
        verify_file(trail)

"""Test `mrsa bench`: its table, files, exit codes and errors, and resuming with the same command."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.bench.progress import BenchProgress
from markovian_rsa_mlx.bench.recommend import COMPARED
from markovian_rsa_mlx.bench.results import Method, RoundRecord, RunRecord, results_from_dict
from markovian_rsa_mlx.bench.scoring import measure
from markovian_rsa_mlx.bench.tasks.base import Problem
from markovian_rsa_mlx.cli.bench_output import problem_line, status_line, table_text, view_lines
from markovian_rsa_mlx.confidence import Confidence
from markovian_rsa_mlx.errors import BackendError, UpstreamError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.viewer import file_page

from ..support.fakes import CharacterTokenizer, FakeBackend, SureEngine, boxed
from .conftest import Run, by_index

METHOD = (
    "--model",
    "fake/model",
    "--rounds",
    "1",
    "--population",
    "3",
    "--aggregation-size",
    "2",
    "--answer-kind",
    "text",
)


@pytest.fixture
def task(tmp_path: Path) -> str:
    """A file with three problems. `fake_model` answers 2 in two of three traces."""
    file = tmp_path / "sums.jsonl"
    rows = [{"problem": f"{n}+1?", "answer": str(n + 1)} for n in (1, 1, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def bench(mrsa: Run, fake_model: Callable[..., None], task: str, tmp_path: Path) -> Run:
    return lambda *more: mrsa("bench", task, *METHOD, "--out", str(tmp_path / "out"), *more)


def results(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_command_prints_the_table_and_writes_the_files(bench: Run, tmp_path: Path) -> None:
    ran = bench()
    assert ran.code == 0
    head, single, vote, *_ = ran.out.splitlines()
    assert head.split()[:4] == ["method", "score", "vote", "pass"]
    assert single.startswith("single ")
    assert single.split()[1] == "44.4%"
    assert single.split()[4:6] == ["-", "-"]
    assert vote.startswith("vote ")
    assert "66.7%" in vote
    assert "markovian minus delethink" in ran.out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"results.json", "results.csv", "results.parquet"}
    assert "3 of 3 problems" in ran.err
    assert "left" not in ran.err.splitlines()[-3]


def test_finished_benchmark_needs_no_engine(bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench()
    before = (tmp_path / "out" / "results.json").read_bytes()
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda *_, **__: pytest.fail("nothing is left to run")
    )
    assert bench().out == first.out
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_rescore_needs_the_folder_and_the_task_alone(
    bench: Run, mrsa: Run, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, moved = str(tmp_path / "out"), tmp_path / "moved.jsonl"
    assert bench("--methods", "single,vote", "--limit", "2-3").code == 0
    before = results(tmp_path)
    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", lambda *_, **__: pytest.fail("no model needed"))
    outdated = {**before, "answer_rules": 1}
    for record in outdated["cells"][0]["records"]:
        record["rounds"][0]["mean"], record["traces"] = 0.0, []
    (tmp_path / "out" / "results.json").write_text(json.dumps(outdated))
    identity = json.loads((tmp_path / "out" / "bench.json").read_text())
    for cell in identity["cells"].values():
        del cell["answer_tokens"]  # as in folders of earlier versions
    (tmp_path / "out" / "bench.json").write_text(json.dumps(identity))
    ran = mrsa("bench", "rescore", out)
    assert ran.code == 0
    assert "single" in ran.out
    assert "0% -> 100%" in ran.err
    after = results(tmp_path)
    changes = after["changes"]
    assert {change["trace_id"] for change in changes} == {"r0-00", "r0-02"}
    fresh = json.loads(json.dumps({**before, "changes": changes}))
    assert after["table"] == fresh["table"]
    assert (after["command"], after["limit"]) == (before["command"], "2-3")

    Path(task).rename(moved)
    assert mrsa("bench", "rescore", out).code == 1
    again = json.loads(mrsa("bench", "rescore", out, "--task", str(moved), "--json").out)
    assert again["changes"] == []
    (tmp_path / "out" / "bench.json").unlink()
    assert mrsa("bench", "rescore", out, "--task", str(moved)).code == 1


def pages(folder: Path) -> int:
    """Return the number of pages, each of which the report links to."""
    found = [page.relative_to(folder).as_posix() for page in folder.glob("pages/*/*.html")]
    report = (folder / "report.html").read_text()
    assert report.count('href="./pages/') == len(found)
    assert all(f'href="./{page}"' in report for page in found)
    return len(found)


def test_report_links_to_a_page_for_each_run_unless_refused(bench: Run, mrsa: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert bench("--methods", "single,vote", "--no-pages").code == 0
    assert pages(out) == 0
    assert "pages" not in results(tmp_path)["command"]
    assert bench("--methods", "single,vote", "--limit", "2").code == 0
    assert pages(out) == 2
    assert bench("--methods", "single,vote").code == 0
    assert pages(out) == 3
    assert mrsa("bench", "report", str(tmp_path / "gone")).code == 1


def test_bench_report_adds_pages_to_a_finished_benchmark(
    bench: Run, mrsa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("markovian_rsa_mlx.cli.bench_report.MAX_LOG_BYTES", 100)
    ran = bench("--methods", "single,vote")
    assert (ran.code, pages(out)) == (0, 0)
    assert f"mrsa bench report {out} --pages" in ran.err
    before = (out / "results.json").read_bytes()
    assert mrsa("bench", "report", str(out)).code == 0
    assert pages(out) == 0
    ran = mrsa("bench", "report", str(out), "--pages")
    assert (ran.code, ran.out) == (0, f"{out / 'report.html'}\n")
    assert pages(out) == 3
    assert (out / "results.json").read_bytes() == before
    assert bench("--methods", "single,vote", "--fresh", "--no-pages").code == 0
    assert pages(out) == 0


def test_ctrl_c_while_pages_are_written_keeps_those_so_far(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = file_page

    def stop(*arguments: Any, **options: Any) -> str:
        if options["path"].endswith("00003-1.jsonl"):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("markovian_rsa_mlx.bench.report.pages.file_page", stop)
        assert bench("--methods", "single,vote").code == 130
    assert pages(tmp_path / "out") == 2
    assert bench("--methods", "single,vote").code == 0
    assert pages(tmp_path / "out") == 3


def test_results_are_printed_if_pages_cannot_be_written(bench: Run, mrsa: Run, tmp_path: Path) -> None:
    assert bench("--methods", "single,vote", "--no-pages").code == 0
    (tmp_path / "out" / "pages").write_text("in the way")
    ran = bench("--methods", "single,vote")
    assert ran.code == 0
    assert ran.out.startswith("method")
    assert "warning: The page" in ran.err
    assert mrsa("bench", "report", str(tmp_path / "out")).code == 1


def test_same_command_without_out_uses_the_same_folder(mrsa: Run, fake_model: Any, task: str, home: Path) -> None:
    line = ("bench", task, *METHOD, "--methods", "single")
    assert mrsa(*line).code == mrsa(*line).code == 0
    assert mrsa(*line, "--thinking-tokens", "9000").code == 0
    assert len(list((home / "bench").iterdir())) == 2


def test_run_can_be_written_out(mrsa: Run, fake_model: Any, task: str, tmp_path: Path) -> None:
    ran = mrsa("bench", "run", task, *METHOD, "--methods", "vote", "--limit", "2-3", "--out", str(tmp_path / "out"))
    assert ran.code == 0
    assert results(tmp_path)["problems"] == 2
    assert "mrsa bench" in results(tmp_path)["command"]
    assert "--out" not in results(tmp_path)["command"]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_narrow_terminal_leaves_columns_out(bench: Run, tmp_path: Path, width: int) -> None:
    bench()
    found = results_from_dict(results(tmp_path))
    rows = table_text(found, width).split("\n\n")[0].splitlines()
    assert max(map(len, rows)) <= width
    assert len(rows) == 1 + len(found.table)
    assert rows[0].split()[:2] == ["method", "score"]
    assert ("prefill" in rows[0]) == (width == 200)


def test_json_has_table_and_comparisons(bench: Run) -> None:
    printed = json.loads(bench("--json", "--quiet", "--methods", "single,markovian:majority").out)
    assert [row["method"] for row in printed["table"]] == ["single", "markovian:majority"]
    assert printed["comparisons"][0]["problems"] == 3


def test_quiet_prints_no_status(bench: Run) -> None:
    assert bench("--quiet").err == ""


def test_failed_run_is_reported_and_exits_1(
    mrsa: Run, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: Any) -> None:
        if "2+1?" in request.messages[-1]["content"]:
            raise BackendError("out of order")

    backend = FakeBackend(by_index(boxed(2)), fail=fail)
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda choice, **_: MarkovianRSAOrchestrator(backend)
    )
    line = ("bench", task, *METHOD, "--methods", "single", "--out", str(tmp_path / "out"))
    ran = mrsa(*line)
    assert ran.code == 1
    assert "1 run failed" in ran.err
    backend.fail = None
    other = mrsa(*line, "--methods", "markovian", "--resume-only-failed")
    assert (other.code, "--resume-only-failed" in other.err) == (2, True)
    assert mrsa(*line, "--resume-only-failed").code == 0
    assert len(results(tmp_path)["cells"][0]["records"]) == 3


def test_ctrl_c_keeps_results_and_the_same_command_continues(
    mrsa: Run, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted: list[int] = []

    def interrupt(request: Any, position: int) -> None:
        if "2+1?" in request.messages[-1]["content"] and not interrupted:
            interrupted.append(position)
            signal.raise_signal(signal.SIGINT)

    backend = FakeBackend(by_index(boxed(2)), on_step=interrupt)
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda choice, **_: MarkovianRSAOrchestrator(backend)
    )
    line = ("bench", task, *METHOD, "--methods", "single", "--at-once", "1", "--out", str(tmp_path / "out"))
    ran = mrsa(*line)
    assert ran.code == 130
    assert "Continue with the same command" in ran.err
    assert len(results(tmp_path)["cells"][0]["records"]) == 2
    backend.on_step = None
    assert mrsa(*line).code == 0
    assert len(results(tmp_path)["cells"][0]["records"]) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--limit", "0"), "--limit"),
        (("--limit", "9-3"), "'9-3'"),
        (("--limit", "7-9"), "no problem 7"),
        (("--methods", "guess"), "There is no method 'guess'"),
        (("--grid", "nowhere.toml"), "nowhere.toml"),
        (("--population", "1"), "aggregation_size must be"),
    ],
)
def test_invalid_option_is_one_error_and_leaves_no_folder(
    bench: Run, more: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    ran = bench(*more)
    assert ran.code in (1, 2)
    assert ran.err.count("error:") == 1
    assert words in ran.err
    assert not (tmp_path / "out").exists()


def test_changed_setting_is_rejected_with_the_difference(bench: Run) -> None:
    bench("--methods", "markovian")
    ran = bench("--methods", "markovian", "--temperature", "0.5")
    assert ran.code == 2
    assert "temperature of markovian: " in ran.err
    assert bench("--methods", "markovian", "--temperature", "0.5", "--fresh").code == 0


@pytest.mark.parametrize(
    "setting",
    [
        "token_budget = 100",
        "seed = 3",
        'early_stop = "agreement"',
        "final_candidates = 2",
        'answer_selection = "majority"',
    ],
)
def test_setting_that_the_benchmark_decides_is_rejected(bench: Run, tmp_path: Path, setting: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(setting)
    ran = bench("--config", str(file))
    assert ran.code == 2
    assert f"{setting.split()[0]} = " in ran.err


def test_missing_model_leaves_no_folder(mrsa: Run, task: str, tmp_path: Path) -> None:
    ran = mrsa("bench", task, "--model", "./nowhere", "--out", str(tmp_path / "out"))
    assert ran.code == 1
    assert "./nowhere" in ran.err
    assert not (tmp_path / "out").exists()


def test_embedded_reasoner_rejects_other_problems(mrsa: Run, task: str) -> None:
    ran = mrsa("bench", task, "--answer-kind", "text")
    assert ran.code == 2
    assert "not trained for these problems" in ran.err


def test_other_revision_is_another_model(bench: Run) -> None:
    assert bench("--methods", "single").code == 0
    ran = bench("--methods", "single", "--revision", "v2")
    assert ran.code == 2
    assert "'fake/model@v2'" in ran.err


def test_grid_runs_every_valid_point(bench: Run, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('methods = ["single", "markovian"]\n[grid]\nC = [1, 2, 5]\n')
    ran = bench("--grid", str(file))
    assert ran.code == 0
    assert "C=5 is left out" in ran.err
    assert "C=5 is left out" in bench("--grid", str(file), "--quiet").err
    assert [cell["name"] for cell in results(tmp_path)["cells"]] == ["parallel", "markovian C=1", "markovian C=2"]


@pytest.mark.parametrize("missing", ["reasoning_gym", "pyarrow", "scipy"])
def test_missing_library_is_one_error_with_the_command_to_install_it(
    mrsa: Run, fake_model: Any, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    ran = mrsa("bench", "countdown", *METHOD[:-2], "--limit", "1")
    assert ran.code == 1
    assert "Install the package with its extra bench" in ran.err
    assert ran.err.count("\n") == 1


def progress(clock: Callable[[], float]) -> BenchProgress:
    methods = [Method("single", "parallel", "mean", True), Method("markovian", "markovian")]
    return BenchProgress(methods, {"parallel": 0, "markovian": 0}, clock, total=4)


def record(mean: float) -> RunRecord:
    only = RoundRecord(0, 4, mean, 1.0, 1.0, 1.0, 4, 2, 80, 20, 1.0, 80.0)
    return RunRecord(0, "p\x1b[31m0", 1, 7, "t", rounds=(only,), correct=1.0)


def test_progress_has_time_left_and_mean_scores() -> None:
    now = [0.0]
    state = progress(lambda: now[0])
    assert state.time_left_s() is None
    now[0] = 10.0
    state.tokens(500)
    state.run_done("parallel", record(0.25))
    state.run_done("markovian", record(0.75))
    state.problem_done(Problem(0, "p", "?", "!"), 1, [])
    assert state.time_left_s() == pytest.approx(30.0)
    assert "1 of 4 problems · 2 of 8 runs" in status_line(state)
    assert "about 30.0 s left" in status_line(state)
    narrow = status_line(state, 40)
    assert len(narrow) <= 40
    assert narrow.startswith("1 of 4 problems")
    assert "about 30.0 s left" in narrow
    assert [line.split() for line in view_lines(state)[1:]] == [["single", "25.0%"], ["markovian", "75.0%"]]


def test_problem_line_is_free_of_escape_sequences() -> None:
    line = problem_line(progress(lambda: 0.0), Problem(0, "p\x1b[31m0", "?", "!"), 2, [record(1.0)])
    assert line.startswith("problem p0, epoch 2: 1 of 1 runs correct")
    assert "\x1b" not in line


@pytest.mark.parametrize("error", [UpstreamError("the server is gone"), RuntimeError("a bug")])
def test_fatal_error_leaves_table_and_report_of_the_results_so_far(
    mrsa: Run, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(request: Any) -> None:
        if "2+1?" in request.messages[-1]["content"]:
            raise error

    backend = FakeBackend(by_index(boxed(2)), fail=fail)
    if isinstance(error, RuntimeError):
        backend.on_step, backend.fail = None, None
        monkeypatch.setattr("markovian_rsa_mlx.bench.scoring.measure", _breaks_at_the_third(error))
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda choice, **_: MarkovianRSAOrchestrator(backend)
    )
    ran = mrsa(
        "bench", task, *METHOD, "--methods", "single", "--at-once", "1", "--json", "--out", str(tmp_path / "out")
    )
    assert ran.code == 1
    assert json.loads(ran.out)["table"][0]["problems"] == 2
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert str(error) in ran.err.splitlines()[-1]
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "results.parquet").exists()


def _breaks_at_the_third(error: Exception) -> Callable[..., Any]:
    calls: list[int] = []

    def measured(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return measure(*arguments, **named)

    return measured


def test_recommendation_ends_the_table_and_needs_no_model_afterwards(
    bench: Run, mrsa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = bench("--recommend")
    assert ran.code == 0
    assert ran.out.rstrip().split("\n\n")[-1].startswith("Cannot tell yet: ")
    assert [method["name"] for method in results(tmp_path)["methods"]] == list(COMPARED)
    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", lambda *_, **__: pytest.fail("no model needed"))
    again = mrsa("bench", "recommend", str(tmp_path / "out"))
    assert again.out.strip() == ran.out.rstrip().split("\n\n")[-1]
    found = json.loads(mrsa("bench", "recommend", str(tmp_path / "out"), "--json").out)
    assert (found["sure"], found["problems"]) == (False, 3)
    assert mrsa("bench", "recommend", str(tmp_path)).code == 1


def test_votes_are_weighted_without_a_model(
    bench: Run, mrsa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_answer(request: Any, ids: Any) -> Confidence:
        return Confidence(-0.1, -0.1) if "{3}" in CharacterTokenizer().decode(ids) else Confidence(-2.0, -2.0)

    out = str(tmp_path / "out")
    assert bench("--methods", "vote").code == 0
    without = mrsa("bench", "votes", out)
    assert (without.code, without.out, without.err.count("\n")) == (2, "", 1)
    assert "--trace-confidence" in without.err

    engine = SureEngine(by_index(boxed(2), boxed(3), boxed(2)), sureness=by_answer)
    monkeypatch.setattr(
        "markovian_rsa_mlx.cli.run.load_orchestrator", lambda *_, **__: MarkovianRSAOrchestrator(engine)
    )
    assert bench("--methods", "vote,markovian", "--trace-confidence", "--fresh").code == 0
    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", lambda *_, **__: pytest.fail("no model needed"))
    found = json.loads(mrsa("bench", "votes", out, "--json").out)
    vote, markovian = found["methods"]
    assert (vote["method"], vote["vote"]["mean"], markovian["method"]) == ("vote", pytest.approx(2 / 3), "markovian")
    assert {each["rule"]: each["score"]["mean"] for each in vote["weighted"]} == {
        "mean_logprob": pytest.approx(1 / 3),
        "lowest_window_logprob": pytest.approx(1 / 3),
        "top_half": pytest.approx(2 / 3),  # one trace with each answer is left, and the earlier one wins
    }
    shown = mrsa("bench", "votes", str(tmp_path / "out" / "results.json"))
    assert (shown.code, shown.err) == (0, "")
    assert [line.split()[:2] for line in shown.out.splitlines()[2:5]] == [
        *(["mean", "33.3%"], ["lowest", "window"], ["top", "half"]),
    ]
    (Path(out) / "trails" / "parallel" / "00001-1.jsonl").unlink()
    assert "1 run without a readable audit log" in mrsa("bench", "votes", out).err
    assert mrsa("bench", "votes", str(tmp_path / "nowhere")).code == 1


def test_long_trace_is_left_out_where_the_context_is_too_short(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = FakeBackend(by_index(boxed(2, "1+1"), boxed(0, "1-1")), context_length=1_199)
    monkeypatch.setattr("markovian_rsa_mlx.cli.run.load_orchestrator", lambda *_, **__: MarkovianRSAOrchestrator(short))
    ran = bench("--recommend", "--thinking-tokens", "100", "--final-tokens", "100", "--tail-tokens", "40", "--json")
    assert ran.code == 0
    assert "long" not in {method["name"] for method in results(tmp_path)["methods"]}
    assert "One long trace is left out" in ran.err
    assert json.loads(ran.out)["recommendation"]["problems"] == 3

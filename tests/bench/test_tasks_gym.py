"""Test procedural tasks: problems drawn from a seed, and verifiers that do not run a model's code."""

from __future__ import annotations

import ast
import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx.bench.tasks.gym import GymTask
from markovian_rsa_mlx.bench.tasks.loader import load_task
from markovian_rsa_mlx.bench.tasks.options import base_task_name, read_params
from markovian_rsa_mlx.bench.tasks.sandbox import RefusedCodeError, require_expression
from markovian_rsa_mlx.errors import ConfigError, ScoringError, TaskError
from markovian_rsa_mlx.reasoner import puzzles

#: A stand-in for reasoning-gym with one data set, whose verifier evaluates, fails, hangs or exits.
FAKE = """
import os, time
from dataclasses import dataclass, fields

@dataclass
class Config:
    seed: int = 0
    size: int = 500
    low: int = 1
    gaps: bool = False

class Dataset:
    def __init__(self, config):
        assert config.low >= 1, "low must be at least 1"
        self.config = config
        print("a library that prints")

    def __getitem__(self, index):
        if self.config.gaps and index % 2:
            raise ValueError("no entry found for this index")
        value = self.config.low + index + 100 * self.config.seed
        return {"question": f"Write {value}.", "answer": str(value), "metadata": {"hash": hash("x")}}

    def score_answer(self, answer, entry):
        if answer == "raise":
            raise RuntimeError("a verifier that fails")
        if answer == "hang":
            time.sleep(60)
        if answer == "leave":
            os._exit(3)
        try:
            return 1.0 if eval(answer) == int(entry["answer"]) else 0.25
        except Exception:
            return 0.01

DATASETS = {"fake": (Dataset, Config)}

def create_dataset(name, **settings):
    return Dataset(Config(**settings))
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym").mkdir()
    (tmp_path / "reasoning_gym" / "__init__.py").write_text("")
    (tmp_path / "reasoning_gym" / "factory.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def fake(library: None) -> Iterator[GymTask]:
    task = GymTask("fake", {}, 3)
    yield task
    task.close()


def test_problems_follow_from_the_seed_and_keep_their_places(fake: GymTask) -> None:
    found = fake.problems((2, 4))
    assert [(p.index, p.problem_id, p.question) for p in found] == [
        (1, "1", "Write 302."),
        (2, "2", "Write 303."),
        (3, "3", "Write 304."),
    ]
    assert fake.name == "fake#3"
    assert [fake.score(found[0], answer) for answer in ("302", "300 + 2", "303", "no", "")] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert fake.score(found[2], "304") == 1.0


@pytest.mark.usefixtures("library")
def test_parameters_gaps_and_wording_are_applied() -> None:
    options = {**read_params(["low=5", "gaps=true"]), "wording": "Now: {problem}"}
    task = load_task("fake", options, 0)
    assert [(p.problem_id, p.question) for p in task.problems((1, 3))] == [
        ("0", "Now: Write 5."),
        ("2", "Now: Write 7."),
        ("4", "Now: Write 9."),
    ]
    assert base_task_name(task.name) == "fake?gaps=true,low=5#0" != task.name


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "<answer>"),
        ({"answer_kind": "math"}, "\\boxed{}"),
        ({"wording": "{problem}"}, "Write 1."),
        ({}, "Write 1."),
    ],
)
def test_question_asks_for_a_form_of_answer(options: dict[str, str], form: str) -> None:
    task = load_task("fake", options, 0)
    (problem,) = task.problems((1, 1))
    assert problem.question.startswith("Write 1.")
    assert form in problem.question
    # A benchmark from before problems asked for a form belongs to the plain wording alone.
    assert (task.name == "fake#0") == (problem.question == "Write 1.")


@pytest.mark.usefixtures("library")
def test_data_set_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fake", "embedded-countdown", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    assert base_task_name(load_task("fake", {}, 0).name) == "fake#0"
    assert load_task("embedded-countdown", {}, 0).name == "embedded-countdown#0"
    for folder in ("mine", "./fake", str(tmp_path / "fake")):
        assert load_task(folder, {}, 0).name.startswith(f"{Path(folder).name}@")


@pytest.mark.usefixtures("library")
def test_folder_of_a_benchmark_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fake", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bench.json").write_text("{}")
    assert base_task_name(load_task("fake", {}, 0).name) == "fake#0"
    for folder in ("mine", "./fake"):
        with pytest.raises(TaskError, match="is the folder of a benchmark"):
            load_task(folder, {}, 0)


@pytest.mark.usefixtures("library")
def test_unreferenced_task_ends_its_process() -> None:
    task = GymTask("fake", {}, 0)
    task.problems((1, 1))
    assert task._worker is not None
    process = task._worker._process
    assert process.poll() is None
    del task
    gc.collect()
    assert process.poll() is not None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("spec", "params", "words"),
    [
        ("fake", ["low=0"], "low must be at least 1"),
        ("fake", ["height=1"], "'height' is not a parameter of fake; known are low, gaps"),
        ("fakes", [], "similar are fake"),
        ("fake", ["seed=1"], "--param seed is set by --seed"),
        ("fake", ["low"], "--param must be KEY=VALUE"),
    ],
)
def test_invalid_data_set_or_parameter_is_one_error(spec: str, params: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_task(spec, read_params(params), 0).problems((1, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("library")
def test_filter_without_matches_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.bench.tasks.gym._MAX_MISSES", 50)
    with pytest.raises(TaskError, match="gave 0 problems and then none for"):
        GymTask("fake", {}, 0, keep=lambda entry: False).problems((1, 1))


def test_verifier_that_raises_hangs_or_exits_fails_one_answer(fake: GymTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.bench.tasks.gym.SCORE_LIMIT_S", 1.0)
    (problem,) = fake.problems((1, 1))
    with pytest.raises(ScoringError, match=r"failed on an answer \(RuntimeError: a verifier that fails\)"):
        fake.score(problem, "raise")
    with pytest.raises(ScoringError, match="gave no score"):
        fake.score(problem, "hang")
    assert fake.score(problem, "301") == 1.0
    with pytest.raises(ScoringError):
        fake.score(problem, "leave")
    assert fake.score(problem, "301") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch {file}') or 301",
        "open('{file}', 'w') and 301",
        "(lambda: open('{file}', 'w'))() and 301",
        "[open('{file}', 'w') for x in (1,)] and 301",
        "().__class__.__base__.__subclasses__() and 301",
        'exec(\'open("{file}", "w")\') or 301',
        "eval('301')",
        "getattr(1, 'real') and 301",
    ],
)
def test_verifier_that_evaluates_answers_runs_no_code(fake: GymTask, tmp_path: Path, answer: str) -> None:
    (problem,) = fake.problems((1, 1))
    file = tmp_path / "touched"
    assert fake.score(problem, answer.replace("{file}", str(file))) == 0.0
    assert not file.exists()
    assert fake.score(problem, "301") == 1.0


@pytest.mark.parametrize(
    "text", ["1 + 2 * 3", "[[1, 2], ['a', 'b']]", "sqrt(2)", "Symbol('x')**Integer(2)", "-x if x else 1"]
)
def test_plain_expression_is_accepted(text: str) -> None:
    require_expression(compile(text, "<string>", "eval"))


@pytest.mark.parametrize("text", ["x.y", "lambda: 1", "[x for x in y]", "__name__", "(x := 1)", "sympify('1')"])
def test_other_code_is_refused(text: str) -> None:
    with pytest.raises(RefusedCodeError):
        require_expression(compile(text, "<string>", "eval"))


def test_loading_a_task_imports_no_heavy_library() -> None:
    code = (
        "import sys; from markovian_rsa_mlx.bench.tasks.loader import load_task; load_task('countdown', {}, 1); "
        "assert not {'reasoning_gym', 'numpy', 'pyarrow', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_embedded_countdown_has_held_out_puzzles() -> None:
    task = load_task("embedded-countdown", {}, 1)
    found = task.problems((1, 4))
    assert [("Final answer format" in p.question) for p in found] == [True, False, True, False]
    for problem in found:
        numbers = [int(digits) for digits in re.findall(r"\d+", problem.reference)]
        target = int(puzzles.evaluate(ast.parse(problem.reference, mode="eval").body))
        assert puzzles.is_held_out(numbers, target)
        assert len(puzzles.solutions(numbers, target)) >= puzzles.MIN_SOLUTIONS
        assert task.score(problem, problem.reference) == 1.0
        assert task.score(problem, "1 + 1") == 0.0
        assert task.score(problem, "__import__('os').getpid()") == 0.0
    assert task.answer_kind == "text"
    assert task.problems((3, 3)) == [found[2]]


def test_unfiltered_countdown_has_held_out_puzzles_with_few_solutions() -> None:
    task = load_task("embedded-countdown-unfiltered", {}, 1)
    found = task.problems((1, 12))
    solutions = []
    for problem in found:
        numbers = [int(digits) for digits in re.findall(r"\d+", problem.reference)]
        target = int(puzzles.evaluate(ast.parse(problem.reference, mode="eval").body))
        assert 10 <= target <= 50
        assert puzzles.is_held_out(numbers, target)
        assert puzzles.trained_wording(problem.question) == problem.question
        solutions.append(len(puzzles.solutions(numbers, target)))
    assert min(solutions) < puzzles.MIN_SOLUTIONS
    task.close()


SWEEP = """
import json, sys
from markovian_rsa_mlx.bench.tasks.options import base_task_name
from markovian_rsa_mlx.bench.tasks.sandbox import Sandbox
import reasoning_gym
from reasoning_gym.factory import DATASETS
sandbox, scores = Sandbox(), {}
for name in sorted(DATASETS):
    try:
        dataset = reasoning_gym.create_dataset(name, seed=1, size=3)
        entry = dataset[0]
        plain = dataset.score_answer(entry["answer"], entry=entry)
    except Exception as error:
        scores[name] = ["skipped", repr(error)[:80]]
        continue
    try:
        with sandbox:
            scores[name] = [plain, dataset.score_answer(entry["answer"], entry=entry)]
    except Exception as error:
        scores[name] = [plain, repr(error)]
print("\\n" + json.dumps(scores))
"""


@pytest.mark.slow
def test_sandbox_changes_no_score_of_any_data_set() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SWEEP], check=True, capture_output=True, text=True)
    scores = json.loads(done.stdout.splitlines()[-1])
    compared = {name: pair for name, pair in scores.items() if pair[0] != "skipped"}
    assert len(compared) == len(scores) - 1, scores  # composite needs parameters
    assert {name: pair for name, pair in compared.items() if pair[0] != pair[1]} == {}

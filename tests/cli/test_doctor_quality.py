"""Test `mrsa doctor --quality` on fake models, and its questions."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.recommend import COMPARED
from markovian_rsa_mlx.cli.doctor_checks import Line, Subject
from markovian_rsa_mlx.cli.doctor_quality import QUESTIONS, _Questions, check_quality
from markovian_rsa_mlx.cli.engine_options import ModelChoice
from markovian_rsa_mlx.equivalence import MathEquivalence
from markovian_rsa_mlx.errors import TaskError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.reasoner import puzzles

from ..support.fakes import CharacterTokenizer, FakeEngine, boxed

ANSWERS = dict(QUESTIONS)
CODEC = CharacterTokenizer()


def answer_to(request: GenerationRequest) -> int:
    prompt = CODEC.decode(request.prompt_token_ids)
    return next(answer for text, answer in QUESTIONS if text in prompt)


def model(right: Callable[[GenerationRequest], float]) -> FakeEngine:
    """A model whose traces are right with a probability that depends on the request."""

    def write(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(answer_to(request) if rng.random() < right(request) else rng.randrange(10**4, 10**5))

    return FakeEngine(write, chunk=100)


def examine(engine: FakeEngine) -> list[Line]:
    subject = Subject(MarkovianRSAOrchestrator(engine), ModelChoice("fake"), quick=True)
    return list(check_quality(subject))


def test_a_model_that_loses_by_reading_is_told_apart() -> None:
    scores, by_round, advice, little = examine(model(lambda request: float(request.trace_id.startswith("r0"))))
    assert {line.kind for line in (scores, by_round, advice, little)} == {11}
    assert scores.figures["methods"].keys() == set(COMPARED)
    assert scores.figures["methods"]["vote"]["score"] == 1.0
    assert scores.figures["methods"]["markovian"]["score"] == 0.0
    assert (by_round.state, by_round.advice) == ("warn", "Reading attempts may harm this model.")
    assert advice.seen.startswith("Use single") or advice.seen.startswith("Cannot tell yet: single")
    assert "10 questions prove little" in little.seen
    assert "differently on at least 8 of them" in little.seen
    assert "--recommend" in little.advice


def test_a_model_that_is_never_right_gets_no_recommendation() -> None:
    lines = examine(model(lambda request: 0.0))
    assert any("no method was right" in line.seen for line in lines)
    assert [line.state for line in lines] == ["ok"] * 4
    assert "differently on at least 8 of them" in lines[-1].seen


def test_a_model_that_is_always_right_needs_as_many_different_scores() -> None:
    *_, little = examine(model(lambda request: 1.0))
    assert "differently on at least 8 of them" in little.seen


def test_without_scipy_the_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise TaskError(f"{package} is missing")

    monkeypatch.setattr("markovian_rsa_mlx.cli.doctor_quality.require_extra", missing)
    (line,) = examine(model(lambda request: 1.0))
    assert (line.state, line.advice) == ("warn", "numpy is missing")


def test_answers_are_right() -> None:
    computed = (
        7 * 48 - 95,
        17 * 23 - 45,
        31 + 30 + 31 + 30,
        -(-100 // 12),
        next(n for n in range(100) if n + (n - 1) + (n - 2) == 87),
        1000 % 37,
        next(4 * n for n in range(1, 100) if 4 * n + 6 == 2 * (n + 6)),
        sum(all(n % d for d in range(2, n)) for n in range(20, 51)),
        next(w * (w + 5) for w in range(1, 50) if 2 * (w + w + 5) == 54),
        sum(range(3, 41, 3)),
    )
    assert tuple(ANSWERS.values()) == computed


def test_the_embedded_reasoner_gets_its_own_kind_of_problems() -> None:
    with MathEquivalence() as math:
        task = _Questions(True, math)
        problems = task.problems(None)
        assert len(problems) == 10
        assert all(reasoner.can_answer(problem.question) for problem in problems)
        puzzle = puzzles.demo_puzzle(0)
        first, steps = puzzles.solutions(puzzle.numbers, puzzle.target)[0]
        expression = str(first)
        for op, number in steps:
            expression = f"({expression} {op} {number})"
        assert task.score(problems[0], expression) == 1.0
        assert task.score(problems[0], "1 + 1") == task.score(problems[0], "") == 0.0
        assert _Questions(False, math).score(_Questions(False, math).problems(None)[0], "241") == 1.0

"""The check `mrsa doctor --quality`: which method suits a model, on ten built-in questions.

The questions are short problems that a small instruct model can try, with one right number each. The embedded reasoner
gets puzzles and sums of its own kind instead.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..bench.experiment import ExperimentDir
from ..bench.methods import plan
from ..bench.recommend import COMPARED, kind_of, recommend
from ..bench.results import Results
from ..bench.runner import Benchmark, BenchmarkSpec
from ..bench.stats import min_problems
from ..bench.tasks.base import Problem
from ..bench.tasks.options import MATH_WORDING
from ..bench.utils import require_extra
from ..config import RSAConfig
from ..errors import TaskError
from ..method.answers import AnswerKind
from .doctor_checks import Line, token_limit
from .terminal import amount, duration, percent

if TYPE_CHECKING:
    from ..equivalence import MathEquivalence
    from .doctor_checks import Subject

QUESTIONS: Final = (
    ("A train has 7 cars with 48 seats each. 95 seats are taken. How many seats are free?", 241),
    ("What is 17 * 23 - 45?", 346),
    ("How many days do March, April, May and June have together?", 122),
    ("A shop sells pencils in boxes of 12. Ana needs 100 pencils. How many boxes must she buy?", 9),
    ("The sum of three consecutive whole numbers is 87. What is the largest of them?", 30),
    ("What is the remainder when 1000 is divided by 37?", 1),
    ("Tom is 4 times as old as his sister. In 6 years he will be twice as old as she is then. How old is Tom now?", 12),
    ("How many prime numbers are there between 20 and 50?", 7),
    ("A rectangle is 5 cm longer than it is wide, and its perimeter is 54 cm. What is its area in square cm?", 176),
    ("What is the sum of all whole numbers from 1 to 40 that are divisible by 3?", 273),
)
#: N and T for other models than the embedded one: 16 traces a question of at most so many tokens, and 4 long ones.
_BASE: Final = RSAConfig(rounds=1, population=4, aggregation_size=2, answer_kind="math")
_TOKENS, _QUICK_TOKENS = 384, 96


@dataclass
class _Questions:
    """The questions as a task of a benchmark."""

    embedded: bool
    math: MathEquivalence
    name: str = "doctor"

    @property
    def answer_kind(self) -> AnswerKind:
        return "text" if self.embedded else "math"

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        from .. import reasoner

        if not self.embedded:
            return [
                Problem(index, f"q{index + 1}", MATH_WORDING.replace("{problem}", text), str(answer))
                for index, (text, answer) in enumerate(QUESTIONS)
            ]
        half = len(QUESTIONS) // 2
        texts = [reasoner.demo_puzzle(seed).question for seed in range(half)]
        texts += [reasoner.demo_sum(seed) for seed in range(half)]
        return [Problem(index, f"q{index + 1}", text, "") for index, text in enumerate(texts)]

    def score(self, problem: Problem, answer: str) -> float:
        from .. import reasoner

        if not answer:
            return 0.0
        if self.embedded:
            check = reasoner.answer_checker(problem.question)
            return float(check is not None and check(answer))
        return float(self.math.compare(problem.reference, answer) == "same")

    def close(self) -> None:
        pass


def check_quality(subject: Subject) -> Iterator[Line]:
    """Yield the scores of the methods, the recommendation, and what ten questions cannot tell."""
    try:
        for package in ("numpy", "scipy"):
            require_extra(package)
    except TaskError as error:
        yield Line(11, "warn", "the methods were not compared", str(error))
        return
    started_s = time.monotonic()
    results = _measure(subject)
    rows = {row.method: row for row in results.table}
    scores = ", ".join(f"{name} {percent(row.score.mean, 0)}" for name, row in rows.items())
    tokens = amount(results.generated_once, "token")
    seconds = time.monotonic() - started_s
    figures = {name: {"score": row.score.mean, "tokens": row.generated_tokens} for name, row in rows.items()}
    seen = f"{amount(results.problems, 'question')}, {tokens} in {duration(seconds)}: {scores}"
    yield Line(11, "ok", seen, figures={"methods": figures, "seconds": seconds})
    if "markovian" in rows:
        first, last = (rows["markovian"].rounds[place].mean.mean for place in (0, -1))
        by_round = f"the mean candidate was right in {percent(first, 0)} of round 0 and {percent(last, 0)} at the end"
        advice = "Reading attempts may harm this model." if last < first else ""
        yield Line(11, "warn" if advice else "ok", by_round, advice)
    found = recommend(results)
    yield Line(11, "ok", found.sentence)
    rivals = sum(kind_of(name) != "long trace" for name in rows) - 1
    little = (
        f"{amount(results.problems, 'question')} prove little: unless two methods score differently on at least "
        f"{min_problems(rivals)} of them, no difference is significant"
    )
    yield Line(11, "ok", little, "mrsa bench TASK --recommend measures your own task; 50 problems are a good start.")


def _measure(subject: Subject) -> Results:
    """Run the benchmark in a temporary folder."""
    from ..equivalence import MathEquivalence, equivalence_for
    from ..run.sync import run_sync

    with MathEquivalence() as math, tempfile.TemporaryDirectory(prefix="mrsa-doctor-") as folder:
        task = _Questions(subject.choice.embedded, math)
        limit = token_limit(subject, _QUICK_TOKENS if subject.quick else _TOKENS)
        base = _BASE.replace(thinking_tokens=limit, tail_tokens=max(1, limit // 4), final_tokens=limit)
        if subject.choice.embedded:  # as in mrsa demo: no trace finishes a sum in one round
            base = RSAConfig.embedded().replace(rounds=3, thinking_tokens=64, tail_tokens=40, final_tokens=64)
        info = subject.engine.info
        longest = base.rounds * base.thinking_tokens + base.final_tokens + limit
        methods = [name for name in COMPARED if name != "long" or (info.context_length or longest) >= longest]
        spec = BenchmarkSpec(task, task.problems(None), plan(base, methods), info.model_id, seed=1)
        with ExperimentDir(Path(folder), spec.identity) as files:
            benchmark = Benchmark.open(spec, files)
            units = benchmark.missing()
            progress = benchmark.progress(units, time.monotonic)
            run_sync(benchmark.run(units, subject.engine, equivalence_for(task.answer_kind, math), progress))
            return benchmark.results()

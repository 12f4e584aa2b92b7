"""From the command `mrsa bench run` to an order: its task, its problems, its plan and its folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..bench.fingerprint import contents
from ..bench.grid import Grid, plan, read_grid
from ..bench.identity import default_folder
from ..bench.methods import DEFAULT_METHODS
from ..bench.sitting import Order
from ..config import RSAConfig
from ..errors import ConfigError, PromptError
from .engine import ModelChoice
from .text import amount

if TYPE_CHECKING:
    from ..bench.tasks.base import Problem, Task

#: What the embedded reasoner was made for, by the name that a user would say.
_EMBEDDED_TASKS = {"countdown": "embedded-countdown", "chain_sum": "embedded-chain-sum"}
#: Settings that a benchmark decides, the values that are no contradiction, and why.
_SETTLED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "seed": ((None,), "a benchmark's seed is --seed"),
    "final_candidates": ((None, 0), "methods are compared with all N final candidates"),
    "answer_selection": (("single",), "a selection is asked for as in --methods markovian:majority"),
    "token_budget": ((None,), "methods are compared by their decode budgets"),
    "time_budget_s": ((None,), "methods are compared by their decode budgets"),
}


@dataclass(frozen=True)
class Wanted:
    """The command as given: `words` is all that stood behind `mrsa bench`."""

    words: tuple[str, ...]
    task: str
    task_options: Mapping[str, str]
    limit: str
    epochs: int
    seed: int
    methods: tuple[str, ...]
    grid: Path | None
    config: RSAConfig
    choice: ModelChoice
    at_once: int | None
    out: Path | None
    fresh: bool
    only_failed: bool
    json_output: bool
    quiet: bool


@contextmanager
def open_task(wanted: Wanted) -> Iterator[Task]:
    """The task, and its verifier's end."""
    from ..bench.tasks import load_task

    name = wanted.task
    if wanted.choice.embedded and not wanted.task_options:
        name = _EMBEDDED_TASKS.get(name, name)
    task = load_task(name, wanted.task_options, wanted.seed)
    try:
        yield task
    finally:
        task.close()


def make_order(wanted: Wanted, task: Task, served: Callable[[], str]) -> tuple[Order, Path]:
    """The order and the folder that it goes to. `served` asks an upstream for its model.

    Raises `ConfigError` or `TaskError`, and what `served` raises.
    """
    _refuse_what_is_settled(wanted.config)
    grid = read_grid(wanted.grid) if wanted.grid else Grid(points=({},))
    base = wanted.config.replace(answer_kind=task.answer_kind, seed=None, concurrency="auto", memory_limit_gb=None)
    methods = wanted.methods or grid.methods or DEFAULT_METHODS
    wanted_plan, problems = plan(base, methods, grid), task.problems(_limit(wanted.limit))
    command, weights = _command(wanted.words), weights_of(wanted.choice)
    model = _model(wanted.choice) if wanted.choice.upstream is None else served()
    order = Order(task, problems, wanted_plan, model, wanted.seed, wanted.epochs, wanted.limit, command, weights)
    points = None if wanted.grid is None else [grid.points, grid.combinations]
    return order, wanted.out or default_folder(task.name, model, wanted.seed, base, points)


def _refuse_what_is_settled(config: RSAConfig) -> None:
    """A settings file or a profile may hold what a benchmark has no use for."""
    for name, (allowed, why) in _SETTLED.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r} in the settings, but {why}; take it out.")


def located(choice: ModelChoice) -> ModelChoice:
    """The choice with whole paths: in another working directory the same words are another model."""
    if choice.upstream is not None or choice.embedded:
        return choice
    folder = Path(choice.model_id).expanduser()
    adapter = None if choice.adapter is None else str(Path(choice.adapter).expanduser().resolve())
    return replace(choice, model_id=str(folder.resolve()) if folder.is_dir() else choice.model_id, adapter=adapter)


def weights_of(choice: ModelChoice) -> str:
    """Which contents the model's name stands for here; "" for a server's, and for what is not downloaded yet."""
    from .. import reasoner

    if choice.upstream is not None:
        return ""
    model = str(reasoner.model_path()) if choice.embedded else choice.model_id
    return contents(model, choice.revision, choice.adapter)


def _model(choice: ModelChoice) -> str:
    """The model as results name it: what was put on it makes it another one."""
    revision = f"@{choice.revision}" if choice.revision else ""
    return f"{choice.model_id}{revision}{f' with {choice.adapter}' if choice.adapter else ''}"


def check_embedded(problems: Sequence[Problem]) -> str:
    """A warning where the embedded reasoner was not made for some problems; `PromptError` where for none."""
    from .. import reasoner

    able = sum(reasoner.can_answer(problem.question) for problem in problems)
    if not able:
        raise PromptError(
            f"The embedded reasoner is not made for these problems. {reasoner.CAPABILITIES} Name a model, as in "
            "--model Zyphra/ZAYA1-8B, or take countdown or chain_sum without parameters."
        )
    missed = len(problems) - able
    return f"the embedded reasoner is not made for {amount(missed, 'problem')} of {len(problems)}" if missed else ""


def _command(words: Sequence[str]) -> str:
    """The command line that gives the same results, wherever they go and however they are shown."""
    kept = list(words)
    for flag in ("--fresh", "--resume-only-failed", "--json", "--quiet", "-q"):
        kept = [word for word in kept if word != flag]
    for place in [i for i, word in enumerate(kept) if word == "--out"][::-1]:
        del kept[place : place + 2]
    return shlex.join(["mrsa", "bench", *(word for word in kept if not word.startswith("--out="))])


def _limit(text: str) -> tuple[int, int] | None:
    """`10` is the first ten, `10-20` the tenth to the twentieth."""
    if not text:
        return None
    first, dash, last = text.partition("-")
    with suppress(ValueError):
        low, high = (int(first), int(last)) if dash else (1, int(first))
        if 1 <= low <= high:
            return low, high
    raise ConfigError(f"--limit is {text!r}; allowed: a number from 1, or two as in 10-20.")

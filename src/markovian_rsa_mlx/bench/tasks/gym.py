"""Tasks of reasoning-gym: problems drawn from a seed, answers scored by the data set's own verifier.

The library runs in a process of its own with a time limit: its import takes seconds, and a verifier that evaluates an
answer must not run a model's code (see `sandbox`). Hash seeds are fixed there, so that a seed gives the same problems
on every machine.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from ...errors import ConfigError, ScoringError, TaskError
from ...method.answers import AnswerKind
from ...subprocess_worker import Worker
from ..utils import require_extra
from .base import Problem

#: Seconds to make one entry, and to score one answer.
ENTRY_LIMIT_S = 60.0
SCORE_LIMIT_S = 10.0
#: Problems without a limit, and how many indices in a row may lack an entry.
DEFAULT_COUNT = 100
_MAX_MISSES = 10_000
_WORKER = f"{__package__}.gym_subprocess"
#: Some data sets draw from an order of hashes. More threads for linear algebra would only take memory.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

#: An entry from the worker: question, answer, metadata.
Entry = Mapping[str, Any]


class GymTask:
    """A data set of reasoning-gym, with `count` problems unless a limit is given.

    Only entries that `keep` accepts are problems. `reword` may change the question at a place. An answer is right if
    the verifier gives its full score: partial credit, as for mere form, does not count.
    """

    def __init__(
        self,
        dataset: str,
        parameters: Mapping[str, Any],
        seed: int,
        *,
        name: str | None = None,
        answer_kind: AnswerKind = "text",
        tag: str = "",
        count: int = DEFAULT_COUNT,
        keep: Callable[[Entry], bool] = lambda entry: True,
        reword: Callable[[int, str], str] = lambda place, question: question,
    ) -> None:
        self._dataset, self._parameters, self._seed = dataset, dict(parameters), seed
        self._keep, self._reword, self._count = keep, reword, count
        self.answer_kind = answer_kind
        query = ",".join(f"{key}={json.dumps(value)}" for key, value in sorted(parameters.items()))
        self.name = f"{name or dataset}{'?' + query if query and name is None else ''}#{seed}{tag}"
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def problems(self, limit: tuple[int, int] | None) -> list[Problem]:
        first, last = limit or (1, self._count)
        problems: list[Problem] = []
        index = place = misses = 0
        while place < last:
            try:
                entry = self._request({"entry": index}, ENTRY_LIMIT_S)
            except OSError as error:
                raise TaskError(
                    f"{self._dataset} of reasoning-gym gave no problem {index} within {ENTRY_LIMIT_S:g} s; "
                    "choose other parameters (--param)."
                ) from error
            if "refused" in entry:
                raise ConfigError(f"reasoning-gym cannot make the task {self._dataset!r}: {entry['refused']}.")
            if "error" in entry or not self._keep(entry):  # some indices lack an entry: the draw found none
                misses += 1
            else:
                if place + 1 >= first:
                    text = entry["question"]
                    problems.append(Problem(place, str(index), self._reword(place, text), str(entry["answer"]), text))
                place, misses = place + 1, 0
            index += 1
            if misses > _MAX_MISSES:
                raise TaskError(f"{self.name} gave {place} problems and then none for {misses} entries; ask for fewer.")
        return problems

    def score(self, problem: Problem, answer: str) -> float:
        if not answer:
            return 0.0
        try:
            reply = self._request({"score": int(problem.problem_id), "answer": answer}, SCORE_LIMIT_S)
        except OSError as error:
            raise ScoringError(
                f"The verifier of {self._dataset} gave no score for an answer within {SCORE_LIMIT_S:g} s."
            ) from error
        if "error" in reply:
            raise ScoringError(f"The verifier of {self._dataset} failed on an answer ({reply['error']}).")
        return 1.0 if reply["score"] >= 1.0 else 0.0

    def close(self) -> None:
        """End the worker process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _request(self, question: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Return the worker's reply, starting the worker where needed. Raises `OSError`."""
        with self._lock:
            try:
                if self._worker is None:
                    if find_spec("reasoning_gym") is None:
                        require_extra("reasoning_gym")  # raises the error with the command to install it
                    arguments = (self._dataset, str(self._seed), json.dumps(self._parameters))
                    self._worker = Worker(_WORKER, arguments, start_limit_s=120.0, env=_ENVIRONMENT)
                reply: dict[str, Any] = json.loads(self._worker.ask(json.dumps(question).encode(), limit_s))
                return reply
            except BaseException:  # also Ctrl-C: a pending reply must not answer the next question
                self.close()
                raise


def is_dataset(name: str, seed: int) -> bool:
    """Return whether reasoning-gym is installed and has a data set of this name. Takes seconds."""
    if find_spec("reasoning_gym") is None:
        return False
    task = GymTask(name, {}, seed)
    try:
        return bool(task._request({"known": name}, ENTRY_LIMIT_S)["known"])
    except OSError:
        return False
    finally:
        task.close()


def read_parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the `--param` options of a task: numbers, lists, true and false as in JSON, otherwise text."""
    parameters: dict[str, Any] = {}
    for key, text in options.items():
        if not key.startswith("param."):
            continue
        name = key.removeprefix("param.")
        if name in ("seed", "size"):
            raise ConfigError(f"--param {name} is set by {'--seed' if name == 'seed' else '--limit'}; leave it out.")
        try:
            parameters[name] = json.loads(text)
        except ValueError:
            parameters[name] = text
    return parameters

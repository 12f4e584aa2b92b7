"""The process that holds a reasoning-gym dataset: it makes entries and scores answers, and is told nothing else.

`python -m ...gym_subprocess NAME SEED PARAMETERS` (JSON). A question is `{"entry": index}`, `{"score": index, "answer":
text}` or `{"known": name}`; a reply is `{"question", "answer", "metadata"}`, `{"score": number}`, `{"known": true or
false}`, `{"error": words}`, or `{"refused": words}` where there can be no such dataset. What a model wrote reaches the
verifier under `vetting` only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import sys
import warnings
from functools import lru_cache
from typing import Any

from ...subprocess_worker import claim_stdout, serve
from .sandbox import Vetting

#: Bytes of address space: an answer like 10**10**10 must not take the machine's memory.
_MOST_MEMORY = 8 * 10**9
#: Entries are made by their index; the dataset's own size bounds nothing but its iteration.
_SIZE = 10**6


class _Gym:
    """Answers the questions; a dataset that cannot be made answers each with the reason."""

    def __init__(self, name: str, seed: int, parameters: dict[str, Any]) -> None:
        self._refusal = ""
        try:
            self._dataset = _dataset(name, {"seed": seed, "size": _SIZE, **parameters})
        except Exception as error:  # the dataset's own checks are asserts, mostly
            self._refusal = str(error) or type(error).__name__
        self._entry = lru_cache(maxsize=256)(self._make_entry)
        self._vetting = Vetting()

    def __call__(self, line: bytes) -> bytes:
        question = json.loads(line)
        try:
            reply = self._reply(question)
        except Exception as error:  # a verifier may fail in any way, and goes on with the next answer
            reply = {"error": f"{type(error).__name__}: {error}"}
        return json.dumps(reply, default=str).encode()

    def _reply(self, question: dict[str, Any]) -> dict[str, Any]:
        if "known" in question:
            return {"known": _is_known(question["known"])}
        if self._refusal:
            return {"refused": self._refusal}
        return self._score(question) if "score" in question else self._tell(self._entry(question["entry"]))

    def _make_entry(self, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = self._dataset[index]
        # Whatever the verifier imports when it first runs is imported before anything is forbidden.
        with contextlib.suppress(Exception):
            self._dataset.score_answer(entry["answer"], entry=entry)
        return entry

    @staticmethod
    def _tell(entry: dict[str, Any]) -> dict[str, Any]:
        return {name: entry.get(name) for name in ("question", "answer", "metadata")}

    def _score(self, question: dict[str, Any]) -> dict[str, Any]:
        entry = self._entry(question["score"])
        self._vetting.watch(True)
        try:
            return {"score": float(self._dataset.score_answer(question["answer"], entry=entry))}
        finally:
            self._vetting.watch(False)


def _is_known(name: str) -> bool:
    from reasoning_gym.factory import DATASETS

    return name in DATASETS


def _dataset(name: str, settings: dict[str, Any]) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f", close are {', '.join(close)}" if close else ""
        raise ValueError(f"it has no data set of this name{hint}; mrsa bench run --help says what else is a task")
    _, config = DATASETS[name]
    known = [field.name for field in dataclasses.fields(config) if field.name not in ("seed", "size")]
    for key in settings:
        if key not in (*known, "seed", "size"):
            raise ValueError(f"{key!r} is no parameter of {name}; known are {', '.join(known)}")
    return create_dataset(name, **settings)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; macOS may refuse
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))


if __name__ == "__main__":
    with claim_stdout() as _replies:
        warnings.simplefilter("ignore")
        _limit_memory()
        _gym = _Gym(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
        serve(_gym, sys.stdin.buffer, _replies)

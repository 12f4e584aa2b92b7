"""The worker process of a reasoning-gym data set: makes entries and scores answers.

Run as `python -m ...gym_subprocess NAME SEED PARAMETERS` (JSON). A question is `{"entry": index}`, `{"score": index,
"answer": text}` or `{"known": name}`. A reply is `{"question", "answer", "metadata"}`, `{"score": number}`, `{"known":
true or false}`, `{"error": text}`, or `{"refused": text}` if the data set cannot be made. The verifier sees text of a
model only inside the `sandbox`.
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
from .sandbox import Sandbox

#: Bytes of address space: an answer like 10**10**10 must not take the machine's memory.
_MAX_MEMORY = 8 * 10**9
#: Entries are made by index, so the size of a data set only limits its iteration.
_SIZE = 10**6


class _Gym:
    """Answers the questions. A data set that cannot be made answers each one with the reason."""

    def __init__(self, name: str, seed: int, parameters: dict[str, Any]) -> None:
        self._refusal = ""
        try:
            self._dataset = _make_dataset(name, {"seed": seed, "size": _SIZE, **parameters})
        except Exception as error:  # mostly asserts: the data set's own checks
            self._refusal = str(error) or type(error).__name__
        self._entry = lru_cache(maxsize=256)(self._make_entry)
        self._sandbox = Sandbox()

    def __call__(self, line: bytes) -> bytes:
        question = json.loads(line)
        reply: dict[str, Any]
        try:
            if "known" in question:
                from reasoning_gym.factory import DATASETS

                reply = {"known": question["known"] in DATASETS}
            elif self._refusal:
                reply = {"refused": self._refusal}
            elif "score" in question:
                entry = self._entry(question["score"])
                with self._sandbox:
                    reply = {"score": float(self._dataset.score_answer(question["answer"], entry=entry))}
            else:
                entry = self._entry(question["entry"])
                reply = {name: entry.get(name) for name in ("question", "answer", "metadata")}
        except Exception as error:  # a verifier may fail in any way and must continue with the next answer
            reply = {"error": f"{type(error).__name__}: {error}"}
        return json.dumps(reply, default=str).encode()

    def _make_entry(self, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = self._dataset[index]
        # Have the verifier import all that it needs before the sandbox forbids imports.
        with contextlib.suppress(Exception):
            self._dataset.score_answer(entry["answer"], entry=entry)
        return entry


def _make_dataset(name: str, settings: dict[str, Any]) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f", similar are {', '.join(close)}" if close else ""
        raise ValueError(f"it has no data set of this name{hint}; mrsa bench run --help lists the other tasks")
    _, config = DATASETS[name]
    known = [field.name for field in dataclasses.fields(config) if field.name not in ("seed", "size")]
    for key in settings:
        if key not in (*known, "seed", "size"):
            raise ValueError(f"{key!r} is not a parameter of {name}; known are {', '.join(known)}")
    return create_dataset(name, **settings)


if __name__ == "__main__":
    with claim_stdout() as _replies:
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows; macOS may refuse
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
        serve(_Gym(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])), sys.stdin.buffer, _replies)

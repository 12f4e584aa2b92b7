"""The folder of a benchmark: whose it is, its lock, its trails, its results; written so that a kill loses nothing.

    bench.json         what may not change between two sittings
    trails/CELL/...    a trail for each run: the truth, from which everything else can be made again
    results.json ...   see `results` and `export`

Knows nothing of engines or tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..config import RSAConfig
from ..errors import AuditError, ConfigError, ResumeError
from ..run.resume import FREE_SETTINGS
from ..store import runs_folder
from .results import Results, results_from_dict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_RESULTS = ("results.json", "results.csv", "results.parquet", "report.html")


@dataclass(frozen=True)
class Identity:
    """What a benchmark's folder is for. Methods, problems and epochs may be added later; these may not change."""

    task: str
    model: str
    seed: int
    cells: Mapping[str, Mapping[str, Any]]  #: settings by cell, those left out that change no outcome

    @classmethod
    def of(cls, task: str, model: str, seed: int, configs: Mapping[str, RSAConfig]) -> Identity:
        return cls(task, model, seed, {name: method_settings(config) for name, config in configs.items()})


def method_settings(config: RSAConfig) -> dict[str, Any]:
    """All settings but those that change how a run is carried out and not what it computes, and the seed."""
    return {name: value for name, value in config.to_dict().items() if name not in FREE_SETTINGS | {"seed"}}


def default_folder(task: str, model: str, seed: int, base: RSAConfig, points: object = None) -> Path:
    """Where a benchmark goes unless it is told: the same command finds the same folder."""
    told = json.dumps([task, model, seed, method_settings(base), points], sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return runs_folder().parent / "bench" / f"{slug(task)[:40]}-{slug(Path(model).name)[:40]}-{digest}"


def slug(text: str) -> str:
    """A name as a part of a path."""
    return re.sub(r"[^A-Za-z0-9.=@]+", "-", text).strip("-.") or "-"


class Folder:
    """An opened and locked folder; a context manager.

    Raises `ResumeError` with the difference where it belongs to another benchmark, `AuditError` where another process
    writes it or it cannot be written. `fresh` removes what an earlier benchmark left there.
    """

    def __init__(self, path: Path, identity: Identity, *, fresh: bool = False) -> None:
        self.path, self._lock = path, -1
        self._is_new = not (path / "bench.json").exists()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._refuse_a_strangers_folder()
            self._lock = self._take_lock()
            if fresh:
                self._remove_all()
            self._check(identity)
        except OSError as error:
            self.close()
            raise AuditError(
                f"The folder {path} cannot be written: {error.strerror}; give --out another one."
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unlock; a folder that was made for a benchmark that never began goes. A second time does nothing."""
        if self._lock >= 0:
            if self._is_new and not (self.path / "trails").exists() and not (self.path / "results.json").exists():
                for name in (".lock", "bench.json"):
                    (self.path / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            os.close(self._lock)
            self._lock = -1

    def trail(self, cell: str, index: int, epoch: int) -> Path:
        """The trail of one run. Problems are counted from 1 where a person reads."""
        return self.path / "trails" / slug(cell) / f"{index + 1:05d}-{epoch}.jsonl"

    def trails(self, index: int, epoch: int) -> list[Path]:
        """The trails of one problem that exist, of whatever cell."""
        return sorted(self.path.glob(f"trails/*/{index + 1:05d}-{epoch}.jsonl"))

    def read_results(self) -> Results | None:
        """The results of earlier sittings; None where there are none that this version can read."""
        try:
            return results_from_dict(json.loads((self.path / "results.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_results(self, results: Results) -> None:
        self.write("results.json", (json.dumps(results.to_dict(), ensure_ascii=False, indent=1) + "\n").encode())

    def write(self, name: str, content: bytes) -> Path:
        """A file, whole or not at all. Raises `AuditError`."""
        path = self.path / name
        part = path.with_name(f".{name}.part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise AuditError(f"{path} cannot be written: {error.strerror}.") from error
        return path

    def _refuse_a_strangers_folder(self) -> None:
        """Trails are never mixed with, or removed from, what is no benchmark's."""
        if not (self.path / "bench.json").exists() and any(
            entry.name not in (".lock", ".bench.json.part") for entry in self.path.iterdir()
        ):
            raise ConfigError(f"The folder {self.path} holds something else than a benchmark; give --out another one.")

    def _take_lock(self) -> int:
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise AuditError(
                    f"The folder {self.path} is being written by another benchmark; wait for it, or give --out another."
                ) from error
        return lock

    def _remove_all(self) -> None:
        shutil.rmtree(self.path / "trails", ignore_errors=True)
        for name in (*_RESULTS, "bench.json"):
            (self.path / name).unlink(missing_ok=True)

    def _check(self, identity: Identity) -> None:
        file = self.path / "bench.json"
        recorded = self._recorded(file) if file.exists() else identity
        for what in ("task", "model", "seed"):
            self._compare(what, getattr(recorded, what), getattr(identity, what))
        for cell in recorded.cells.keys() & identity.cells.keys():
            there, asked = recorded.cells[cell], identity.cells[cell]
            for name in sorted(there.keys() | asked.keys()):
                self._compare(f"{name} of {cell}", there.get(name), asked.get(name))
        cells = {**recorded.cells, **identity.cells}
        values = {"format": _FORMAT, "task": identity.task, "model": identity.model, "seed": identity.seed}
        self.write("bench.json", (json.dumps(values | {"cells": cells}, ensure_ascii=False, indent=1) + "\n").encode())

    def _recorded(self, file: Path) -> Identity:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise ValueError
            return Identity(values["task"], values["model"], values["seed"], values["cells"])
        except (ValueError, KeyError, TypeError) as error:
            raise AuditError(f"{file} is damaged; give --out another folder, or --fresh to begin anew.") from error

    def _compare(self, what: str, there: object, asked: object) -> None:
        if there != asked:
            raise ResumeError(
                f"The folder {self.path} holds a benchmark with another {what}: {there!r} there, {asked!r} asked for; "
                "ask for the same, give --out another folder, or --fresh to begin anew."
            )

"""The folder of a benchmark: whose it is, its lock, its trails, its results; written so that a kill loses nothing.

    bench.json         what may not change between two sittings
    trails/CELL/...    a trail for each run: the truth, from which everything else can be made again
    results.json ...   see `results` and `export`

Knows nothing of engines or tasks.

What a benchmark's folder is for, how two such differ, and what folders and trails are called.

Pure but for `default_folder`, which asks where runs are kept, and for the text of a template's file.

Which content_digest a model's name stands for, told in a moment: small files wholly, weights by samples.

A folder that was copied is the same; one that was converted or trained anew is another, whatever its name and dates.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..config import FREE_SETTINGS, RSAConfig
from ..errors import AuditError, ConfigError, ModelError, ResumeError
from ..hub import TOKENIZER_FILES
from ..json_strict import replace_surrogates
from ..locks import try_lock
from ..method.prompts import PromptTemplate
from ..run_store import runs_folder
from .results import Results, results_from_dict

_RESULTS = ("results.json", "results.csv", "results.parquet", "report.html")


class ExperimentDir:
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
            self.check(identity)
        except OSError as error:
            self.close()
            raise AuditError(
                f"The folder {path} cannot be written: {error.strerror}; give --out another one."
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ExperimentDir:
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

    def check(self, identity: Identity) -> None:
        """See that the folder is for this, and record what it adds. Raises `ResumeError` with the difference."""
        file = self.path / "bench.json"
        recorded = self._recorded(file) if file.exists() else identity
        for what, there, asked in identity.diff(recorded):
            raise ResumeError(
                f"The folder {self.path} holds a benchmark with another {what}: {_short(there)} there, "
                f"{_short(asked)} asked for; ask for the same, give --out another folder, or --fresh to begin anew."
            )
        self.write("bench.json", _json(identity.merged(recorded).to_dict()))

    def trail(self, cell: str, index: int, epoch: int) -> Path:
        """The trail of one run. Problems are counted from 1 where a person reads."""
        return self.path / "trails" / cell_folder(cell) / f"{index + 1:05d}-{epoch}.jsonl"

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
        self.write("results.json", _json(results.to_dict()))

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
        if not try_lock(lock):
            os.close(lock)
            raise AuditError(
                f"The folder {self.path} is being written by another benchmark; wait for it, or give --out another."
            )
        return lock

    def _remove_all(self) -> None:
        shutil.rmtree(self.path / "trails", ignore_errors=True)
        for name in (*_RESULTS, "bench.json"):
            (self.path / name).unlink(missing_ok=True)

    def _recorded(self, file: Path) -> Identity:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise AuditError(
                    f"{file} is of format {values['format']!r}, and this version of the program goes on with "
                    f"{FORMAT}; give --out another folder, or --fresh to begin anew."
                )
            return Identity.from_dict(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AuditError(f"{file} is damaged; give --out another folder, or --fresh to begin anew.") from error


def _json(value: object) -> bytes:
    return replace_surrogates(json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _short(value: object, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


#: Of `bench.json`; rises when a field changes its meaning.
FORMAT: Final = 2
#: The template's file may change under its name.
_TEMPLATE: Final = "template_sha256"
#: A cell whose name can be read off its folder's: a method, and settings whose values are plain words.
_PLAIN_CELL: Final = re.compile(r"[a-z-]+(:[a-z_]+)?( [A-Za-z_]+=[a-z0-9.]+)*")
_LONGEST_SLUG: Final = 60


@dataclass(frozen=True)
class Identity:
    """What a benchmark's folder is for. Methods, problems and epochs may be added later; these may not change.

    `weights` says which contents the model's name stands for; "" where that is not known, or not known yet.
    """

    task: str
    model: str
    seed: int
    cells: Mapping[str, Mapping[str, Any]]  #: settings by cell, those left out that change no outcome
    weights: str = ""

    @classmethod
    def of(cls, task: str, model: str, seed: int, configs: Mapping[str, RSAConfig], weights: str = "") -> Identity:
        """Raises `TemplateError` where a template cannot be read."""
        cells = {name: _mended(method_settings(config)) | _template(config) for name, config in configs.items()}
        return cls(task, replace_surrogates(model), seed, cells, weights)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """What `to_dict` gave. Raises KeyError or TypeError for anything else."""
        return cls(values["task"], values["model"], values["seed"], values["cells"], values["weights"])

    def to_dict(self) -> dict[str, Any]:
        values = {"format": FORMAT, "task": self.task, "model": self.model, "weights": self.weights, "seed": self.seed}
        return values | {"cells": self.cells}

    def diff(self, recorded: Identity) -> Iterator[tuple[str, object, object]]:
        """What is not the same, as recorded and as asked for here; cells that only one of them has are none."""
        for what in ("task", "model", "seed"):
            yield from _differing(what, getattr(recorded, what), getattr(self, what))
        if recorded.weights and self.weights:
            yield from _differing("content of the model's files", recorded.weights, self.weights)
        for cell in recorded.cells.keys() & self.cells.keys():
            there, asked = recorded.cells[cell], self.cells[cell]
            for name in sorted(there.keys() | asked.keys()):
                told = f"text of the template {asked.get('template')!r}" if name == _TEMPLATE else name
                yield from _differing(f"{told} of {cell}", there.get(name), asked.get(name))

    def merged(self, recorded: Identity) -> Identity:
        """Both together, where nothing differs."""
        cells = {**recorded.cells, **self.cells}
        return Identity(self.task, self.model, self.seed, cells, self.weights or recorded.weights)


def method_settings(config: RSAConfig) -> dict[str, Any]:
    """All settings but those that change how a run is carried out and not what it computes, and the seed."""
    return {name: value for name, value in config.to_dict().items() if name not in FREE_SETTINGS | {"seed"}}


def default_folder(task: str, model: str, seed: int, base: RSAConfig, points: object = None) -> Path:
    """Where a benchmark goes unless it is told: the same command finds the same folder."""
    told = json.dumps([task, model, seed, method_settings(base), points], sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return runs_folder().parent / "bench" / f"{slug(task)[:40]}-{slug(Path(model).name)[:40]}-{digest}"


def slug(text: str) -> str:
    """A name as a part of a path; several names may have one."""
    return re.sub(r"[^A-Za-z0-9.=@]+", "-", text).strip("-.") or "-"


def cell_folder(cell: str) -> str:
    """A cell's folder of trails: its name where that is plain, else with a digest, so that no two share one."""
    name = slug(cell)
    if _PLAIN_CELL.fullmatch(cell) and len(name) <= _LONGEST_SLUG:
        return name
    return f"{name[:_LONGEST_SLUG]}-{hashlib.sha256(replace_surrogates(cell).encode()).hexdigest()[:8]}"


def _template(config: RSAConfig) -> dict[str, str]:
    source = PromptTemplate.load(config.template).source
    return {_TEMPLATE: hashlib.sha256(replace_surrogates(source).encode()).hexdigest()[:16]}


def _mended(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: replace_surrogates(value) if isinstance(value, str) else value for name, value in settings.items()}


def _differing(what: str, there: object, asked: object) -> Iterator[tuple[str, object, object]]:
    if there != asked:
        yield what, there, asked


#: What an engine reads of a model's folder, and of an adapter's.
_MODEL_FILES: Final = (*TOKENIZER_FILES, "generation_config.json", "chat_template*", "*.model", "model*.safetensors")
_ADAPTER_FILES: Final = ("adapter_config.json", "adapters.safetensors")
#: Files to this size are read wholly; of larger ones the beginning (with the list of tensors), and samples in between.
_WHOLE_BYTES, _HEAD_BYTES = 16 * 2**20, 2**20
_SAMPLES, _SAMPLE_BYTES = 512, 4096


def content_digest(model: str, revision: str | None = None, adapter: str | None = None) -> str:
    """A short text for what the model is made of; "" for one of the hub that is not on this machine yet.

    A model of the hub is told by its commit. Raises `ModelError` where a file cannot be read.
    """
    folder = Path(model).expanduser()
    told = _digest(folder, _MODEL_FILES) if folder.is_dir() else _commit(model, revision)
    if adapter is None or not told:
        return told
    return f"{told} with {_digest(Path(adapter).expanduser(), _ADAPTER_FILES)}"


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    found = hashlib.sha256()
    try:
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
            size = path.stat().st_size
            found.update(f"{path.name}|{size}|".encode(errors="surrogateescape"))
            for piece in _pieces(path, size):
                found.update(piece)
    except OSError as error:
        raise ModelError(f"A file in {str(folder)!r} cannot be read: {error.strerror}; check its rights.") from error
    return found.hexdigest()[:16]


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            yield file.read()
            return
        yield file.read(_HEAD_BYTES)
        for number in range(1, _SAMPLES + 1):  # the last one ends where the file does
            file.seek((size - _SAMPLE_BYTES) * number // _SAMPLES)
            yield file.read(_SAMPLE_BYTES)


def _commit(model: str, revision: str | None) -> str:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no id of the hub: loading it says so
        return ""
    return f"commit {Path(found).parent.name[:16]}" if isinstance(found, str) else ""

"""The folder of a benchmark: its lock, its identity, its audit logs and its results.

    bench.json         settings that must not change between sessions
    trails/CELL/...    an audit log per run, from which everything else can be derived
    pages/CELL/...     a page per run, see `report.pages`
    results.json ...   see `results` and `export`

Every file is replaced as a whole, so that a kill at any moment loses nothing.
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
from typing import Any, Final

from ..config import ADDED_SETTINGS, FREE_SETTINGS, RSAConfig
from ..errors import AuditError, ConfigError, ResumeError
from ..formatting import shortened
from ..hub import model_digest, sampled_adapter_digest, with_adapter
from ..json_strict import replace_surrogates
from ..locks import try_lock
from ..method.prompts import PromptTemplate
from ..run_store import runs_folder
from .results import Results, results_from_dict

#: The format of `bench.json`. It rises when a field changes its meaning.
FORMAT: Final = 2
_RESULTS: Final = ("results.json", "results.csv", "results.parquet", "report.html")
#: Digests of files that may change under their names: of the template's text and of the aggregation adapter.
_TEMPLATE: Final = "template_sha256"
_ADAPTER: Final = "aggregation_adapter_digest"
#: A variant whose name can be read from its folder's: a method, and settings with plain values.
_PLAIN_VARIANT: Final = re.compile(r"[a-z-]+(:[a-z_]+)?( [A-Za-z_]+=[a-z0-9.]+)*")
_MAX_SLUG: Final = 60


@dataclass(frozen=True)
class Identity:
    """The benchmark that a folder belongs to. Methods, problems and epochs may be added; these fields may not change.

    `weights` identifies the content of the model's files, or is "" if that is unknown or not known yet.
    """

    task: str
    model: str
    seed: int
    cells: Mapping[str, Mapping[str, Any]]  #: by variant, the settings that affect results
    weights: str = ""

    @classmethod
    def of(cls, task: str, model: str, seed: int, configs: Mapping[str, RSAConfig], weights: str = "") -> Identity:
        """Return the identity of a benchmark.

        Raises `TemplateError` if a template cannot be read, and `ModelError` if an adapter cannot be read.
        """
        cells = {}
        for name, config in configs.items():
            source = replace_surrogates(PromptTemplate.load(config.template).source)
            settings = method_settings(config) | {_TEMPLATE: hashlib.sha256(source.encode()).hexdigest()[:16]}
            settings |= _adapter_digest(config)
            cells[name] = {
                key: replace_surrogates(value) if isinstance(value, str) else value for key, value in settings.items()
            }
        return cls(task, replace_surrogates(model), seed, cells, weights)

    def to_dict(self) -> dict[str, Any]:
        values = {"format": FORMAT, "task": self.task, "model": self.model, "weights": self.weights, "seed": self.seed}
        return values | {"cells": self.cells}

    def diff(self, recorded: Identity) -> Iterator[tuple[str, object, object]]:
        """Yield the differences, with the recorded value and the one of this identity.

        A variant that only one of the two has is not a difference.
        """
        pairs = [(name, getattr(recorded, name), getattr(self, name)) for name in ("task", "model", "seed")]
        if recorded.weights and self.weights:
            pairs.append(("content of the model's files", recorded.weights, self.weights))
        for cell in recorded.cells.keys() & self.cells.keys():
            old, new = recorded.cells[cell], self.cells[cell]
            for key in sorted(old.keys() | new.keys()):
                names = {
                    _TEMPLATE: f"text of the template {new.get('template')!r}",
                    _ADAPTER: f"content of the aggregation adapter {new.get('aggregation_adapter')!r}",
                }
                name = names.get(key, key)
                pairs.append((f"{name} of {cell}", old.get(key), new.get(key)))
        yield from (pair for pair in pairs if pair[1] != pair[2])

    def merged(self, recorded: Identity) -> Identity:
        """Return the union of two identities without a difference."""
        cells = {**recorded.cells, **self.cells}
        return Identity(self.task, self.model, self.seed, cells, self.weights or recorded.weights)


class ExperimentDir:
    """The open and locked folder of a benchmark; a context manager.

    `fresh` removes the runs and results of an earlier benchmark. Raises `ResumeError` with the difference if the folder
    belongs to another benchmark, and `AuditError` if another process writes it or it cannot be written.
    """

    def __init__(self, path: Path, identity: Identity, *, fresh: bool = False) -> None:
        self.path, self._lock = path, -1
        self._is_new = not (path / "bench.json").exists()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Never mix audit logs with, or remove them from, a folder that is not one of a benchmark.
            if self._is_new and any(entry.name not in (".lock", ".bench.json.part") for entry in path.iterdir()):
                raise ConfigError(f"{path} has content but is not the folder of a benchmark; choose another --out.")
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
            if not try_lock(self._lock):
                self._is_new = False  # it belongs to the other process
                raise AuditError(
                    f"The folder {path} is being written by another benchmark; wait for it, or choose another --out."
                )
            if fresh:
                for name in ("trails", "pages"):
                    shutil.rmtree(path / name, ignore_errors=True)
                for name in (*_RESULTS, "bench.json"):
                    (path / name).unlink(missing_ok=True)
            self.check(identity)
        except OSError as error:
            self.close()
            raise AuditError(f"The folder {path} cannot be written: {error.strerror}; choose another --out.") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def existing(cls, path: Path) -> ExperimentDir:
        """Open the folder of a benchmark as it is."""
        return cls(path, _recorded_identity(path / "bench.json"))

    def __enter__(self) -> ExperimentDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder, and remove it if it is new and no run has started. May be called more than once."""
        if self._lock >= 0:
            if self._is_new and not (self.path / "trails").exists() and not (self.path / "results.json").exists():
                for name in (".lock", "bench.json"):
                    (self.path / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            os.close(self._lock)
            self._lock = -1

    def check(self, identity: Identity) -> None:
        """Check that the folder belongs to this benchmark, and record new variants. Raises `ResumeError`."""
        file = self.path / "bench.json"
        recorded = _recorded_identity(file) if file.exists() else identity
        for name, old, new in identity.diff(recorded):
            raise ResumeError(
                f"The folder {self.path} belongs to a benchmark with another {name}: {shortened(repr(old), 200)} in "
                f"the folder, {shortened(repr(new), 200)} requested; request the same, choose another --out, or start "
                "again with --fresh."
            )
        self.write("bench.json", json_bytes(identity.merged(recorded).to_dict()))

    def trail(self, variant: str, index: int, epoch: int) -> Path:
        """Return the path of the audit log of one run. File names count problems from 1."""
        return self.path / "trails" / cell_folder(variant) / f"{index + 1:05d}-{epoch}.jsonl"

    def trails(self, index: int, epoch: int) -> list[Path]:
        """Return the existing audit logs of one problem, of all variants."""
        return sorted(self.path.glob(f"trails/*/{index + 1:05d}-{epoch}.jsonl"))

    def read_results(self) -> Results | None:
        """Return the results of earlier sessions, or None if this version finds none that it can read."""
        try:
            return results_from_dict(json.loads((self.path / "results.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole. Raises `AuditError`."""
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


def _recorded_identity(file: Path) -> Identity:
    """Return the identity in a `bench.json`. Raises `AuditError`."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise AuditError(
                f"{file} has format {values['format']!r}, and this version of the program continues format "
                f"{FORMAT} only; choose another --out, or start again with --fresh."
            )
        # A setting that an earlier version did not have was off.
        cells = {name: {**ADDED_SETTINGS, **settings} for name, settings in values["cells"].items()}
        return Identity(values["task"], values["model"], values["seed"], cells, values["weights"])
    except OSError as error:
        raise AuditError(
            f"{file} cannot be read ({error.strerror}); name the folder of a benchmark, or choose another --out."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AuditError(f"{file} is damaged; choose another --out, or start again with --fresh.") from error


def json_bytes(value: object) -> bytes:
    """Return a value as indented JSON in UTF-8."""
    return replace_surrogates(json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def method_settings(config: RSAConfig) -> dict[str, Any]:
    """Return the settings that affect results, without the seed, as JSON has them."""
    kept = {name: value for name, value in config.to_dict().items() if name not in FREE_SETTINGS | {"seed"}}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def _adapter_digest(config: RSAConfig) -> dict[str, str]:
    """Return the digest of the aggregation adapter as an entry of settings; none without an adapter."""
    folder = config.aggregation_adapter
    return {} if folder is None else {_ADAPTER: sampled_adapter_digest(Path(folder).expanduser())}


def default_folder(task: str, model: str, *, seed: int, base: RSAConfig, points: object = None) -> Path:
    """Return the folder of a benchmark without `--out`. The same command finds the same folder."""
    own = method_settings(base) | _adapter_digest(base)
    settings = json.dumps([task, model, seed, own, points], sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    return runs_folder().parent / "bench" / f"{_slug(task)[:40]}-{_slug(Path(model).name)[:40]}-{digest}"


def cell_folder(variant: str) -> str:
    """Return the folder name of a variant: its name if that is plain, otherwise with a digest to keep it unique."""
    name = _slug(variant)
    if _PLAIN_VARIANT.fullmatch(variant) and len(name) <= _MAX_SLUG:
        return name
    return f"{name[:_MAX_SLUG]}-{hashlib.sha256(replace_surrogates(variant).encode()).hexdigest()[:8]}"


def _slug(text: str) -> str:
    """Return a name as part of a path. Different names may have the same slug."""
    return re.sub(r"[^A-Za-z0-9.=@]+", "-", text).strip("-.") or "-"


def content_digest(model: str, revision: str | None = None, adapter: str | None = None) -> str:
    """Identify the content of a model quickly: small files completely, weights by samples, a hub model by its commit.

    A copied folder has the same digest; a converted or retrained one has another, whatever its name and dates. Return
    "" for a hub model that is not on this machine yet. Raises `ModelError` if a file cannot be read.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        content = model_digest(folder)
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = None
        with contextlib.suppress(ValueError):  # not a hub id: loading the model reports it
            cached = try_to_load_from_cache(model, "config.json", revision=revision)
        content = f"commit {Path(cached).parent.name[:16]}" if isinstance(cached, str) else ""
    return content and with_adapter(content, None if adapter is None else Path(adapter).expanduser())

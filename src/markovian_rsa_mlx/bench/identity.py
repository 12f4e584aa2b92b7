"""What a benchmark's folder is for, how two such differ, and what folders and trails are called.

Pure but for `default_folder`, which asks where runs are kept, and for the text of a template's file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..config import RSAConfig
from ..method.prompts import PromptTemplate
from ..run.resume import FREE_SETTINGS
from ..store import runs_folder
from .unicode import mended

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
        return cls(task, mended(model), seed, cells, weights)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Identity:
        """What `to_dict` gave. Raises KeyError or TypeError for anything else."""
        return cls(values["task"], values["model"], values["seed"], values["cells"], values["weights"])

    def to_dict(self) -> dict[str, Any]:
        values = {"format": FORMAT, "task": self.task, "model": self.model, "weights": self.weights, "seed": self.seed}
        return values | {"cells": self.cells}

    def differences(self, recorded: Identity) -> Iterator[tuple[str, object, object]]:
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

    def joined(self, recorded: Identity) -> Identity:
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
    return f"{name[:_LONGEST_SLUG]}-{hashlib.sha256(mended(cell).encode()).hexdigest()[:8]}"


def _template(config: RSAConfig) -> dict[str, str]:
    source = PromptTemplate.load(config.template).source
    return {_TEMPLATE: hashlib.sha256(mended(source).encode()).hexdigest()[:16]}


def _mended(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mended(value) if isinstance(value, str) else value for name, value in settings.items()}


def _differing(what: str, there: object, asked: object) -> Iterator[tuple[str, object, object]]:
    if there != asked:
        yield what, there, asked

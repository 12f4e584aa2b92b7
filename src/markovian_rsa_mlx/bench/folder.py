"""The folder of a benchmark: whose it is, its lock, its trails, its results; written so that a kill loses nothing.

    bench.json         what may not change between two sittings
    trails/CELL/...    a trail for each run: the truth, from which everything else can be made again
    results.json ...   see `results` and `export`

Knows nothing of engines or tasks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType

from ..errors import AuditError, ConfigError, ResumeError
from .identity import FORMAT, Identity, cell_folder, default_folder, method_settings, slug
from .results import Results, results_from_dict
from .unicode import mended

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Folder", "Identity", "default_folder", "method_settings", "slug"]

_RESULTS = ("results.json", "results.csv", "results.parquet", "report.html")


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
            self.check(identity)
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

    def check(self, identity: Identity) -> None:
        """See that the folder is for this, and record what it adds. Raises `ResumeError` with the difference."""
        file = self.path / "bench.json"
        recorded = self._recorded(file) if file.exists() else identity
        for what, there, asked in identity.differences(recorded):
            raise ResumeError(
                f"The folder {self.path} holds a benchmark with another {what}: {_short(there)} there, "
                f"{_short(asked)} asked for; ask for the same, give --out another folder, or --fresh to begin anew."
            )
        self.write("bench.json", _json(identity.joined(recorded).to_dict()))

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
    return mended(json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def _short(value: object, most: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."

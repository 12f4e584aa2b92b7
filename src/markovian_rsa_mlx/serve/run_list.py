"""Search, filter and sort the stored runs for `GET /v1/runs` and the page that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from .. import run_store
from ..formatting import model_name
from ..run_store import RunEntry, RunStatus
from .errors import RequestError

Order = Literal["newest", "oldest", "most_tokens", "question"]
MAX_QUERY_CHARACTERS: Final = 200
_KEYS: Final[dict[Order, Callable[[RunEntry], Any]]] = {
    "oldest": lambda entry: entry.created_at,
    "most_tokens": lambda entry: -entry.generated_tokens,
    "question": lambda entry: entry.prompt.strip().casefold(),
}
#: Descriptions of finished runs are kept, of this many and of at most so many characters each.
_KEPT, _KEPT_CHARACTERS = 5_000, 10_000
_descriptions: dict[Path, tuple[int, int, RunEntry]] = {}


@dataclass(frozen=True)
class RunQuery:
    """Which runs to list, in which order. All words of `text` must be in a run's question, answer, model or id."""

    text: str = ""
    state: RunStatus | None = None
    order: Order = "newest"

    @classmethod
    def of(cls, params: Mapping[str, str]) -> Self:
        """Read the parameters `q`, `state` and `sort`. Raise `RequestError` 400 for one that is invalid."""
        text, state, order = params.get("q", ""), params.get("state", ""), params.get("sort", "newest")
        if len(text) > MAX_QUERY_CHARACTERS:
            message = f"q must have at most {MAX_QUERY_CHARACTERS} characters (got {len(text)})."
            raise RequestError(400, message, param="q")
        for name, value, known in (("state", state, ("", *get_args(RunStatus))), ("sort", order, get_args(Order))):
            if value not in known:
                choices = ", ".join(filter(None, known))
                raise RequestError(400, f"{name} must be one of {choices} (got {value[:40]!r}).", param=name)
        return cls(text, state or None, order)  # type: ignore[arg-type]

    def fits(self, entry: RunEntry) -> bool:
        """Return whether a run belongs to the list."""
        if self.state not in (None, entry.state):
            return False
        searched = "\n".join((entry.prompt, entry.answer, model_name(entry.model_id), entry.run_id)).casefold()
        return all(word in searched for word in self.text.casefold().split())

    def page(self, limit: int, last: Path | None) -> tuple[list[RunEntry], bool]:
        """Return the `limit` runs that follow the file `last`, and whether there are more.

        Raise `ValueError` if that run is not in the list.
        """
        paths = run_store.run_paths()
        if self == RunQuery():  # reads only the files of the page
            start = paths.index(last) + 1 if last is not None else 0
            return [run_store.describe(path) for path in paths[start : start + limit]], len(paths) > start + limit
        entries = [entry for entry in map(_describe, paths) if self.fits(entry)]
        if self.order != "newest":
            entries.sort(key=_KEYS[self.order])
        start = [entry.path for entry in entries].index(str(last)) + 1 if last is not None else 0
        return entries[start : start + limit], len(entries) > start + limit


def _describe(path: Path) -> RunEntry:
    """Describe a run, from memory if it is finished and its file has not changed."""
    try:
        status = path.stat()
    except OSError:
        return run_store.describe(path)
    known = _descriptions.get(path)
    if known is not None and known[:2] == (status.st_mtime_ns, status.st_size):
        return known[2]
    entry = run_store.describe(path)
    if entry.state == "finished" and len(entry.prompt) + len(entry.answer) <= _KEPT_CHARACTERS:
        if len(_descriptions) >= _KEPT:
            _descriptions.clear()
        _descriptions[path] = (status.st_mtime_ns, status.st_size, entry)
    return entry

"""Sizes of a test: a small one in the fast run, and the whole one under the `slow` mark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .audit_files import read_lines


def sizes(name: str, few: Any, many: Any) -> pytest.MarkDecorator:
    """Run a test with `few` in the fast run, and with `many` among the slow ones, as the parameter of this name."""
    whole = pytest.param(many, id="many", marks=pytest.mark.slow)
    return pytest.mark.parametrize(name, [pytest.param(few, id="few"), whole])


def places(path: Path, step: int) -> Sequence[int]:
    """Return the indices of every `step`-th line of an audit file, and of the first and last of each kind of event."""
    names = [line["event"] for line in read_lines(path)]
    first = {name: names.index(name) for name in names}
    last = {name: index for index, name in enumerate(names)}
    return sorted({*range(0, len(names), step), *first.values(), *last.values()})

"""The line of a run's settings: those that its file holds, and no default in the place of one that it does not."""

from __future__ import annotations

from typing import Any

from ..config import FIELD_NAMES
from ..wording import SYMBOLS
from .text import count, one_line
from .told import Told

#: The settings that are told, by the name that the line has for them; beta, tau and the like are token counts.
_SYMBOLS = {**SYMBOLS, "final_candidates": "F"}
#: Settings of another program that are told beside them.
_MOST_UNKNOWN = 8


def settings_line(told: Told) -> str:
    """`T=2 N=16 C=4 ..., carry tail, majority, seed 7`."""
    recorded = told.settings
    symbols = [f"{symbol}={_value(told, name)}" for name, symbol in _SYMBOLS.items() if name in recorded]
    parts = [" ".join(symbols)]
    if "carry" in recorded:
        parts.append(f"carry {_text(recorded['carry'])}")
    if "answer_selection" in recorded:
        parts.append(_text(recorded["answer_selection"]))
    if told.history.setup is not None:
        parts.append(f"seed {told.history.setup.seed}")
    elif recorded.get("seed") is not None:
        parts.append(f"seed {_text(recorded['seed'])}")
    theirs = [name for name in recorded if name not in FIELD_NAMES]
    parts += [f"{one_line(name, 30)} {_text(recorded[name])}" for name in theirs[:_MOST_UNKNOWN]]
    if len(theirs) > _MOST_UNKNOWN:
        parts.append(f"and {count(len(theirs) - _MOST_UNKNOWN)} more")
    return ", ".join(part for part in parts if part) or "none that are known here"


def _value(told: Told, name: str) -> str:
    if told.refused:
        return _text(told.settings[name])
    config = told.config
    match name:
        case "thinking_tokens" | "final_tokens":
            return count(getattr(config, name))
        case "tail_tokens":
            return count(config.tail_limit)
        case "final_candidates":
            return str(config.final_count)
    return str(getattr(config, name))


def _text(value: Any) -> str:
    """A recorded value; of a nested one only that it is there."""
    return "(nested)" if isinstance(value, dict | list) else one_line(str(value), 30)

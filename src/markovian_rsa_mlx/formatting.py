"""Format numbers and short texts for readers of terminals, pages and documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

#: The symbols of settings in the literature.
SYMBOLS = {
    "rounds": "T",
    "population": "N",
    "aggregation_size": "C",
    "thinking_tokens": "beta",
    "tail_tokens": "tau",
    "final_tokens": "final",
}
#: Larger numbers come from damaged files only, and are shown as bounds.
_LIMIT = 10**18


def count(number: float) -> str:
    """Return 16000 as "16,000"."""
    if abs(number) >= _LIMIT:
        return "over 10^18" if number > 0 else "under -10^18"
    return f"{number:,.0f}"


def population(numbers: int | Sequence[int]) -> str:
    """Return a population as "8", or one by round as "32,8,4"."""
    return str(numbers) if isinstance(numbers, int) else ",".join(map(str, numbers))


def amount(number: int, noun: str) -> str:
    """Return "1 trace" or "8 traces"."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return "4.2 s", "3 min 05 s" or "2 h 10 min"."""
    if seconds >= _LIMIT:
        return f"{count(seconds)} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float, *, at_most: bool = False) -> str:
    """Return "about 4.2 s left", "at most 4.2 s left", or "under 1 s left"."""
    if seconds < 1:
        return "under 1 s left"
    return f"{'at most' if at_most else 'about'} {duration(seconds)} left"


def size(byte_count: float) -> str:
    """Return a number of bytes in decimal units, like those of `memory_limit_gb`."""
    if abs(byte_count) >= _LIMIT:
        return f"{count(byte_count)} B"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if byte_count >= scale:
            return f"{byte_count / scale:.1f} {unit}"
    return f"{byte_count:.0f} B"


def percent(share: float | None, places: int = 1) -> str:
    """Return 0.9083 as "90.8%", and None as a dash."""
    return "-" if share is None else f"{100 * share:.{places}f}%"


def percent_range(low: float, high: float, sign: str = "") -> str:
    """Return an interval of shares in percent, like "[81.2, 95.8]". With `sign="+"`, both ends have a sign."""
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def shortened(text: str, width: int) -> str:
    """Return `text` on one line of at most `width` characters, with an ellipsis if it was cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(width - 1, 0)] + "…"


def model_name(model_id: str) -> str:
    """Return a hub id as it is, and the name of a folder without the folders above it."""
    if not model_id.startswith(("/", ".", "~")):
        return model_id
    path = Path(model_id)
    return path.name if path.name not in ("", "..") else path.resolve().name

"""How figures are written wherever a person reads them. Knows nothing of terminals and pages."""

from __future__ import annotations

#: Settings by the symbols that the field writes for them.
SYMBOLS = {
    "rounds": "T",
    "population": "N",
    "aggregation_size": "C",
    "thinking_tokens": "beta",
    "tail_tokens": "tau",
    "final_tokens": "final",
}
#: Larger figures come from damaged files only; they are written as what they are, beyond anything that is measured.
_MOST = 10**18


def count(number: float) -> str:
    """`16000` as `16,000`."""
    if abs(number) >= _MOST:
        return "over 10^18" if number > 0 else "under -10^18"
    return f"{number:,.0f}"


def amount(number: int, noun: str) -> str:
    """`1 trace`, `8 traces`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds >= _MOST:
        return f"{count(seconds)} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(byte_count: float) -> str:
    """Bytes in decimal units, as `memory_limit_gb` counts them."""
    if abs(byte_count) >= _MOST:
        return f"{count(byte_count)} B"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if byte_count >= scale:
            return f"{byte_count / scale:.1f} {unit}"
    return f"{byte_count:.0f} B"


def percent(share: float | None, places: int = 1) -> str:
    """`0.9083` as `90.8%`; a dash where there is nothing to tell."""
    return "-" if share is None else f"{100 * share:.{places}f}%"


def percent_range(low: float, high: float, sign: str = "") -> str:
    """An interval of shares, in percent, as `[81.2, 95.8]`; with `sign="+"` every end has its sign."""
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def shortened(text: str, width: int) -> str:
    """On one line of at most `width` characters, with an ellipsis where it was cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(width - 1, 0)] + "…"

r"""Write the LaTeX of an answer as plain text for a terminal: \boxed{\frac{1}{2}} as 1/2.

Only the mathematics changes: boxes, and the text between \( \), \[ \] or dollars. Commands without a plain form stay
as they are, and so does all other text, code included.
"""

from __future__ import annotations

import re
from typing import Final

_SIGNS: Final = {
    "times": "×", "cdot": "·", "div": "÷", "pm": "±", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠",
    "neq": "≠", "approx": "≈", "infty": "∞", "in": "∈", "cup": "∪", "cap": "∩", "emptyset": "∅", "to": "→",
    "ldots": "...", "dots": "...", "cdots": "...", "circ": "°", "degree": "°", "alpha": "α", "beta": "β", "gamma": "γ",
    "delta": "δ", "epsilon": "ε", "theta": "θ", "lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "φ", "omega": "ω", "left": "", "right": "", "displaystyle": "", "quad": " ", "qquad": " ",
}  # fmt: skip
_RAISED = str.maketrans("0123456789+-n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ")
#: Characters for private use in the place of escaped braces, which do not enclose groups.
_OPEN, _CLOSE = "\ue000", "\ue001"
#: A group in braces that contains no other one.
_GROUP = r"\{([^{}]*)\}"
_MATHS = re.compile(
    r"\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]|\$\$([^$]{1,1000})\$\$"
    r"|(?<![\w\\$])\$(?=[^$\n]*[\\^_=])(\S(?:[^$\n]{0,1000}\S)?)\$(?!\w)",
    re.DOTALL,
)
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
#: Passes over nested groups; deeper ones stay LaTeX.
_MAX_DEPTH = 20


def plain_text(text: str) -> str:
    """Return `text` with its boxes and formulas in plain text."""
    parts = _CODE.split(text)
    return "".join(part if index % 2 else _without_latex(part) for index, part in enumerate(parts))


def _without_latex(text: str) -> str:
    text = text.replace(r"\{", _OPEN).replace(r"\}", _CLOSE)
    text = _MATHS.sub(lambda match: _formula(next(group for group in match.groups() if group is not None)), text)
    text = re.sub(rf"\\f?boxed\s*{_BALANCED}", lambda match: _formula(match[0]), text)
    return text.replace(_OPEN, r"\{").replace(_CLOSE, r"\}")


def _formula(text: str) -> str:
    for _ in range(_MAX_DEPTH):
        before = text
        text = re.sub(rf"\\[dtc]?frac\s*{_GROUP}\s*{_GROUP}", lambda m: f"{_bracketed(m[1])}/{_bracketed(m[2])}", text)
        text = re.sub(rf"\\sqrt\s*{_GROUP}", lambda m: f"√{_bracketed(m[1])}", text)
        text = re.sub(rf"\\(?:f?boxed|text\w*|math\w+|operatorname)\s*{_GROUP}", r"\1", text)
        text = re.sub(rf"\^\s*{_GROUP}", lambda m: _power(m[1]), text)
        text = re.sub(rf"_\s*{_GROUP}", r"_\1", text)
        if text == before:
            break
    text = re.sub(r"\^\s*([\dn])", lambda match: _power(match[1]), text)
    text = re.sub(r"\^\s*\\circ", "°", text)
    text = re.sub(r"\\([a-zA-Z]+)(?![a-zA-Z])", lambda match: _SIGNS.get(match[1], match[0]), text)
    text = re.sub(r"(?<!\\)\\[,;:! ]", " ", text)
    return re.sub(r"\\([%$#&])", r"\1", text).replace(_OPEN, "{").replace(_CLOSE, "}").strip()


def _power(exponent: str) -> str:
    raised = exponent.strip()
    return raised.translate(_RAISED) if re.fullmatch(r"[-+]?\d+|n", raised) else f"^{_bracketed(raised)}"


def _bracketed(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"[\w.]*|√\w+|\\[a-zA-Z]+|\d*\\?[a-zA-Z]*", text) else f"({text})"


def _nested(depth: int) -> str:
    return r"[^{}]*" if depth == 0 else rf"(?:[^{{}}]|\{{{_nested(depth - 1)}\}})*"


#: A group with a few levels of groups within it. Escaped braces pass as well.
_BALANCED = rf"\{{{_nested(4)}\}}"

r"""Bring answers into one notation of LaTeX, and read the names of units.

`clean` writes Unicode signs, plain text and the many spellings of LaTeX in one way. It changes no value: 10⁵ becomes
10^{5}, not 105. `unit_of` reads the text after a number.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Final

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
#: Signs that belong together: 2¹⁰ is 2^{10}.
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")


def _table(rows: str) -> dict[str, str]:
    """Read a table of pairs, apart by white space."""
    words = rows.split()
    return dict(zip(words[::2], words[1::2], strict=True))


#: Signs of Unicode in LaTeX.
_SIGNS: Final = _table(r"""
− -  – -  — -  ‐ -  ‑ -  × \times  · \cdot  ⋅ \cdot  ∙ \cdot  ∗ *  ÷ \div  ∕ /  ⁄ /  √ \sqrt  ∛ \sqrt[3]
∞ \infty  ° ^\circ  º ^\circ  ′ '  ’ '  ≈ \approx  ≤ \le  ⩽ \le  ≥ \ge  ⩾ \ge  ≠ \ne  ± \pm  ∪ \cup  ∩ \cap  ∈ \in
∅ \emptyset  … \ldots  ⋯ \ldots  ℝ \mathbb{R}  ∠ \angle  € \text{€}  £ \text{£}  ¥ \text{¥}  ％ %  µ μ
""")
_GREEK: Final = _table("""
α alpha  β beta  γ gamma  δ delta  ε epsilon  ζ zeta  η eta  θ theta  ι iota  κ kappa  λ lambda  μ mu  ν nu  ξ xi  π pi
ρ rho  σ sigma  τ tau  υ upsilon  φ phi  χ chi  ψ psi  ω omega
Γ Gamma  Δ Delta  Θ Theta  Λ Lambda  Ξ Xi  Π Pi  Σ Sigma  Φ Phi  Ψ Psi  Ω Omega
""")
#: Commands that change how a text looks, not its meaning.
_LOOKS = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|mathstrut|strut|hfill|large|Large|bf|rm|it"
    r"|boxed|fbox|hspace\*?\s?\{[^{}]{0,20}\}|phantom\s?\{[^{}]{0,20}\})(?![a-zA-Z])|\\\.(?=\s|$)"
)
_SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|\\(?:quad|qquad|thinspace|enspace|space)(?![a-zA-Z])|~|\\\n")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|operatorname\*?)\s*(?=\{)"
)
_DOLLAR = re.compile(r"\\(?:text|mathrm)\s?\{\s*\\\$\s*\}|\b(?:US|USD)\s?\\\$")
_UPRIGHT_CONSTANT = re.compile(r"\\math(?:rm|it)\s?\{\s*([ei])\s*\}")
_TEXT_POWER = re.compile(r"\\text\s?\{([^{}^]*)\^\s?\{?(-?\d)\}?\s*\}")
_UNIT_FRACTION = re.compile(
    r"\\frac\s?\{\s*\\text\s?\{([^{}]*)\}\s*\}\s?\{\s*\\text\s?\{([^{}]*)\}\s*(\^\{?\d\}?)?\s*\}"
)
#: Commands with the same meaning.
_ALIASES: Final = _table(r"""
\dfrac \frac  \tfrac \frac  \cfrac \frac  \dbinom \binom  \tbinom \binom  \leq \le  \leqslant \le  \geq \ge
\geqslant \ge  \neq \ne  \lt <  \gt >  \varnothing \emptyset  \dots \ldots  \cdots \ldots  \dotsc \ldots
\degree ^\circ  \lbrace \{  \rbrace \}  \lvert |  \rvert |  \vert |  \mid |  \lbrack [  \rbrack ]  \langle (
\rangle )  \ast *  \colon :  \varepsilon \epsilon  \infin \infty  \lg \log_{10}
\R \mathbb{R}  \Reals \mathbb{R}  \$ \text{\$}
""")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|\$)")
_THOUSANDS = re.compile(r"(?<![\d.\\])(?<!\d,)(\d{1,3})((?:\{,\}\s?|[\u0001 '])\d{3})+(?!\d)")
COMMA_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:,\u0001?\d{3})+)(?!\d|,\d)")
#: Words and signs before an answer that do not change its value.
_LEAD_IN = re.compile(
    r"^(?:(?:the )?(?:final )?answer ?(?:is|:) |(?:approximately|approx\.?|about|roughly) (?=[\d\\$-])"
    r"|\\approx(?![a-z]) ?)",
    re.IGNORECASE,
)
_SQRT_PLAIN = re.compile(r"(?<![a-zA-Z\\])sqrt\s*(?=[({\d])")


def clean(text: str) -> str:
    """Return an answer in one notation of LaTeX. No value changes: 10⁵ becomes 10^{5}, not 105."""
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", unicodedata.normalize("NFC", text))
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(map(_plain_character, text))
    text = re.sub(r"(?<!\\)\\[()\[\]]|(?<!\\)\$|`|\u200b|\ufeff", " ", text).strip().strip("*_")
    text = _UPRIGHT_CONSTANT.sub(r"\1", _DOLLAR.sub(r"\\$", text))
    text = _TEXT_COMMAND.sub(r"\\text", _LOOKS.sub("", text))
    text = _TEXT_POWER.sub(r"\\text{\1}^{\2}", text)
    text = re.sub(r"\\text\{\s*([a-zA-Z])\s*\}(?![a-zA-Z])", r"\\text{\1}", text)
    text = _SPACES.sub("\u0001", text)
    text = re.sub(r"(\d)\{,\}\u0001?(?=\d{1,2}(?!\d))", r"\1.", text)  # a decimal comma
    text = _THOUSANDS.sub(lambda match: re.sub(r"[^\d]", "", match[0]), text)
    text = re.sub(r",\u0001(?=\d{3}(?!\d))", ",", text).replace("\u0001", " ")
    text = _COMMAND.sub(lambda match: _ALIASES.get(match[0], match[0]), text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*([\da-zA-Z])", r"\1{\2}", text)
    text = _UNIT_FRACTION.sub(r"\\text{ \1/\2}\3", text)
    text = _roots(_SQRT_PLAIN.sub(r"\\sqrt ", text))
    text = re.sub(r"\^\s*(\d+)", r"^{\1}", text)
    text = re.sub(r"\*\*\s*", "^", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"\\degree ", text)
    text = re.sub(r"(\d)\s*[xX]\s*(?=10\s*\^)", r"\1\\times ", text)
    text = _LEAD_IN.sub("", re.sub(r"_\s*(\d+)", r"_{\1}", " ".join(text.split())), count=1)
    return text if text.endswith("...") else text.rstrip(".,; ")


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _SIGNS:
        return f"{_SIGNS[character]} " if _SIGNS[character].startswith("\\") else _SIGNS[character]
    if character in _GREEK:
        return f"\\{_GREEK[character]} "
    kind, _, parts = unicodedata.decomposition(character).partition(" ")
    if kind == "<fraction>":
        above, _, below = "".join(chr(int(code, 16)) for code in parts.split()).partition("\u2044")
        return rf"\frac{{{above}}}{{{below}}}"
    if unicodedata.category(character) == "Zs":
        return "\u0001"
    return unicodedata.normalize("NFKC", character) if kind in ("<wide>", "<narrow>", "<font>") else character


def _roots(text: str) -> str:
    r"""Write the argument of every root in braces: \sqrt2, \sqrt(2) and \sqrt x are the same as \sqrt{2} and so on."""
    text = re.sub(r"(\\sqrt(?:\[[^\[\]]{1,20}\])?)\s*(\d+(?:\.\d+)?|[a-zA-Z]|\\pi)", r"\1{\2}", text)
    parts = re.split(r"(\\sqrt(?:\[[^\[\]]{1,20}\])?)\s*\(", text)
    if len(parts) == 1:
        return text
    written = parts[0]
    for index in range(1, len(parts), 2):  # the argument ends with the parenthesis that closes it
        depth, rest = 1, parts[index + 1]
        end = -1
        for position, character in enumerate(rest):
            depth += (character == "(") - (character == ")")
            if depth == 0:
                end = position
                break
        written += f"{parts[index]}{{{rest[:end]}}}{rest[end + 1 :]}" if end >= 0 else f"{parts[index]}({rest}"
    return written


# Units

#: Units that are known: the quantity they measure, and how many of its base unit they are.
_UNITS: Final[dict[str, tuple[str, Fraction]]] = {
    name: (quantity, Fraction(factor))
    for quantity, units in {
        "length": "nm:1/1000000000 mm:1/1000 cm:1/100 dm:1/10 m:1 km:1000 "
        "in:127/5000 ft:381/1250 yd:1143/1250 mi:1609344/1000",
        "mass": "mg:1/1000000 g:1/1000 kg:1 t:1000 lb:45359237/100000000 oz:45359237/1600000000",
        "time": "ms:1/1000 s:1 min:60 h:3600 day:86400 week:604800",
        "volume": "ml:1/1000 cl:1/100 l:1",
        "money": "¢:1/100 $:1",
        "angle": "°:1",
        "ordinal": "th:1",
        "percent": "%:1",
        **{name: f"{name}:1" for name in ("rad", "€", "£", "¥", "°c", "°f", "n", "j", "w", "v", "hz", "pa", "mol")},
    }.items()
    for name, _, factor in (unit.partition(":") for unit in units.split())
}
_UNIT_NAMES: Final = _table(r"""
millimeter mm  millimetre mm  centimeter cm  centimetre cm  meter m  metre m  kilometer km  kilometre km
inch in  inches in  foot ft  feet ft  yard yd  mile mi  milligram mg  gram g  gramme g  kilogram kg  kilo kg
ton t  tonne t  pound lb  lbs lb  ounce oz  second s  sec s  secs s  minute min  mins min  hour h  hr h  hrs h
millisecond ms  milliliter ml  millilitre ml  liter l  litre l  dollar $  usd $  \$ $  cent ¢  euro €  eur €
degree °  deg °  \degree °  radian rad  percent %  pct %  \% %  st th  nd th  rd th  mole mol
""")
_UNIT_WORD = re.compile(r"\\degree(?:\s*[CF](?![a-zA-Z]))?|\\?[%$]|[€£¥¢]|[a-zA-Zμ]+")
#: Units that another case would change: Mm and mm, MW and mW, GB and Gb.
_CASE_MATTERS = re.compile(r"M(?:m|g|W|Hz|Pa|J|N|V|L|l|s|eV)|[kMGT]i?[bB](?:ps)?")
_NUMBER_WORDS = re.compile(
    r"(?:pi|e|i|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|and|or|mod|if|for|where|is|to|of|arc\w+"
    r"|plus|minus|squared|cubed|factorial|choose)"
)
#: Words after a number that are factors of it, not units.
_MAGNITUDES: Final = {
    word: Fraction(factor)
    for word, factor in _table("""
dozen 12  hundred 100  thousand 1000  lakh 100000  million 1000000  mln 1000000  crore 10000000
billion 1000000000  bn 1000000000  trillion 1000000000000  quadrillion 1000000000000000
halves 1/2  thirds 1/3  fifths 1/5  sixths 1/6  sevenths 1/7  eighths 1/8  ninths 1/9  tenths 1/10
hundredths 1/100  thousandths 1/1000  millionths 1/1000000
""").items()
}
_MAGNITUDE = re.compile(rf"\s*(\\text\s?\{{)?\s*({'|'.join(_MAGNITUDES)})s?\b", re.IGNORECASE)


def magnitude_of(text: str) -> tuple[Fraction, str]:
    """Return the factor that the words after a number name, as in 2 million people, and the text after them."""
    factor = Fraction(1)
    while match := _MAGNITUDE.match(text):
        factor *= _MAGNITUDES[match[2].lower()]
        text = (match[1] or "") + text[match.end() :]
    return factor, text


def unit_of(text: str) -> str | None:
    """Return the unit that a text after a number names, "" for an empty text, None if it is something else."""
    is_plain = "\\text" not in text
    spaced = text.startswith(" ")
    text = re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text).strip(" .")
    if not text:
        return ""
    text = re.sub(r"\bper\b", "/", text, flags=re.IGNORECASE)
    text = re.sub(r"\bkm?ph\b|\bkmh\b", "km/h", re.sub(r"\bmph\b", "mi/h", text))
    text = re.sub(r"\b(?:sq|square)\.?\s+(\w+)", r"\1^{2}", text, flags=re.IGNORECASE)
    text = re.sub(r"\bcubic\s+(\w+)", r"\1^{3}", text, flags=re.IGNORECASE)
    names, sign, position = [], 1, 0
    while position < len(text):
        rest = text[position:]
        if match := re.match(r"[\s.*]+|\\cdot", rest):
            position += match.end()
        elif rest[0] == "/":
            sign, position = -1, position + 1
        elif match := _UNIT_WORD.match(rest):
            power = re.match(r"\s*\^\s?\{?(-?\d)\}?", rest[match.end() :])
            name = unit_name(match[0], is_plain, spaced or position > 0)
            if name is None:
                return None
            names.append((name, sign * int(power[1] if power else 1)))
            position += match.end() + (power.end() if power else 0)
        else:
            return None
    return " ".join(f"{name}^{power}" for name, power in sorted(names))


def unit_name(word: str, is_plain: bool, spaced: bool) -> str | None:
    """Return the common name of a unit, or the singular of another word. A lone letter such as x is not a unit."""
    if _CASE_MATTERS.fullmatch(word):
        return word
    lower = re.sub(r"\s", "", word).lower().replace("\\degree", "°")
    lower = _UNIT_NAMES.get(lower, lower)
    singular = re.sub(r"(?<=[^s])s$", "", lower)
    known = next((name for name in (lower, _UNIT_NAMES.get(singular, singular)) if name in _UNITS), None)
    if (is_plain and _NUMBER_WORDS.fullmatch(lower)) or _MAGNITUDE.fullmatch(lower):
        return None
    if known is not None and (len(word) > 1 or not word.isalpha() or spaced or not is_plain):
        return known
    return None if is_plain and (len(word) < 3 or not spaced) else singular


def in_base_units(unit: str) -> tuple[tuple[str, ...], Fraction]:
    """Return the quantities that a unit measures, with their powers, and its factor."""
    factor, quantities = Fraction(1), []
    for part in unit.split():
        name, _, power = part.rpartition("^")
        quantity, size = _UNITS.get(name, (f"?{name}", Fraction(1)))
        factor *= size ** int(power)
        quantities.append(f"{quantity}^{power}")
    return tuple(sorted(quantities)), factor

r"""Bring answers into one notation of LaTeX, and read the names of units.

`clean` writes Unicode signs, plain text and the many spellings of LaTeX in one way. It changes no value: 10⁵ becomes
10^{5}, not 105. `unit_of` reads the text after a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from fractions import Fraction
from typing import Final

from .tex_braces import with_braces

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_TEMPERATURES = str.maketrans({"℃": "°C", "℉": "°F"})
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
∅ \emptyset  … \ldots  ⋯ \ldots  ∠ \angle  € \text{€}  £ \text{£}  ¥ \text{¥}  ％ %  µ μ
₹ \text{₹}  ₩ \text{₩}  ₽ \text{₽}
ℕ \mathbb{N}  ℤ \mathbb{Z}  ℚ \mathbb{Q}  ℝ \mathbb{R}  ℂ \mathbb{C}  ∉ \notin  ⊂ \subset  ⊆ \subseteq  ⊃ \supset
⊇ \supseteq  ∖ \setminus  ≡ \equiv  ≅ \cong  ∼ \sim  → \to  ⟶ \to  ⇒ \Rightarrow  ⇔ \Leftrightarrow  ∧ \wedge
∨ \vee  ¬ \neg  ∀ \forall  ∃ \exists  ∥ \parallel  ⊥ \perp  △ \triangle  ∣ |  ⟨ (  ⟩ )  ⌊ \lfloor  ⌋ \rfloor
⌈ \lceil  ⌉ \rceil  ∑ \sum  ∏ \prod  ∫ \int  ‘ '  “ "  ” "  。 .  ｡ .  、 ,
""")
_GREEK: Final = _table("""
α alpha  β beta  γ gamma  δ delta  ε epsilon  ζ zeta  η eta  θ theta  ι iota  κ kappa  λ lambda  μ mu  ν nu  ξ xi  π pi
ρ rho  σ sigma  τ tau  υ upsilon  φ phi  χ chi  ψ psi  ω omega
Γ Gamma  Δ Delta  Θ Theta  Λ Lambda  Ξ Xi  Π Pi  Σ Sigma  Φ Phi  Ψ Psi  Ω Omega
""")
#: Commands that change how a text looks, not its meaning.
_LOOKS = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits|mathstrut|strut|hfill|large|Large|bf|rm|it"
    r"|boxed|fbox|hspace\*?\s?\{[^{}]{0,20}\}|phantom\s?\{[^{}]{0,20}\}|color\s?\{[^{}]{0,20}\})(?![a-zA-Z])"
    r"|\\\.(?=\s|$)"
)
_SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|\\(?:quad|qquad|thinspace|enspace|space)(?![a-zA-Z])|~|\\\n")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|operatorname\*?)\s*(?=\{)"
)
_DOLLAR = re.compile(r"\\(?:text|mathrm)\s?\{\s*\\\$\s*\}|\b(?:US|USD)\s?\\\$|\bUSD\s?(?=\d)")
_EURO = re.compile(r"\bEUR\s?(?=\d)")
_RUPEE = re.compile(r"\b(?:Rs\.?|INR)\s?(?=\d)")
_DOLLAR_SIGN = re.compile(r"(?<!\\)\$")
#: A dollar sign before an amount: $5, -$5, US$5, ($5).
_PRICE = re.compile(r"(?:(?<![^\s(\[,;:/=-])|(?<=\bUS)|(?<=\bUSD))\$(?=\.?\d)")
_UPRIGHT_CONSTANT = re.compile(r"\\math(?:rm|it)\s?\{\s*([ei])\s*\}")
_FUNCTION_NAME = re.compile(
    r"\\(?:operatorname\*?|mathrm)\s?\{\s*((?:arc)?(?:sin|cos|tan)|(?:sin|cos|tan)h|cot|csc|log|ln|exp)\s*\}"
)
#: A unit in braces of its own: 5 {\rm cm}, 5 {\text{ cm}}.
_UPRIGHT_GROUP = re.compile(r"\{\s*\\rm(?![a-zA-Z])\s*([a-zA-Z/ ]+(?:\^\s*\{?\d\}?)?)\s*\}")
_TEXT_GROUP = re.compile(r"(?<=[\d ])\{\s*(\\text\s?\{[^{}]*\})\s*\}")
#: The prefix of a unit, as in 5 \mu m. The letter before g and N can be a coefficient of friction.
_MICRO = re.compile(r"(?<=\d)\s*\\mu\s*(?=[msLlAFVWC](?![a-zA-Z_^({]))")
_MICRO_IN_TEXT = re.compile(r"\\mu\s*\\text\s?\{\s*(?=[a-zA-Z]{1,2}\})|\\text\s?\{\s*\\mu\s*(?=[a-zA-Z]{1,2}\s*\})")
_MODULUS = re.compile(r"\\pmod\s*(?:\{([^{}]*)\}|(\w))")
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
\N \mathbb{N}  \Z \mathbb{Z}  \Q \mathbb{Q}  \R \mathbb{R}  \Reals \mathbb{R}  \$ \text{\$}
\nicefrac \frac  \sfrac \frac  \flatfrac \frac  \land \wedge  \lor \vee  \lnot \neg  \rightarrow \to
\longrightarrow \to  \implies \Rightarrow  \iff \Leftrightarrow  \backslash \setminus  \smallsetminus \setminus
\bmod mod  \bigtriangleup \triangle
""")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|\$)")
_THOUSANDS = re.compile(r"(?<![\d.\\])(?<!\d,)(\d{1,3})((?:\{,\}\s?|[\u0001 '])\d{3})+(?!\d)")
#: 1,234,567, and 12,34,567 as in India.
COMMA_THOUSANDS = re.compile(r"(?<![\d.,])(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3})(?!\d|,\d)")
#: Words and signs before an answer that do not change its value.
_LEAD_IN = re.compile(
    r"^(?:(?:the )?(?:final )?answer ?(?:is:?|:) "
    r"|(?:approximately|approx\.?|about|roughly|exactly|precisely|simply|indeed|probably|therefore|thus|hence|so),? "
    r"(?=[\d\\$-])|\\approx(?![a-z]) ?)",
    re.IGNORECASE,
)
#: A remark after an answer that does not change its value.
_REMARK = re.compile(r"\s*\((?:rounded|approximately|approx\.|exactly|exact)(?:\s[a-z ]{1,40})?\)$", re.IGNORECASE)
_QUOTED = re.compile(r"""(["'])([^"']+)\1""")
#: Emphasis at the start, where two stars are not a power.
_EMPHASIS_AT_START = re.compile(r"^\s*\*\*([^*\n]{1,80})\*\*(?=[\s:.,;)]|$)")
#: The dash between an option and its text or number.
_DASH_AFTER_LABEL = re.compile(r"\s*\(?([A-J])\)?\s*—\s*(?=[a-zA-Z]*[a-z]{2}|\d[\d.,]*\s*$)")
_SQRT_PLAIN = re.compile(r"(?<![a-zA-Z\\])sqrt\s*(?=[({\d])")


def clean(text: str) -> str:
    """Return an answer in one notation of LaTeX. No value changes: 10⁵ becomes 10^{5}, not 105."""
    text = _without_frame(unicodedata.normalize("NFC", text).translate(_TEMPERATURES))
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(map(_plain_character, re.sub(r"(?<=\d )μ(?=[a-zA-Z]{1,2}\b)", "µ", text)))
    text = re.sub(r"(?<!\\)\\[()\[\]]|(?<!\\)\$|`|\u200b|\ufeff", " ", _with_prices(text)).strip().strip("*_")
    text = _RUPEE.sub(r"\\text{₹}", _EURO.sub(r"\\text{€}", _DOLLAR.sub(r"\\$", text)))
    text = _with_one_font(text) if "\\" in text else text
    text = _SPACES.sub("\u0001", text)
    text = re.sub(r"(\d)\{,\}\u0001?(?=\d{1,2}(?!\d))", r"\1.", text)  # a decimal comma
    text = _THOUSANDS.sub(lambda match: re.sub(r"[^\d]", "", match[0]), text)
    text = re.sub(r",\u0001(?=\d{3}(?!\d))", ",", text).replace("\u0001", " ")
    text = re.sub(r"(?<!-)-{1,2}>", r"\\to ", _SQRT_PLAIN.sub(r"\\sqrt ", text))
    text = _with_one_command(text) if "\\" in text else text
    text = re.sub(r"\^\s*(\d+)", r"^{\1}", text)
    text = re.sub(r"\*\*\s*", "^", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"\\degree ", text)
    text = re.sub(r"(\d)\s*[xX]\s*(?=10\s*\^)", r"\1\\times ", text)
    text = _LEAD_IN.sub("", re.sub(r"_\s*(\d+)", r"_{\1}", " ".join(text.split())), count=1)
    text = _REMARK.sub("", text if text.endswith("...") else text.rstrip(".,; "))
    quoted = _QUOTED.fullmatch(text)
    return quoted[2].strip() if quoted else text


def _with_one_font(text: str) -> str:
    """Return a text without commands that change how it looks, and with one command for words."""
    text = _FUNCTION_NAME.sub(r"\\\1 ", _UPRIGHT_CONSTANT.sub(r"\1", text))
    text = _LOOKS.sub("", _UPRIGHT_GROUP.sub(r"\\text{ \1}", text))
    text = _TEXT_GROUP.sub(r"\1", _TEXT_COMMAND.sub(r"\\text", text))
    text = _TEXT_POWER.sub(r"\\text{\1}^{\2}", text)
    return re.sub(r"\\text\{\s*([a-zA-Z])\s*\}(?![a-zA-Z])", r"\\text{\1}", text)


def _with_one_command(text: str) -> str:
    """Return a text with one command for each meaning, and with all arguments in braces."""
    text = _MICRO.sub(" μ", _MICRO_IN_TEXT.sub(r"\\text{μ", text))
    text = with_braces(_COMMAND.sub(lambda match: _ALIASES.get(match[0], match[0]), text))
    return _MODULUS.sub(r"(mod \1\2)", _UNIT_FRACTION.sub(r"\\text{ \1/\2}\3", text))


def _without_frame(text: str) -> str:
    """Return a text without line breaks and marks of sentences at its end, and without emphasis on its start."""
    text = _EMPHASIS_AT_START.sub(r"\1", text.rstrip("\\ \t\r\n\u3000。｡．，、；：？"), count=1)
    return _DASH_AFTER_LABEL.sub(r"\1: ", text, count=1) if _DASH_AFTER_LABEL.match(text) else text


def _with_prices(text: str) -> str:
    """Return a text in which dollar signs that are money are commands. Those around a formula stay as they are."""
    is_money = len(_PRICE.findall(text)) == len(_DOLLAR_SIGN.findall(text))
    return _PRICE.sub(r"\\$", text) if is_money else text


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


# Units

#: Units that are known: the quantity they measure, and how many of its base unit they are.
_UNITS: Final[dict[str, tuple[str, Fraction]]] = {
    name: (quantity, Fraction(factor))
    for quantity, units in {
        "length": "nm:1/1000000000 μm:1/1000000 mm:1/1000 cm:1/100 dm:1/10 m:1 km:1000 "
        "in:127/5000 ft:381/1250 yd:1143/1250 mi:1609344/1000",
        "mass": "mg:1/1000000 g:1/1000 kg:1 t:1000 lb:45359237/100000000 oz:45359237/1600000000",
        "time": "μs:1/1000000 ms:1/1000 s:1 min:60 h:3600 day:86400 week:604800",
        "months": "month:1 year:12",
        "volume": "μl:1/1000000000 ml:1/1000000 cl:1/100000 dl:1/10000 l:1/1000",
        "money": "¢:1/100 $:1",
        "angle": "°:1",
        "ordinal": "th:1",
        "energy": "j:1 kJ:1000 MJ:1000000 Wh:3600 kWh:3600000 MWh:3600000000",
        "power": "mW:1/1000 w:1 kW:1000 MW:1000000",
        "force": "n:1 kN:1000 MN:1000000",
        "pressure": "pa:1 hPa:100 kPa:1000 MPa:1000000",
        "voltage": "mV:1/1000 v:1 kV:1000 MV:1000000",
        "frequency": "hz:1 kHz:1000 MHz:1000000 GHz:1000000000",
        "percent": "%:1",
        **{
            name: f"{name}:1"
            for name in (
                "rad",
                "€",
                "£",
                "¥",
                "₹",
                "₩",
                "₽",
                "°c",
                "°f",
                "mol",
                *"TSHMG",
            )
        },
    }.items()
    for name, _, factor in (unit.partition(":") for unit in units.split())
}
_UNIT_NAMES: Final = _table(r"""
millimeter mm  millimetre mm  centimeter cm  centimetre cm  meter m  metre m  kilometer km  kilometre km
inch in  inches in  foot ft  feet ft  yard yd  mile mi  milligram mg  gram g  gramme g  kilogram kg  kilo kg
ton t  tonne t  pound lb  lbs lb  ounce oz  second s  sec s  secs s  minute min  mins min  hour h  hr h  hrs h
millisecond ms  milliliter ml  millilitre ml  liter l  litre l  dollar $  usd $  \$ $  cent ¢  euro €  eur €
rupee ₹  rs ₹  inr ₹  ruble ₽  rouble ₽  yen ¥  mo month  yr year
micrometer μm  micrometre μm  micron μm  microgram μg  microsecond μs  microliter μl  microlitre μl
joule j  kilojoule kJ  watt w  kilowatt kW  newton n  kilonewton kN  pascal pa  kilopascal kPa  volt v  kilovolt kV
hertz hz  kilohertz kHz  megahertz MHz  gigahertz GHz  kwh kWh  khz kHz  ghz GHz  kpa kPa  hpa hPa
tesla T  siemens S  henry H  henries H  molar M  gauss G
degree °  deg °  \degree °  radian rad  percent %  pct %  \% %  st th  nd th  rd th  mole mol
""")
_TEMPERATURE = re.compile(
    r"(?:\bdeg(?:rees?)?\b|\\degree)\s*([CF])(?:elsius|ahrenheit)?\b|\b([CF])(?:elsius|ahrenheit)\b", re.IGNORECASE
)
_UNIT_WORD = re.compile(r"\\degree(?:\s*[CF](?![a-zA-Z]))?|\\?[%$]|[€£¥¢₹₩₽]|[^\W\d_]+")
#: Units that another case would change: Mm and mm, MW and mW, GB and Gb, mV and the product mv.
_CASE_MATTERS = re.compile(
    r"M(?:m|g|Wh?|Hz|Pa|J|N|V|L|l|s|eV)|k(?:Wh?|Hz|Pa|J|N|V)|m[WV]|Wh|hPa|GHz|[kMGT]i?[bB](?:ps)?|Cal"
)
#: Symbols that are others in lower case: T (tesla) and t (ton), mS and ms, nM and nm, pA and Pa.
_CAPITAL_SYMBOL = re.compile(r"[npμmckd]?[STHMGAKCF]")
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
十 10  百 100  千 1000  万 10000  萬 10000  亿 100000000  億 100000000  兆 1000000000000  만 10000  억 100000000
""").items()
}
_MAGNITUDE = re.compile(rf"\s*(\\text\s?\{{)?\s*({'|'.join(_MAGNITUDES)})(?:(?<![a-z])|s?\b)", re.IGNORECASE)


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
    text = re.sub(r"\bkm?ph\b|\bkmh\b", "km/h", re.sub(r"\bmph\b", "mi/h", text, flags=re.IGNORECASE))
    text = _TEMPERATURE.sub(lambda match: rf"\degree {(match[1] or match[2]).upper()}", text)
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
    name = word if _CAPITAL_SYMBOL.fullmatch(word) else known or singular
    if known is not None and (len(word) > 1 or not word.isalpha() or spaced or not is_plain):
        return name
    return None if is_plain and word.isascii() and (len(word) < 3 or not spaced) else name


def in_base_units(unit: str) -> tuple[tuple[str, ...], Fraction]:
    """Return the quantities that a unit measures, with their powers, and its factor."""
    factor, powers = Fraction(1), Counter[str]()
    for part in unit.split():
        name, _, power = part.rpartition("^")
        quantity, size = _UNITS.get(name, (f"?{name}", Fraction(1)))
        factor *= size ** int(power)
        is_volume = quantity == "volume"  # a length to the power of three
        powers["length" if is_volume else quantity] += int(power) * (3 if is_volume else 1)
    return tuple(sorted(f"{quantity}^{power}" for quantity, power in powers.items())), factor

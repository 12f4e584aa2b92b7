"""Leave out what surrounds the value of an answer: a calculation before it, a remark after it, words of a sentence."""

from __future__ import annotations

import contextlib
import re
from fractions import Fraction

from .arithmetic import Arithmetic, NotArithmeticError, TooLargeError
from .notation import clean
from .stated_value import NUMBER, value_at_start

#: A number with up to three words, "x = 5", yes or no, or an option.
_SIMPLE_VALUE = re.compile(
    rf"(?: (?:[a-zA-Z]\s?=\s?)? {NUMBER.pattern} (?:\s?(?!(?:and|or)\b)[a-zA-Z\u00b0%$/\u00b2\u00b3]{{1,20}}){{0,3}}"
    r"| yes | no | true | false | \(?[A-H]\)? )",
    re.IGNORECASE | re.VERBOSE,
)
_VERB = (
    r"\b(?:is|are|was|were|has|have|had|can|will|would|should|must|gets?|makes?|equals?|gives?|means?|checks|holds|follows"
    r"|satisf(?:y|ies)|remains?|works?|match(?:es)?)\b"
)
#: Begins a remark after a value: a clause with a verb, a reason, a word in the place of a full stop.
_REMARK = re.compile(
    rf"""
    (?: ,\s(?:and\s)?(?![-\d$\\]) | \sand\s(?=(?:the|each|every|it|this|that|he|she|they|we|there|\d+\sof)\b) )
      (?=[^,;\n]{{0,80}}{_VERB})
    | ,\s(?=(?:as|let|verified|rounded|checked|confirmed|assuming|given|using|meaning|leaving|giving|making|by|after)\b)
    | \s\((?=(?:since|because|as|from|that\sis|i\.e|where|which|using|by|see|after)\b)
    | (?<=\d):\s+(?=[a-z]{{2}})
    | (?<!\b[A-H])\s[\u2013\u2014]\s(?=[a-z]{{2}})
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: A value with the calculation of it in brackets.
_CALCULATED = re.compile(r"(.{1,80}?)\s\(([^()]{1,80}[-+*/=\u00d7\u00f7\u00b7\u2212][^()]{1,80})\)")
#: The words before the value that a sentence gives, and words that make it a bound or a comparison.
_SENTENCE = re.compile(
    r"(?:[^\W\d_][\w'\u2019]*\s){1,5}?(?:is|are|was|were|has|have|had|makes?|made|needs?|takes?|took|gets?|got|costs?|earns?"
    r"|earned|pays?|paid|spends?|spent|sells?|sold|buys?|bought|gives?|receives?|saves?|owes?|uses?|contains?|weighs?|equals?)"
    r"\s(?:(?:a\stotal\sof|exactly|only)\s)?(?=[-\u2212$\u20ac\u00a3\d\\])"
)
_DENIED = re.compile(r"\b(?:not|no|nobody|none|neither|nor|never|if|we|then|first|next)\b", re.IGNORECASE)
_COMPARISON = re.compile(
    r"\b(?:more|less|fewer|times|greater|smaller|higher|lower|than|of|or|if|percent|and)\b|%", re.IGNORECASE
)
#: Parts of a calculation with numbers. An x between two of them is a sign, and anywhere else a variable.
_CALCULATION = re.compile(
    r"[\d.,+*/()\[\]^%$!\u00d7\u00f7\u2212-]|\s|\\(?:times|cdot|div|frac|left|right|[$,;!( )])|[{}]"
    r"|(?<=[\d)])[xX](?=\d)|(?<=[\d)]\s)[xX](?=\s\$?\d)"
)


def last_side(clause: str) -> str:
    """Return the right side of a calculation such as "9 + 5 = 14 apples", and anything else as it is."""
    sides = re.split(r"(?<![<>!\\:])=(?!=)", clause)
    if len(sides) > 1 and all(not _CALCULATION.sub("", side) and re.search(r"\d", side) for side in sides[:-1]):
        return sides[-1].strip()
    return clause


def value_in_sentence(clause: str) -> str:
    """Return the value in a whole sentence that gives one: "Tom has 12 apples". Return "" for others."""
    sentence = _SENTENCE.match(clause)
    rest = clause[sentence.end() :] if sentence else ""
    if sentence is None or _DENIED.search(sentence[0]) or _COMPARISON.search(rest):
        return ""
    return value_at_start(rest) if len(list(NUMBER.finditer(rest))) == 1 else ""


def without_remark(clause: str) -> str:
    """Return a clause without a remark after its value: "12 apples, and each child gets 3", "5 (2 + 3)"."""
    for remark in _REMARK.finditer(clause):
        if _SIMPLE_VALUE.fullmatch(clause[: remark.start()]):
            return clause[: remark.start()]
    calculated = _CALCULATED.fullmatch(clause)
    number = NUMBER.match(calculated[1]) if calculated else None
    if calculated is None or number is None or not _SIMPLE_VALUE.fullmatch(calculated[1]):
        return clause
    value = _computed(number[0])
    return calculated[1] if value is not None and value == _computed(last_side(calculated[2])) else clause


def _computed(text: str) -> Fraction | None:
    """Return the value of a calculation with numbers, None for other texts."""
    cleaned = clean(text).replace(",", "")
    reader = Arithmetic(cleaned)
    with contextlib.suppress(NotArithmeticError, TooLargeError, ZeroDivisionError):
        value = reader.sum(0)
        return value if reader.end == len(cleaned) else None
    return None

"""Find the value that the last sentence of a text states, where nothing announces an answer.

It is the right side of the last equation, otherwise the last number with its unit. An equation in a condition or a
reason before the main clause ("If x = 3, it is 5.") states nothing where the main clause has a number. Takes
time linear in the text.
"""

from __future__ import annotations

import re

from .announced_text import ANNOUNCEMENT
from .boxes import EMPTY_BOX
from .dates import MONTH_NAME
from .measures import MEASURES
from .sentences import CUT_OFF, EMPHASIS, is_abbreviated, with_plain_punctuation

_ARGUMENT = r"\{(?:[^{}]|\{[^{}]{0,40}\}){1,60}\}"
_POWER = (
    r"(?:\s?\^\s?(?:\{[^{}]{1,40}\}|[-\u2212]?\d+|\\circ|[a-zA-Z](?![a-zA-Z]))|\*\*\s?-?\d+"
    r"|[\u2070\u00b9\u00b2\u00b3\u2074-\u207b\u207f]+)"
)
#: A number with all that belongs to it: powers of ten, fractions after it, thousands, roots, a base. Ranges such as
#: 10-15, rates such as 1 in 6, and digits with several points or commas, such as 1.10.0 and 1.234,5, are whole.
_ONE_NUMBER = rf"""
(?:(?<![\w)}}\]])[-\u2212\u2013+])? (?:\\?\$)?
(?: (?:\d+\s?)?\\[dt]?frac{_ARGUMENT}{_ARGUMENT} | (?:\d+\s?)?(?:\\sqrt{_ARGUMENT}|\u221a\d+)
  | \d{{4}}-\d{{2}}-\d{{2}} | \d{{1,2}}:\d{{2}}(?!\d) | \d+(?::\d+)+ | \d+\ \d+/\d+
  | (?:\d+\s?)?[\u00bc-\u00be\u2150-\u215e] | \d*\.\d*\\overline\{{\d+\}}
  | \d{{1,3}}(?:(?:[\ \u00a0\u2009\u202f~]|\\,|\{{,\}})\d{{3}})+(?!\d)(?:\.\d+)?
  | \d+(?:\.\d+)?(?:(?:[-\u2013]|\ to\ )\d+(?:\.\d+)?)+ | \d+\ (?:in|out\ of)\ \d+ | \d+(?:[.,]+\d+)* | \.\d+ )
(?:[eE][-+]?\d+(?!\w))? (?:{_POWER})? (?:\s?(?:\\times|\\cdot|[\u00d7\u00b7xX*])\s?10{_POWER})?
(?:/\d+)? (?:!!?(?!\w))? (?:_\{{?\d+\}}?)? (?:\s?(?:\\pi(?![a-z])|\u03c0))? (?:\s?\\?%)?
"""
#: A number, or a sum, product or quotient of numbers.
NUMBER = re.compile(
    rf"{_ONE_NUMBER}(?:\s{{0,2}}(?:[+*/\u00d7\u00f7\u00b7]|\\(?:times|cdot|div)(?![a-z])|\s[xX]\s)\s{{0,2}}{_ONE_NUMBER})*",
    re.VERBOSE,
)
#: Several numbers in brackets at the end of a sentence: a point or an interval.
_COORDINATE = r"\s*[-\u2212]?\d[\d./]{0,30}\s*"
_POINT = re.compile(rf"[(\[](?!\d{{1,3}}(?:,\d{{3}})+[)\]]){_COORDINATE}(?:,{_COORDINATE}){{1,9}}[)\]](?=\D*$)")
#: Next to a number that is only a part of a term.
_OPERATOR_BEFORE = re.compile(
    r"\S\s?(?:[<>!]=|[+*/^\u00d7\u00f7\u00b7\u00b1\u221a<>\u2264\u2265\u2260]|\\(?:times|cdot|div|pm|[lg]eq?|neq?))\s?$|[{_]$"
)
_OPERATOR_AFTER = re.compile(r"\s?(?:[+*/^\u00d7\u00f7\u00b7\u00b1\u221a]|\\(?:times|cdot|div|pm))")
#: Before a number that is a label: step 3, case 2.
_LABEL_BEFORE = re.compile(r"\b(?:step|case|part|section|method|problem|question|example|equation)\s$", re.IGNORECASE)
#: A word or unit after a number.
_UNIT = re.compile(
    r"\s*(?:\\(?:text|mathrm)\s?\{\s*)?((?:(?:square|cubic)\s)?[a-zA-Z\u00b0]+(?:/[a-zA-Z]+)?(?:\^\{?\d\}?)?)\}?"
)
_NOT_UNITS = re.compile(
    "and|or|is|are|was|were|in|on|at|as|by|of|to|for|from|so|because|since|with|which|that|than|then|when|now|"
    "total|altogether|left|each|per|times|more|less|plus|minus|the|this|these|those|it|he|she|they|we|you|i|all|"
    "both|if|but|respectively|also|again|only|too|after|before|an?|every|exactly|here|there|today|would|will|can",
    re.IGNORECASE,
)
#: Values of several numbers: times of the day, dates, sums of measures such as 3 hours and 20 minutes.
_MONTH = rf"{MONTH_NAME}\b\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?(?!\d)"
_WHOLE_VALUE = re.compile(
    rf"(?<![\w.])(?:\d{{1,2}}(?::\d{{2}}){{0,2}}\s?(?:[ap]\.m|[AP]\.M|[ap]m|[AP]M)\b\.?|\d{{1,2}}\so['\u2019]clock\b|{MEASURES}|{_MONTH}\s{_DAY},?\s\d{{4}}"
    rf"|{_MONTH}\s{_DAY}(?=\s*(?:[,.;)]|$))|{_DAY}\s(?:of\s)?{_MONTH}(?:,?\s\d{{4}})?|{_MONTH},?\s\d{{4}})"
)
#: Magnitudes of Chinese and Japanese numbers, and words of other scripts after a number.
_MAGNITUDES = "\u5341\u767e\u5343\u4e07\u842c\u4ebf\u5104\u5146"
_OTHER_SCRIPT = "\u0400-\u04ff\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
#: A value that a sentence rejects: 5, not 7; 12 rather than 13. It ends with the clause.
_REJECTED = re.compile(
    r"""
    \s*\(\s* (?:and\s|but\s)? (?:not|rather\ than|instead\ of)\b [^()]{0,100} \)
    | (?: \s?,\s?(?:and\s|but\s)?not | \s(?:and|but)\snot | (?<=[\d$%)])\snot
        | ,?\s(?:rather\ than|instead\ of|as\ opposed\ to) )
      \b (?!\ only) [^;]*? (?= ,\s(?:so|but|and|which|then|therefore|thus|hence)\b | ; | $ )
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Denies what follows it in the same clause, and words that begin another clause or state a value.
_DENIAL = re.compile(r"\b(?:not|never|no|cannot|neither|nor)\b|n['\u2019]t\b", re.IGNORECASE)
_DENIED_CLAUSE = re.compile(r"\b(?:not|n['\u2019]t)\s(?:true|the\scase|possible|correct)\b", re.IGNORECASE)
_NEW_CLAUSE = re.compile(
    r"[,;:]|\b(?:so|but|then|therefore|thus|hence|which|because|since|that|is|are|was|were|equals|has|leaves|gives|gets?)\b"
    r"|\band\b(?!\s*[-\d$\\])",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?:[.?]|!(?!\ ?[-+*/=^<>]))(?=[\s*$)]|\\[)\]]|$)|\n")
_FAREWELL = re.compile(r"(?:I hope|hope this|let me know|feel free|good luck|thank)\b[^\d=]*$", re.IGNORECASE)
#: A sentence that gives an equation, not only its right side.
_GIVES_EQUATION = re.compile(
    r"\b(?:equation|relation|identity|inequality|formula)\b[^=\d]{0,60}?\b(?:is|becomes)\b:?\s", re.IGNORECASE
)
#: Mathematics that is more than a number, with no other number after it.
_TERM = r"(?=[^$\s]*[\\^_+*/a-zA-Z\u03c0])(?![^$]*(?<![\\a-zA-Z])[a-zA-Z]{3})(?=[^$]*\d)[^$\s](?:[^$]{0,98}[^$\s])?"
_LAST_TERM = re.compile(rf"\$({_TERM})\$(?=[^\d$]*$)|\\\(\s?((?:(?!\\\))[^$]){{1,100}})\\\)(?=[^\d$]*$)")
_MATH_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$|(?<![\w)}\s])\*\*|\*\*(?!\s?[-\d({])|__|`")
_AFTER_VALUE = re.compile(rf"\s*(?:$|[,;)]|[a-zA-Z\u00b0\\]*[a-zA-Z]{{2}}|[{_OTHER_SCRIPT}])")
#: A sentence that begins with a condition or a reason, and the main clause after the last equation in it.
_CONDITION = re.compile(
    r"(?:(?:so|then|thus|hence|therefore|and|but|now),?\ )?"
    r"(?:if|when|whenever|where|for|with|since|because|as|given|assuming|using|substituting|taking|setting)\b",
    re.IGNORECASE,
)
_MAIN_CLAUSE = re.compile(
    r"(?:,\ (?!(?:and|or)\b)|\ (?=(?:the|then|there|it|we|he|she|they)\b))(?=[a-z]{2})", re.IGNORECASE
)
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
#: A closing sentence about the answer that gives none, and the step of a calculation that may precede it.
_ABOUT_ANSWER = re.compile(r"(?:the|this|your)\ (?:final\ |correct\ )?answer\b[^\d=]*", re.IGNORECASE)
_STEP = re.compile(r"[\d\s.,+*/()^%$×÷−-]+=\s*[-−]?\$?\d[\d,.]*")


def stated_value(text: str) -> str:
    """Return the value that the last sentence states: the right side of its last equation, otherwise its last number.

    A sentence about the answer that gives none ("The answer is within \\boxed{}.") is passed over after a calculation.
    """
    text = with_plain_punctuation(text[-4_000:])
    passed_over = False
    for sentence in reversed(_sentences(text)):
        sentence = _REJECTED.sub("", sentence)
        plain = _MATH_DELIMITERS.sub(" ", EMPHASIS.sub("", EMPTY_BOX.sub(" ", sentence)))
        plain = re.sub(r"\\(?:text|mathrm|textbf)\s?\{([^{}]*)\}", r" \1 ", plain)
        plain = " ".join(plain.split()).strip(" ,;:")
        announced = ANNOUNCEMENT.match(plain)
        rest = plain[announced.end() :] if announced else plain
        if not any(c.isalnum() for c in rest) or _FAREWELL.match(plain):
            continue  # only a mark, the announcement of nothing, or a polite end
        if not passed_over and _ABOUT_ANSWER.fullmatch(plain):
            passed_over = True
            continue
        if passed_over and not _STEP.fullmatch(plain):
            return ""
        if announced and re.match(r"\s*not\b", rest):
            return ""
        if CUT_OFF.search(plain) or plain.count("(") > plain.count(")") or plain.endswith("?"):
            return ""
        if named := _GIVES_EQUATION.search(plain):
            equation = plain[named.end() :].strip()
            return equation if "=" in equation and not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", equation) else ""
        *_, equals = (None, *_EQUALS.finditer(plain))
        term = None if equals else _LAST_TERM.search(sentence)
        if term is not None:
            return "" if _is_denied(sentence[: term.start()]) else (term[1] or term[2]).strip()
        if equals is None:
            return _last_number(plain)
        right = plain[equals.end() :]
        main = _MAIN_CLAUSE.search(right) if _CONDITION.match(plain) else None
        if main is not None and (value := _last_number(right[main.end() :])):
            return value
        return "" if _is_denied(plain[: equals.start()]) else value_at_start(right.strip()) or _last_number(right)
    return ""


def _is_denied(before: str) -> bool:
    """Return whether the clause before a value denies it: it is not 12, there is no solution with x = 5."""
    clause = _NEW_CLAUSE.split(before)[-1]
    return bool(_DENIAL.search(clause) or _DENIED_CLAUSE.search(before))


def _sentences(text: str) -> list[str]:
    """Split a text at line breaks and at full stops. A question keeps its mark."""
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        if is_abbreviated(text, end):
            continue
        sentences.append(text[start : end.end() if end[0] == "?" else end.start()].strip())
        start = end.end()
    return [sentence for sentence in (*sentences, text[start:].strip()) if sentence]


def value_at_start(right: str) -> str:
    """Return the value at the start of the right side of an equation: a number with its unit, or a short term."""
    number = NUMBER.match(right)
    if number is not None and _AFTER_VALUE.match(right, number.end()):
        return _with_unit(right, number)
    term = re.split(r"[,;]|\s(?=[a-zA-Z]{3,})", right, maxsplit=1)[0].strip()
    return term if term and not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}", term) else ""


def _last_number(sentence: str) -> str:
    """Return the last number of a sentence with its unit, "" if it is only a part of a term.

    Digits within a name (x1) do not count. Numbers that end the sentence in brackets are one value.
    """
    if point := _POINT.search(sentence):
        return "" if _is_denied(sentence[: point.start()]) else point[0]
    numbers = [
        match
        for match in NUMBER.finditer(sentence)
        if not re.match(r"[a-zA-Z_]", sentence[max(match.start() - 1, 0) : match.start()])
    ]
    if not numbers or _OPERATOR_AFTER.match(sentence, numbers[-1].end()):
        return ""
    start = numbers[-1].start()
    is_part = _OPERATOR_BEFORE.search(sentence, max(start - 8, 0), start)
    is_label = _LABEL_BEFORE.search(sentence, max(start - 20, 0), start)
    return "" if is_part or is_label or _is_denied(sentence[:start]) else _with_unit(sentence, numbers[-1])


def _with_unit(text: str, number: re.Match[str]) -> str:
    """Return a number with the word or unit after it, or the date, time or sum of measures that it belongs to."""
    for whole in _WHOLE_VALUE.finditer(text):
        units = [unit.rstrip("s") for unit in re.findall(r"(?!and\b)[a-zA-Z]+", whole[0])]
        if whole.start() <= number.start() < whole.end() and len(set(units)) == len(units):
            return whole[0]
    if magnitude := re.compile(f"[{_MAGNITUDES}]+").match(text, number.end()):
        return number[0] + magnitude[0]
    unit = _UNIT.match(text, number.end())
    if unit is None or _NOT_UNITS.fullmatch(unit[1]):
        return number[0]
    attached = unit.start(1) == number.end()
    return number[0] + ("" if attached else " ") + unit[1]

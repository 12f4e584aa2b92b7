"""Find the ends of sentences and clauses: full stops of abbreviations, punctuation of other scripts, emphasis."""

from __future__ import annotations

import re

#: Ends mathematics that was cut off, and a sentence.
OPEN_END = re.compile(r"(?:[-+*/=^(,:\[{<>\u2212]|\\(?:times|cdot|frac|div|left))$")
CUT_OFF = re.compile(rf"{OPEN_END.pattern}|\b(?:and|or|is|the|of|by|to|equals)$|(?:^|(?<=[a-zA-Z]{{2}}\s))a$")
#: Words before a full stop that ends nothing: always, before a number, or if a number, a word or a bracket follows a
#: measure.
_TITLE = re.compile(
    r"\b(?:approx|Mrs?|Ms|Dr|St|Mt|sq|cu|vs|Prof|Gen|Col|Sgt|Rev|Capt|Lt|ca|cf|e\.g|i\.e)$", re.IGNORECASE
)
_BEFORE_NUMBER = re.compile(
    r"\b(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Rs|Ch|Sec|Vol|vol|[Ff]igs?|[Ee]qs?|[Nn]os|pp)$"
)
_MEASURE = re.compile(
    r"\d\s?(?:(?:sq|cu)\.?\s)?(?:ft|in|yds?|mi|[mck]m|m|lbs?|oz|k?g|gal|qts?|pts?|tsp|tbsp|hrs?|mins?|secs?|deg|[ap]\.m)$",
    re.IGNORECASE,
)
_MORE_OF_MEASURE = re.compile(r"\s+(?:[a-z(]|\d+(?:\.\d+)?\s?[a-z])")
#: The letter of an initial, and a name after it. A letter up to H before a word is an option of a multiple choice.
_INITIAL, _LATE_INITIAL = re.compile(r"(?<![\w.])[A-Z]$"), re.compile(r"(?<![\w.])(?<!\d\s)[I-Z]$")
_INITIALS_BEFORE, _INITIALS_AFTER = re.compile(r"(?<!\w)[A-Z]\.\s?[A-Z]$"), re.compile(r"\s[A-Z]\.\s?[A-Z]")
_DOTTED = re.compile(r"\b[A-Z]\.[A-Z]$")
_MORE_OF_NAME = re.compile(
    r"\s(?:[a-z]|(?!(?:The|This|That|These|It|He|She|We|They|So|Thus|Hence|Therefore|In|There|And|But|As|Since|Because|To"
    r"|If|Note|Let|For|Here|My|Final|Answer|Correct|Now|Then)\b)[A-Z][a-z])"
)
_SURNAME = re.compile(r"\s[A-Z][a-z]+[\s.*]*$")
#: Punctuation of Chinese and Japanese texts in ASCII. A comma between digits stays.
_WIDE_PUNCTUATION = {"\u3002": ". ", "\uff0e": ". ", "\uff01": "! ", "\uff1f": "? ", "\uff1b": "; ", "\u3001": ", "}
_WIDE_PUNCTUATION |= {"\uff1a": ":", "\uff0c": ", "}
_WIDE_SIGN = re.compile(f"(?!(?<=\\d)\uff0c\\d)[{''.join(_WIDE_PUNCTUATION)}]")
_WIDE_DECIMAL_POINT = re.compile(r"(?<=\d)\uff0e(?=\d)")
#: Emphasis around a part of a clause, unlike the sign of a power in 2**10.
EMPHASIS = re.compile(r"(?:(?<=[\s(,])|^)(?:\*\*|__)(?=[^\s*_])|(?<=[^\s*_])(?:\*\*|__)(?=[\s.,;:!?)]|$)")


def is_abbreviated(text: str, end: re.Match[str]) -> bool:
    """Return whether what may end a clause or sentence is the full stop of an abbreviation, such as "3 ft. 2 in."."""
    if end[0] != ".":
        return False
    before, after = text[max(end.start() - 20, 0) : end.start()], text[end.end() : end.end() + 30]
    if _TITLE.search(before) or (_MEASURE.search(before) and _MORE_OF_MEASURE.match(after)):
        return True
    if _BEFORE_NUMBER.search(before):
        return re.match(r"\s?\(?\d", after) is not None
    if _DOTTED.search(before):
        return _MORE_OF_NAME.match(after) is not None
    if re.search(r"\bNo$", before):
        return re.match(r"\s\d+[\s.*]*$", after) is not None
    if _INITIALS_AFTER.match(after) or _INITIALS_BEFORE.search(before):
        return _INITIAL.search(before) is not None and re.match(r"\s[A-Z]", after) is not None
    return _LATE_INITIAL.search(before) is not None and _SURNAME.match(after) is not None


def with_plain_punctuation(text: str) -> str:
    """Write the punctuation of Chinese and Japanese texts in ASCII, with a space after it."""
    if text.isascii():
        return text
    return _WIDE_SIGN.sub(lambda sign: _WIDE_PUNCTUATION[sign[0]], _WIDE_DECIMAL_POINT.sub(".", text))

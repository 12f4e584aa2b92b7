r"""Find the answer of a trace in its answer section, and compare answers as text.

`find_answer` reads the text after the thinking and returns the answer with its level: `boxed` (`\boxed{...}`),
`announced` ("Final answer: ...", `<answer>...</answer>`) or `weak` (the value that the last sentence states). A box
that was cut off and an announcement of nothing give no answer.

Whether 1/2 equals 0.5 is decided elsewhere (see `equality`). Every function takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .announced_text import ANNOUNCEMENT, EMOJI, announced_lines, announced_text, without_fence
from .box_instruction import BOX_INSTRUCTION as BOX_INSTRUCTION
from .boxes import BOX, EMPTY_BOX, boxed_answer, find_boxes, is_placeholder
from .canonical_json import canonical_json
from .remarks import last_side, value_in_sentence, without_remark
from .sentences import CUT_OFF, EMPHASIS, OPEN_END, is_abbreviated, with_plain_punctuation
from .stated_value import stated_value
from .tex import closing_braces

#: "math": equal values are equal answers. "text": a puzzle's free text, compared as it stands. "open": the whole text
#: is the answer, and nothing is compared. "json": the whole text is a JSON value, compared in its canonical form.
AnswerKind = Literal["math", "text", "open", "json"]
AnswerLevel = Literal["call", "boxed", "announced", "weak", "none"]
#: The levels of answers in texts, the strongest first. Tool calls are apart from them.
LEVELS: Final[tuple[AnswerLevel, ...]] = ("boxed", "announced", "weak")
#: Version of the rules by which answers are found and compared. A run records it; runs without it have version 1.
ANSWER_RULES: Final = 2


@dataclass(frozen=True)
class FoundAnswer:
    """An answer and how the text marks it. The answer is "" where the level is "none"."""

    text: str
    level: AnswerLevel


NO_ANSWER: Final = FoundAnswer("", "none")

# What marks an answer.

#: Begins a line of a quoted text.
_QUOTE = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_QUOTE_AFTER_HEADING = re.compile(r"[\s*_]*\n[ \t]*>")
#: A word that is not a name, as in "must be positive".
_PROPERTY = re.compile(r"(?!(?:yes|no|true|false)\b)[a-z]{2}")
#: The last line of a solution in the style of GSM8K, and its value, unlike a heading such as "Step 3: Add" or "3. Add".
_MARKED_LINE = re.compile(r"(?:^|\n)####[ \t]+(\S[^\n]*)\s*$")
_MARKED_VALUE = re.compile(
    r"(?!\d+[.):]\s)(?:[-+\u2212]?\s?(?:\\?[$\u20ac\u00a3]\s?)?\.?\d|\\|\$|[(\[]\s?[-\u2212]?\d|[a-zA-Z]\s?=)"
)
_TAG_OPEN, _TAG_CLOSE = re.compile(r"<answer>", re.IGNORECASE), re.compile(r"</answer>", re.IGNORECASE)
#: Ends the clause with an announced value. The sign of a factorial, an ellipsis and the semicolon of a list do not.
_CLAUSE_END = re.compile(
    r"""
    (?: (?<!\.\.) \. | \? | ! (?!\ ?[-+*/=^<>\\]) ) (?=[\s*_]|$)
    | ; (?=\s*(?:[a-z]{2}|$))
    | \n
    | ,?\ (?:because|since|which|where|so|but|rather\ than|instead\ of|as\ (?:we|it|the|shown|required))\b
    | (?:,|,?\ and|\ \(|(?<=[\d$%)])) \ ?not\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DECORATION = re.compile(rf"^[{EMOJI}\s]+|[{EMOJI}\s]+$")
#: Mathematics between delimiters. The dollar signs have no white space inside, and no digit follows: $5 or $6 is money.
_MATH = re.compile(
    r"\$\$?(?=\S)((?:\\.|[^$\\\n]){1,500})(?<=\S)\$\$?(?!\d)|\\\(([^\n]{1,500}?)\\\)|\\\[([^\n]{1,500}?)\\\]"
)
_MATH_AT_START = re.compile(rf"[\s*_:]*(?:{_MATH.pattern})")
#: Between mathematics and more of the same answer: $3$ and $-3$, $3$ apples or $4$ pears, $12$ cm$^2$, $3$:$4$.
_CONTINUED = re.compile(
    r"""
    (?: [ \t]? [a-zA-Z\u00b0]{1,20} ){0,2}
    (?:
        \s* (?: [,;:&/+=<>\u00d7\u00b7-] | ,?\s(?:and|or|to|by|with)\b | \\text\s?\{\s*(?:and|or)\s*\} )
        \s* (?: [a-zA-Z] (?:_\w)? \s?=\s? )?
        (?= \$ | \\[(\[] | [-\u2212]?\d[\d.,/]* (?: $ | [.,;]?\s*(?:$|(?:and|or)\b) | \s*[$\\] ) )
    | (?=\$\^)
    )
    """,
    re.VERBOSE,
)
_NUMERAL = r"\(?(?:I{1,3}|IV|VI{0,3}|IX|X)\)?"
#: A list of Roman numerals, or one that "only" follows.
_NUMERALS = re.compile(
    rf"(?:{_NUMERAL}(?:,\s?(?:(?:and|or)\s)?|\s(?:and|or|&)\s)){{1,9}}{_NUMERAL}(?:\sonly)?|{_NUMERAL}\sonly"
)
#: Begins half a sentence, not an answer.
_NO_ANSWER_WORDS = re.compile(
    "also|always|an|and|as|asked|at|based|be|because|below|boxed|by|calculated|computed|correct|expected|"
    "expressed|for|formatted|found|from|given|going|he|here|how|i|in|incorrect|it|just|left|not|now|obtained|of|"
    "off|on|only|or|presented|put|required|right|shown|she|simply|so|still|that|the|then|there|they|this|to|"
    "unknown|we|what|when|where|which|who|within|written|wrong|you|your|answer|final|rounded|verified|confirmed|checked|"
    "reasonable|sensible|plausible|unique|exact|accurate|approximate|consistent|simplified|clear|obvious|derived|determined",
    re.IGNORECASE,
)
#: Those of them that can be an answer alone, as choices or directions.
_LONE_ANSWERS = re.compile("a|i|he|unknown|left|right|consistent", re.IGNORECASE)
#: Those that can be an answer alone after a colon.
_LONE_AFTER_COLON = re.compile(
    "a|i|he|unknown|left|right|correct|incorrect|wrong|always|on|off|reasonable|unique|exact|accurate|approximate|consistent",
    re.IGNORECASE,
)
#: Begin an answer although their first words begin half sentences, too: a bound, a name, and after a colon a denial.
_BOUND_OR_NAME = re.compile(r"(?i:at\s(?:least|most)\s)|(?:[Tt]he|An?)(?:\s(?:of|the|and|[A-Z][\w'\u2019-]*)){1,6}$")
_DENIAL_AFTER_COLON = re.compile(r"not(?:\s[a-z-]+){1,3}", re.IGNORECASE)
#: Names that end like a sum that was cut off.
_ENDS_WITH_PLUS = re.compile(r"[a-zA-Z]\w{0,9}\+{1,2}")
#: Repeats the instruction in the place of an answer.
_INSTRUCTION = re.compile(
    r"(?:only |just |put |placed |written |presented |given |shown |is |should be |must be |it )*"
    r"(?:within|below|boxed|in(?:side)? (?:a|the) box)\b|[^\\\w]*\w[^\\]*\\(?:boxed|fbox)(?![a-zA-Z])",
    re.IGNORECASE,
)
#: Announcements that are tried, from the last one on, and characters that are read after each.
_MAX_ANNOUNCEMENTS, _MAX_ANNOUNCED = 20, 2_000


def find_answer(text: str, kind: AnswerKind = "math", *, rules: int = ANSWER_RULES, calls: str = "") -> FoundAnswer:
    r"""Return the answer in the text after the thinking, and its level.

    `calls` are the tool calls in it, as text that is the same for equal calls. They are the answer of such a text.

    The strongest mark decides: the last box that is not empty (the boxes of one closing list together), the last line
    that announces an answer, the last `<answer>` element. Without a mark the answer is weak: for `math` the value that
    the last sentence states, for `text` the whole text. If the last box, or what the last announcement gives, was cut
    off, there is no answer.
    """
    if kind == "open":
        return FoundAnswer(text.strip(), "weak") if text.strip() else NO_ANSWER
    if calls:
        return FoundAnswer(calls, "call")
    if kind == "json":
        canonical = canonical_json(text)
        return FoundAnswer(canonical, "announced") if canonical else NO_ANSWER
    if rules == 1:
        return _find_by_rules_1(text, kind)
    boxes = find_boxes(text)
    if boxes and boxes[-1].is_cut_off:
        return NO_ANSWER
    boxed = boxed_answer(text, boxes, any_content=kind == "text")
    if boxed:
        return FoundAnswer(boxed, "boxed")
    announced = _announced_answer(text, kind)
    if announced is None:
        return NO_ANSWER
    announced = announced or _tagged_answer(text) or _marked_answer(text)
    if announced:
        return FoundAnswer(announced, "announced")
    weak = stated_value(text) if kind == "math" else _plain_text(text)
    return FoundAnswer(weak, "weak") if weak else NO_ANSWER


def marks_answer(text: str, calls: str = "") -> bool:
    """Return True if the text after the thinking calls tools, has a box or announces its answer."""
    return find_answer(text, calls=calls).level in ("call", "boxed", "announced")


def resolve_kind(kind: str, marked: Sequence[bool]) -> AnswerKind:
    """Return the kind of answers that a run compares. `marked` is True for each candidate that marks its answer.

    "auto" is "math" where most candidates do, and otherwise "open".
    """
    if kind == "auto":
        return "math" if 2 * sum(marked) > len(marked) else "open"
    return kind if kind in ("text", "open", "json") else "math"  # type: ignore[return-value]


def voting_levels(levels: Sequence[AnswerLevel]) -> set[AnswerLevel]:
    """Return the levels that vote: the strongest one of the texts, and calls."""
    return {strongest_level(levels), "call"}


def strongest_level(levels: Sequence[AnswerLevel]) -> AnswerLevel:
    """Return the strongest level that occurs, "none" if there is no answer."""
    return next((level for level in LEVELS if level in levels), "none")


# Announced answers


def _announced_answer(text: str, kind: AnswerKind) -> str | None:
    """Return the text after the last announcement, passing over announcements without a possible answer.

    Return None if the text that the last one gives was cut off.
    """
    announcements = list(ANNOUNCEMENT.finditer(text))
    for match in reversed(announcements[-_MAX_ANNOUNCEMENTS:]):
        rest = text[match.end() : match.end() + _MAX_ANNOUNCED]
        if ">" in match[0] or _QUOTE_AFTER_HEADING.match(rest):
            rest = _QUOTE.sub("", rest)
        has_colon = match["verb"] is None or match[0].endswith(":")  # or "=", or a heading
        answer = _puzzle_text(rest, has_colon) if kind == "text" else _announced_value(rest, has_colon)
        if answer and match["modal"] and _PROPERTY.match(answer):
            continue
        if answer or answer is None:
            return answer
    return ""


def _announced_value(rest: str, has_colon: bool) -> str | None:
    """Return the value that follows an announcement, or the values of a list, None if it was cut off."""
    announced = announced_text(rest)
    if announced is None:
        return None
    if announced.whole:
        contents = [_stripped(EMPTY_BOX.sub("", item)) for item in announced.items]
        values = ["" if BOX.search(item) or not _is_complete(item) else last_side(item) for item in contents]
    else:
        values = [_clause_answer(item, has_colon) for item in announced.items]
    return ", ".join(values) if all(values) else ""


def _puzzle_text(rest: str, has_colon: bool) -> str | None:
    """Return the text that follows a puzzle's announcement, None if it was cut off."""
    lines = announced_lines(rest)
    return None if lines is None else _puzzle_answer(lines, has_colon)


def _tagged_answer(text: str) -> str:
    """Return the content of the last complete `<answer>` element."""
    closing = max((match.start() for match in _TAG_CLOSE.finditer(text)), default=-1)
    opening = max((match.end() for match in _TAG_OPEN.finditer(text, 0, max(closing, 0))), default=-1)
    return _stripped(without_fence(text[opening:closing])) if opening >= 0 else ""


def _marked_answer(text: str) -> str:
    """Return the value on a last line like "#### 42". A heading without a value does not count."""
    marked = _MARKED_LINE.search(text, max(len(text) - _MAX_ANNOUNCED, 0))
    value = _stripped(EMPTY_BOX.sub("", marked[1])) if marked else ""
    return value if _MARKED_VALUE.match(value) and _can_be_announced(value) else ""


def _puzzle_answer(content: str, has_colon: bool) -> str:
    """Return an announced text without emphasis and full stop, "" if it cannot be an answer.

    After a colon it may begin with any word. Otherwise a word like "found" begins half a sentence, but no list.
    """
    repeats_instruction = _INSTRUCTION.match(content.strip())
    content = _stripped(EMPTY_BOX.sub("", content))
    words = content.split()
    if repeats_instruction or is_placeholder(content):
        return ""
    if not has_colon and len(words) > 2 and _NO_ANSWER_WORDS.fullmatch(words[0]):
        return ""
    return (
        _stripped(content[:-1]) if re.search(r"[\w$*`)\]}+#][.\u3002]$", content) and "\n" not in content else content
    )


def _clause_answer(content: str, has_colon: bool) -> str:
    """Return the value that the clause after an announcement gives, "" if it gives none."""
    content = with_plain_punctuation(EMPTY_BOX.sub("", content))
    if BOX.search(content):
        return ""  # a box that holds no answer
    content = EMPHASIS.sub("", content)
    span = _MATH_AT_START.match(content)
    if span is not None and _ends_with(content, span):
        unit = re.match(r"\s*(?:\\?%|[a-zA-Z\u00b0]+\b(?=[\s.*]*$))", content[span.end() :])
        value = _stripped(_inside(span).rstrip() + (unit[0] if unit else ""))
        return last_side(value) if _is_complete(value) else ""
    if span is not None:
        content = _MATH.sub(_inside, content)
    end = next((end for end in _CLAUSE_END.finditer(content) if not is_abbreviated(content, end)), None)
    clause = _stripped(content[: end.start()] if end else content)
    clause = _DECORATION.sub("", clause).strip() or clause
    if quoted := re.fullmatch(r"[\"“]([^\"“”]+)[\"”]", clause):
        clause = quoted[1].strip()
    if has_colon and (_LONE_AFTER_COLON.fullmatch(clause) or _DENIAL_AFTER_COLON.fullmatch(clause)):
        return clause
    if has_colon and (value := value_in_sentence(clause)):
        return value
    clause = without_remark(clause)
    return last_side(clause) if _can_be_announced(clause) else ""


def _ends_with(clause: str, span: re.Match[str]) -> bool:
    """Return whether mathematics at the start of a clause is the whole answer, apart from a unit."""
    joined = re.match(r"[-\w/]", clause[span.end() :]) and not re.match(r"\w+[\s.]*$", clause[span.end() :])
    return not joined and not _CONTINUED.match(clause, span.end())


def _inside(span: re.Match[str]) -> str:
    """Return the mathematics between delimiters."""
    return next(group for group in span.groups() if group is not None)


def _is_complete(value: str) -> bool:
    """Return whether mathematics has a letter, a digit or a sign, and does not end with an operator."""
    is_cut_off = OPEN_END.search(value) and not _ENDS_WITH_PLUS.fullmatch(value)
    return any(c.isalnum() or unicodedata.category(c) == "Sm" for c in value) and not is_cut_off


def _can_be_announced(clause: str) -> bool:
    """Return whether a clause is a value or a short phrase, not half a sentence."""
    if not _is_complete(clause):
        return False
    if _ENDS_WITH_PLUS.fullmatch(clause) or _NUMERALS.fullmatch(clause):
        return True
    if CUT_OFF.search(clause):
        return False
    first, *others = clause.split()
    is_operand = bool(others) and others[0][0] in "-+*/^=<>"  # i + 1
    is_half = _NO_ANSWER_WORDS.fullmatch(first.strip(",:")) and not _BOUND_OR_NAME.match(clause)
    if is_half and (others or not _LONE_ANSWERS.fullmatch(first)):
        return is_operand and len(first) == 1
    words = re.findall(r"(?<![\\\w])[^\W\d_]{2,}", clause)
    return len(words) <= (4 if any(c.isdigit() for c in clause) else 5)


def _stripped(text: str) -> str:
    """Return the text without white space, emphasis and delimiters of mathematics around it."""
    text = text.strip()
    while True:
        shorter = text.strip("*_`: \t\r\n")
        for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            has_both = shorter.startswith(opening) and shorter.endswith(closing)
            if has_both and len(shorter) >= len(opening) + len(closing) and opening not in shorter[1:-1]:
                shorter = shorter[len(opening) : -len(closing)]
                break
            if shorter in (opening, closing):
                shorter = ""
                break
        if shorter == text:
            return text
        text = shorter


def _plain_text(text: str) -> str:
    """Return a puzzle's text without emphasis, dollar signs and a leading "answer:"."""
    text = _stripped(without_fence(EMPTY_BOX.sub("", text)))
    if re.fullmatch(r"\S*[\w$*`)\]}]\.", text):  # one word and a full stop
        text = text[:-1]
    return _stripped(re.sub(r"^(?:(?:the|my)\s)?(?:final\s)?answer\s?:", "", text, flags=re.IGNORECASE))


# Comparison as text


def normalise(answer: str) -> str:
    """Return one form for texts that differ only in white space, dollar signs, Unicode form or a full stop.

    The form keeps what a text means: full-width digits become digits, and superscripts and fractions stay.
    """
    text = unicodedata.normalize("NFC", answer)
    if not text.isascii():
        text = "".join(map(_plain_character, text))
    return " ".join(text.replace("$", " ").split()).rstrip(". ")


def equal_text(first: str, second: str) -> bool:
    """Return whether two answers are the same normalised text."""
    return normalise(first) == normalise(second)


def _plain_character(character: str) -> str:
    """Return the ordinary form of a character that has another width or style."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    return (
        unicodedata.normalize("NFKC", character) if kind in ("<wide>", "<narrow>", "<noBreak>", "<font>") else character
    )


# The rules of version 1, for runs recorded by earlier versions of the package.

_BOXED_1 = re.compile(r"\\boxed\s*\{")
_FINAL_LINE_1 = re.compile(
    r"^[ \t\r\f\v>*_#-]*(?:the\s+|my\s+)?(?:final\s+)?answer\s*(?:(?:\*\*|__)\s*)?(?::|=|\bis\b:?)"
    r"\s*(?:(?:\*\*|__)\s*)?(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)


def _find_by_rules_1(text: str, kind: AnswerKind) -> FoundAnswer:
    """Return the answer by the rules of version 1, which have one level."""
    starts = [match.end() - 1 for match in _BOXED_1.finditer(text)]
    closed = closing_braces(text, starts[0]) if starts else {}
    boxed = [text[start + 1 : closed[start]].strip() for start in starts if start in closed]
    if any(boxed):
        return FoundAnswer(next(content for content in reversed(boxed) if content), "announced")
    if kind == "text":
        whole = "" if starts else text.strip()
        return FoundAnswer(whole, "announced") if whole else NO_ANSWER
    lines = _FINAL_LINE_1.findall(text)
    last = lines[-1].strip().strip("*_").strip() if lines else ""
    return FoundAnswer(last, "announced") if last else NO_ANSWER


def equal_text_1(first: str, second: str) -> bool:
    """Compare two answers as text by the rules of version 1."""
    forms = [" ".join(unicodedata.normalize("NFKC", a).replace("$", " ").split()).rstrip(". ") for a in (first, second)]
    return forms[0] == forms[1]

r"""Find the answer of a trace in its answer section, and compare answers as text.

`find_answer` reads the text after the thinking and returns the answer with its level: `boxed` (`\boxed{...}`),
`announced` ("Final answer: ...", `<answer>...</answer>`) or `weak` (the value that the last sentence states). A box
that was cut off and an announcement of nothing give no answer.

Whether 1/2 equals 0.5 is decided elsewhere (see `equality`). Every function takes time linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .announced_text import announced_lines, announced_text, without_fence
from .box_instruction import BOX_INSTRUCTION as BOX_INSTRUCTION
from .canonical_json import canonical_json
from .dates import MONTH_NAME
from .tex import closing_braces, read_argument

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

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
#: The content of a box without braces is a number, a command with its arguments, or one letter before a delimiter.
_PLAIN_SIGN = re.compile(r"[-+\u2212]?\s{0,2}")
_PLAIN_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_PLAIN_LETTER = re.compile(r"[a-zA-Z](?=[\^_]|[\s$.,;)]*(?:$|\n|\$))")
#: Ends it: white space, delimiters of mathematics, punctuation, relations, a unit. Anything else continues it.
_PLAIN_END = re.compile(
    r"$|[\s$.,;:?!)\]}=<>&%\u00b0]|\\(?:[)\]\\,;:! %]|text|mathrm|mbox|q?quad|[lg]eq?|approx|f?box)"
)
_REST_OF_TERM = re.compile(r"[^\s$]{1,100}?(?=[.,;:]?(?:$|[\s$]|\\[)\]]))")
#: Begins or ends no list of boxes: \boxed{3} was wrong, \boxed{5} earlier.
_NO_NAME = (
    "is|are|was|were|be|becomes?|and|or|also|not|no|then|than|but|so|wrong|incorrect|right|correct|wait|actually|first|"
    "fails|failed|looks|looked|seems|seemed|earlier|before|initially|previously|now|at|as|which|while|instead|rather"
)
#: Text that may be between the boxes of one list: up to two words before a separator, separators, labels such as (a).
_BETWEEN_BOXES = re.compile(
    rf"""
    (?: (?:\$|\\\))? (?: \s(?!(?:{_NO_NAME})\b)[a-z]{{2,12}} ){{1,2}} (?= ,?\s(?:and|or)\b | ,\s ) )?
    (?:
        [\s$,;&] | \\[,;:!() ] | \\q?quad | \\text\s?\{{ | \}} | \band\b(?:\salso\b)? | \bor\b
      | [a-zA-Z](?:_\{{?\w{{1,3}}\}}?)?\s{{0,3}}=
      | (?<![\w\\]) (?: (?:part|case)\s )? \(?(?:[a-h]|i{{1,3}}|iv|v|vi{{1,3}}|\d)\):?
    )*
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Introduces the line with the answer. No two neighbours match the same white space, or long runs of it take for ever.
_ANNOUNCEMENT = re.compile(
    r"(?:^|(?<=[.!?:]\s))[ \t\r\f\v>*_#-]*"
    r"(?:(?:so|thus|hence|therefore|then|and|finally|in\ conclusion|as\ a\ result|this\ means|we\ see)\b"
    r"(?:\ that)?,?\ (?:\*\*|__)?)?"
    r"(?:the\s+|my\s+|our\s+)?(?:(?:(?:final|correct|best|right)\s+)?answers?|(?:correct|best|right)\s+(?:option|choice)s?)"
    r"(?:\ (?:to|of|for)\ (?:the|this|your|that)\ (?:whole\ |original\ |given\ )?(?:question|problem|puzzle|sum))?"
    r"[ \t]*(?:(?:\*\*|__)[ \t]*)?(?:[:\uff1a=]|\bis\b:?|\bare\b:?|$)",
    re.IGNORECASE | re.MULTILINE,
)
#: Begins a line of a quoted text.
_QUOTE = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
#: The last line of a solution in the style of GSM8K.
_MARKED_LINE = re.compile(r"(?:^|\n)####[ \t]+(\S[^\n]*)\s*$")
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
#: Words before a full stop that ends nothing: always, or if a number, a word or a bracket follows a measure.
_TITLE = re.compile(
    r"\b(?:approx|Mrs?|Ms|Dr|St|Mt|sq|cu|vs|Prof|Gen|Col|Sgt|Rev|Capt|Lt|ca|cf|e\.g|i\.e)$", re.IGNORECASE
)
_MEASURE = re.compile(
    r"\d\s?(?:(?:sq|cu)\.?\s)?(?:ft|in|yds?|mi|[mck]m|m|lbs?|oz|k?g|gal|qts?|pts?|tsp|tbsp|hrs?|mins?|secs?|deg|[ap]\.m)$",
    re.IGNORECASE,
)
_MORE_OF_MEASURE = re.compile(r"\s+(?:[a-z(]|\d+(?:\.\d+)?\s?[a-z])")
#: The letter of an initial, and a name after it. A letter up to H before a word is an option of a multiple choice.
_INITIAL, _LATE_INITIAL = re.compile(r"(?<![\w.])[A-Z]$"), re.compile(r"(?<![\w.])(?<!\d\s)[I-Z]$")
_INITIALS_BEFORE, _INITIALS_AFTER = re.compile(r"(?<!\w)[A-Z]\.\s?[A-Z]$"), re.compile(r"\s[A-Z]\.\s?[A-Z]")
_SURNAME = re.compile(r"\s[A-Z][a-z]+[\s.*]*$")
#: Punctuation of Chinese and Japanese texts in ASCII. A comma between digits stays.
_WIDE_PUNCTUATION = {"\u3002": ". ", "\uff0e": ". ", "\uff01": "! ", "\uff1f": "? ", "\uff1b": "; ", "\u3001": ", "}
_WIDE_PUNCTUATION |= {"\uff1a": ":", "\uff0c": ", "}
_WIDE_SIGN = re.compile(f"(?!(?<=\\d)\uff0c\\d)[{''.join(_WIDE_PUNCTUATION)}]")
_WIDE_DECIMAL_POINT = re.compile(r"(?<=\d)\uff0e(?=\d)")
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
#: Emphasis around a part of a clause, unlike the sign of a power in 2**10.
_EMPHASIS = re.compile(r"(?:(?<=[\s(,])|^)(?:\*\*|__)(?=[^\s*_])|(?<=[^\s*_])(?:\*\*|__)(?=[\s.,;:!?)]|$)")
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
    "unknown|we|what|when|where|which|who|within|written|wrong|you|your|answer|final",
    re.IGNORECASE,
)
#: Those of them that can be an answer alone, as choices or directions.
_LONE_ANSWERS = re.compile("a|i|he|unknown|left|right", re.IGNORECASE)
#: Those that can be an answer alone after a colon.
_LONE_AFTER_COLON = re.compile("a|i|he|unknown|left|right|correct|incorrect|wrong|always|on|off", re.IGNORECASE)
#: Repeats the instruction in the place of an answer.
_INSTRUCTION = re.compile(
    r"(?:only |just |put |placed |written |presented |given |shown |is |should be |must be |it )*"
    r"(?:within|below|boxed|in(?:side)? (?:a|the) box)\b|[^\\\w]*\w[^\\]*\\(?:boxed|fbox)(?![a-zA-Z])",
    re.IGNORECASE,
)
#: Announcements that are tried, from the last one on, and characters that are read after each.
_MAX_ANNOUNCEMENTS, _MAX_ANNOUNCED = 20, 2_000
#: Contents of a box that repeat the instruction.
_PLACEHOLDER = re.compile(
    "(?:your |the |my |final |numerical |correct )*(?:answer|number|result|value|solution)(?: here| goes here)?"
)

# What states a value, for weak answers.

_ARGUMENT = r"\{(?:[^{}]|\{[^{}]{0,40}\}){1,60}\}"
_POWER = (
    r"(?:\s?\^\s?(?:\{[^{}]{1,40}\}|[-\u2212]?\d+|\\circ|[a-zA-Z](?![a-zA-Z]))|\*\*\s?-?\d+"
    r"|[\u2070\u00b9\u00b2\u00b3\u2074-\u207b\u207f]+)"
)
#: A number with all that belongs to it: powers of ten, fractions after it, thousands, roots, a base.
_ONE_NUMBER = rf"""
(?:(?<![\w)}}\]])[-\u2212\u2013+])? (?:\\?\$)?
(?: (?:\d+\s?)?\\[dt]?frac{_ARGUMENT}{_ARGUMENT} | (?:\d+\s?)?(?:\\sqrt{_ARGUMENT}|\u221a\d+)
  | \d{{4}}-\d{{2}}-\d{{2}} | \d{{1,2}}:\d{{2}}(?!\d) | \d+(?::\d+)+ | \d+\ \d+/\d+
  | (?:\d+\s?)?[\u00bc-\u00be\u2150-\u215e] | \d*\.\d*\\overline\{{\d+\}}
  | (?: \d{{1,3}}(?:(?:[\ \u00a0\u2009\u202f~]|\\,|\{{,\}})\d{{3}})+(?!\d) | \d[\d,]*\d | \d+ )(?:\.\d+)? | \.\d+ )
(?:[eE][-+]?\d+(?!\w))? (?:{_POWER})? (?:\s?(?:\\times|\\cdot|[\u00d7\u00b7xX*])\s?10{_POWER})?
(?:/\d+)? (?:!!?(?!\w))? (?:_\{{?\d+\}}?)? (?:\s?(?:\\pi(?![a-z])|\u03c0))? (?:\s?\\?%)?
"""
#: A number, or a sum, product or quotient of numbers.
_NUMBER = re.compile(
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
#: A word or unit after a number.
_UNIT = re.compile(r"\s*(?:\\(?:text|mathrm)\s?\{\s*)?([a-zA-Z\u00b0]+(?:/[a-zA-Z]+)?(?:\^\{?\d\}?)?)\}?")
_NOT_UNITS = re.compile(
    "and|or|is|are|was|were|in|on|at|as|by|of|to|for|from|so|because|since|with|which|that|than|then|when|now|"
    "total|altogether|left|each|per|times|more|less|plus|minus|the|this|these|those|it|he|she|they|we|you|i|all|"
    "both|if|but|respectively|also|again|only|too|after|before|an?|every|exactly|here|there|today|would|will|can",
    re.IGNORECASE,
)
#: Values of several numbers: times of the day, dates, sums of measures such as 3 hours and 20 minutes.
_MONTH = rf"{MONTH_NAME}\b\.?"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?(?!\d)"
_MEASURES = (
    "years?|months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|seconds?|secs?|s",
    "miles?|mi|yards?|yds?|feet|foot|ft|inch(?:es)?|in|k?m|[cm]m|(?:kilo|centi|milli)?met(?:er|re)s?",
    "stones?|pounds?|lbs?|ounces?|oz|tons?|k?g|(?:kilo)?grams?",
    "dollars?|cents?|pounds?|pence|euros?",
)
_SUM = "|".join(
    rf"\d+(?:\.\d+)?\s?(?:{units})\b\.?(?:,?\s(?:and\s)?\d+(?:\.\d+)?\s?(?:{units})\b){{1,3}}" for units in _MEASURES
)
_WHOLE_VALUE = re.compile(
    rf"(?<![\w.])(?:\d{{1,2}}(?::\d{{2}}){{0,2}}\s?(?:[ap]\.m|[AP]\.M|[ap]m|[AP]M)\b\.?|{_SUM}|{_MONTH}\s{_DAY},?\s\d{{4}}"
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
#: Ends mathematics that was cut off, and a sentence.
_OPEN_END = re.compile(r"(?:[-+*/=^(,:\[{<>\u2212]|\\(?:times|cdot|frac|div|left))$")
_CUT_OFF = re.compile(rf"{_OPEN_END.pattern}|\b(?:and|or|is|the|of|by|to|equals)$|(?:^|(?<=[a-zA-Z]{{2}}\s))a$")
_FAREWELL = re.compile(r"(?:I hope|hope this|let me know|feel free|good luck|thank)\b[^\d=]*$", re.IGNORECASE)
#: Parts of a calculation with numbers. An x between two of them is a sign, and anywhere else a variable.
_CALCULATION = re.compile(
    r"[\d.,+*/()\[\]^%$!\u00d7\u00f7\u2212-]|\s|\\(?:times|cdot|div|frac|left|right|[$,;!( )])|[{}]"
    r"|(?<=[\d)])[xX](?=\d)|(?<=[\d)]\s)[xX](?=\s\$?\d)"
)
#: A sentence that gives an equation, not only its right side.
_GIVES_EQUATION = re.compile(
    r"\b(?:equation|relation|identity|inequality|formula)\b[^=\d]{0,60}?\b(?:is|becomes)\b:?\s", re.IGNORECASE
)
#: Mathematics that is more than a number, with no other number after it.
_TERM = r"(?=[^$\s]*[\\^_+*/a-zA-Z\u03c0])(?![^$]*(?<![\\a-zA-Z])[a-zA-Z]{3})(?=[^$]*\d)[^$\s](?:[^$]{0,98}[^$\s])?"
_LAST_TERM = re.compile(rf"\$({_TERM})\$(?=[^\d$]*$)|\\\(\s?((?:(?!\\\))[^$]){{1,100}})\\\)(?=[^\d$]*$)")
_MATH_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$|(?<![\w)}\s])\*\*|\*\*(?!\s?[-\d({])|__|`")
_AFTER_VALUE = re.compile(rf"\s*(?:$|[,;)]|[a-zA-Z\u00b0\\]*[a-zA-Z]{{2}}|[{_OTHER_SCRIPT}])")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
#: A closing sentence about the answer that gives none, and the step of a calculation that may precede it.
_ABOUT_ANSWER = re.compile(r"(?:the|this|your)\ (?:final\ |correct\ )?answer\b[^\d=]*", re.IGNORECASE)
_STEP = re.compile(r"[\d\s.,+*/()^%$×÷−-]+=\s*[-−]?\$?\d[\d,.]*")
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")


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
    boxes = list(_boxes(text))
    if boxes and boxes[-1].content is None:
        return NO_ANSWER
    boxed = _boxed_answer(text, [box for box in boxes if box.content], kind)
    if boxed:
        return FoundAnswer(boxed, "boxed")
    announced = _announced_answer(text, kind)
    if announced is None:
        return NO_ANSWER
    announced = announced or _tagged_answer(text) or _marked_answer(text)
    if announced:
        return FoundAnswer(announced, "announced")
    weak = _stated_value(text) if kind == "math" else _plain_text(text)
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


# Boxes


@dataclass(frozen=True)
class _Box:
    """A box from its command to its end. The content is None if the box was cut off."""

    start: int
    end: int
    content: str | None


def _boxes(text: str) -> Iterator[_Box]:
    """Yield the boxes in the order of their commands. Of nested boxes only the innermost ones count."""
    commands = list(_BOX.finditer(text))
    closed = closing_braces(text, commands[0].end()) if commands else {}
    for match in commands:
        start, opened = match.start(), match.end()
        if text.startswith("{", opened):
            end = closed.get(opened)
            if end is None:
                yield _Box(start, len(text), None)
            else:
                yield _Box(start, end + 1, text[opened + 1 : end].strip())
        elif opened == len(text):
            yield _Box(start, opened, None)
        elif (plain_end := _plain_end(text, opened, closed)) is not None:
            content = text[opened:plain_end].rstrip(", ")
            yield _Box(start, plain_end, content or None)


def _plain_end(text: str, opened: int, closed: Mapping[int, int]) -> int | None:
    """Return where the content of a box without braces ends, None if there is none.

    A term that directly continues it belongs to it, as in 2\\sqrt3. A command that lacks an argument is not content.
    """
    sign = _PLAIN_SIGN.match(text, opened)
    position = sign.end() if sign else opened
    if text.startswith("\\", position):
        argument = read_argument(text, position, closed)
        end = argument.end if argument else opened
    elif token := _PLAIN_NUMBER.match(text, position) or _PLAIN_LETTER.match(text, opened):
        end = token.end()
    else:
        return None
    if end == opened or _PLAIN_END.match(text, end):
        return end
    rest = _REST_OF_TERM.match(text, end)
    return rest.end() if rest else opened


def _boxed_answer(text: str, boxes: Sequence[_Box], kind: AnswerKind) -> str:
    """Return the content of the last box, or of the boxes that form a list with it, separated by commas."""
    contents: list[str] = []
    following: int | None = None
    for box in reversed(boxes):
        if following is not None and not (box.end <= following and _BETWEEN_BOXES.fullmatch(text, box.end, following)):
            break
        content = box.content or ""
        if kind == "math" and not _can_be_boxed(content):
            continue
        if content not in contents:
            contents.append(content)
        following = box.start
    return ", ".join(reversed(contents))


def _can_be_boxed(content: str) -> bool:
    """Return whether a box holds more than dots, blanks or the words of the instruction."""
    plain = re.sub(r"\\(?:text|mathrm|textbf|mbox|l?dots|cdots|quad|[,;! ])|[{}]", " ", content)
    return any(c.isalnum() or unicodedata.category(c) == "Sm" for c in plain) and not _is_placeholder(plain)


def _is_placeholder(text: str) -> bool:
    return bool(_PLACEHOLDER.fullmatch(" ".join(text.lower().strip("<>[]() ").split())))


# Announced answers


def _announced_answer(text: str, kind: AnswerKind) -> str | None:
    """Return the text after the last announcement, passing over announcements without a possible answer.

    Return None if the text that the last one gives was cut off.
    """
    announcements = list(_ANNOUNCEMENT.finditer(text))
    for match in reversed(announcements[-_MAX_ANNOUNCEMENTS:]):
        rest = text[match.end() : match.end() + _MAX_ANNOUNCED]
        if ">" in match[0]:
            rest = _QUOTE.sub("", rest)
        has_colon = not match[0].lower().endswith(("is", "are"))  # or "=", or a heading
        answer = _puzzle_text(rest, has_colon) if kind == "text" else _announced_value(rest, has_colon)
        if answer or answer is None:
            return answer
    return ""


def _announced_value(rest: str, has_colon: bool) -> str | None:
    """Return the value that follows an announcement, or the values of a list, None if it was cut off."""
    announced = announced_text(rest)
    if announced is None:
        return None
    if announced.whole:
        contents = [_stripped(_EMPTY_BOX.sub("", item)) for item in announced.items]
        values = ["" if _BOX.search(item) or not _is_complete(item) else _last_side(item) for item in contents]
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
    return marked[1].strip() if marked and re.search(r"\d|\\", marked[1]) and _can_be_announced(marked[1]) else ""


def _puzzle_answer(content: str, has_colon: bool) -> str:
    """Return an announced text without emphasis and full stop, "" if it cannot be an answer.

    After a colon it may begin with any word. Otherwise a word like "found" begins half a sentence, but no list.
    """
    repeats_instruction = _INSTRUCTION.match(content.strip())
    content = _stripped(_EMPTY_BOX.sub("", content))
    words = content.split()
    if repeats_instruction or _is_placeholder(content):
        return ""
    if not has_colon and len(words) > 2 and _NO_ANSWER_WORDS.fullmatch(words[0]):
        return ""
    return _stripped(content[:-1]) if re.search(r"[\w$*`)\]}][.\u3002]$", content) and "\n" not in content else content


def _clause_answer(content: str, has_colon: bool) -> str:
    """Return the value that the clause after an announcement gives, "" if it gives none."""
    content = _with_plain_punctuation(_EMPTY_BOX.sub("", content))
    if _BOX.search(content):
        return ""  # a box that holds no answer
    content = _EMPHASIS.sub("", content)
    span = _MATH_AT_START.match(content)
    if span is not None and _ends_with(content, span):
        unit = re.match(r"\s*(?:\\?%|[a-zA-Z\u00b0]+\b(?=[\s.*]*$))", content[span.end() :])
        value = _stripped(_inside(span).rstrip() + (unit[0] if unit else ""))
        return _last_side(value) if _is_complete(value) else ""
    if span is not None:
        content = _MATH.sub(_inside, content)
    end = next((end for end in _CLAUSE_END.finditer(content) if not _is_abbreviated(content, end)), None)
    clause = _stripped(content[: end.start()] if end else content)
    if quoted := re.fullmatch(r"[\"“]([^\"“”]+)[\"”]", clause):
        clause = quoted[1].strip()
    if has_colon and _LONE_AFTER_COLON.fullmatch(clause):
        return clause
    return _last_side(clause) if _can_be_announced(clause) else ""


def _is_abbreviated(text: str, end: re.Match[str]) -> bool:
    """Return whether what may end a clause or sentence is the full stop of an abbreviation, such as "3 ft. 2 in."."""
    if end[0] != ".":
        return False
    before, after = text[max(end.start() - 20, 0) : end.start()], text[end.end() : end.end() + 30]
    if _TITLE.search(before) or (_MEASURE.search(before) and _MORE_OF_MEASURE.match(after)):
        return True
    if re.search(r"\bNo$", before):
        return re.match(r"\s\d+[\s.*]*$", after) is not None
    if _INITIALS_AFTER.match(after) or _INITIALS_BEFORE.search(before):
        return _INITIAL.search(before) is not None and re.match(r"\s[A-Z]", after) is not None
    return _LATE_INITIAL.search(before) is not None and _SURNAME.match(after) is not None


def _with_plain_punctuation(text: str) -> str:
    """Write the punctuation of Chinese and Japanese texts in ASCII, with a space after it."""
    if text.isascii():
        return text
    return _WIDE_SIGN.sub(lambda sign: _WIDE_PUNCTUATION[sign[0]], _WIDE_DECIMAL_POINT.sub(".", text))


def _ends_with(clause: str, span: re.Match[str]) -> bool:
    """Return whether mathematics at the start of a clause is the whole answer, apart from a unit."""
    joined = re.match(r"[-\w/]", clause[span.end() :]) and not re.match(r"\w+[\s.]*$", clause[span.end() :])
    return not joined and not _CONTINUED.match(clause, span.end())


def _inside(span: re.Match[str]) -> str:
    """Return the mathematics between delimiters."""
    return next(group for group in span.groups() if group is not None)


def _is_complete(value: str) -> bool:
    """Return whether mathematics has a letter, a digit or a sign, and does not end with an operator."""
    return any(c.isalnum() or unicodedata.category(c) == "Sm" for c in value) and not _OPEN_END.search(value)


def _can_be_announced(clause: str) -> bool:
    """Return whether a clause is a value or a short phrase, not half a sentence."""
    if not _is_complete(clause) or _CUT_OFF.search(clause):
        return False
    if _NUMERALS.fullmatch(clause):
        return True
    first, *others = clause.split()
    is_operand = bool(others) and others[0][0] in "-+*/^=<>"  # i + 1
    if _NO_ANSWER_WORDS.fullmatch(first.strip(",:")) and (others or not _LONE_ANSWERS.fullmatch(first)):
        return is_operand and len(first) == 1
    words = re.findall(r"(?<![\\\w])[^\W\d_]{2,}", clause)
    return len(words) <= (4 if any(c.isdigit() for c in clause) else 5)


def _last_side(clause: str) -> str:
    """Return the right side of a calculation such as "9 + 5 = 14 apples", and anything else as it is."""
    sides = re.split(r"(?<![<>!\\:])=(?!=)", clause)
    if len(sides) > 1 and all(not _CALCULATION.sub("", side) and re.search(r"\d", side) for side in sides[:-1]):
        return sides[-1].strip()
    return clause


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


# Weak answers


def _stated_value(text: str) -> str:
    """Return the value that the last sentence states: the right side of its last equation, otherwise its last number.

    A sentence about the answer that gives none ("The answer is within \\boxed{}.") is passed over after a calculation.
    """
    text = _with_plain_punctuation(text[-4_000:])
    passed_over = False
    for sentence in reversed(_sentences(text)):
        sentence = _REJECTED.sub("", sentence)
        plain = _MATH_DELIMITERS.sub(" ", _EMPHASIS.sub("", _EMPTY_BOX.sub(" ", sentence)))
        plain = re.sub(r"\\(?:text|mathrm|textbf)\s?\{([^{}]*)\}", r" \1 ", plain)
        plain = " ".join(plain.split()).strip(" ,;:")
        announced = _ANNOUNCEMENT.match(plain)
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
        if _CUT_OFF.search(plain) or plain.count("(") > plain.count(")") or plain.endswith("?"):
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
        return "" if _is_denied(plain[: equals.start()]) else _value_at_start(right.strip()) or _last_number(right)
    return ""


def _is_denied(before: str) -> bool:
    """Return whether the clause before a value denies it: it is not 12, there is no solution with x = 5."""
    clause = _NEW_CLAUSE.split(before)[-1]
    return bool(_DENIAL.search(clause) or _DENIED_CLAUSE.search(before))


def _sentences(text: str) -> list[str]:
    """Split a text at line breaks and at full stops. A question keeps its mark."""
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        if _is_abbreviated(text, end):
            continue
        sentences.append(text[start : end.end() if end[0] == "?" else end.start()].strip())
        start = end.end()
    return [sentence for sentence in (*sentences, text[start:].strip()) if sentence]


def _value_at_start(right: str) -> str:
    """Return the value at the start of the right side of an equation: a number with its unit, or a short term."""
    number = _NUMBER.match(right)
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
        for match in _NUMBER.finditer(sentence)
        if not re.match(r"[a-zA-Z_]", sentence[max(match.start() - 1, 0) : match.start()])
    ]
    if not numbers or _OPERATOR_AFTER.match(sentence, numbers[-1].end()):
        return ""
    is_part = _OPERATOR_BEFORE.search(sentence, max(numbers[-1].start() - 8, 0), numbers[-1].start())
    return "" if is_part or _is_denied(sentence[: numbers[-1].start()]) else _with_unit(sentence, numbers[-1])


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


def _plain_text(text: str) -> str:
    """Return a puzzle's text without emphasis, dollar signs and a leading "answer:"."""
    text = _stripped(without_fence(_EMPTY_BOX.sub("", text)))
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

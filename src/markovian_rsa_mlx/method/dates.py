"""Write dates and times of day in one form. What is missing or ambiguous is not guessed."""

from __future__ import annotations

import re
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: A regular expression of the names of the months and their abbreviations.
MONTH_NAME: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
_MONTH = rf"(?P<name>{MONTH_NAME})\.?"
_DAY = r"(?P<day>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_DATE = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"{_MONTH}\s+(?:the\s+)?{_DAY}(?:\s?,?\s+(?P<year>\d{{4}}))?",
        rf"(?:the\s+)?{_DAY}\.?\s+(?:of\s+)?{_MONTH}(?:,?\s+(?P<year>\d{{4}}))?",
        r"(?P<year>\d{4})(?P<sign>[-/.])(?P<month>0?[1-9]|1[0-2])(?P=sign)(?P<day>0?[1-9]|[12]\d|3[01])",
    )
)
_MONTH_OF_YEAR = re.compile(rf"{_MONTH},?\s+(?:of\s+)?(?P<year>\d{{4}})", re.IGNORECASE)
#: 14.3.15 is a version, too, and 14/3/15 only a date.
_NUMBERS_ONLY = re.compile(r"(0?[1-9]|[12]\d|3[01])([/.])(0?[1-9]|[12]\d|3[01])\2(\d{4}|(?<=/)\d{2})")
_TIME = re.compile(
    r"(?P<hour>0?\d|1\d|2[0-3])(?::(?P<minute>[0-5]\d))?(?::(?P<second>[0-5]\d))?\s?(?P<half>[ap])\.?\s?m\.?"
    r"|(?P<hour_alone>0?\d|1\d|2[0-3])(?::(?P<minute_alone>[0-5]\d)|\s?o'?clock)",
    re.IGNORECASE,
)

_NAMED_TIMES: Final = {"noon": "12:00 pm", "12 noon": "12:00 pm", "midnight": "12:00 am", "12 midnight": "12:00 am"}


def written_date(text: str) -> str | None:
    """Return a date, the day of a year, or a month, in one form. The month in 3/4/2015 is not guessed."""
    if numbers := _NUMBERS_ONLY.fullmatch(text):
        first, second, year = int(numbers[1]), int(numbers[3]), numbers[4]
        if len(year) < 4 or max(first, second) <= 12 or min(first, second) > 12:
            return f"{first}{numbers[2]}{second}{numbers[2]}{year}"
        return f"{year}-{min(first, second):02}-{max(first, second):02}"
    if named := _MONTH_OF_YEAR.fullmatch(text):
        return f"{named['year']}-{_month_number(named['name']):02}"
    found = next((match for form in _DATE if (match := form.fullmatch(text))), None)
    if found is None:
        return None
    parts = found.groupdict()
    month = parts.get("month") or _month_number(parts["name"])
    return f"{parts['year'] or '?'}-{int(month):02}-{int(parts['day']):02}"


def _month_number(name: str) -> int:
    return _MONTHS.index(name[:3].lower()) + 1


def written_time(text: str) -> str | None:
    """Return a time of day in one form: 3:05 am, and 15:05 for 3:05 PM. 3:05 alone can be either."""
    found = _TIME.fullmatch(text)
    if found is None:
        return _NAMED_TIMES.get(text.lower())
    parts = found.groupdict()
    hour, half = int(parts["hour"] or parts["hour_alone"]), (parts["half"] or "").lower()
    if half and not 1 <= hour <= 12:
        return None
    if half == "p" and hour < 12:
        hour, half = hour + 12, ""
    minutes = parts["minute"] or parts["minute_alone"] or "00"
    seconds = f":{parts['second']}" if parts["second"] else ""
    return f"{hour}:{minutes}{seconds}{f' {half}m' if half else ''}"

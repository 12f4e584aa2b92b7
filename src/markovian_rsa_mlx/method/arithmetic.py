"""Compute numbers written in LaTeX or plain text exactly, as fractions, within limits of size and depth."""

from __future__ import annotations

import contextlib
import math
import re
from fractions import Fraction
from typing import Final

_MAX_BITS: Final = 100_000
#: Bits of a number whose root of a degree above 2 is computed.
_MAX_BITS_OF_POWER: Final = 10_000
_MAX_DEPTH: Final = 40
#: The fraction of a mixed number, as in 1 1/2 and 4\\frac{2}{3}.
_MIXED_FRACTION = re.compile(
    r"\s+(\d{1,9})\s?/\s?(\d{1,9})(?!\s?[/^\d.])|\s*\\frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}(?!\s?\^)"
)

_POWER_SIGN = re.compile(r"\s*\^(?!\s*\{?\\(?:text|degree|circ|prime))")

_NO_TOKEN = re.match(r"(?P<repeating>x)?(?P<number>x)?(?P<command>x)?(?P<letter>x)?(?P<sign>x)?", "")
assert _NO_TOKEN is not None
_END: Final = _NO_TOKEN


class TooLargeError(Exception):
    """A number has too many bits to compute with."""


class NotArithmeticError(Exception):
    """A text cannot be read as arithmetic."""


class Arithmetic:
    """Computes the number at the start of a text exactly. `end` is where it ends, `precision` that of a decimal.

    With `symbolic`, variables and functions have no value (None), and the whole text is read: `check` only finds
    numbers that are too large. Raises `NotArithmeticError`, `TooLargeError` and ZeroDivisionError.
    """

    _TOKEN = re.compile(
        r"\s*(?:(?P<repeating>\d*\.\d*(?:\\overline|\\bar|\\dot)\s?\{\d+\}|\d+\.\d*\(\d+\))"
        r"|(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?![eE]?\d))|(?P<command>\\[a-zA-Z]+|\\%)"
        r"|(?P<letter>[a-zA-Z])|(?P<sign>[^\s]))"
    )

    def __init__(self, text: str, symbolic: bool = False) -> None:
        self._text, self._symbolic = text, symbolic
        self._work = 0
        self.end = 0
        self.precision: tuple[int, Fraction] = (0, Fraction(0))

    def check(self) -> None:
        """Read the whole text for numbers that are too large. Skip what cannot be read."""
        while self.end < len(self._text.rstrip()):
            start = self.end
            with contextlib.suppress(NotArithmeticError, ZeroDivisionError):
                self.sum(0)
            if self.end == start:
                self.end = max(self._peek().end(), start + 1)

    def sum(self, depth: int) -> Fraction | None:
        """Read a sum of products."""
        if depth > _MAX_DEPTH:
            raise TooLargeError
        total = self._product(depth)
        while True:
            token = self._peek()
            if token["sign"] not in ("+", "-") or token.end() == len(self._text):
                return total
            self.end = token.end()
            term = self._product(depth)
            self.precision = (0, Fraction(0))
            total = (
                None
                if total is None or term is None
                else self._checked(total + term if token["sign"] == "+" else total - term)
            )

    def _peek(self) -> re.Match[str]:
        match = self._TOKEN.match(self._text, self.end)
        return match or _END

    def _product(self, depth: int) -> Fraction | None:
        value = self._signed(depth)
        while True:
            token, start = self._peek(), self.end
            operator = token["sign"] or token["command"]
            if operator in ("*", "/", r"\times", r"\cdot", r"\div"):
                self.end = token.end()
                factor = self._signed(depth)
                self.precision = (0, Fraction(0))
                if operator in ("/", r"\div") and factor == 0:
                    raise ZeroDivisionError
                if value is None or factor is None:
                    value = None
                else:
                    value = self._checked(value / factor if operator in ("/", r"\div") else value * factor)
            elif self._starts_factor(token):
                factor = self._power(depth)
                if self.end == start:
                    return value
                self.precision = (0, Fraction(0))
                value = None if value is None or factor is None else self._checked(value * factor)
            else:
                return value

    def _starts_factor(self, token: re.Match[str]) -> bool:
        if token["sign"] == "(" or token["command"] in (r"\frac", r"\sqrt", r"\binom"):
            return True
        return self._symbolic and bool(token["letter"] or token["number"] or token["command"] not in (None, r"\%"))

    def _signed(self, depth: int) -> Fraction | None:
        negative = False
        while (token := self._peek())["sign"] in ("+", "-"):
            negative ^= token["sign"] == "-"
            self.end = token.end()
        value = self._power(depth)
        return None if value is None else -value if negative else value

    def _power(self, depth: int) -> Fraction | None:
        if depth > _MAX_DEPTH:
            raise TooLargeError
        value = self._atom(depth)
        while True:
            token = self._peek()
            if token["sign"] == "!":
                self.end = token.end()
                double = self._peek()["sign"] == "!"
                if double:
                    self.end = self._peek().end()
                value = self._factorial(value, 2 if double else 1)
            elif (exponent_at := self._exponent_start()) is not None:
                self.end = exponent_at
                value = self._raised(value, self._exponent(depth + 1))
            else:
                return value
            self.precision = (0, Fraction(0))

    def _exponent_start(self) -> int | None:
        """Return where an exponent begins, None if there is none. A degree sign or an ordinal ending is not one."""
        sign = _POWER_SIGN.match(self._text, self.end)
        return sign.end() if sign else None

    def _exponent(self, depth: int) -> Fraction | None:
        """Read an exponent. A tower of powers is read from the right: 2^3^2 is 2^9."""
        if depth > _MAX_DEPTH:
            raise TooLargeError
        value = self._argument(depth) if self._peek()["sign"] == "{" else self._signed(depth)
        if (exponent_at := self._exponent_start()) is not None:
            self.end = exponent_at
            value = self._raised(value, self._exponent(depth + 1))
        return value

    def _atom(self, depth: int) -> Fraction | None:
        token = self._peek()
        if token["number"]:
            self.end = token.end()
            return self._literal(token["number"]) + (self._mixed_fraction() if token["number"].isdigit() else 0)
        if token["repeating"]:
            self.end = token.end()
            whole, fixed, period = re.findall(r"^\d*|(?<=\.)\d*|\d+(?=[})]$)", token["repeating"])[:3]
            return repeating(whole, fixed, period)
        if token["sign"] == "(":
            return self._enclosed(")", depth)
        if token["sign"] == "{" and self._symbolic:
            return self._enclosed("}", depth)
        command = token["command"]
        if command in (r"\frac", r"\binom"):
            self.end = token.end()
            above, below = self._argument(depth), self._argument(depth)
            if command == r"\binom":
                return self._binomial(above, below)
            if below == 0:
                raise ZeroDivisionError
            return None if above is None or below is None else self._checked(above / below)
        if command == r"\sqrt":
            self.end = token.end()
            degree = re.match(r"\s*\[\s*(\d{1,2})\s*\]", self._text[self.end :])
            self.end += degree.end() if degree else 0
            root = _exact_root(self._argument(depth), int(degree[1]) if degree else 2)
            if root is None and not self._symbolic:
                raise NotArithmeticError
            return root
        if self._symbolic and (token["letter"] or command or (token["sign"] or "?") in "|[]_'&,:<>="):
            self.end = token.end()
            return None
        raise NotArithmeticError

    def _enclosed(self, closing: str, depth: int) -> Fraction | None:
        self.end = self._peek().end()
        value = self.sum(depth + 1)
        token = self._peek()
        if token["sign"] != closing:
            raise NotArithmeticError
        self.end = token.end()
        return value

    def _argument(self, depth: int) -> Fraction | None:
        if self._peek()["sign"] != "{":
            raise NotArithmeticError
        return self._enclosed("}", depth)

    def _literal(self, text: str) -> Fraction:
        mantissa, _, exponent = text.lower().partition("e")
        if abs(int(exponent or 0)) * 3 > _MAX_BITS:
            raise TooLargeError
        whole, _, decimals = mantissa.partition(".")
        if decimals:
            digits = len((whole + decimals).lstrip("0"))
            self.precision = (digits, Fraction(10) ** (int(exponent or 0) - len(decimals)))
        return self._checked(Fraction(mantissa) * Fraction(10) ** int(exponent or 0))

    def _mixed_fraction(self) -> Fraction:
        """Read the proper fraction after a whole number. Return 0 for none."""
        mixed = _MIXED_FRACTION.match(self._text, self.end)
        above, below = (int(part) for part in mixed.groups() if part) if mixed else (0, 0)
        if mixed is None or not 0 < above < below:
            return Fraction(0)
        self.end = mixed.end()
        return Fraction(above, below)

    def _raised(self, base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
        if exponent is None:
            return None
        if base is None or exponent.denominator != 1:
            if abs(exponent) > 10_000:
                raise TooLargeError
            root = None if base is None else _exact_root(base, exponent.denominator)
            if root is None:
                if not self._symbolic:
                    raise NotArithmeticError
                return None
            base = root
        power = exponent.numerator
        if base == 0 and power < 0:
            raise ZeroDivisionError
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if (abs(base) != 1 and base != 0 and bits * abs(power) > _MAX_BITS) or abs(power) > 10**12:
            raise TooLargeError
        return self._checked(base ** (power % 2 if abs(base) == 1 else power))

    def _factorial(self, value: Fraction | None, step: int) -> Fraction | None:
        if value is None:
            return None
        if value.denominator != 1 or value < 0:
            raise NotArithmeticError
        if value > 8_000:
            raise TooLargeError
        product = 1
        for factor in range(int(value), 1, -step):
            product *= factor
        self._work += product.bit_length()
        return self._checked(Fraction(product))

    def _binomial(self, above: Fraction | None, below: Fraction | None) -> Fraction | None:
        if above is None or below is None:
            return None
        if above.denominator != 1 or below.denominator != 1 or above < 0 or below < 0:
            raise NotArithmeticError
        if above > 8_000:
            raise TooLargeError
        chosen = min(int(below), int(above - below)) if below <= above else -1
        result = Fraction(int(chosen >= 0))
        for index in range(chosen):
            result = result * (above - index) / (index + 1)
        return self._checked(result)

    def _checked(self, value: Fraction) -> Fraction:
        """Return a value. Raises `TooLargeError` for too many bits, in it or in all values so far."""
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        self._work += bits
        if bits > 2 * _MAX_BITS or self._work > 20 * _MAX_BITS:
            raise TooLargeError
        return value


def _exact_root(value: Fraction | None, degree: int) -> Fraction | None:
    """Return the root of a fraction if it is a fraction. Raises `TooLargeError`."""
    if value is None or value < 0 or degree < 1 or degree > 64:
        return None
    roots = [_integer_root(part, degree) for part in (value.numerator, value.denominator)]
    return Fraction(roots[0], roots[1]) if roots[0] is not None and roots[1] is not None else None


def _integer_root(value: int, degree: int) -> int | None:
    """Return the root of an integer of at least 0 if it is an integer. Raises `TooLargeError`."""
    if value < 2 or degree == 1:
        return value
    if degree == 2:
        root = math.isqrt(value)
    elif value.bit_length() > _MAX_BITS_OF_POWER:
        raise TooLargeError
    else:  # Newton's method, from above
        root = 1 << -(-value.bit_length() // degree)
        while (closer := ((degree - 1) * root + value // root ** (degree - 1)) // degree) < root:
            root = closer
    return root if root**degree == value else None


def repeating(whole: str, fixed: str, period: str) -> Fraction:
    """Return the value of whole.fixed(period)."""
    shift = 10 ** len(fixed)
    value = Fraction(int(fixed or "0"), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))
    return abs(Fraction(int(whole or "0"))) + value if not whole.startswith("-") else -(abs(int(whole)) + value)

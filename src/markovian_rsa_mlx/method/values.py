"""The values that an answer can have. `value_reader` reads them, and `equality` compares them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Quantity:
    """An exact number. `digits` counts those of a decimal, 0 for an exact value; `unit` is "" for none."""

    value: Fraction
    digits: int = 0
    ulp: Fraction = Fraction(0)  #: the weight of the last digit of a decimal
    unit: str = ""


@dataclass(frozen=True)
class Term:
    """Mathematics that is not a plain number, as cleaned LaTeX. `is_huge`: too large to compute with."""

    text: str
    unit: str = ""
    is_huge: bool = False


@dataclass(frozen=True)
class Words:
    """Text other than mathematics, in its form for comparison."""

    text: str


@dataclass(frozen=True)
class Choice:
    """An option of a multiple choice, with its text if that is given."""

    letter: str
    rest: Value | None = None


@dataclass(frozen=True)
class Group:
    """Several values: "," is a list, "()" a tuple or open interval, "[]", "[)", "(]", "{}" a set, "u" a union,
    "-" a range or a score, "or" alternatives in words. Numbers with "or" are a list: the solutions 2 or 3 are 2 and 3.

    A matrix of two columns has the kind "m2", and its determinant or norm "d2".
    """

    kind: str
    items: tuple[Value, ...]
    name: str = ""  #: the variable of an inequality


@dataclass(frozen=True)
class Equation:
    """A relation between two sides: "=", "!=", "<" or "<=" (never ">": the sides are swapped)."""

    sign: str
    left: str
    right: str


Value = Quantity | Term | Words | Choice | Group | Equation

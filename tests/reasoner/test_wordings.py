"""The wordings that the embedded reasoner accepts hold those of reasoning-gym, with any white space, and variants."""

from __future__ import annotations

import re
from typing import Any

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.errors import PromptError
from markovian_rsa_mlx.reasoner.puzzles import INSTRUCTIONS, SUM_WORDING, trained_wording

SPACES = ["\n", "\t", "  ", "\r\n", "\n\n", "\u00a0", "\u2003", "\u202f", "\u3000", "\v", "\f", " \u00a0\t\n"]


def questions(name: str, **config: Any) -> list[str]:
    gym = pytest.importorskip("reasoning_gym")
    return [item["question"] for item in gym.create_dataset(name, size=40, seed=5, **config)]


def is_in_range(question: str) -> bool:
    """Return whether the numbers of a question of reasoning-gym are those of the model's training."""
    task = question.split("\n\n")[0].split("\nYou")[0].split("\nEach")[0]
    if " = " in f"{task} ":
        terms = re.findall(r"-?\d+", task.split(":")[1].replace("- ", "+ ").replace("+ -", "+ x-"))
        signed = re.search(r"[+-] -|: -", task)
        return not signed and 2 <= len(terms) <= 12 and all(len(term) == 2 for term in terms)
    numbers = [int(number) for number in re.findall(r"\d+", task)]
    target = numbers.pop(-1 if task.startswith("Using") else 0)
    return 3 <= len(numbers) <= 4 and max(numbers) <= 99 and 10 <= target <= 99


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("countdown", {}),
        ("countdown", {"min_numbers": 3, "max_numbers": 4, "max_value": 20, "min_target": 10, "max_target": 99}),
        ("countdown", {"min_numbers": 3, "max_numbers": 5, "max_value": 25, "min_target": 10, "max_target": 120}),
        ("countdown", {"min_numbers": 4, "max_numbers": 4, "max_value": 20, "min_target": 10, "max_target": 50}),
        ("chain_sum", {}),
        ("chain_sum", {"min_digits": 2, "max_digits": 2, "max_terms": 12}),
        ("chain_sum", {"min_digits": 1, "max_digits": 2, "min_terms": 1, "max_terms": 14}),
        ("chain_sum", {"min_digits": 2, "max_digits": 2, "allow_negation": True}),
    ],
    ids=str,
)
def test_questions_of_reasoning_gym_are_accepted_in_their_range(name: str, config: dict[str, Any]) -> None:
    for question in questions(name, **config):
        if not is_in_range(question):
            assert not reasoner.can_answer(question), question
            continue
        assert trained_wording(question) == question
        for space in SPACES:
            for changed in (space.join(question.split()), space + question + space, question.replace(" ", space)):
                assert (trained_wording(changed) or "").strip() == question.strip(), repr(changed)


SUM = SUM_WORDING.format(terms="12 + 30")
THREE = SUM_WORDING.format(terms="12 - 30 + 17")
GYM = "Calculate 24 using all of these numbers: 3, 8, 1.\nEach number may be used at most once."
USING = "Using all the numbers 3, 8, 1, create an expression that equals 24.\nYou can only use each number once."
FIND = "Find a way to make 24 using all of these numbers: 3, 8, 1.\nEach number can only be used once."
FULL = INSTRUCTIONS.format(question=GYM)
VARIANTS: dict[str, list[str]] = {
    SUM: [
        "12 + 30",
        "12+30",
        " 12+30 ",
        "12\u00a0+\u00a030",
        "12\t+\t30",
        "12 +\n30",
        "12 + 30 =",
        "12+30=",
        "12 + 30 = ?",
        "12+30=?",
        "12 + 30?",
        "12 + 30.",
        "What is 12+30?",
        "what is 12 + 30",
        "WHAT IS 12 + 30?",
        "What is 12 + 30 ?",
        "What's 12+30?",
        "What\u2019s 12 + 30?",
        "Calculate 12 + 30",
        "calculate: 12+30.",
        "Compute 12 + 30 =",
        "How much is 12 + 30?",
        "Evaluate 12+30",
        "Solve: 12 + 30 = ?",
        "What does 12 + 30 equal?",
        "\u201cWhat is 12 + 30?\u201d",
        '"12 + 30"',
        "12 \uff0b 30",
        "\ufeff12 + 30",
        "12 +\u200b 30",
        SUM.lower(),
        SUM.rstrip(" ="),
        SUM + " ?",
        SUM.replace(" ", "\u00a0"),
        SUM.replace(": ", ":\n"),
        SUM + "\n\n",
    ],
    THREE: [
        "12-30+17",
        "12 \u2212 30 + 17",
        "12 \u2013 30 + 17",
        "12 \u2014 30+17 =",
        "What is 12 - 30 + 17?",
        "12 - 30\n+ 17",
    ],
    GYM: [
        "Calculate 24 using all of these numbers: 3, 8, 1",
        "calculate 24 using all of these numbers 3 8 1",
        "Calculate 24 using all of these numbers: 3, 8 and 1.",
        "Calculate 24 using all of these numbers: 3; 8; 1.",
        "Calculate 24 using all of these numbers: [3, 8, 1]. Each number may be used at most once",
        GYM.replace("\n", " "),
        GYM.lower(),
        GYM.upper(),
        GYM.replace("\n", "\r\n\t"),
        GYM.replace(".", ""),
        GYM.replace(", ", ","),
        f"\u201c{GYM}\u201d",
    ],
    USING: [
        "Using all the numbers 3, 8, 1, create an expression that equals 24",
        "using all the numbers 3 8 1 create an expression that equals 24.",
        USING.replace("\n", "\u00a0"),
        USING.replace(".", " ."),
        USING.title(),
    ],
    FIND: ["find a way to make 24 using all of these numbers: 3,8,1", FIND.replace(" ", "  "), FIND.rstrip(".")],
    FULL: [
        FULL.replace("'", "\u2019"),
        FULL.replace("\n", " "),
        FULL.replace("a arithmetic", "an arithmetic"),
        FULL.lower(),
        FULL.replace("\n", "\r\n"),
        FULL.rstrip(".\n").replace(" ", "\u00a0"),
    ],
}


@pytest.mark.parametrize(("worded", "variant"), [(worded, each) for worded, all_ in VARIANTS.items() for each in all_])
def test_variants_are_worded_as_trained(worded: str, variant: str) -> None:
    assert (trained_wording(variant) or "").strip() == worded.strip()


@pytest.mark.parametrize(
    "question",
    [
        "1 + 1",
        "5+30",
        "12 + 3",
        "What is 7 + 8?",
        "112 + 30",
        "12 + 30 * 2",
        "05 + 30",
        "12 + -30",
        "12 ++ 30",
        "12",
        "12 =",
        "12 + 30 = 42",
        "12 + 30 and 5",
        "12.5 + 30",
        "12 + 30\u00b2",
        "\u0661\u0662 + \u0663\u0660",
        "+".join(["12"] * 13),
        "What is 12 + 30? And who wrote Faust?",
        "Calculate 24 using all of these numbers: 3, 8.",
        "",
        "Calculate 124 using all of these numbers: 3, 8, 1.",
        "Calculate 24 using all of these numbers: 3, 8, 1, 5, 7.",
        "Calculate 24 using some of these numbers: 3, 8, 1.",
        "Calculate 24 using all of these numbers: 3, 121, 1.",
        "Calculate 24 using all of these numbers: 3, 08, 1.",
        "Calculate 24 using all of these numbers: 3, 8, 0.",
        "Calculate 09 using all of these numbers: 3, 8, 1.",
        '"',
        "''",
        "\u00a0",
    ],
)
def test_other_questions_are_refused_with_examples(question: str) -> None:
    with pytest.raises(PromptError) as refused:
        reasoner.as_trained(question)
    assert all(example in str(refused.value) for example in reasoner.EXAMPLES)


def test_a_long_question_is_decided_at_once() -> None:
    assert trained_wording("12 + " * 200_000) is None
    assert trained_wording("Calculate 24 using all of these numbers: " + "3, " * 300_000) is None

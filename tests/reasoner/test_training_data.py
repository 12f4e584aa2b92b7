"""The reasoner's training examples: texts, loss masks, the held-out split, the shared prompts."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.reasoner import puzzles

pytest.importorskip("training.data")
from training import data, reading, traces
from training.data import Drawer
from training.examples import Builder, encode_pieces

CHAIN = (13, (("-", 7), ("*", 18), ("-", 8)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(reasoner.model_path() / "tokenizer.json"))


@pytest.fixture
def drawer(tokenizer: Tokenizer) -> Drawer:
    return Drawer(tokenizer, random.Random(5))


def test_an_attempt_and_its_conclusion_read_as_specified() -> None:
    text = "".join(piece for piece, _ in [*traces.attempt(CHAIN, "ok", 1.0), *traces.conclusion(CHAIN, 100)])
    assert text == (
        "13-7=6*18=108-8=100 ok\nsolved ((13 - 7) * 18) - 8 = 100\n</think>\n\\boxed{((13 - 7) * 18) - 8}<|end|>"
    )
    puzzle = puzzles.Puzzle("?", (7, 8, 13, 18), 100)
    assert puzzles.check(traces.expression(CHAIN), puzzle)


def test_a_response_takes_claims_until_one_is_right(drawer: Drawer) -> None:
    false = (18, (("+", 13), ("*", 7), ("-", 8)))
    for first in range(20):
        drawer.rng = random.Random(first)
        builder = Builder(drawer.vocabulary, [0])
        claims = [(2, false, 100), (3, CHAIN, 100), (4, CHAIN, 100)]
        drawer.respond(builder, (7, 8, 13, 18), 100, [CHAIN], claims, [])
        text = drawer.vocabulary.decode(builder.build().ids[1 : len(builder.trunk)].tolist(), skip_special_tokens=False)
        taken = [line for line in text.splitlines() if line.startswith("take")]
        assert taken[-1] in {f"take {number}: ((13 - 7) * 18) - 8 = 100" for number in (3, 4)}
        assert taken[:-1] in ([], ["take 2: ((18 + 13) * 7) - 8 = 100"])
        assert text.count(" no\n") == len(taken) - 1
        assert text.endswith("\n</think>\n\\boxed{((13 - 7) * 18) - 8}<|end|>")


def test_a_search_teaches_a_lone_solution_as_often_as_many(drawer: Drawer) -> None:
    question = drawer.prompt("?")
    for _ in range(20):
        builder = Builder(drawer.vocabulary, question)
        drawer.search_on(builder, (7, 8, 13, 18), 100, [CHAIN], [])
        example = builder.build()
        forks = []
        for number in range(1, int(example.branch.max()) + 1):
            of_branch = example.branch == number
            text = drawer.vocabulary.decode(example.ids[of_branch].tolist())
            if text.endswith(" ok\n"):
                assert text == "13-7=6*18=108-8=100 ok\n"
                forks.append(int(example.fork[of_branch][0]))
        assert forks
        assert len(forks) == len(set(forks))


def test_claims_are_whole_attempts_called_right_and_solved_lines() -> None:
    tail = "7=108-8=100 ok\n13-7=6*18=108-8=100 ok\nsolved ((13 - 7) * 18) - 8 = 100\nsolved ((13 - 7) *"
    assert reading.claims(tail) == [(CHAIN, 100)] * 2
    assert reading.first_success("18+7=25 no\n13-7=6*18=108-8=100 ok\n") == len("18+7=25 no\n")
    assert reading.first_success("18+7=25 no\n") == len("18+7=25 no\n")


def test_choices_of_a_wrong_attempt_have_no_loss_and_its_verdict_has(tokenizer: Tokenizer) -> None:
    ids, weights = encode_pieces(tokenizer, traces.attempt(CHAIN, "no", 0.0))
    shown = [(tokenizer.decode([i]), weight) for i, weight in zip(ids, weights, strict=True)]
    assert [token for token, weight in shown if weight == 0] == ["13", "-", "7", "*", "18", "-", "8"]
    assert [token for token, weight in shown if weight > 0] == ["=", "6", "=", "108", "=", "100", " no\n"]


def test_a_branch_has_the_positions_of_the_trunk_after_its_fork(tokenizer: Tokenizer) -> None:
    builder = Builder(tokenizer, tokenizer.encode("12+34").ids)
    builder.extend([("=46\n", 1.0)])
    builder.fork([("=47\n", 1.0)], at=3)
    example = builder.build()
    branch = example.branch == 1
    assert list(example.position[branch]) == [3, 4, 5] == list(example.position[3:6])
    assert list(example.source[branch]) == [2, 6, 7]
    assert set(example.fork[branch]) == {3}
    assert np.array_equal(example.ids[branch][[0, 2]], example.ids[[3, 5]])


def test_no_held_out_puzzle_is_drawn_for_training(drawer: Drawer) -> None:
    for _ in range(200):
        numbers, target, found = drawer.puzzle()
        assert found
        assert not puzzles.is_held_out(numbers, target)
    for _ in range(200):
        terms = drawer.terms()
        assert not puzzles.is_held_out(terms, sum(terms))


def test_every_kind_of_example_fits_and_has_loss_only_in_its_response(drawer: Drawer) -> None:
    for draw in (drawer.search, drawer.aggregate, drawer.sum, drawer.continue_sum, drawer.judge):
        for _ in range(25):
            example = draw()
            text = drawer.vocabulary.decode(example.ids[example.branch == 0].tolist(), skip_special_tokens=False)
            assert len(example) < 600
            assert example.weight[: text.count("<|user|>") + 9].sum() == 0
            assert text.endswith("}<|end|>")
            assert text.count("</think>") == 1


def test_an_aggregation_prompt_of_four_tails_is_short(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "OTHER_LAYOUT", 0.0)
    text = "".join(piece for piece, _ in traces.attempt(CHAIN, "no", 0.0)) * 6
    tails = [drawer.tail(text, beta=96, tau=32) for _ in range(4)]
    question = puzzles.ask((7, 8, 13, 18), 100, 0, instructions=True)
    assert [len(tail.token_ids) for tail in tails] == [32] * 4
    assert len(drawer.aggregation(question, tails)) < 220


def test_every_line_of_a_sum_is_correct() -> None:
    terms = [46, -56, 70]
    assert traces.sum_question(terms).endswith("46 - 56 + 70 =")
    assert traces.sum_lines(terms, 0, 46) == [
        "1: 46 - 56: 46-50=-4-6=-10\n",
        "2: 56 + 70: -10+70=60+0=60\n",
        "total 60\n",
    ]


def test_an_early_error_in_a_line_is_continued() -> None:
    terms = [46, -56, 70]
    assert traces.sum_line(terms, 1, 46, error=10) == "1: 46 - 56: 46-50=-4-6=0\n"
    assert traces.sum_line(terms, 1, 46, error=10, early=True) == "1: 46 - 56: 46-50=6-6=0\n"


@pytest.mark.parametrize(
    ("tails_with", "line"),
    [
        ({(3, 10): 1}, (3, 10)),
        ({(3, 10): 1, (4, 12): 1}, (4, 12)),
        ({(3, 10): 2, (4, 12): 1}, (3, 10)),
        ({(3, 10): 3, (4, 12): 2, (5, 9): 1}, (4, 12)),
        ({(4, 12): 2, (4, 13): 3, (3, 1): 4}, (4, 13)),
        ({(4, 12): 2, (4, 13): 2}, (4, 12)),
    ],
)
def test_a_sum_continues_after_the_furthest_line_of_two_tails(
    tails_with: dict[tuple[int, int], int], line: tuple[int, int]
) -> None:
    assert data.furthest_line(tails_with) == line


def test_lines_of_a_shown_sum_can_be_relied_on(drawer: Drawer) -> None:
    terms = [46, -56, 70, 15, -22, 31, 40, -19]
    wrong = relied = 0
    for _ in range(300):
        tail, known = drawer.sum_tail(terms, 2, beta=64, tau=40)
        lines = [line for line in tail.text.splitlines() if line and line[0].isdigit() and ": " in line]
        for line, value in known:
            if line < len(terms) and any(text.startswith(f"{line}: ") for text in lines):
                assert any(text.startswith(f"{line}: ") and text.endswith(f"={value}") for text in lines)
                relied += 1
        wrong += any(value != sum(terms[: line + 1]) for line, value in known if line < len(terms))
    assert relied > 300
    assert 10 < wrong < 150


def test_a_sum_that_lacks_only_its_total_gets_it(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LACKS_TOTAL", 1.0)
    ended = 0
    for _ in range(60):
        prompt, _, response = drawer.tokenizer.decode(drawer.continue_sum().ids).rpartition("<think>\n")
        assert "total" not in prompt
        ended += response.startswith("total ")
    assert ended > 30


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    for text in ("Grüße, 12345 ✓\n\n\tx", "1000 999 07", "[attempt 1]\n13-7=6 no\n", "</think>\n"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(len(tokenizer.encode(str(number)).ids) == 1 for number in range(1000))

"""The shipped model: mlx-lm loads it as it is, and it solves held-out problems."""

from __future__ import annotations

import re
from typing import Any

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.method.prompts import PromptBuilder, PromptTemplate, build_segments, chat_frame
from markovian_rsa_mlx.method.tails import Tail

mlx_lm = pytest.importorskip("mlx_lm")
TASK = "State the final answer to the following arithmetic problem: "


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    model, tokenizer = mlx_lm.load(str(reasoner.model_path()))[:2]
    return model, tokenizer


def trace(loaded: tuple[Any, Any], prompt: list[int], budget: int = 200) -> str:
    """The greedy trace."""
    text: str = mlx_lm.generate(*loaded, prompt, max_tokens=budget)
    return text


def ask(loaded: tuple[Any, Any], question: str) -> str:
    """The greedy trace of a question, asked through the chat template."""
    messages = [{"role": "user", "content": question}]
    return trace(loaded, loaded[1].apply_chat_template(messages, add_generation_prompt=True))


def boxed(text: str) -> str:
    found = re.search(r"</think>\s*\\boxed\{([^{}]+)\}", text)
    return found.group(1) if found else ""


def test_the_files_are_small_and_have_their_markers(loaded: tuple[Any, Any]) -> None:
    assert sum(file.stat().st_size for file in reasoner.model_path().iterdir()) < 12_000_000
    tokenizer = loaded[1]
    assert tokenizer.has_thinking
    assert (tokenizer.think_start, tokenizer.think_end) == ("<think>", "</think>")
    assert tokenizer.eos_token == "<|end|>"


def test_the_model_solves_held_out_puzzles_far_above_chance(loaded: tuple[Any, Any]) -> None:
    puzzles = [reasoner.demo_puzzle(seed) for seed in range(100, 110)]
    solved = sum(reasoner.check(boxed(ask(loaded, puzzle.question)), puzzle) for puzzle in puzzles)
    assert solved >= 3  # a random attempt solves one in twenty


def test_the_model_uses_a_claim_from_a_tail(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    puzzle = reasoner.Puzzle(
        "Calculate 42 using all of these numbers: 12, 5, 18.\nEach number may be used at most once.", (12, 5, 18), 42
    )
    tokenizer = _Tokenizer(tokenizer)
    frame = chat_frame(tokenizer, [{"role": "user", "content": puzzle.question}], enable_thinking=True)
    template = PromptTemplate.load("zaya_v1")
    segments = build_segments(tokenizer, template, frame, problem=puzzle.question, carry="tail", max_parents=2)
    prompter = PromptBuilder(tokenizer, segments, frame)
    texts = ["18+5=23+12=35 no\n18*5=90-12=78 no\n", "12*5=60-18=42 ok\nsolved (12 * 5) - 18 = 42\n"]
    tails = [Tail(tuple(tokenizer.encode(text)), text) for text in texts]
    text = trace(loaded, list(prompter.build(tails).token_ids))
    assert text.startswith("take 2: (12 * 5) - 18 = 42\n")
    assert reasoner.check(boxed(text), puzzle)


def test_the_model_adds_up(loaded: tuple[Any, Any]) -> None:
    sums = {"45 + 32 - 18 =": "59", "71 - 26 + 14 + 33 =": "92", "20 - 55 + 60 =": "25", "99 + 12 - 40 - 31 =": "40"}
    assert sum(boxed(ask(loaded, TASK + question)) == total for question, total in sums.items()) >= 3


class _Tokenizer:
    """The project's tokenizer on mlx-lm's tokenizer, as far as a prompt needs it."""

    end_of_thinking: tuple[tuple[int, ...], ...] = ()
    eos_ids: frozenset[int] = frozenset()
    control_ids: frozenset[int] = frozenset()
    reserved: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Any) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def render_chat(self, messages: Any, enable_thinking: bool) -> str:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        return str(rendered)

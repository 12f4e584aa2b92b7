"""Marks that a user names, which are ordinary tokens for the tokenizer, in whole runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.events import AggregationPromptEvent, RunSetupEvent, TraceCompleteEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.errors import ResumeError, VerificationError
from markovian_rsa_mlx.marks import ThinkingMarks, find_marks
from markovian_rsa_mlx.tokenizer import ChatMessage
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import CharacterTokenizer, FakeEngine
from tests.support.runs import cut, line_ends, of_file, run, small

TOKENS = {"«hm»": 5, "«/hm»": 6}
CONFIG = small(rounds=1, thinking_marks=("«hm»", "«/hm»"))
CHAT = [
    ChatMessage(role="user", content="Is «hm» one?"),
    ChatMessage(role="assistant", content="As «/hm» is."),
    ChatMessage(role="user", content="What do «hm» and «/hm» mean?"),
]


class OtherTokens(CharacterTokenizer):
    """Has tokens that are neither special nor in a template."""

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        return find_marks("", TOKENS.get, named)

    def encode(self, text: str) -> list[int]:
        pieces, encode = re.split("(«/?hm»)", text), super().encode
        return [i for piece in pieces for i in ([TOKENS[piece]] if piece in TOKENS else encode(piece))]

    def decode(self, ids: Sequence[int]) -> str:
        names = {token: name for name, token in TOKENS.items()}
        return "".join(names.get(i) or super(OtherTokens, self).decode([i]) for i in ids)


def engine() -> FakeEngine:
    return FakeEngine(lambda _, rng: f"«hm»so {rng.randrange(100)}«/hm»\\boxed{{4}}", tokenizer=OtherTokens())


def test_a_question_that_mentions_named_marks_has_none_of_their_tokens(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert run(engine(), CONFIG, path, CHAT).text == "\\boxed{4}"
    (setup,) = of_file(path, RunSetupEvent)
    prompts = [setup.prompt_token_ids, *(event.prompt_token_ids for event in of_file(path, AggregationPromptEvent))]
    assert len(prompts) > 1
    assert not any({*TOKENS.values()} & {*ids} for ids in prompts)
    assert OtherTokens().decode(setup.prompt_token_ids).count("hm»") == 4
    assert {*TOKENS.values()} <= {*of_file(path, TraceCompleteEvent)[0].token_ids}
    verify_file(path, codec=OtherTokens())
    half = cut(path, line_ends(path)[4], tmp_path / "half.jsonl")
    assert run(engine(), CONFIG, half, CHAT).text == "\\boxed{4}"
    verify_file(half, codec=OtherTokens())


def test_a_prompt_with_the_token_of_a_named_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(engine(), CONFIG, path, CHAT)
    lines = read_lines(path)
    (setup,) = (line for line in lines if line["event"] == "run_setup")
    setup["prompt_token_ids"] = OtherTokens().encode(setup["prompt_text"])
    write_lines(path, lines)
    with pytest.raises(VerificationError, match="run_setup"):
        verify_file(path, codec=OtherTokens())
    begun = cut(path, line_ends(path)[1], tmp_path / "begun.jsonl")
    with pytest.raises(ResumeError):
        run(engine(), CONFIG, begun, CHAT)

"""Audit files changed at random, and forged consistently: no fact that follows from others can be changed."""

from __future__ import annotations

import functools
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit.log_file import scan_bytes
from markovian_rsa_mlx.audit.verify import FREE_FIELDS, Report, verify_log
from markovian_rsa_mlx.backends.tokenizers import load_tokenizer
from markovian_rsa_mlx.errors import AuditError, VerificationError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.tokenizer import ChatMessage, Tokenizer
from tests.support.audit_files import SMALL, read_lines, record, wordy
from tests.support.fakes import CharacterTokenizer, FakeEngine
from tests.support.forgeries import FORGERIES, UNDETECTABLE, Forger, change_seed, swap_parents
from tests.support.mutations import changes_free_facts_only, mutate, parse, render

TRAILS = Path(__file__).parents[1] / "trails"
FINISHED = ["answer", "finished", "paired", "summary", "final_aggregation"]
#: Seconds that the check of a small file may take on a busy machine.
LIMIT_S = 5.0


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the embedded model, without its weights."""
    return load_tokenizer(reasoner.model_path())


def content(name: str) -> bytes:
    return (TRAILS / f"{name}.jsonl").read_bytes()


def check(changed: bytes, codec: Tokenizer | None = None) -> Report:
    """Check a file's content within the time limit."""
    start = time.process_time()
    try:
        return verify_log(scan_bytes(changed, "run.jsonl"), equivalent=equal_text, codec=codec)
    finally:
        assert time.process_time() - start < LIMIT_S


def check_mutations(seeds: range) -> int:
    """Check random mutations. Return the number of those that were refused."""
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        before = content(rng.choice(FINISHED))
        after = mutate(before, [content(name) for name in FINISHED], rng)
        if after == before:
            continue
        try:
            report = check(after, tokenizer())
        except AuditError:
            refused += 1
            continue
        originals = (parse(content(name)) for name in FINISHED)  # one may replace another entirely
        is_harmless = not report.finished or any(changes_free_facts_only(lines, parse(after)) for lines in originals)
        assert is_harmless, f"mutation {seed} was verified"
    return refused


def test_random_mutations_are_refused_or_change_free_facts() -> None:
    assert check_mutations(range(100)) > 80


@pytest.mark.slow
def test_many_random_mutations_are_refused_or_change_free_facts() -> None:
    assert check_mutations(range(1_000, 6_000)) > 4_000


@pytest.mark.parametrize("name", ["finished", "paired"])
@pytest.mark.parametrize("forge", [*FORGERIES, change_seed], ids=lambda forge: forge.__name__)
def test_consistent_forgery_is_refused(forge: Callable[[Forger], None], name: str) -> None:
    if name == "paired" and forge in (change_seed, swap_parents):
        pytest.skip("with one parent its own chain, neither the seed nor an order determines it")
    forger = Forger(parse(content(name)), tokenizer())
    forge(forger)
    forged = render(forger.lines)
    assert parse(forged) != parse(content(name))
    with pytest.raises(VerificationError, match=r"line \d+ "):
        check(forged, tokenizer())


@pytest.mark.parametrize("forge", UNDETECTABLE, ids=lambda forge: forge.__name__)
def test_forgery_of_ids_with_all_that_follows_can_only_be_found_by_generating_again(
    forge: Callable[[Forger], None],
) -> None:
    forger = Forger(parse(content("finished")), tokenizer())
    forge(forger)
    assert check(render(forger.lines), tokenizer()).texts_checked


def test_forged_texts_are_not_called_verified_without_a_tokenizer() -> None:
    forger = Forger(parse(content("finished")), tokenizer())
    FORGERIES[0](forger)
    report = check(render(forger.lines))
    assert not report.texts_checked
    assert report.verdict.startswith("structure verified; texts not checked")


def test_work_is_bounded_by_the_file_and_not_by_what_it_claims() -> None:
    lines = parse(content("finished"))[:4]
    lines[0]["config"] |= {"population": 10_000, "rounds": 1_000, "final_candidates": 0}
    with pytest.raises(VerificationError, match="too many to derive"):
        check(render(lines), tokenizer())
    lines[0]["config"] |= {"population": 10_000, "rounds": 1_000, "final_candidates": 10_000, "aggregation_size": 9_999}
    with pytest.raises(VerificationError):
        check(render(lines))


def test_document_names_every_free_field() -> None:
    document = Path(__file__).parents[2] / "docs/superpowers/specs/2026-05-10-markovian-rsa-mlx-design.md"
    section = document.read_text(encoding="utf-8").split("**Never derived**")[1].split("\n## ")[0]
    names = {field.split(".")[-1].removeprefix("final_") for fields in FREE_FIELDS.values() for field in fields}
    assert names - {"message"} <= set(re.findall(r"`(\w+)`", section))


def test_known_marks_cannot_be_left_out_of_the_setup() -> None:
    lines = parse(content("finished"))[:2]
    lines[1] |= {"end_of_thinking": [], "end_of_thinking_texts": []}
    with pytest.raises(VerificationError, match=r"line 2 .*markers"):
        check(render(lines), tokenizer())


def fields_removed(lines: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lines as a version wrote them that did not know these fields and settings."""
    lines = [{name: value for name, value in line.items() if name not in names} for line in lines]
    config = {name: value for name, value in lines[0]["config"].items() if f"config.{name}" not in names}
    return [{**lines[0], "config": config}, *lines[1:]]


ADDED = (
    "tokenizer", "tokenizer_digest", "closing_token_ids", "config.answer_tokens", "answer_rules", "levels", "verdicts",
    "thinking_marks", "config.thinking_marks", "frame_texts", "config.tail_order", "config.kv_bits",
    "kv_bits",
)  # fmt: skip


@pytest.mark.parametrize("name", ADDED[:-1])
def test_a_later_field_without_an_earlier_one_is_refused(name: str, trail: list[dict[str, Any]]) -> None:
    assert not check(render(trail), CharacterTokenizer()).older_rules
    with pytest.raises(VerificationError):
        check(render(fields_removed(trail, [name])), CharacterTokenizer())


@pytest.mark.parametrize(
    "values", [{"answer_rules": 1}, {"answer_rules": 3}, {"frame_texts": {}}, {"thinking_marks": {}}], ids=str
)
def test_values_of_other_versions_are_refused(values: dict[str, Any], trail: list[dict[str, Any]]) -> None:
    with pytest.raises(VerificationError, match="line 2 "):
        check(render([trail[0], trail[1] | values, *trail[2:]]), CharacterTokenizer())


def test_report_names_the_rules_of_an_earlier_version(trail: list[dict[str, Any]]) -> None:
    report = check(render(fields_removed(trail, ADDED[-1:])), CharacterTokenizer())
    assert report.older_rules
    assert "earlier version" in report.verdict
    assert len(report.to_dict()["trusted"]) == 1 + len(check(render(trail)).to_dict()["trusted"])


def test_texts_of_markers_are_those_of_the_tokenizer() -> None:
    lines = parse(content("finished"))
    lines[1]["end_of_thinking_texts"] = ["</answer>"]
    with pytest.raises(VerificationError, match=r"line 2 .*end_of_thinking_texts"):
        check(render(lines), tokenizer())


def test_question_is_the_one_that_the_chat_template_shows(tmp_path: Path) -> None:
    lines = read_lines(record(tmp_path / "run.jsonl", rounds=0))
    lines[0]["prompt"] += " "
    lines[1]["messages"][-1]["content"] += " "
    with pytest.raises(VerificationError, match=r"line 2 .*the chat of the messages"):
        check(render(lines), CharacterTokenizer())


class DatedTokenizer(CharacterTokenizer):
    """A tokenizer whose chat template writes the day."""

    template = "{{ strftime_now('%d %b %Y') }}"
    day = "26 Nov 2026"

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        return f"Today is {self.day}.\n{super().render_chat(messages, enable_thinking)}"


def test_only_the_date_of_a_chat_frame_may_differ(tmp_path: Path) -> None:
    chat = [ChatMessage(role="system", content="Reply in May."), ChatMessage(role="user", content="One and one?")]
    with MarkovianRSAOrchestrator(FakeEngine(wordy, DatedTokenizer()), equivalent=equal_text) as orchestrator:
        orchestrator.run(chat, SMALL, audit_path=tmp_path / "run.jsonl")
    lines, later = read_lines(tmp_path / "run.jsonl"), DatedTokenizer()
    later.day = "7 December 2026"
    assert check(render(lines), later).is_complete
    for before, after in (("Reply in May.", "Reply in Dec."), ("Today is", "Today was")):
        forged = render(lines).replace(before.encode(), after.encode())
        forged = forged.replace(f'"content": "{after}"'.encode(), f'"content": "{before}"'.encode())
        assert forged != render(lines)
        with pytest.raises(VerificationError, match=r"line 2 .*another chat frame"):
            check(forged, later)


def test_template_file_may_change_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "{{ problem }}{% for attempt in attempts %}\n{{ attempt.text }}{% endfor %}"
    Path("mine.j2").write_text(source, encoding="utf-8")
    lines = read_lines(record(tmp_path / "run.jsonl", template="mine.j2"))
    Path("mine.j2").write_text(f"Hm. {source}", encoding="utf-8")
    assert check(render(lines), CharacterTokenizer()).is_complete


def test_selection_in_the_place_of_the_setup_is_refused(trail: list[dict[str, Any]]) -> None:
    selection = next(line for line in trail if line["event"] == "selection")
    for lines in ([selection, *trail], [trail[0], selection, *trail[1:]]):
        with pytest.raises(VerificationError, match="is the"):
            check(render(lines), CharacterTokenizer())

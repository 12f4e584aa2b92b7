"""Prompts: templates, the splicing of ids, the quoting of markers, chats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx import tools
from markovian_rsa_mlx.errors import PromptError, TemplateError
from markovian_rsa_mlx.method.prompts import (
    QUOTE,
    ChatFrame,
    PromptBuilder,
    PromptTemplate,
    build_segments,
    chat_frame,
    check_chat,
    quote_markers,
)
from markovian_rsa_mlx.method.tails import Tail
from markovian_rsa_mlx.tokenizer import ChatMessage
from tests.support.fakes import ByteTokenizer, CharacterTokenizer

CODEC = CharacterTokenizer()
BYTES = ByteTokenizer()
ROOT = Path(__file__).parents[2]
ZAYA = PromptTemplate.load("zaya_v1")
RSA = PromptTemplate.load("rsa_v1")
OPEN = PromptTemplate.load("open_v1")
FRAME = ChatFrame("<user>", "\n<assistant>")


def tail(text: str, tokenizer: CharacterTokenizer = CODEC) -> Tail:
    return Tail(tuple(tokenizer.encode(text)), text)


def prompter(
    tokenizer: CharacterTokenizer = CODEC, template: PromptTemplate = ZAYA, problem: str = "Why?", carry: str = "tail"
) -> PromptBuilder:
    segments = build_segments(tokenizer, template, FRAME, problem=problem, carry=carry, max_parents=4)
    return PromptBuilder(tokenizer, segments, FRAME)


def custom(source: str) -> PromptBuilder:
    return prompter(template=PromptTemplate(source, "mine"))


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


class OneIdAWord(CharacterTokenizer):
    """Tokenises a text in another way than a model wrote it: what is re-tokenised gets other ids."""

    def encode(self, text: str) -> list[int]:
        return [50_000 + sum(map(ord, word)) for word in text.split(" ")]


tails = st.lists(st.text(max_size=30).map(tail), min_size=1, max_size=4)


@given(tails, st.sampled_from([ZAYA, RSA, OPEN]))
def test_prompts_begin_with_what_is_known_about_them(shown: list[Tail], template: PromptTemplate) -> None:
    builder = prompter(template=template)
    prompt = builder.build(shown)
    for count, start in enumerate(prompt.tail_starts):
        assert builder.beginning(shown[:count], len(shown)) == prompt.token_ids[:start]
    assert builder.beginning(shown, len(shown)) == prompt.token_ids


@given(tails)
def test_a_prompt_shows_every_tail_in_its_order(shown: list[Tail]) -> None:
    prompt = prompter().build(shown)
    rest = prompt.text
    for number, one in enumerate(shown, start=1):
        slot = f"\n[attempt {number}]\n{one.text}\n[end of attempt {number}]\n"
        assert slot in rest
        rest = rest[rest.index(slot) + len(slot) - 1 :]
    assert prompt.text.startswith("<user>Why?\n")
    assert prompt.text.endswith("\n<assistant>")


@given(tails)
def test_the_ids_are_the_text_token_for_token(shown: list[Tail]) -> None:
    prompt = prompter().build(shown)
    assert list(prompt.token_ids) == CODEC.encode(prompt.text)
    assert prompt.text == FRAME.prefix + prompt.content + FRAME.suffix


def test_ids_of_tails_are_spliced_and_never_tokenised_again() -> None:
    strange = Tail((777, 778, 779), "one two three")
    segments = build_segments(OneIdAWord(), ZAYA, FRAME, problem="Why?", carry="tail", max_parents=2)
    prompt = PromptBuilder(OneIdAWord(), segments, FRAME).build([strange, strange])
    before, between, after = segments.token_ids[1]
    assert prompt.token_ids == (*before, 777, 778, 779, *between, 777, 778, 779, *after)


@given(text=st.text(max_size=30), problem=st.text(min_size=1, max_size=30))
def test_jinja_in_a_problem_or_a_tail_is_only_text(text: str, problem: str) -> None:
    prompt = prompter(problem="{{ 7 * 7 }}" + problem + "{% raise %}").build([tail("{{ attempts }}" + text)])
    assert "{{ attempts }}" in prompt.text
    assert "{{ 7 * 7 }}" + problem + "{% raise %}" in prompt.text


def test_nothing_is_escaped_or_trimmed_from_a_tail() -> None:
    text = "  <b> & \"quotes\" 'and' \\boxed{1}\n\n\tindented\n\n"
    assert f"[attempt 1]\n{text}\n[end of attempt 1]" in prompter().build([tail(text)]).text


MARKERS = ["[attempt 1]", "[end of attempt 1]", "[attempt 2]", "  [attempt 2]\t", "[end of attempt 2]\r"]
lines = st.lists(st.sampled_from([*MARKERS, "", "text", "see [attempt 1] here", "> [attempt 1]"]), max_size=8)


@given(first=lines, second=lines)
def test_a_tail_cannot_close_or_open_a_slot(first: list[str], second: list[str]) -> None:
    prompt = prompter().build([tail("\n".join(first)), tail("\n".join(second))])
    structure = [line.strip() for line in prompt.text.split("\n") if line.strip() in {m.strip() for m in MARKERS}]
    assert structure == ["[attempt 1]", "[end of attempt 1]", "[attempt 2]", "[end of attempt 2]"]
    assert list(prompt.token_ids) == CODEC.encode(prompt.text)


@given(lines)
def test_quoting_adds_only_quotes_and_only_where_it_must(text_lines: list[str]) -> None:
    text = "\n".join(text_lines)
    quoted = quote_markers(text, frozenset({"[attempt 1]"}))
    for before, after in zip(text.split("\n"), quoted.split("\n"), strict=True):
        assert after == (QUOTE + before if before.strip() == "[attempt 1]" else before)


def test_a_slot_number_that_this_prompt_does_not_have_is_left_alone() -> None:
    assert "\n[attempt 2]\n" in prompter().build([tail("a\n[attempt 2]\nb")]).text


def test_quoting_keeps_the_recorded_tail_raw_and_splices_the_quote() -> None:
    one = tail("a\n[attempt 1]\nb")
    prompt = prompter().build([one])
    assert one.text == "a\n[attempt 1]\nb"
    assert "a\n> [attempt 1]\nb" in prompt.text


def test_a_token_without_text_is_no_second_beginning_of_a_line() -> None:
    silent = 7
    ids = (*CODEC.encode("a\n"), silent, silent, *CODEC.encode("[attempt 1]\nb"))
    prompt = prompter().build([Tail(ids, CODEC.decode(ids))])
    assert [i for i in prompt.token_ids if i != silent] == CODEC.encode(prompt.text)


class IndentedLines(CharacterTokenizer):
    """One token for a line feed and the two spaces after it."""

    INDENT = 60_000

    def encode(self, text: str) -> list[int]:
        first, *rest = text.split("\n  ")
        return [
            *super().encode(first),
            *(i for piece in rest for i in (self.INDENT, *super(type(self), self).encode(piece))),
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return "\n  ".join(super(IndentedLines, self).decode(part) for part in split_at(ids, self.INDENT))


def split_at(ids: Sequence[int], mark: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for i in ids:
        parts.append([]) if i == mark else parts[-1].append(i)
    return parts


@pytest.mark.parametrize("text", ["a\n  [attempt 1]\nb", "a\n  [attempt 1]", "\n  [attempt 1]\n  [attempt 1]\n"])
def test_a_marker_that_begins_inside_a_token_is_quoted_after_it(text: str) -> None:
    tokenizer = IndentedLines()
    one = tail(text, tokenizer)
    prompt = prompter(tokenizer).build([one])
    assert tokenizer.decode(prompt.token_ids).count("  > [attempt 1]") == text.count("  [attempt 1]")
    assert prompt.text.count("> ") == text.count("  [attempt 1]")


def test_quoting_reads_a_long_tail_about_once() -> None:
    class Counting(CharacterTokenizer):
        decoded = 0

        def decode(self, ids: Sequence[int]) -> str:
            self.decoded += len(ids)
            return super().decode(ids)

    tokenizer = Counting()
    prompter(tokenizer).build([tail("ten tokens\n" * 1000 + "[attempt 1]")])
    assert tokenizer.decoded < 100_000


@given(st.text(max_size=30))
def test_bytes_are_spliced_as_bytes(text: str) -> None:
    prompt = prompter(BYTES).build([tail(text, BYTES)])
    assert BYTES.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize(
    ("carry", "phrase"), [("tail", "The end of the reasoning"), ("answer", "closing part"), ("summary", "summary")]
)
def test_the_template_names_the_carried_part(carry: str, phrase: str) -> None:
    assert phrase in prompter(carry=carry).build([tail("x")]).text


def test_the_number_of_attempts_is_singular_or_plural() -> None:
    assert "tried 1 time before" in prompter().build([tail("x")]).text
    assert "tried 2 times before" in prompter().build([tail("x"), tail("y")]).text


SHOW = "{% for a in attempts %}<{{ a.number }}>{{ a.text }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ problm }}" + SHOW, r"unknown variable 'problm'.*attempts, carry, newline, problem"),
        ("{{ problem " + SHOW, "not valid Jinja2"),
        ("{% for a in attempts %}{{ a.text }}", "not valid Jinja2"),
        ("{{ problem | nosuchfilter }}" + SHOW, "not valid Jinja2"),
        ("{{ problem }}", "every attempt exactly once and in order"),
        ("{{ problem }}" + SHOW + SHOW, "every attempt exactly once and in order"),
        (
            "{{ problem }}{% for a in attempts | reverse %}{{ a.text }}|{% endfor %}",
            "every attempt exactly once and in order",
        ),
        ("{{ problem }}{{ attempts[0].text }}", "every attempt exactly once and in order"),
        ("{{ problem }}{% for a in attempts %}{{ a.txet }}{% endfor %}", "cannot be rendered"),
        ("{{ problem.__class__.__mro__ }}" + SHOW, "cannot be rendered.*unsafe"),
        ("{{ problem }}{{ attempts.__class__ }}" + SHOW, "cannot be rendered.*unsafe"),
        ("{{ problem }}{% set x = attempts.append(1) %}" + SHOW, "cannot be rendered"),
        ("{{ problem }}{% include 'other' %}" + SHOW, "cannot be rendered"),
        ("{{ problem + 1 }}" + SHOW, "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_work_is_refused_before_the_run(source: str, complaint: str) -> None:
    with pytest.raises(TemplateError, match=complaint) as caught:
        custom(source)
    assert "mine" in str(caught.value)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_text("Q: {{ problem }} ({{ carry }})\n" + SHOW + "\n\nÜber.", encoding="utf-8")
    prompt = prompter(template=PromptTemplate.load(str(path))).build([tail("a"), tail("b")])
    assert prompt.text == "<user>Q: Why? (tail)\n<1>a<2>b\nÜber.\n<assistant>"


@pytest.mark.parametrize("name", ["nosuch", "no/such/file.j2", "../pyproject", ""])
def test_a_template_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(TemplateError, match="neither built in"):
        PromptTemplate.load(name)


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.j2").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TemplateError, match="UTF-8"):
        PromptTemplate.load(str(tmp_path / "x.j2"))


class Chat(CharacterTokenizer):
    """A tokenizer with a chat template of one's own."""

    def __init__(self, template: Any) -> None:
        super().__init__()
        self.template = template

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        return str(self.template(messages))


def test_the_frame_holds_system_message_and_earlier_turns() -> None:
    chat = [
        ChatMessage(role="system", content="Be brief."),
        user("Earlier?"),
        ChatMessage(role="assistant", content="Yes."),
        user("Now?"),
    ]
    frame = chat_frame(CODEC, chat, enable_thinking=True)
    assert frame.prefix == "<system>Be brief.\n<user>Earlier?\n<assistant>Yes.\n<user>"
    assert frame.prefix + "Now?" + frame.suffix == CODEC.render_chat(chat, True)
    assert (
        chat_frame(CODEC, chat, enable_thinking=False).suffix != frame.suffix
    )  # enable_thinking reaches the chat template


def test_an_earlier_turn_with_equal_content_does_not_change_the_frame() -> None:
    frame = chat_frame(
        CODEC, [user("Same"), ChatMessage(role="assistant", content="Same"), user("Same")], enable_thinking=True
    )
    assert frame.prefix.count("Same") == 2


@pytest.mark.parametrize(
    ("template", "times"),
    [(lambda m: "fixed", 0), (lambda m: m[-1]["content"] * 2, 2), (lambda m: m[0]["content"], 0)],
)
def test_a_chat_template_that_drops_or_doubles_the_question_is_refused(template: Any, times: int) -> None:
    chat = [ChatMessage(role="system", content="s"), user("q")]
    with pytest.raises(TemplateError, match=f"{times} times"):
        chat_frame(Chat(template), chat, enable_thinking=True)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "must end with a user message"),
        ([user("q"), ChatMessage(role="assistant", content="a")], "must end with a user message"),
        ([user("q"), ChatMessage(role="system", content="s")], "must end with a user message"),
        ([ChatMessage(role="tool", content="r")], "must end with a user message"),
        ([user(" "), ChatMessage(role="tool", content="r")], "empty"),
        ([user("")], "empty"),
        ([user(" \n\t")], "empty"),
        ([{"content": "q"}], "a role and a content"),
        (["q"], "a role and a content"),
        ([{"role": "user"}], "must be plain text"),
        ([{"role": "user", "content": [{"type": "text", "text": "q"}]}], "must be plain text"),
        ([{"role": "assistant", "content": None}, user("q")], "must be plain text"),
    ],
)
def test_a_chat_that_asks_nothing_is_refused(messages: Any, complaint: str) -> None:
    with pytest.raises(PromptError, match=complaint):
        check_chat(tools.Chat(tuple(messages)))


def test_a_template_without_the_problem_is_refused() -> None:
    with pytest.raises(TemplateError, match="does not show the problem"):
        PromptTemplate("{% for a in attempts %}{{ a.text }}{% endfor %}", "mine")


def test_the_open_template_differs_only_in_asking_for_no_box() -> None:
    assert "boxed" in ZAYA.source
    assert "boxed" not in OPEN.source
    assert OPEN.source.rpartition(", in the form")[0] == ZAYA.source.rpartition(", its final answer")[0]


def test_rsa_v1_says_first_what_the_attempts_are() -> None:
    instruction = ZAYA.source.rstrip("\n").rpartition("\n")[2]
    several = prompter(template=RSA, problem="Why?\nThen").build([tail("one\n"), tail("two")])
    assert several.content == (
        "A problem and earlier solutions of it follow. Any of them may be wrong or cut off.\n"
        "[[ Problem ]]\nWhy?\nThen\n\n"
        "---- Solution 1 ----\none\n\n---- Solution 2 ----\ntwo\n\nWrite one improved solution of the problem.\n"
        + instruction
    )
    single = prompter(template=RSA).build([tail("one")])
    assert single.content == (
        "A problem and an earlier solution of it follow. The solution may be wrong or cut off.\n[[ Problem ]]\nWhy?\n\n"
        "---- Candidate ----\none\n\nWrite one improved solution of the problem.\n" + instruction
    )


RSA_MARKERS = ["---- Solution 1 ----", "---- Solution 2 ----", "Write one improved solution of the problem."]
rsa_lines = st.lists(st.sampled_from([*RSA_MARKERS, f" {RSA_MARKERS[1]}\t", "", "text"]), max_size=8)


@given(first=rsa_lines, second=rsa_lines)
def test_a_tail_cannot_begin_another_solution_of_rsa_v1(first: list[str], second: list[str]) -> None:
    prompt = prompter(template=RSA).build([tail("\n".join(first)), tail("\n".join(second))])
    assert [line.strip() for line in prompt.text.split("\n") if line.strip() in RSA_MARKERS] == RSA_MARKERS
    assert list(prompt.token_ids) == CODEC.encode(prompt.text)


def test_the_documented_template_of_a_models_maker_is_exact() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```jinja\n(.*?)```", text, re.DOTALL)
    (expected,) = re.findall(r"exactly this text.*?```text\n(.*?)```", text, re.DOTALL)
    template = PromptTemplate(source, "maker.j2")
    prompt = prompter(template=template, problem=" What is 1 + 1?\n").build([tail("It is 3."), tail("It is 2.")])
    assert prompt.content == expected


@pytest.mark.parametrize(("end", "kept"), [("\n\n", ""), ("{{ newline }}", "\n"), ("{{ newline }}\n\n", "\n\n")])
def test_line_breaks_at_the_end_are_kept_where_a_template_uses_newline(end: str, kept: str) -> None:
    prompt = custom("{{ problem }}" + SHOW + end).build([tail("a")])
    assert prompt.content == "Why?<1>a" + kept

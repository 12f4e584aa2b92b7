"""The table of thinking marks, their detection, and the division of a trace at them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.marks import TABLE, ThinkingMarks, find_marks, is_open, unknown_mark
from markovian_rsa_mlx.method.mark_scanner import Alphabet, MarkScanner

ROWS = [pytest.param(row, id=row.begin) for row in TABLE]


def ids_of(row: ThinkingMarks) -> dict[str, int]:
    """A vocabulary in which every part of the row's marks is a token of its own."""
    return {part: 1000 + index for index, part in enumerate(sorted(replace(row, wrappers=()).parts))}


def model_with(row: ThinkingMarks, *, tokens: bool) -> ThinkingMarks:
    marks = find_marks(row.begin + row.end, ids_of(row).get if tokens else {}.get)
    assert marks is not None
    return marks


def divide(
    marks: ThinkingMarks, text: str, *pieces: int, opened: bool = False, thinking: bool = True
) -> dict[str, str]:
    """Return the text of each section. `pieces` are the lengths of the pieces that arrive."""
    alphabet = Alphabet(marks)
    marked = alphabet.mark(text)
    scanner = MarkScanner(marks, marks.begin if opened else "", thinking=thinking)
    spans, at = [], 0
    for size in pieces:
        spans += scanner.feed(marked[at : at + size])
        at += size
    spans += [*scanner.feed(marked[at:]), *scanner.end()]
    found = defaultdict[str, str](str)
    for span in spans:
        assert marked[span.start : span.end] == span.text
        found[span.section] += alphabet.show(span.text)
    return found


def answered(marks: ThinkingMarks, answer: str) -> str:
    """The end of a trace from the end of its thinking on."""
    return (marks.closing if marks.channels else marks.end) + answer


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("row", ROWS)
class TestEveryRow:
    def test_it_is_found_in_a_template(self, row: ThinkingMarks, tokens: bool) -> None:
        marks = model_with(row, tokens=tokens)
        assert (marks.begin, marks.end, marks.expected) == (row.begin, row.end, True)
        assert bool(marks.tokens) == (tokens and bool(ids_of(row)))

    def test_it_is_found_in_a_vocabulary(self, row: ThinkingMarks, tokens: bool) -> None:
        marks = find_marks("{{ messages }}", ids_of(row).get if tokens else {}.get)
        if tokens and ids_of(row):
            assert marks is not None
            assert (marks.begin, marks.expected) == (row.begin, False)
        else:
            assert marks is None

    @pytest.mark.parametrize("thinking", [True, False])
    def test_the_model_writes_both_marks(self, row: ThinkingMarks, tokens: bool, thinking: bool) -> None:
        marks = model_with(row, tokens=tokens)
        found = divide(marks, f"{row.begin}\nhm, five{answered(marks, ' four')}", thinking=thinking)
        assert (found["thinking"], found["answer"]) == ("\nhm, five", " four")

    def test_the_prompt_has_the_begin_mark(self, row: ThinkingMarks, tokens: bool) -> None:
        marks = model_with(row, tokens=tokens)
        assert is_open(marks, f"assistant {row.begin}\n")
        assert not is_open(marks, f"{row.begin}\n\n{row.end}\n\n")
        found = divide(marks, "hm" + answered(marks, "four"), opened=True, thinking=False)
        assert (found["thinking"], found["answer"]) == ("hm", "four")
        assert not divide(marks, "hm, five", opened=True)["answer"]

    def test_a_truncated_thought_has_no_answer(self, row: ThinkingMarks, tokens: bool) -> None:
        marks = model_with(row, tokens=tokens)
        assert divide(marks, f"{row.begin}hm, five", thinking=False) == {"thinking": "hm, five"}

    def test_several_blocks(self, row: ThinkingMarks, tokens: bool) -> None:
        marks = model_with(row, tokens=tokens)
        between = "<|end|><|start|>assistant" if marks.channels else f"{row.end}\n"
        found = divide(marks, f"{row.begin}one{between}{row.begin}two{answered(marks, 'four')}")
        assert (found["thinking"], found["answer"].strip()) == ("onetwo", "four")

    def test_the_closing_text_ends_the_thinking(self, row: ThinkingMarks, tokens: bool) -> None:
        marks = model_with(row, tokens=tokens)
        found = divide(marks, f"{row.begin}hm{marks.closing}four")
        assert (found["thinking"].strip(), found["answer"].strip()) == ("hm", "four")


CHANNELS = model_with(TABLE[0], tokens=True)
HARMONY = (
    "<|channel|>analysis<|message|>one<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    "<|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>analysis<|message|>two<|end|>"
    "<|start|>assistant<|channel|>final<|message|>four"
)
THINK = model_with(ThinkingMarks("<think>", "</think>"), tokens=True)
PLAIN = model_with(ThinkingMarks("<think>", "</think>"), tokens=False)
UNEXPECTED = replace(THINK, expected=False)


def test_only_analysis_and_final_are_thinking_and_answer() -> None:
    found = divide(CHANNELS, HARMONY)
    assert (found["thinking"], found["answer"]) == ("onetwo", "four")


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("header", ["final<|constrain|>json", "final <|constrain|>json", " final", "final\n"])
def test_a_constraint_may_follow_the_name_of_a_channel_without_a_space(header: str, tokens: bool) -> None:
    marks = model_with(TABLE[0], tokens=tokens)
    assert divide(marks, f"<|channel|>{header}<|message|>four") == {"answer": "four"}
    assert divide(marks, f"<|channel|>{header.replace('final', 'finally')}<|message|>four") == {"other": "four"}


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        (CHANNELS, HARMONY),
        (CHANNELS, "no channels at all"),
        (CHANNELS, "no channels" * 10 + HARMONY),
        (UNEXPECTED, " a<think>hm</think>b</think>c"),
        (PLAIN, "\n" + "hm" * 48 + "<think>hmm</think>four</think><response>"),
        (THINK, "<think>hm</think>a<think>hm</think><response>b</response>c</think>"),
        (PLAIN, "<think>hm</think> \n<response>a</think> <think> b</response>"),
        (PLAIN, "hm </thin </think></think><think>x"),
    ],
)
@given(sizes=st.lists(st.integers(1, 9), max_size=40), opened=st.booleans(), thinking=st.booleans())
def test_pieces_do_not_change_the_sections(
    marks: ThinkingMarks, text: str, sizes: list[int], opened: bool, thinking: bool
) -> None:
    assert divide(marks, text, *sizes, opened=opened, thinking=thinking) == divide(
        marks, text, opened=opened, thinking=thinking
    )


@pytest.mark.parametrize("ids", [{}, {"<think>": 1, "</think>": 2}, {"<answer>": 3, "</answer>": 4}])
@pytest.mark.parametrize("named", [None, ("[REASON]", "[/REASON]")])
def test_answer_marks_of_a_template_enclose_the_answer(ids: dict[str, int], named: tuple[str, str] | None) -> None:
    """As in Hunyuan's models: <think>...</think> <answer>...</answer>."""
    begin, end = named or ("<think>", "</think>")
    template = f"{begin}\n{{{{ a }}}}\n{end}\n<answer>\n{{{{ b }}}}\n</answer>"
    marks = find_marks(template, ids.get, named)
    assert marks is not None
    assert ThinkingMarks.from_dict(marks.to_dict()) == marks
    assert marks.closing == f"\n{end}\n<answer>"
    assert marks.belongs_to(ThinkingMarks(begin, end))
    assert not replace(marks, wrappers=(("<b>", "</b>"),)).belongs_to(ThinkingMarks(begin, end))
    text = f"{begin}\nabc <answer> def\n{end}\n<answer>\nParis, </answers> or <answer>.\n</answer>\n"
    if "<answer>" not in ids:
        found = divide(marks, text)
        assert found["thinking"].strip() == "abc <answer> def"
        assert found["answer"].split() == ["Paris,", "</answers>", "or", "<answer>."]
    found = divide(marks, text.replace(" <answer>", ""))
    assert found["answer"].split() == ["Paris,", "</answers>", "or."]
    assert divide(marks, marks.closing + "\nParis\n</answer>", opened=True)["answer"].strip() == "Paris"


@pytest.mark.parametrize("template", ["<think></think>", "<think></think> Write <answer> before the answer."])
def test_answer_marks_that_the_template_does_not_have_are_text(template: str) -> None:
    marks = find_marks(template, {}.get)
    assert marks is not None
    assert marks.closing == "</think>"
    assert divide(marks, "<think>abc</think><answer>Paris</answer>")["answer"] == "<answer>Paris</answer>"


def model_of(template: str, *tokens: str) -> ThinkingMarks:
    marks = find_marks(template, {token: index for index, token in enumerate(tokens)}.get)
    assert marks is not None
    return marks


@pytest.mark.parametrize(
    "tokens", [(), ("<thinking>", "</thinking>", "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]")]
)
def test_the_end_of_the_thinking_may_enclose_the_answer(tokens: tuple[str, ...]) -> None:
    """As in Apriel's models, whose templates mention <thinking> in an instruction or a comment."""
    begin, end = "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"
    expecting = model_of(f"{{# or <thinking> #}}{{{{ '{begin}\\n' }}}}{{{{ '\\n{end}\\n' }}}}", *tokens)
    assert (expecting.begin, expecting.expected, expecting.closing) == (begin, True, f"\n{end}\n")
    writing = model_of(f"between <thinking> and </thinking> tags: {end} ... [END FINAL RESPONSE]", *tokens)
    assert (writing.begin, writing.expected, writing.closing) == (begin, False, end)
    answer = f"{end}\nfour\n[END FINAL RESPONSE]\n"
    for found in (divide(expecting, f"hm\n{answer}", opened=True), divide(writing, f"{begin}\nhm\n{answer}")):
        assert (found["thinking"].strip(), found["answer"].strip()) == ("hm", "four")
    assert divide(PLAIN, "hm</think>four [END FINAL RESPONSE]")["answer"] == "four [END FINAL RESPONSE]"


@pytest.mark.parametrize("ends", ["<|begin|>assistant<|think|><|end|><|begin|>assistant", "<|begin|>assistant"])
def test_the_answer_may_follow_in_a_message_of_its_own(ends: str) -> None:
    """As in Solar Open's models."""
    marks = model_of("<|begin|>assistant<|think|>", "<|begin|>", "<|think|>", "<|end|>", "<|content|>")
    assert marks.closing == "<|end|><|begin|>assistant<|content|>"
    alphabet, texts = Alphabet(marks), {}
    for text in ("<|think|>hm<|end|><|begin|>assistant<|content|>four", "<|content|>four"):
        scanner = MarkScanner(marks, ends, thinking=True)
        spans = [*scanner.feed(alphabet.mark(text)), *scanner.end()]
        texts[text] = [(span.section, span.text) for span in spans]
    assert list(texts.values()) == [[("thinking", "hm"), ("answer", "four")], [("answer", "four")]]
    assert find_marks("{{ m }}<|end|>", {"<|end|>": 1}.get) is None  # ends a turn of other models


def test_the_header_of_a_message_may_begin_the_thinking() -> None:
    """As in Muse Spark, whose messages are to the model itself or to the user."""
    marks = model_of("{{ messages }}", "<|start|>", "<|message|>", "<|eom|>", "<|eot|>")
    assert marks.closing == "<|eom|><|start|>assistant to=user<|message|>"
    found = divide(marks, f" to=self<|message|>hm{marks.closing}four")
    assert (found["thinking"], found["answer"].strip()) == ("hm", "four")
    assert divide(marks, " to=user<|message|>four")["answer"].strip() == "four"


@pytest.mark.parametrize("opens", ["<response>", "<|begin_of_solution|>"])
def test_marks_around_the_answer_are_removed(opens: str) -> None:
    closes = opens.replace("<", "</", 1) if opens == "<response>" else "<|end_of_solution|>"
    assert divide(PLAIN, f"hm</think>\n{opens}\nfour\n{closes}")["answer"].split() == ["four"]
    assert divide(PLAIN, f"hm</think>write {opens}")["answer"] == f"write {opens}"


def test_the_characters_of_a_mark_end_nothing_where_the_mark_is_a_token() -> None:
    alphabet = Alphabet(THINK)
    scanner = MarkScanner(THINK, THINK.begin, thinking=True)
    spans = [*scanner.feed("what does </think> mean?" + alphabet.mark("</think>") + "four </think>"), *scanner.end()]
    assert [(span.section, span.text) for span in spans] == [
        ("thinking", "what does </think> mean?"),
        ("answer", "four </think>"),
    ]


def test_a_second_end_in_the_answer_ends_nothing() -> None:
    assert divide(PLAIN, "hm</think>write </think> and <think>", opened=True)["answer"] == "write </think> and <think>"


@pytest.mark.parametrize("marks", [THINK, PLAIN], ids=["tokens", "text"])
def test_an_end_mark_alone_ends_a_short_thinking_only(marks: ThinkingMarks) -> None:
    assert divide(marks, "hm, four", thinking=False) == {"answer": "hm, four"}
    short, long = "h" * 100, "h" * 101
    assert divide(marks, f"\n\n{short}</think>four", thinking=False) == {"thinking": f"\n\n{short}", "answer": "four"}
    late = divide(marks, f"{long}</think>four", thinking=False)
    assert (late["thinking"], late["answer"].replace("</think>", "")) == ("", long + "four")


@pytest.mark.parametrize("thinking", [True, False])
def test_without_a_begin_mark_the_answer_begins_where_only_the_vocabulary_has_marks(thinking: bool) -> None:
    assert divide(UNEXPECTED, "four", thinking=thinking) == {"answer": "four"}
    scanner = MarkScanner(UNEXPECTED, "", thinking=thinking)
    assert scanner.feed("\n ") == []
    assert [(span.section, span.text.strip()) for span in scanner.feed("f")] == [("answer", ""), ("answer", "f")]
    assert divide(UNEXPECTED, "\n<think>hm</think>four", thinking=thinking) == {"thinking": "hm", "answer": "four"}


@pytest.mark.parametrize("thinking", [True, False])
def test_a_template_that_only_removes_old_thinking_expects_none(thinking: bool) -> None:
    marks = find_marks("{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}", {}.get)
    assert marks is not None
    assert divide(marks, "four", thinking=thinking) == {"answer": "four"}
    assert divide(marks, "<think>hm</think>four", thinking=thinking) == {"thinking": "hm", "answer": "four"}


@pytest.mark.parametrize("suffix", ["<|bot|></think>", "<|bot|><think>\n\n</think>\n\n"])
@pytest.mark.parametrize("row", [row for row in ROWS if not row.values[0].channels])
def test_a_prompt_that_ends_the_thinking_begins_the_answer(row: ThinkingMarks, suffix: str) -> None:
    marks = model_with(row, tokens=False)
    scanner = MarkScanner(marks, suffix.replace("<think>", row.begin).replace("</think>", row.end), thinking=True)
    spans = [*scanner.feed("four"), *scanner.end()]
    assert [(span.section, span.text) for span in spans] == [("answer", "four")]


def test_characters_of_a_mark_after_the_undecided_text_are_text() -> None:
    long = "h" * 101
    assert divide(PLAIN, f"{long}<think>hm", thinking=False) == {"answer": f"{long}<think>hm"}


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        ("{{ '<think>\\n' }}{{ '<think>\\n\\n</think>\\n\\n' }}", "\n</think>\n\n"),
        ("{{ '<|bot|>\\n<think>\\n' }}{{ '</think>\\n' }}", "\n</think>\n"),
        ("<think>{{ c.split('</think>')[-1] }}", "</think>"),
        ("<think>\n{{ c }}\n</think>\n\n<response>", "\n</think>\n\n<response>"),
    ],
)
def test_the_closing_text_has_the_line_breaks_of_the_template(template: str, closing: str) -> None:
    marks = find_marks(template, {}.get)
    assert marks is not None
    assert marks.closing == closing


def test_named_marks_come_before_the_table() -> None:
    marks = find_marks("<think></think>", {"<hmm>": 7}.get, ("<hmm>", "</hmm>"))
    assert marks is not None
    assert (marks.begin, marks.end, marks.tokens, marks.expected) == ("<hmm>", "</hmm>", {"<hmm>": 7}, True)


def test_recorded_marks_come_back() -> None:
    assert ThinkingMarks.from_dict(CHANNELS.to_dict()) == CHANNELS
    assert ThinkingMarks.from_dict({}) is None


@pytest.mark.parametrize("mark", ["<my_think>", "[MYTHOUGHT]", "<|deep:reasoning|>", "◁reason▷"])
def test_an_unknown_mark_at_the_beginning_of_most_traces_is_found(mark: str) -> None:
    texts = [f"{mark} hm", f"\n{mark}hm", "something else"]
    assert unknown_mark(None, texts) == mark
    assert unknown_mark(ThinkingMarks(mark, "</x>"), texts) is None
    assert unknown_mark(None, [*texts, "one", "two"]) is None
    assert unknown_mark(None, ["I think", "<table>", ""]) is None

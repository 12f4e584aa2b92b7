"""Tool calls in the forms of models: found in an answer however it arrives, and nothing else taken for one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest

from markovian_rsa_mlx.tools import (
    GENERIC,
    ZAYA,
    ToolCall,
    ToolForm,
    Tools,
    call_id,
    find_form,
    read_zaya_calls,
    recorded_message,
    show_marks,
)


def tool(name: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": value} for key, value in types.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


OFFERED = (tool("weather", city="string", days="integer"), tool("save", path="string", data="object"), tool("now"))
MISTRAL = ToolForm("mistral", "[TOOL_CALLS]", "")
FORMS = {
    "json_tools": ToolForm("json_tools", "<tool_call>", "</tool_call>"),
    "generic": GENERIC,
    "mistral": MISTRAL,
    "qwen3_coder": ToolForm("qwen3_coder", "<tool_call>", "</tool_call>"),
    "zaya": ZAYA,
    "pythonic": ToolForm("pythonic", "<|tool_call_start|>", "<|tool_call_end|>"),
}
XML = "\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n"
ONE = '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'
ANSWERS = {
    "json_tools": f"I look.\n<tool_call>\n{ONE}\n</tool_call>",
    "generic": f"I look.\n<tool_call>\n{ONE}\n</tool_call>",
    "mistral": f"I look.[TOOL_CALLS][{ONE}]",
    "qwen3_coder": f"I look.\n<tool_call>{XML}</tool_call>",
    "zaya": f"I look.\n<zyphra_tool_call>{XML}</zyphra_tool_call>",
    "pythonic": 'I look.<|tool_call_start|>[weather(city="Paris", days=2)]<|tool_call_end|>',
}


def split(form: ToolForm, answer: str, *, finished: bool = True, parallel: bool = True) -> tuple[str, list[ToolCall]]:
    return Tools(OFFERED, form, parallel=parallel).split(answer, finished=finished)


@pytest.mark.parametrize("name", FORMS)
def test_call_in_a_models_form_is_found(name: str) -> None:
    text, calls = split(FORMS[name], ANSWERS[name])
    assert (text, [call.name for call in calls]) == ("I look.", ["weather"])
    assert json.loads(calls[0].arguments) == {"city": "Paris", "days": 2}


@pytest.mark.parametrize("name", FORMS)
def test_pieces_of_an_answer_give_what_the_whole_does(name: str) -> None:
    answer, rng = ANSWERS[name] + "\n" + ANSWERS[name] + " <tool", random.Random(name)
    whole = split(FORMS[name], answer)
    for _ in range(30):
        scanner, items, at = Tools(OFFERED, FORMS[name]).scanner(), list[str | ToolCall](), 0
        while at < len(answer):
            size = rng.randint(1, 9)
            items += scanner.feed(answer[at : at + size])
            at += size
        items += scanner.end(finished=True)
        text = "".join(item for item in items if isinstance(item, str)).strip()
        assert (text, [item for item in items if isinstance(item, ToolCall)]) == whole


@pytest.mark.parametrize("name", FORMS)
def test_call_that_is_cut_off_is_text(name: str) -> None:
    begin = FORMS[name].begin
    cut = ANSWERS[name][: ANSWERS[name].index(begin) + len(begin) + 20]
    assert split(FORMS[name], cut, finished=False) == (cut.strip(), [])


def test_call_without_an_end_counts_if_the_model_ended_the_answer() -> None:
    answer = ANSWERS["json_tools"].removesuffix("\n</tool_call>")
    assert len(split(GENERIC, answer, finished=True)[1]) == 1
    assert split(GENERIC, answer, finished=False) == (answer, [])


@pytest.mark.parametrize(
    "body",
    [
        "", "no JSON", "{}", "[]", "3", "[" * 9_999, '{"name": "other", "arguments": {}}', '{"name": ["now"]}',
        '{"name": "now", "arguments": [1]}', '{"name": "now", "arguments": {"x": NaN}}',
        '{"name": "now", "arguments": "x"}',
    ],
)  # fmt: skip
def test_what_is_no_call_of_an_offered_tool_stays_text(body: str) -> None:
    answer = f"a <tool_call>{body}</tool_call> b"
    assert split(GENERIC, answer) == (answer, [])


HOSTILE = {
    "gemma4": ("call:f{", ""),
    "glm47": ("f<arg_key>", "<arg_key>"),
    "qwen3_coder": ("<function=f>", "<parameter="),
    "minicpm5": ("", '"f"><param name="x">'),
    "muse_spark": ('<atem:invoke name="f">', '<atem:parameter name="x">'),
    "zaya_xml": ("<function=f>", "<parameter=x>"),
    "json_tools": ("", "["),
}


@pytest.mark.parametrize("parser", HOSTILE)
def test_long_call_of_any_form_takes_little_time(parser: str) -> None:
    first, piece = HOSTILE[parser]
    form, body = ToolForm(parser, "<a>", "</a>"), first + (piece or first) * (60_000 // len(piece or first))
    split(form, "<a></a>")  # imports the parser
    start = time.process_time()
    split(form, f"<a>{body}</a>")
    assert time.process_time() - start < 2
    assert split(form, f"<a>{'x' * 200_001}</a>")[1] == []


def test_call_of_gemma_4() -> None:
    form = ToolForm("gemma4", "<|tool_call>", "<tool_call|>", {'<|"|>': 9})
    _, calls = split(form, '<|tool_call>call:weather{city:<|"|>a } b<|"|>,days:2}<tool_call|>')
    assert [json.loads(call.arguments) for call in calls] == [{"city": "a } b", "days": 2}]


def test_arguments_are_text_that_can_be_sent() -> None:
    call = split(GENERIC, '<tool_call>{"name": "now", "arguments": {"x": "\\ud800é"}}</tool_call>')[1][0]
    assert call.arguments == '{"x": "\ufffdé"}'


def test_several_calls_and_text_around_them() -> None:
    call = f"<tool_call>{ONE}</tool_call>"
    text, calls = split(GENERIC, f"one {call}\n{call} two")
    assert (text, len(calls)) == ("one \n two", 2)
    assert len(split(GENERIC, f"{call}{call}", parallel=False)[1]) == 1
    assert len(split(GENERIC, call * 130)[1]) == 128


def arguments(body: str, tools: Sequence[dict[str, Any]] = OFFERED) -> Any:
    return read_zaya_calls(body, tools)[0]["arguments"]


class TestZaya:
    def test_values_by_their_schema(self) -> None:
        body = (
            "<function=save>\n<parameter=path>\n12\n</parameter>\n<parameter=data>\n"
            '{"a": [1, {"b": "x<br>y"}], "c": null}\n</parameter>\n<parameter=more>\n[1.5, true]\n</parameter>'
        )
        assert arguments(body) == {"path": "12", "data": {"a": [1, {"b": "x\ny"}], "c": None}, "more": [1.5, True]}

    @pytest.mark.parametrize("mark", ["<br>", "<br/>", "<BR />", "\n"])
    def test_line_breaks(self, mark: str) -> None:
        assert arguments(f"<function=weather><parameter=city>a{mark}b</parameter></function>") == {"city": "a\nb"}

    def test_quoted_texts_and_python_words(self) -> None:
        tools = [tool("f", text="string", yes="boolean")]
        body = '<function=f>\n<parameter=text>\n"a b"\n</parameter>\n<parameter=yes>\nTrue\n</parameter>\n</function>'
        assert arguments(body, tools) == {"text": "a b", "yes": True}

    def test_elements_for_names_and_values(self) -> None:
        body = (
            "<function>save\n<parameter>\n<name>path</name>\n<value>out.txt</value>\n</parameter>\n"
            "<parameter>\n<name>data</name>\n<value>{}</value>\n</parameter>\n</function>"
        )
        assert read_zaya_calls(body, OFFERED) == [{"name": "save", "arguments": {"path": "out.txt", "data": {}}}]

    def test_several_calls_in_one_block_and_json(self) -> None:
        assert [call["name"] for call in read_zaya_calls("<function=now></function><function=now>\n</function>")] == [
            "now"
        ] * 2
        assert read_zaya_calls('{"name": "now", "arguments": {}}') == [{"name": "now", "arguments": {}}]
        assert arguments("<function=weather><parameter=city>Paris") == {"city": "Paris"}
        with pytest.raises(ValueError, match="no function"):
            read_zaya_calls("text")


def test_equal_calls_have_one_canonical_form() -> None:
    tools = Tools(OFFERED, GENERIC)
    other = '{"arguments": {"days": 2.0, "city": "Paris"}, "name": "weather"}'
    now = '<tool_call>{"name": "now"}</tool_call>'
    forms = {
        tools.canonical(f"{text}<tool_call>{call}</tool_call>{now}", finished=True)
        for text, call in (("", ONE), ("Hm. ", other))
    }
    forms.add(tools.canonical(f"{now}<tool_call>{ONE}</tool_call>", finished=True))
    assert forms == {'now({}); weather({"city": "Paris", "days": 2})'}
    assert tools.canonical("no call", finished=True) == ""


def test_marks_that_are_tokens_are_shown_and_others_decoded() -> None:
    shown = show_marks(lambda ids: "".join(map(chr, ids)), {"[TOOL_CALLS]": 1, "[ARGS]": 2})
    assert shown([97, 1, 98, 2, 1]) == "a[TOOL_CALLS]b[ARGS][TOOL_CALLS]"
    assert (shown([]), shown([97])) == ("", "a")


def test_form_of_a_template() -> None:
    ids = {"<zyphra_tool_call>": 101, "</zyphra_tool_call>": 102}
    assert find_form("{% if tools %}<zyphra_tool_call>", ids.get) == ToolForm("zaya_xml", ZAYA.begin, ZAYA.end, ids)
    assert find_form("{{ messages }}", ids.get, ("pythonic", "<a>", "</a>")) is None
    form = find_form("{{ tools }}", {"[ARGS]": 7}.get, ("mistral", "[TOOL_CALLS]", ""))
    assert form is not None
    assert ToolForm.from_dict(form.to_dict()) == form == MISTRAL.of_vocabulary({"[ARGS]": 7}.get)


def test_ids_of_calls_are_short_and_distinct() -> None:
    ids = {call_id(f"run{run}|r0-00", index) for run in range(50) for index in range(50)}
    assert len(ids) == 2_500
    assert all(len(each) == 9 and each.isalnum() for each in ids)


@pytest.mark.parametrize("calls", ["", "{}", "[]", "[1]", '[{"function": {"name": "f"}}]', "["])
def test_invalid_record_of_calls_is_refused(calls: str) -> None:
    with pytest.raises(ValueError, match=r"calls|JSON|Expecting"):
        recorded_message({"role": "assistant", "content": "", "tool_calls": calls})

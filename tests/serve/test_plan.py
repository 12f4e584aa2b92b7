"""From a request's body to the settings of its run: aliases, defaults, limits and refusals of single keys."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ConfigError
from markovian_rsa_mlx.method.prompts import check_chat
from markovian_rsa_mlx.serve.errors import RequestError, to_request_error
from markovian_rsa_mlx.serve.plan import Plan, RemainingTokens, Target, build_plan, to_messages
from markovian_rsa_mlx.serve.request import ALIASES, RSA_KEYS, ChatRequest, parse, unknown_keys

CHAT = [{"role": "user", "content": "?"}]
TABLE = RSAConfig.apex_xhigh()


def plan(base: RSAConfig = TABLE, **keys: Any) -> Plan:
    return plan_for(Target("m", base), **keys)


def plan_for(target: Target, **keys: Any) -> Plan:
    return build_plan(parse({"messages": CHAT, **keys}, ChatRequest), target, lambda chat, thinking: RemainingTokens())


def config(base: RSAConfig = TABLE, **keys: Any) -> RSAConfig:
    return plan(base, **keys).config


def refusal(**keys: Any) -> RequestError:
    with pytest.raises((RequestError, ConfigError)) as caught:
        plan(**keys)
    error = caught.value
    return to_request_error(error) if isinstance(error, ConfigError) else error


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def test_keys_default_to_the_table_of_the_proxy() -> None:
    made = config(rsa_debug=False)
    assert (made.rounds, made.population, made.aggregation_size) == (8, 32, 4)
    assert (made.thinking_tokens, made.tail_tokens, made.final_count) == (32768, 4096, 1)
    assert (made.final_temperature, made.final_top_p, made.final_top_k) == (0.6, 0.95, 40)
    assert (made.carry, made.concurrency) == ("tail", "auto")


def test_every_key_changes_its_setting() -> None:
    made = config(
        rsa_t=3, rsa_n=6, rsa_k=3, short_resp_len=900, tail_window_len=90, rsa_final_n=2, max_tokens=800,
        final_temperature=0.1, final_top_p=0.2, final_top_k=3, temperature=0.4, top_p=0.5, top_k=6, min_p=0.7,
        rsa_max_concurrency=9, rsa_seed=11, rsa_selection="majority",
    )  # fmt: skip
    expected = TABLE.replace(
        rounds=3, population=6, aggregation_size=3, thinking_tokens=900, tail_tokens=90, final_candidates=2,
        final_tokens=800, final_temperature=0.1, final_top_p=0.2, final_top_k=3, temperature=0.4, top_p=0.5, top_k=6,
        min_p=0.7, concurrency=9, seed=11, answer_selection="majority",
    )  # fmt: skip
    assert made == expected


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_sets_its_key(alias: str) -> None:
    name = ALIASES[alias]
    request = parse(
        {"messages": CHAT, alias: "a text"} if name == "summary_prompt" else {"messages": CHAT, alias: 1}, ChatRequest
    )
    assert getattr(request, name) == ("a text" if name == "summary_prompt" else 1)
    with pytest.raises(RequestError) as caught:
        parse({"messages": CHAT, alias: 1, name: 0}, ChatRequest)
    assert caught.value.param == name
    request = parse({"messages": CHAT, alias: None, name: "x" if name == "summary_prompt" else 1}, ChatRequest)
    assert getattr(request, name) is not None


@pytest.mark.parametrize("key", sorted(RSA_KEYS))
def test_rsa_key_starts_a_run(key: str) -> None:
    values: dict[str, Any] = {"rsa_profile": "embedded", "rsa_selection": "single", "rsa_t": 1, "rsa_summarize": True}
    values["rsa_early_stop"] = "agreement"
    extra = {"rsa_summarize": True} if key == "summary_prompt" else {}
    value = "Sum it up." if key == "summary_prompt" else values.get(key, 1)
    assert plan(**{key: value, **extra}).rsa


@pytest.mark.parametrize("key", sorted(RSA_KEYS))
def test_null_is_an_absent_key(key: str) -> None:
    assert not plan(**{key: None}).rsa


def test_n_alone_is_the_population_without_rsa_n() -> None:
    assert not plan(n=3).rsa
    assert config(n=3).population == 3
    assert config(n=3, rsa_t=2).population == 3
    assert config(n=3, rsa_n=5, rsa_t=2).population == 5


def test_rsa_n_by_round() -> None:
    made = config(rsa_t=2, rsa_n=[8, 4.0, 2], rsa_k=9, rsa_final_n=0)
    assert (made.population, made.aggregation_size, made.final_count) == ((8, 4, 2), 4, 2)
    assert config(rsa_t=2, rsa_n=[8, 4, 2], rsa_k=3, rsa_final_n=7).final_candidates == 2
    assert config(rsa_t=1, rsa_n=[5, 5]).population == 5
    by_round = RSAConfig.paper_16k().replace(population=(16, 8, 4), final_candidates=0)
    assert config(by_round, rsa_k=2).population == (16, 8, 4)
    assert config(by_round, rsa_n=4).population == 4
    assert refusal(base=by_round, rsa_t=3).param == "rsa_n"


def test_effort_scales_a_population_by_round() -> None:
    target = Target("m", RSAConfig.paper_16k().replace(population=(16, 8, 4), final_candidates=0), rsa=True)
    assert plan_for(target, reasoning_effort="xhigh").config.population == (32, 16, 8)
    half = plan_for(target, reasoning_effort="medium").config
    assert (half.rounds, half.population, half.aggregation_size) == (1, (8, 4), 4)
    assert plan_for(target, n=4).config.final_count == 4
    with pytest.raises(RequestError, match="n must be at most the population, 4"):
        plan_for(target, n=5)


def test_rsa_k_and_rsa_final_n_are_at_most_rsa_n() -> None:
    made = config(rsa_n=2, rsa_k=9, rsa_final_n=7)
    assert (made.aggregation_size, made.final_count) == (2, 2)
    assert config(rsa_n=3).aggregation_size == 3
    assert config(rsa_n=8, rsa_k=100).aggregation_size == 8
    assert config(rsa_n=3, rsa_final_n=0).final_count == 3


@pytest.mark.parametrize(
    ("word", "value"), [("1", True), ("yes", True), ("On", True), (1, True), ("0", False), ("OFF", False)]
)
def test_switch_accepts_words(word: Any, value: bool) -> None:
    assert parse({"messages": CHAT, "use_pacore": word}, ChatRequest).use_pacore is value


def test_tail_window_off_carries_whole_traces() -> None:
    assert config(rsa_tail_window=False).tail_tokens == "full"
    assert config(TABLE.replace(tail_tokens="full"), rsa_tail_window=True).tail_tokens == TABLE.thinking_tokens


def test_tail_above_beta_is_refused_unless_it_is_the_profiles() -> None:
    made = plan(short_resp_len=100)
    assert made.config.tail_tokens == "full"
    assert "4096" in made.warnings[0]
    assert refusal(short_resp_len=100, tail_window_len=200).code == "invalid_setting"


def test_null_for_the_final_round_keeps_the_other_rounds_sampling() -> None:
    made = config(rsa_t=8, final_temperature=None, final_top_p=None, temperature=0.3)
    assert (made.final_temperature, made.final_top_p, made.final_top_k) == (None, None, 40)
    assert made.sampling(final=True).temperature == 0.3


def test_rsa_summarize_carries_summaries() -> None:
    assert config(rsa_summarize=True).carry == "summary"
    assert config(rsa_summarize=True, rsa_tail_window=False).carry == "summary"
    assert config(rsa_summarize="yes", summary_prompt="Short!").summary_prompt == "Short!"
    assert refusal(rsa_summarize=True, rsa_tail_window=True).param == "rsa_summarize"
    assert refusal(rsa_summarize=True, use_pacore=True).param == "use_pacore"
    assert refusal(summary_prompt="x").param == "summary_prompt"


def test_use_pacore_carries_answers() -> None:
    assert config(use_pacore=True).carry == "answer"
    pacore = TABLE.replace(carry="answer")
    assert config(pacore, rsa_t=1).carry == "answer"
    assert config(pacore, rsa_t=1, use_pacore=False).carry == "tail"


def test_rsa_profile_replaces_the_servers_profile() -> None:
    assert config(rsa_profile="paper-16k") == PROFILES["paper-16k"].replace(memory_limit_gb=None, answer_kind="auto")
    assert refusal(rsa_profile="x").code == "invalid_setting"


def test_request_cannot_lift_the_memory_limit() -> None:
    assert config(TABLE.replace(memory_limit_gb=3.0), rsa_t=1).memory_limit_gb is None


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def content(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


#: Messages by letters: of the user (u), the system (s, d), an answer (a), a call (c) and its result (r).
LETTERS = {
    "u": {"role": "user"}, "s": {"role": "system"}, "d": {"role": "developer"}, "a": {"role": "assistant"},
    "c": {"role": "assistant", "tool_calls": [CALL]}, "r": {"role": "tool", "tool_call_id": "1"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("u0 s1", "s1 u0"),
        ("u0 d1 s2", "s12 u0"),
        ("s0 u1 s2", "s02 u1"),
        ("u0 a1 u2 d3", "u0 a1 s3 u2"),
        ("u0 c1 r2 s3", "s3 u0 c1 r2"),
        ("u0 c1 r2 a3 c4 r5", "u0 c1 r2 a3 c4 r5"),
        ("u0 c1 r2 s3 c4 r5", "u0 c1 r2 s3 c4 r5"),
        ("u0 c1 a2 r3", "u0 c1 a2 r3"),
        ("s0", "u0"),
        ("s0 d1", "s0 u1"),
        ("s0 c1 r2", "u0 c1 r2"),
        ("u0 a1 s2", "u0 a1 u2"),
    ],
)
def test_question_and_what_follows_it_in_any_order(given: str, expected: str) -> None:
    messages = [LETTERS[word[0]] | {"content": word[1:]} for word in given.split()]
    chat = plan(messages=messages).chat
    check_chat(chat)
    letters = {"user": "u", "system": "s", "tool": "r"}
    shown = [
        letters.get(message["role"], "c" if message.get("tool_calls") else "a") + message["content"].replace("\n\n", "")
        for message in chat.messages
    ]
    assert " ".join(shown) == expected


@pytest.mark.parametrize(
    ("keys", "code", "param"),
    [
        ({"rsa_t": -1}, "invalid_value", "rsa_t"),
        ({"rsa_t": 10**30}, "invalid_value", "rsa_t"),
        ({"rsa_t": "3"}, "invalid_value", "rsa_t"),
        ({"rsa_t": 1.5}, "invalid_value", "rsa_t"),
        ({"rsa_t": True}, "invalid_value", "rsa_t"),
        ({"rsa_n": 0}, "invalid_value", "rsa_n"),
        ({"rsa_n": 1024, "rsa_t": 100}, "invalid_value", "rsa_n"),
        ({"rsa_n": "4"}, "invalid_value", "rsa_n"),
        ({"rsa_n": True}, "invalid_value", "rsa_n"),
        ({"rsa_n": []}, "invalid_value", "rsa_n"),
        ({"rsa_n": [4, 2], "rsa_t": 2}, "invalid_value", "rsa_n"),
        ({"rsa_n": [4, 5, 2], "rsa_t": 2}, "invalid_value", "rsa_n"),
        ({"rsa_n": [4, "2"], "rsa_t": 1}, "invalid_value", "rsa_n"),
        ({"rsa_n": [1024] * 5, "rsa_t": 4}, "invalid_value", "rsa_n"),
        ({"rsa_n": [1025, 1], "rsa_t": 1}, "invalid_value", "rsa_n"),
        ({"rsa_k": 0}, "invalid_value", "rsa_k"),
        ({"rsa_n": 100, "rsa_k": 65}, "invalid_value", "rsa_k"),
        ({"temperature": 11}, "invalid_value", "temperature"),
        ({"top_p": -0.1}, "invalid_value", "top_p"),
        ({"response_format": {"type": "json_object", "schema": "x"}}, "invalid_value", "response_format.schema"),
        ({"structured_outputs": {"regex": "a"}}, "missing_key", "structured_outputs.json"),
        (
            {
                "structured_outputs": {"json": {"type": "null"}},
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}},
            },
            "invalid_value",
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json": {"type": "array"}}, "response_format": {"type": "json_object"}},
            "invalid_value",
            "structured_outputs.json",
        ),
        ({"structured_outputs": {"json": {"enum": ["x" * 70_000]}}}, "invalid_schema", "structured_outputs.json"),
        (
            {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {"type": "null"}}}},
            "invalid_value",
            "response_format.schema",
        ),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_completion_tokens"),
        ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
        ({"rsa_seed": 0.5}, "invalid_value", "rsa_seed"),
        ({"rsa_profile": "x"}, "invalid_setting", "rsa_profile"),
        ({"short_resp_len": 900, "tail_window_len": 901}, "invalid_setting", "tail_window_len"),
        ({"rsa_debug": "maybe"}, "invalid_value", "rsa_debug"),
        ({"rsa_selection": "best"}, "invalid_value", "rsa_selection"),
        ({"rsa_t": 1, "rsa_selection": "best", "answer_kind": "open"}, "invalid_value", "rsa_selection"),
        ({"rsa_t": 1, "answer_kind": "essay"}, "invalid_value", "answer_kind"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_key", "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages.0.role"),
        (content({"type": "image_url", "image_url": {}}), "unsupported_content", "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "invalid_value", "messages"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x"}]}, "invalid_prompt", "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "unsupported_tools", "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
            "invalid_value",
            "messages.0.tool_calls",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": 1}}]}]},
            "invalid_value",
            "messages.0.tool_calls.0.function.name",
        ),
        ({"tools": [TOOL, TOOL]}, "invalid_value", "tools"),
        ({"tools": [TOOL | {"type": "web_search"}]}, "invalid_value", "tools.0.type"),
        (
            {"tools": [{"type": "function", "function": {"name": "two words"}}]},
            "invalid_value",
            "tools.0.function.name",
        ),
        ({"tools": [TOOL] * 513}, "invalid_value", "tools"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "invalid_value", "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "invalid_value", "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "invalid_value",
            "tool_choice",
        ),
        ({"logprobs": True, "rsa_t": 1}, "unsupported_key", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "missing_key", "tools.0.function"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "missing_key", "response_format.json_schema.schema"),
        (json_schema({"enum": ["x" * 70_000]}), "invalid_schema", "response_format"),
        ({"logit_bias": {"1": 2}}, "unsupported_key", "logit_bias"),
        ({"presence_penalty": 0.5}, "unsupported_key", "presence_penalty"),
        ({"seed": -2}, "invalid_value", "seed"),
        ({"max_tokens": -2}, "invalid_value", "max_tokens"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"stop": 7}, "invalid_value", "stop"),
        ({"reasoning_effort": "most"}, "invalid_value", "reasoning_effort"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "invalid_value", "reasoning.effort"),
        ({"messages": [{"role": "user", "content": "x", "name": 1}]}, "invalid_value", "messages.0.name"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ],
)
def test_invalid_key_is_refused_by_name(keys: dict[str, Any], code: str, param: str) -> None:
    error = refusal(**keys)
    assert (error.status, error.code, error.param) == (400, code, param)
    assert param.split(".")[0] in error.message
    assert error.message.endswith(".")
    assert "\n" not in error.message


def test_invalid_value_is_quoted_with_its_limit() -> None:
    assert "101" in refusal(rsa_t=101).message
    assert "100" in refusal(rsa_t=101).message
    assert "4,096" in refusal(rsa_n=1024, rsa_t=100).message


def test_keys_without_effect_are_accepted() -> None:
    plan(
        stop=None, tools=[], tool_choice="none", logprobs=False, response_format={"type": "text"}, user="me",
        frequency_penalty=0, parallel_tool_calls=True, metadata={"a": "b"}, modalities=["text"], store=True,
        rsa_n=8.0,
    )  # fmt: skip


@pytest.mark.parametrize("key", ["top_p", "final_top_p"])
def test_top_p_of_zero_keeps_the_likeliest_token(key: str) -> None:
    """OpenAI's range of it begins at 0."""
    assert 0 < getattr(config(**{key: 0}, rsa_t=1), key) <= 1e-6


def test_schemas_that_differ_are_both_named() -> None:
    format_ = {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}
    message = refusal(structured_outputs={"json": TEAM}, response_format=format_).message
    assert message == "response_format and structured_outputs.json give different schemas. Give one of them."


TEAM = {"type": "object", "properties": {"team": {"type": "string"}}, "required": ["team"]}


@pytest.mark.parametrize(
    ("keys", "schema"),
    [
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"response_format": {"type": "json_object", "schema": {}}}, {"type": "object"}),
        ({"response_format": {"type": "json_object", "schema": TEAM}}, TEAM),
        ({"response_format": {"type": "json_object", "json_schema": {"schema": TEAM}}}, TEAM),
        ({"response_format": {"type": "json_schema", "schema": TEAM}}, TEAM),
        ({"response_format": {"type": "json_schema", "schema": TEAM, "json_schema": {"schema": TEAM}}}, TEAM),
        ({"response_format": {"type": "text", "schema": TEAM}}, None),
        ({"structured_outputs": {"json": TEAM}}, TEAM),
        ({"structured_outputs": {"json": TEAM}, "response_format": {"type": "text"}}, TEAM),
        ({"structured_outputs": {"json": TEAM}, "response_format": {"type": "json_object"}}, TEAM),
        ({"structured_outputs": {"json": TEAM}, "response_format": {"type": "json_schema", "schema": TEAM}}, TEAM),
    ],
)
def test_schema_is_read_in_the_forms_of_other_servers(keys: dict[str, Any], schema: dict[str, Any] | None) -> None:
    assert config(**keys).response_schema == schema
    assert list(unknown_keys(parse({"messages": CHAT, **keys}, ChatRequest))) == []


def test_minus_one_keeps_all_tokens() -> None:
    made = config(rsa_t=1, top_k=-1, rsa_final_top_k=-1)
    assert (made.top_k, made.final_top_k) == (0, 0)


@pytest.mark.parametrize(
    ("message", "text", "call"),
    [
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No.", None),
        ({"content": None, "refusal": "No."}, "No.", None),
        ({"content": None}, "", None),
        ({"tool_calls": [CALL | {"id": None, "type": None}]}, "", CALL | {"id": ""}),
        ({"tool_calls": [CALL | {"function": {"name": "f", "arguments": None}}]}, "", CALL),
        ({"tool_calls": [CALL | {"function": {"name": "f", "arguments": "null"}}]}, "", CALL),
    ],
)
def test_nulls_and_refusals_of_the_assistant(message: dict[str, Any], text: str, call: dict[str, Any] | None) -> None:
    answer = plan(messages=[*CHAT, {"role": "assistant"} | message, *CHAT]).chat.messages[1]
    assert answer["content"] == text
    expected = call and [call | {"function": {"name": "f", "arguments": {}}}]
    assert answer.get("tool_calls") == expected


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        ({"name": "f", "arguments": '{"value": '}, {"name": "f", "arguments": {"arguments": '{"value": '}}),
        ({"name": "f", "arguments": "[1]"}, {"name": "f", "arguments": {"arguments": "[1]"}}),
        ({"name": "f", "arguments": "5"}, {"name": "f", "arguments": {"arguments": "5"}}),
        ({"name": "f", "arguments": '{"a": NaN}'}, {"name": "f", "arguments": {"arguments": '{"a": NaN}'}}),
        ({"name": "f", "arguments": [1]}, {"name": "f", "arguments": {"arguments": "[1]"}}),
        ({"name": "f", "arguments": "[" * 99}, {"name": "f", "arguments": {"arguments": "[" * 99}}),
        ({"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}),
        ({"name": "", "arguments": "{}"}, {"name": "", "arguments": {}}),
        ({"name": "two words", "arguments": "{}"}, {"name": "two words", "arguments": {}}),
    ],
)
def test_broken_call_of_an_earlier_answer_is_shown_as_it_is(function: dict[str, Any], shown: dict[str, Any]) -> None:
    call = {"role": "assistant", "tool_calls": [CALL | {"function": function}]}
    chat = plan(messages=[*CHAT, call, {"role": "tool", "tool_call_id": "1", "content": "no"}, *CHAT]).chat
    check_chat(chat)
    assert chat.messages[1]["tool_calls"][0]["function"] == shown


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "redacted_thinking", "summary_text"])
@pytest.mark.parametrize("text", ["text", "output_text", "input_text"])
def test_thinking_of_an_earlier_answer_is_left_out(kind: str, text: str) -> None:
    thought = {"type": kind, "thinking": [{"type": "text", "text": "t"}], "text": "t", "signature": "s"}
    answer = {"role": "assistant", "content": [thought, {"type": text, "text": "a"}, thought]}
    request = parse({"messages": [*CHAT, answer, *CHAT]}, ChatRequest)
    assert to_messages(request.messages)[1]["content"] == "a"
    assert list(unknown_keys(request)) == []
    assert refusal(messages=[{"role": "user", "content": [thought]}]).code == "unsupported_content"


def test_result_without_content_is_empty() -> None:
    result = {"role": "tool", "tool_call_id": "1", "content": None}
    messages = [*CHAT, {"role": "assistant", "tool_calls": [CALL]}, result]
    assert plan(messages=messages).chat.messages[-1]["content"] == ""


@pytest.mark.parametrize(("mode", "choice"), [("auto", "auto"), ("required", "required")])
def test_allowed_tools_are_offered_alone(mode: str, choice: str) -> None:
    other = {"type": "function", "function": {"name": "g"}}
    selection = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [other]}}
    chat = plan(tools=[TOOL, other], tool_choice=selection).chat
    assert ([tool["function"]["name"] for tool in chat.tools], chat.tool_choice) == (["g"], choice)


def test_request_switches_thinking_off() -> None:
    assert config(chat_template_kwargs={"enable_thinking": False}).enable_thinking is False
    assert config(reasoning_effort="none", rsa_t=1).enable_thinking is False
    assert config().enable_thinking is True


BASE = RSAConfig.apex_xhigh().replace(final_candidates=4)


@pytest.mark.parametrize(
    ("effort", "rounds", "population"), [("medium", 1, 16), ("high", 8, 32), (None, 8, 32), ("xhigh", 8, 64)]
)
def test_effort_scales_the_run_of_a_name(effort: str | None, rounds: int, population: int) -> None:
    for keys in ({"reasoning_effort": effort}, {"reasoning": {"effort": effort}}):
        made = plan_for(Target("m-rsa", BASE, rsa=True), **keys)
        assert made.rsa
        assert (made.config.rounds, made.config.population) == (rounds, population)
        assert made.config.enable_thinking
        assert made.config.replace(rounds=8, population=32, memory_limit_gb=None) == BASE


@pytest.mark.parametrize(("effort", "thinking"), [("none", False), ("minimal", False), ("low", True)])
def test_little_effort_is_an_ordinary_completion(effort: str, thinking: bool) -> None:
    made = plan_for(Target("m-rsa", BASE, rsa=True), reasoning_effort=effort, n=3)
    assert not made.rsa
    assert (made.config.rounds, made.config.population, made.config.enable_thinking) == (0, 3, thinking)


def test_effort_only_switches_thinking_without_such_a_name() -> None:
    assert not plan(reasoning_effort="xhigh").rsa
    assert config(reasoning_effort="medium", rsa_t=2).population == TABLE.population


def test_keys_override_the_run_of_a_name() -> None:
    target = Target("m-rsa", BASE, rsa=True)
    assert plan_for(target, rsa_n=6, reasoning_effort="medium").config.population == 6
    assert not plan_for(target, rsa_t=0).rsa
    assert plan_for(target, rsa_profile="paper-16k").config.population == 16
    small = plan_for(Target("m-rsa", RSAConfig(population=2), rsa=True), reasoning_effort="medium").config
    assert (small.population, small.aggregation_size) == (1, 1)


def test_n_is_the_number_of_choices_of_the_run_of_a_name() -> None:
    target = Target("m-rsa", TABLE, rsa=True)
    assert (plan_for(target).config.final_count, plan_for(target).max_choices) == (1, 1)
    made = plan_for(target, n=3)
    assert (made.config.population, made.config.final_count, made.max_choices) == (32, 3, 3)
    with pytest.raises(RequestError) as caught:
        plan_for(target, n=33)
    assert caught.value.param == "n"


def test_aliases_and_rsa_keys_are_keys_of_the_body() -> None:
    assert set(ALIASES.values()) <= set(ChatRequest.model_fields)
    assert set(ChatRequest.model_fields) >= RSA_KEYS


def test_the_kind_of_answers_can_be_chosen() -> None:
    assert config(rsa_t=1, answer_kind="open").answer_kind == "open"
    with pytest.raises(RequestError) as caught:
        config(rsa_t=1, answer_kind="open", rsa_selection="majority")
    assert caught.value.status == 400

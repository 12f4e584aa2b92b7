"""From a request's body to the settings of its run: aliases, defaults, limits and refusals of single keys."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ConfigError
from markovian_rsa_mlx.serve.errors import RequestError, to_request_error
from markovian_rsa_mlx.serve.plan import Plan, RemainingTokens, build_plan
from markovian_rsa_mlx.serve.request import ALIASES, RSA_KEYS, ChatRequest, parse

CHAT = [{"role": "user", "content": "?"}]
TABLE = RSAConfig.apex_xhigh()


def plan(base: RSAConfig = TABLE, **keys: Any) -> Plan:
    return build_plan(parse({"messages": CHAT, **keys}), base, lambda chat, thinking: RemainingTokens())


def config(base: RSAConfig = TABLE, **keys: Any) -> RSAConfig:
    return plan(base, **keys).config


def refusal(**keys: Any) -> RequestError:
    with pytest.raises((RequestError, ConfigError)) as caught:
        plan(**keys)
    error = caught.value
    return to_request_error(error) if isinstance(error, ConfigError) else error


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
    request = parse({"messages": CHAT, alias: "a text"} if name == "summary_prompt" else {"messages": CHAT, alias: 1})
    assert getattr(request, name) == ("a text" if name == "summary_prompt" else 1)
    with pytest.raises(RequestError) as caught:
        parse({"messages": CHAT, alias: 1, name: 0})
    assert caught.value.param == name
    request = parse({"messages": CHAT, alias: None, name: "x" if name == "summary_prompt" else 1})
    assert getattr(request, name) is not None


@pytest.mark.parametrize("key", sorted(RSA_KEYS))
def test_rsa_key_starts_a_run(key: str) -> None:
    values: dict[str, Any] = {"rsa_profile": "embedded", "rsa_selection": "single", "rsa_t": 1, "rsa_summarize": True}
    extra = {"rsa_summarize": True} if key == "summary_prompt" else {}
    value = "Sum it up." if key == "summary_prompt" else values.get(key, 1)
    assert plan(**{key: value, **extra}).rsa


def test_n_alone_is_the_population_without_rsa_n() -> None:
    assert not plan(n=3).rsa
    assert config(n=3).population == 3
    assert config(n=3, rsa_t=2).population == 3
    assert config(n=3, rsa_n=5, rsa_t=2).population == 5


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
    assert parse({"messages": CHAT, "use_pacore": word}).use_pacore is value


def test_tail_window_off_carries_whole_traces() -> None:
    assert config(rsa_tail_window=False).tail_tokens == "full"
    assert config(TABLE.replace(tail_tokens="full"), rsa_tail_window=True).tail_tokens == TABLE.thinking_tokens


def test_tail_above_beta_is_refused_unless_it_is_the_profiles() -> None:
    made = plan(short_resp_len=100)
    assert made.config.tail_tokens == "full"
    assert "4096" in made.warnings[0]
    assert refusal(short_resp_len=100, tail_window_len=200).code == "invalid_setting"


def test_null_for_the_final_round_keeps_the_other_rounds_sampling() -> None:
    made = config(final_temperature=None, final_top_p=None, temperature=0.3)
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
    assert config(rsa_profile="paper-16k") == PROFILES["paper-16k"].replace(memory_limit_gb=None)
    assert refusal(rsa_profile="x").code == "invalid_setting"


def test_request_cannot_lift_the_memory_limit() -> None:
    assert config(TABLE.replace(memory_limit_gb=3.0), rsa_t=1).memory_limit_gb is None


def content(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


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
        ({"rsa_k": 0}, "invalid_value", "rsa_k"),
        ({"rsa_n": 100, "rsa_k": 65}, "invalid_value", "rsa_k"),
        ({"temperature": 11}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_completion_tokens"),
        ({"seed": -1}, "invalid_value", "seed"),
        ({"rsa_debug": "maybe"}, "invalid_value", "rsa_debug"),
        ({"rsa_selection": "best"}, "invalid_value", "rsa_selection"),
        ({"rsa_temperature": 1}, "unknown_key", "rsa_temperature"),
        ({"nonsense": 1}, "unknown_key", "nonsense"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_key", "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages.0.role"),
        (content({"type": "image_url", "image_url": {}}), "unsupported_content", "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "unsupported_tools", "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "unsupported_key", "messages.0.name"),
        ({"stop": ["x"]}, "unsupported_key", "stop"),
        ({"logprobs": True}, "unsupported_key", "logprobs"),
        ({"tools": [{"type": "function"}]}, "unsupported_key", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_key", "response_format"),
        ({"logit_bias": {"1": 2}}, "unsupported_key", "logit_bias"),
        ({"presence_penalty": 0.5}, "unsupported_key", "presence_penalty"),
        ({"reasoning_effort": "high"}, "unsupported_key", "reasoning_effort"),
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
    assert "temperature" in refusal(rsa_temperature=1).message


def test_keys_without_effect_are_accepted() -> None:
    plan(
        stop=None, tools=[], tool_choice="none", logprobs=False, response_format={"type": "text"}, user="me",
        frequency_penalty=0, parallel_tool_calls=True, metadata={"a": "b"}, modalities=["text"], store=False,
        rsa_n=8.0,
    )  # fmt: skip


def test_request_switches_thinking_off() -> None:
    assert config(chat_template_kwargs={"enable_thinking": False}).enable_thinking is False
    assert config(reasoning_effort="none", rsa_t=1).enable_thinking is False
    assert config().enable_thinking is True


def test_aliases_and_rsa_keys_are_keys_of_the_body() -> None:
    assert set(ALIASES.values()) <= set(ChatRequest.model_fields)
    assert set(ChatRequest.model_fields) >= RSA_KEYS

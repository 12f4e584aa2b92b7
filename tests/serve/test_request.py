"""Zyphra's keys, one by one: aliases, defaults, clamps, refusals. Pure: from a body to a run's settings."""

from __future__ import annotations

from typing import Any

import pytest

from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ConfigError
from markovian_rsa_mlx.serve.errors import RequestError
from markovian_rsa_mlx.serve.plan import Plan, RemainingTokens, build_plan
from markovian_rsa_mlx.serve.request import ALIASES, RSA_KEYS, ChatRequest, parse

CHAT = [{"role": "user", "content": "?"}]
TABLE = RSAConfig.apex_xhigh()


def plan(base: RSAConfig = TABLE, **keys: Any) -> Plan:
    return build_plan(parse({"messages": CHAT, **keys}), base, lambda chat, thinking: RemainingTokens())


def config(base: RSAConfig = TABLE, **keys: Any) -> RSAConfig:
    return plan(base, **keys).config


def refused(**keys: Any) -> str:
    with pytest.raises((RequestError, ConfigError)) as caught:
        plan(**keys)
    assert getattr(caught.value, "status", 400) == 400
    return str(caught.value)


def test_the_table_holds_without_a_profile() -> None:
    made = config(rsa_debug=False)
    assert (made.rounds, made.population, made.aggregation_size) == (8, 32, 4)
    assert (made.thinking_tokens, made.tail_tokens, made.final_count) == (32768, 4096, 1)
    assert (made.final_temperature, made.final_top_p, made.final_top_k) == (0.6, 0.95, 40)
    assert (made.carry, made.concurrency) == ("tail", "auto")


def test_every_key_means_its_setting() -> None:
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
def test_aliases(alias: str) -> None:
    name = ALIASES[alias]
    asked = parse({"messages": CHAT, alias: "a text"} if name == "summary_prompt" else {"messages": CHAT, alias: 1})
    assert getattr(asked, name) == ("a text" if name == "summary_prompt" else 1)
    with pytest.raises(RequestError, match="two names of one setting"):
        parse({"messages": CHAT, alias: 1, name: 0})
    assert parse({"messages": CHAT, alias: None, name: "x" if name == "summary_prompt" else 1}).given(name)


@pytest.mark.parametrize("key", sorted(RSA_KEYS))
def test_each_of_the_keys_starts_rsa(key: str) -> None:
    values: dict[str, Any] = {"rsa_profile": "embedded", "rsa_selection": "single", "rsa_t": 1, "rsa_summarize": True}
    extra = {"rsa_summarize": True} if key == "summary_prompt" else {}
    value = "Sum it up." if key == "summary_prompt" else values.get(key, 1)
    assert plan(**{key: value, **extra}).rsa


def test_n_alone_does_not_start_rsa_but_stands_in_for_rsa_n() -> None:
    assert not plan(n=3).rsa
    assert config(n=3).population == 3
    assert config(n=3, rsa_t=2).population == 3
    assert config(n=3, rsa_n=5, rsa_t=2).population == 5


def test_k_is_clamped_to_n_and_f_to_n() -> None:
    made = config(rsa_n=2, rsa_k=9, rsa_final_n=7)
    assert (made.aggregation_size, made.final_count) == (2, 2)
    assert config(rsa_n=3).aggregation_size == 3
    assert config(rsa_n=8, rsa_k=100).aggregation_size == 8
    assert config(rsa_n=3, rsa_final_n=0).final_count == 3


@pytest.mark.parametrize(
    ("said", "meant"), [("1", True), ("yes", True), ("On", True), (1, True), ("0", False), ("OFF", False)]
)
def test_switches_may_be_words(said: Any, meant: bool) -> None:
    assert parse({"messages": CHAT, "use_pacore": said}).use_pacore is meant


def test_the_window_off_is_full_chain() -> None:
    assert config(rsa_tail_window=False).tail_tokens == "full"
    assert config(TABLE.replace(tail_tokens="full"), rsa_tail_window=True).tail_tokens == TABLE.thinking_tokens


def test_a_profiles_tail_gives_way_to_a_small_beta_and_a_given_one_does_not() -> None:
    made = plan(short_resp_len=100)
    assert made.config.tail_tokens == "full"
    assert "4096" in made.warnings[0]
    assert "tail_tokens is 200" in refused(short_resp_len=100, tail_window_len=200)


def test_a_null_of_the_final_round_means_as_before() -> None:
    made = config(final_temperature=None, final_top_p=None, temperature=0.3)
    assert (made.final_temperature, made.final_top_p, made.final_top_k) == (None, None, 40)
    assert made.sampling(final=True).temperature == 0.3


def test_summaries() -> None:
    assert config(rsa_summarize=True).carry == "summary"
    assert config(rsa_summarize=True, rsa_tail_window=False).carry == "summary"
    assert config(rsa_summarize="yes", summary_prompt="Short!").summary_prompt == "Short!"
    assert "exclude each other" in refused(rsa_summarize=True, rsa_tail_window=True)
    assert "exclude each other" in refused(rsa_summarize=True, use_pacore=True)
    assert "needs rsa_summarize" in refused(summary_prompt="x")


def test_pacore() -> None:
    assert config(use_pacore=True).carry == "answer"
    pacore = TABLE.replace(carry="answer")
    assert config(pacore, rsa_t=1).carry == "answer"
    assert config(pacore, rsa_t=1, use_pacore=False).carry == "tail"


def test_profiles_by_name() -> None:
    assert config(rsa_profile="paper-16k") == PROFILES["paper-16k"].replace(memory_limit_gb=None)
    assert "no profile 'x'" in refused(rsa_profile="x")


def test_no_request_lifts_the_servers_memory_limit() -> None:
    assert config(TABLE.replace(memory_limit_gb=3.0), rsa_t=1).memory_limit_gb is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rsa_t": -1}, "rsa_t is -1"),
        ({"rsa_t": 10**30}, "rsa_t is"),
        ({"rsa_t": "3"}, "rsa_t is '3'"),
        ({"rsa_t": 1.5}, "rsa_t is 1.5"),
        ({"rsa_t": True}, "rsa_t is True"),
        ({"rsa_n": 0}, "rsa_n is 0"),
        ({"rsa_n": 1024, "rsa_t": 100}, "at most 4,096 traces"),
        ({"rsa_k": 0}, "rsa_k is 0"),
        ({"rsa_n": 100, "rsa_k": 65}, "rsa_k is 65; allowed: at most 64"),
        ({"temperature": 11}, "temperature is 11"),
        ({"top_p": 0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "two names of one setting"),
        ({"seed": -1}, "seed is -1"),
        ({"rsa_debug": "maybe"}, "rsa_debug is 'maybe': give true or false"),
        ({"rsa_selection": "best"}, "rsa_selection is 'best'"),
        ({"rsa_temperature": 1}, "did you mean"),
        ({"nonsense": 1}, "nonsense is no key of this server"),
        ({"messages": []}, "messages is"),
        ({"messages": "hi"}, "messages is 'hi'"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "text parts only"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "no tools"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "would not reach the model"),
        ({"stop": ["x"]}, "stop is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"logit_bias": {"1": 2}}, "logit_bias is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort is not supported"),
        ({"stream_options": {"include_usage": True}}, "needs stream"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(keys: dict[str, Any], said: str) -> None:
    message = refused(**keys)
    assert said in message
    assert message.endswith(".")
    assert "\n" not in message


def test_what_changes_nothing_is_taken() -> None:
    plan(
        stop=None, tools=[], tool_choice="none", logprobs=False, response_format={"type": "text"}, user="me",
        frequency_penalty=0, parallel_tool_calls=True, metadata={"a": "b"}, modalities=["text"], store=False,
        rsa_n=8.0,
    )  # fmt: skip


def test_thinking_can_be_switched_off() -> None:
    assert config(chat_template_kwargs={"enable_thinking": False}).enable_thinking is False
    assert config(reasoning_effort="none", rsa_t=1).enable_thinking is False
    assert config().enable_thinking is True


def test_every_alias_names_a_key() -> None:
    assert set(ALIASES.values()) <= set(ChatRequest.model_fields)
    assert set(ChatRequest.model_fields) >= RSA_KEYS

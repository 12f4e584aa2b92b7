"""The context that a run needs: parts that sum to the total, and settings that fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ContextLengthError
from markovian_rsa_mlx.method.context import (
    PromptLengths,
    context_error,
    fitting_settings,
    longest_sequence,
)

SELECTIONS = st.sampled_from(["single", "final_aggregation", "tournament"])


@st.composite
def runs(draw: st.DrawFn) -> tuple[RSAConfig, PromptLengths]:
    """Settings, and the lengths of their prompts."""
    thinking, size, rounds = draw(st.integers(1, 50_000)), draw(st.integers(1, 8)), draw(st.integers(0, 3))
    config = RSAConfig(
        rounds=rounds,
        population=8,
        aggregation_size=size,
        thinking_tokens=thinking,
        tail_tokens=draw(st.just("full") | st.integers(1, thinking)),
        final_tokens=draw(st.integers(1, 50_000)),
        carry=draw(st.sampled_from(["tail", "summary"])),
        answer_selection=draw(SELECTIONS),
    )
    lengths = PromptLengths.without_template(config, draw(st.integers(1, 5_000)))
    return config, lengths.longer(draw(st.integers(0, 400)), draw(st.none() | st.just(lengths.question)))


@given(runs())
def test_parts_sum_to_the_total(run: tuple[RSAConfig, PromptLengths]) -> None:
    longest, total = longest_sequence(*run), 0
    for part in longest.parts.replace(",", "").replace("up to ", "").split("  "):
        for times, number in re.findall(r"(?:(\d+) \w+ of )?(\d+)", part):
            total += int(times or 1) * int(number)
    assert total == longest.tokens


@given(runs(), st.integers(100, 100_000))
def test_proposed_settings_fit_and_only_lower_limits(run: tuple[RSAConfig, PromptLengths], context: int) -> None:
    config, lengths = run
    settings = fitting_settings(config, lengths, context)
    assert all(value < getattr(config, name) for name, value in settings.items() if name != "tail_tokens")
    if settings:
        assert longest_sequence(config.replace(**settings), lengths).tokens <= context
    else:  # it fits as it is, or nothing does
        most = longest_sequence(config, lengths).tokens
        tiny = {"thinking_tokens": 1, "tail_tokens": 1, "final_tokens": 1}
        assert most <= context or context < 16 * 20 + longest_sequence(config.replace(**tiny), lengths).tokens


def test_longest_sequence_without_rounds_has_no_tails() -> None:
    for config, tokens in ((RSAConfig(rounds=0), 1_000 + 16_000), (RSAConfig(), 1_000 + 2 * 4_000 + 16_000)):
        assert longest_sequence(config, PromptLengths.without_template(config, 1_000)).tokens == tokens


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"embedded"}))
def test_a_profile_is_proposed_with_tails_of_a_quarter(name: str) -> None:
    config = PROFILES[name]
    settings = fitting_settings(config, PromptLengths.without_template(config, 1_000), 8_192)
    assert set(settings) == {"thinking_tokens", "tail_tokens", "final_tokens"}
    assert settings["tail_tokens"] <= settings["thinking_tokens"] // 4
    assert settings["thinking_tokens"] == settings["final_tokens"] > 1_000


def test_limits_that_are_low_enough_stay() -> None:
    config = RSAConfig(thinking_tokens=300, tail_tokens=75)
    assert set(fitting_settings(config, PromptLengths(179, (170, 179)), 8_192)) == {"final_tokens"}


def test_the_error_has_the_facts_and_the_settings() -> None:
    lengths = PromptLengths(43, (170, 179))
    assert context_error(RSAConfig(), lengths, None) is None
    assert context_error(RSAConfig(), lengths, 24_179) is None
    error = context_error(RSAConfig(), lengths, 24_178)
    assert isinstance(error, ContextLengthError)
    assert "24,179" in error.facts
    assert "prompt text 179, 2 tails of 4,000, generation 16,000" in error.facts
    assert set(error.settings) == {"thinking_tokens", "tail_tokens", "final_tokens"}
    assert all(name in str(error) for name in error.settings)


def test_a_prompt_that_takes_the_context_is_to_be_shortened() -> None:
    error = context_error(RSAConfig(), PromptLengths(8_000, (8_100, 8_190)), 8_192)
    assert error is not None
    assert error.settings == {}
    assert "Shorten the prompt" in str(error)

"""From a request to a run: its chat, its settings and what the answer must hold.

Pure. An ordinary completion is a run too: parallel sampling (T = 0) of `n` traces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import FULL, RSAConfig
from ..errors import ContextLengthError
from ..method.codec import ChatMessage
from .chat import chat_of
from .errors import RequestError
from .keys import RSA_KEYS
from .refusals import refuse_what_would_be_lost
from .request import ChatRequest
from .room import Room

#: Most traces that one request may ask for, needed or not: their lineage is drawn at once.
MOST_TRACES = 4_096
#: Most tails in a prompt: the frames of prompts with fewer are all made at once, their number grows as its square.
MOST_PARENTS = 64
#: An ordinary completion without a budget may be this long at the least, whatever a profile gives its final round.
LEAST_BUDGET = 512


@dataclass(frozen=True)
class Plan:
    """What to run. `rsa` False: an ordinary completion. `warnings` are told in the metadata."""

    chat: list[ChatMessage]
    config: RSAConfig
    rsa: bool
    keep_trail: bool
    asked: ChatRequest
    warnings: list[str]

    @property
    def live(self) -> dict[str, int]:
        """Traces that are choices for certain while they are generated: their ids, and the choice's index."""
        if self.rsa and (self.config.final_count > 1 or self.config.answer_selection == "final_aggregation"):
            return {}
        return {f"r{self.config.rounds}-{index:02d}": index for index in range(self.config.final_count)}


def plan_of(asked: ChatRequest, base: RSAConfig, room: Callable[[list[ChatMessage], bool], Room]) -> Plan:
    """The run that a request asks for; `base` is the server's profile.

    `room(chat, thinking)` bounds a completion that names no budget, and a prompt that the context does not hold goes no
    further, whatever it would be put into. Raises `RequestError` and `ConfigError`.
    """
    refuse_what_would_be_lost(asked)
    chat = chat_of(asked.messages)
    base = RSAConfig.profile(asked.rsa_profile) if asked.rsa_profile is not None else base
    # The engine's bounds are the server's, and no request can lift them.
    base = base.replace(memory_limit_gb=None, enable_thinking=_thinking(asked, base.enable_thinking))
    rsa = bool(RSA_KEYS & asked.model_fields_set) and (asked.rsa_t != 0 or asked.given("rsa_selection"))
    left = room(chat, base.enable_thinking)
    if left.context is not None and left.context < 1:
        raise RequestError(
            400,
            f"The prompt is {1 - left.context:,} tokens too long for the model's context; send less.",
            ContextLengthError.kind,
            "messages",
        )
    config, warnings = _rsa(asked, base) if rsa else (_ordinary(asked, base, left), [])
    keep = asked.rsa_trail if asked.rsa_trail is not None else rsa
    return Plan(chat, config, rsa, keep, asked, warnings)


def _ordinary(asked: ChatRequest, base: RSAConfig, room: Room) -> RSAConfig:
    budget = asked.max_tokens or room.bound(max(base.final_tokens, LEAST_BUDGET))
    return base.replace(
        rounds=0,
        population=asked.n or 1,
        final_candidates=None,
        final_tokens=budget,
        final_temperature=None,
        final_top_p=None,
        final_top_k=None,
        final_min_p=None,
        carry="tail",
        answer_selection="single",
        answer_kind="text",
        seed=base.seed if asked.seed is None else asked.seed,
        **_sampling(asked),
    )


def _rsa(asked: ChatRequest, base: RSAConfig) -> tuple[RSAConfig, list[str]]:
    rounds = base.rounds if asked.rsa_t is None else asked.rsa_t
    population = asked.rsa_n or asked.n or base.population
    if (rounds + 1) * population > MOST_TRACES:
        raise RequestError(
            400,
            f"(rsa_t + 1) * rsa_n is {(rounds + 1) * population:,}; allowed: at most {MOST_TRACES:,} traces.",
            param="rsa_n",
        )
    finals = base.final_candidates if asked.rsa_final_n is None else asked.rsa_final_n
    beta = asked.short_resp_len or base.thinking_tokens
    tau, warnings = _tail(asked, base, beta)
    config = base.replace(
        rounds=rounds,
        population=population,
        aggregation_size=_parents(asked, base, population),
        thinking_tokens=beta,
        tail_tokens=tau,
        final_tokens=asked.max_tokens or base.final_tokens,
        final_candidates=None if finals is None else min(finals, population),
        carry=_carry(asked, base),
        summary_prompt=asked.summary_prompt or base.summary_prompt,
        answer_selection=asked.rsa_selection or base.answer_selection,
        concurrency=asked.rsa_max_concurrency or "auto",
        seed=base.seed if asked.seed is None else asked.seed,
        **_sampling(asked),
        **{key: getattr(asked, key) for key in _FINAL_SAMPLING if key in asked.model_fields_set},
    )
    return config, [*warnings, *config.warnings(published_model=False)]


def _parents(asked: ChatRequest, base: RSAConfig, population: int) -> int:
    parents = min(asked.rsa_k or base.aggregation_size, population)
    if asked.rsa_k is not None and parents > MOST_PARENTS:
        raise RequestError(400, f"rsa_k is {parents}; allowed: at most {MOST_PARENTS} tails a prompt.", param="rsa_k")
    return parents


_FINAL_SAMPLING = ("final_temperature", "final_top_p", "final_top_k")


def _tail(asked: ChatRequest, base: RSAConfig, beta: int) -> tuple[Any, list[str]]:
    """tau; the profile's is lowered to a smaller beta, a given one that exceeds beta is refused."""
    if asked.rsa_tail_window is False:
        return FULL, []
    if asked.tail_window_len is not None:
        return asked.tail_window_len, []
    tau = base.tail_tokens
    if asked.rsa_tail_window and tau == FULL:
        return base.tail_limit, []
    if isinstance(tau, int) and tau > beta:
        return FULL, [
            f"short_resp_len {beta} is below the profile's tail_window_len {tau}: whole traces are carried on."
        ]
    return tau, []


def _carry(asked: ChatRequest, base: RSAConfig) -> str:
    if asked.rsa_summarize and asked.rsa_tail_window:
        raise RequestError(
            400, "rsa_summarize and rsa_tail_window exclude each other; give one of them.", param="rsa_summarize"
        )
    if asked.rsa_summarize and asked.use_pacore:
        raise RequestError(400, "rsa_summarize and use_pacore exclude each other; give one.", param="use_pacore")
    carries = {"summary": asked.rsa_summarize, "answer": asked.use_pacore}
    if asked.summary_prompt is not None and not (asked.rsa_summarize or base.carry == "summary"):
        raise RequestError(400, "summary_prompt needs rsa_summarize: true.", param="summary_prompt")
    chosen = next((carry for carry, wanted in carries.items() if wanted), None)
    if chosen is not None:
        return chosen
    # The profile's carry stays unless it was switched off, or the tail was asked for by name.
    return "tail" if asked.rsa_tail_window or carries.get(base.carry) is False else base.carry


def _sampling(asked: ChatRequest) -> dict[str, Any]:
    keys = ("temperature", "top_p", "top_k", "min_p")
    return {key: getattr(asked, key) for key in keys if asked.given(key)}


def _thinking(asked: ChatRequest, default: bool) -> bool:
    wanted = asked.chat_template_kwargs.enable_thinking if asked.chat_template_kwargs is not None else None
    if asked.reasoning_effort == "none":
        if wanted:
            raise RequestError(400, 'reasoning_effort "none" and enable_thinking true contradict each other.')
        return False
    return default if wanted is None else wanted

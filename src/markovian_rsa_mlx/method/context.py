"""The context that a run needs: its longest sequence by parts, and settings that make it fit into a model's context.

Lengths are in tokens. Nothing here tokenizes: `PromptLengths` has the lengths of a run's static texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..config import FULL, RSAConfig
from ..errors import ContextLengthError

#: Limits below this are not proposed: the prompt takes the context, and other settings do not help.
_LEAST_TOKENS = 16
#: A proposed `tail_tokens` is at most this part of `thinking_tokens`, as in the profile default-16gb.
_TAIL_PART = 4


@dataclass(frozen=True)
class PromptLengths:
    """The lengths of a run's prompts without tails: question and template, or the template's words alone.

    `aggregation` has one length per number of tails, from 1 on. `judge` and `summary` are 0 without such prompts.
    `question` is the length that was assumed for an unknown question (None: the prompts are those of a known one).
    """

    first: int
    aggregation: Sequence[int] = ()
    judge: int = 0
    summary: int = 0
    question: int | None = None

    @classmethod
    def without_template(cls, config: RSAConfig, question: int) -> PromptLengths:
        """Return the lengths for an unknown question where the words of the template are not known either."""
        return cls(
            question,
            (question,) * config.parents_per_trace,
            question if config.answer_selection == "tournament" else 0,
            question if config.carry == "summary" else 0,
            question,
        )

    def longer(self, tokens: int, question: int | None = None) -> PromptLengths:
        """Return the lengths for a question that is longer by `tokens` (or shorter)."""
        return PromptLengths(
            self.first + tokens,
            tuple(each + tokens for each in self.aggregation),
            self.judge and self.judge + tokens,
            self.summary and self.summary + tokens,
            question,
        )


class LongestSequence(NamedTuple):
    """The longest sequence that a run can need: a prompt text with `texts` texts of traces in it, and the generation.

    Each of the texts has up to `shown` tokens, and `name` says what they are. `question` is as in `PromptLengths`.
    """

    prompt: int
    texts: int
    shown: int
    name: str
    generation: int
    question: int | None = None

    @property
    def tokens(self) -> int:
        return self.prompt + self.texts * self.shown + self.generation

    @property
    def parts(self) -> str:
        """The parts in words. Their sum is `tokens`."""
        words = [f"prompt text {self.prompt:,}"]
        if self.question is not None:
            words = [f"question up to {self.question:,}"]
            words += [f"template {self.prompt - self.question:,}"] if self.prompt > self.question else []
        if self.texts:
            words.append(f"{self.texts} {self.name}{'s' if self.texts > 1 else ''} of {self.shown:,}")
        return ", ".join([*words, f"generation {self.generation:,}"])


def longest_sequence(config: RSAConfig, lengths: PromptLengths) -> LongestSequence:
    """Return the longest sequence that a run can need, prompt and generation."""
    from .tournament import longest_shown  # help texts need this module, and not the rules of answers

    limits = [config.max_tokens(t) for t in range(config.rounds + 1)]
    final, question = config.final_tokens, lengths.question
    found = [LongestSequence(lengths.first, 0, 0, "", limits[0], question)]
    for texts, prompt in enumerate(lengths.aggregation, start=1):
        found.append(
            LongestSequence(prompt, texts, config.tail_limit, "tail", max(limits[1:], default=final), question)
        )
    if lengths.judge:
        shown = longest_shown(config.tail_limit, final) // 2
        found.append(LongestSequence(lengths.judge, 2, shown, "attempt", final, question))
    if lengths.summary and config.rounds:
        found.append(LongestSequence(lengths.summary, 1, config.thinking_tokens, "trace", config.tail_limit, question))
    return max(found, key=lambda each: each.tokens)


def fitting_settings(config: RSAConfig, lengths: PromptLengths, context: int) -> dict[str, int]:
    """Return lower token limits with which the run fits into `context`, by setting; {} if no limits help.

    One bound holds for thinking and final tokens, and a quarter of it for tails. Limits that are lower stay.
    """

    def need(bound: int) -> int:
        bounded: RSAConfig = config.replace(**_bounded(config, bound))
        return longest_sequence(bounded, lengths).tokens

    low, high = 0, max(config.thinking_tokens, config.final_tokens)
    while low < high:  # the largest bound that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if need(middle) <= context else (low, middle - 1)
    return _bounded(config, _rounded(low)) if low >= _LEAST_TOKENS else {}


def _bounded(config: RSAConfig, bound: int) -> dict[str, int]:
    """Return the limits of the settings that exceed those of this bound."""
    limits = {}
    if config.rounds or config.answer_selection == "tournament":
        limits["thinking_tokens"] = bound
        if config.tail_tokens != FULL:
            limits["tail_tokens"] = max(1, _rounded(bound // _TAIL_PART))
    limits["final_tokens"] = bound
    return {name: limit for name, limit in limits.items() if getattr(config, name) > limit}


def _rounded(tokens: int) -> int:
    """Return a number of two digits and zeros that is not larger."""
    unit: int = 10 ** max(0, len(str(tokens)) - 2)
    return tokens // unit * unit


def context_error(
    config: RSAConfig, lengths: PromptLengths, context: int | None, subject: str = "The run"
) -> ContextLengthError | None:
    """Return the error of a run that can need more context than the model has, or None if it fits."""
    longest = longest_sequence(config, lengths)
    if context is None or longest.tokens <= context:
        return None
    facts = f"{subject} can need {longest.tokens:,} tokens of context ({longest.parts}), and the model has {context:,}."
    settings = fitting_settings(config, lengths, context)
    return ContextLengthError(f"{facts} {_remedy(settings)}.", facts=facts, settings=settings)


def _remedy(settings: Mapping[str, int]) -> str:
    """Return the remedy as a sentence without its full stop."""
    if not settings:
        return "Shorten the prompt, lower aggregation_size, or use a model with a longer context"
    *rest, last = [f"{name} to {value:,}" for name, value in settings.items()]
    return f"Lower {' and '.join([', '.join(rest), last] if rest else [last])}"

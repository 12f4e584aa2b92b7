"""Predict speeds and times on a Mac from its memory bandwidth, without loading the model.

The batched figures rest on two assumptions, since no batched decoding of ZAYA on a Mac has been published: a batch
reaches the share of the bandwidth that one trace reaches, and prompts are read `READING_FACTOR` times as fast as one
trace decodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..backends.policy import Capacity
from ..config import RSAConfig
from .costs import BandwidthCosts, WeightReads
from .lengths import Lengths
from .predict import predict
from .published import CHIPS, READING_FACTOR, SpeedReport, expected_shares, reports_on
from .workload import PromptShape

ASSUMPTION = (
    "batches are assumed to reach the share of the memory bandwidth that one trace does, and prompts to be read "
    f"{READING_FACTOR:.0f} times as fast as one trace decodes"
)
#: Simulated runs for the time of a problem.
_RUNS = 6
#: Numbers of traces at once whose speeds are predicted.
_ROWS = (1, 4, 16)
#: Tokens of the words around the tails in an aggregation prompt, and between two of them.
_TEMPLATE, _BETWEEN = 200, 10


@dataclass(frozen=True)
class Estimate:
    """A bound, and the expected range where speeds of the model were published (`low` and `high`, or None)."""

    bound: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Prospect:
    """A model on a chip (a key of `CHIPS`). `shares` of the bound were published for it, or None."""

    chip: str
    reads: WeightReads
    kv_bytes_per_token: int
    quantized: bool
    shares: tuple[float, float] | None

    @classmethod
    def of_model(cls, chip: str, model: Any) -> Prospect:
        """Describe a model, loaded or lazy. Evaluates nothing."""
        from ..backends.mlx.memory import footprint_of, weight_reads

        chosen = getattr(getattr(model, "args", None), "num_experts_per_tok", None) or 1
        quantized = any(hasattr(module, "bits") for _, module in model.named_modules())
        published = getattr(model, "model_type", None) == "zaya"
        return cls(
            chip,
            WeightReads(*weight_reads(model, chosen)),
            footprint_of(model).kv_bytes_per_token,
            quantized,
            expected_shares(quantized=quantized) if published else None,
        )

    def speed(self, rows: int) -> Estimate:
        """Return the tokens per second of `rows` rows with short contexts, together."""
        slow, fast = CHIPS[self.chip]
        bound = 1e9 * fast * rows / self.reads.step_bytes(rows)
        if self.shares is None:
            return Estimate(bound, None, None)
        return Estimate(bound, bound * self.shares[0] * slow / fast, bound * self.shares[1])

    def seconds_per_problem(
        self, config: RSAConfig, prompt_tokens: int, lengths: Lengths, capacity: Capacity
    ) -> Estimate:
        """Return the mean time of simulated runs of one problem. The bound is a lower one here.

        Raises `MemoryLimitError` if a trace does not fit.
        """
        slow, fast = CHIPS[self.chip]
        costs = BandwidthCosts(1e9 * fast, self.reads, self.kv_bytes_per_token, READING_FACTOR)
        shape = rough_shape(prompt_tokens, config.aggregation_size)
        bound = predict("", config, shape=shape, lengths=lengths, costs=costs, capacity=capacity, runs=_RUNS).seconds
        if self.shares is None:
            return Estimate(bound, None, None)
        return Estimate(bound, bound / self.shares[1], bound / self.shares[0] * fast / slow)

    @property
    def sentences(self) -> list[str]:
        """The speeds in words: bounds and ranges, then the published speeds on this chip."""
        texts = []
        for rows in (1, 16):
            each = self.speed(rows)
            likely = f"expect {each.low:,.0f} to {each.high:,.0f}, " if each.low and each.high else ""
            texts.append(f"{likely}at most {each.bound:,.0f}")
        found = [f"tokens/s on an {self.chip}: one trace {texts[0]}; 16 together {texts[1]}"]
        if reports := self._reports():
            speeds = "; ".join(f"{each.tokens_s:g} ({each.weights})" for each in reports)
            found.append(f"published for one trace of ZAYA1-8B on this chip: {speeds}")
        return found

    @property
    def assumption(self) -> str:
        """The assumptions that the figures of several traces rest on."""
        return ASSUMPTION

    def to_dict(self) -> dict[str, Any]:
        """Return all figures with the published speeds, their sources and the assumption."""
        return {
            "chip": self.chip,
            "gb_per_second": list(CHIPS[self.chip]),
            "tokens_per_second": {str(rows): vars(self.speed(rows)) for rows in _ROWS},
            "published": [vars(report) for report in self._reports()],
            "sentences": self.sentences,
            "assumption": self.assumption,
        }

    def _reports(self) -> list[SpeedReport]:
        return reports_on(self.chip, quantized=self.quantized) if self.shares else []


def rough_shape(prompt_tokens: int, aggregation_size: int) -> PromptShape:
    """Return the prompts of a run whose template is not known, for a first prompt of `prompt_tokens`."""
    segments = tuple((prompt_tokens, *[_BETWEEN] * (tails - 1), _TEMPLATE) for tails in range(1, aggregation_size + 1))
    return PromptShape(
        prompt_tokens, prompt_tokens, segments, (prompt_tokens, _TEMPLATE), (prompt_tokens, _BETWEEN, _TEMPLATE)
    )

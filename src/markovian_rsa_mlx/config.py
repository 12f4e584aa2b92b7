"""The settings of a run: `RSAConfig`, its allowed values, and named profiles.

Comments give the symbols of the paper: N, C, T, beta, tau, F.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from .errors import ConfigError

#: `tail_tokens` as a user writes it for full-chain RSA: the tail is the whole trace (tau = beta).
FULL: Final = "full"
_MAX_TOKENS = 10_000_000


@dataclass(frozen=True)
class Sampling:
    """The sampling of the next token. `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


class EngineLimits(NamedTuple):
    """Limits of an engine; None leaves the choice to the engine."""

    max_rows: int | None
    memory_limit_bytes: int | None


@dataclass(frozen=True)
class RSAConfig:
    """The settings of a run, checked when made. Defaults are the profile `default-16gb`.

    Raise `ConfigError` with the field, the value and the allowed values.
    """

    rounds: int = 2  #: T, aggregation rounds; 0 is plain parallel sampling
    population: int = 2  #: N, traces per round
    aggregation_size: int = 2  #: C, tails in one aggregation prompt
    thinking_tokens: int = 16_000  #: beta, decode budget of a trace before the final round, in tokens
    tail_tokens: int | Literal["full"] = 4_000  #: tau, tokens carried forward; "full" means beta
    final_tokens: int = 16_000  #: decode budget of a final-round trace, in tokens
    final_candidates: int | None = None  #: F; 0 means N; unset: 1 if T >= 1, N if T = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    final_temperature: float | None = None  #: the same for the final round; unset: as before
    final_top_p: float | None = None
    final_top_k: int | None = None
    final_min_p: float | None = None
    seed: int | None = None  #: unset: drawn when the run starts, and recorded
    carry: Literal["tail", "answer", "summary"] = "tail"
    template: str = "zaya_v1"  #: aggregation template: a built-in name or the path of a Jinja2 file
    summary_prompt: str | None = None  #: instruction for summaries, in place of the built-in one
    enable_thinking: bool = True  #: handed to the model's chat template
    answer_selection: Literal["single", "majority", "final_aggregation"] = "single"
    answer_kind: Literal["math", "text"] = "math"  #: equal values are equal answers, or plain text decides (puzzles)
    concurrency: int | Literal["auto"] = "auto"  #: maximum number of traces in a batch
    memory_limit_gb: float | None = None  #: for weights and caches, in 1e9 bytes; unset: the device's working set
    max_retries: int = 2  #: further attempts at a trace that failed
    token_budget: int | None = None  #: stop after this many generated tokens
    time_budget_s: float | None = None  #: stop after this many seconds

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.accepts(value):
                raise ConfigError(f"{name} must be {rule.allowed} (got {value!r}).")
        if self.rounds >= 1 and self.aggregation_size > self.population:
            raise ConfigError(
                f"aggregation_size must be at most the population, {self.population} (got {self.aggregation_size})."
            )
        if self.final_candidates is not None and self.final_candidates > self.population:
            raise ConfigError(
                f"final_candidates must be at most the population, {self.population} (got {self.final_candidates})."
            )
        if self.rounds >= 1 and self.tail_tokens != FULL and self.tail_tokens > self.thinking_tokens:
            raise ConfigError(
                f"tail_tokens must be at most thinking_tokens, {self.thinking_tokens} (got {self.tail_tokens}). "
                f'Write "{FULL}" for full-chain RSA.'
            )

    @property
    def tail_limit(self) -> int:
        """tau in tokens, with `full` resolved to beta."""
        return self.thinking_tokens if self.tail_tokens == FULL else int(self.tail_tokens)

    @property
    def final_count(self) -> int:
        """F resolved: the number of traces of round T."""
        if self.final_candidates is None:
            return self.population if self.rounds == 0 else 1
        return self.final_candidates or self.population

    @property
    def parents_per_trace(self) -> int:
        """Tails that a trace of round t >= 1 reads."""
        return self.aggregation_size if self.rounds else 0

    def sampling(self, final: bool) -> Sampling:
        """The sampling of the final round, or of the rounds before it."""
        early = Sampling(self.temperature, self.top_p, self.top_k, self.min_p)
        if not final:
            return early
        return Sampling(
            early.temperature if self.final_temperature is None else self.final_temperature,
            early.top_p if self.final_top_p is None else self.final_top_p,
            early.top_k if self.final_top_k is None else self.final_top_k,
            early.min_p if self.final_min_p is None else self.final_min_p,
        )

    def max_tokens(self, round_index: int) -> int:
        """Return the decode budget of a trace of this round (or of the final aggregation, round T + 1), in tokens."""
        return self.final_tokens if round_index >= self.rounds else self.thinking_tokens

    budget = max_tokens  #: the former name

    def engine_limits(self) -> EngineLimits:
        """Return `concurrency` and `memory_limit_gb` as an engine takes them."""
        return EngineLimits(
            max_rows=None if self.concurrency == "auto" else int(self.concurrency),
            memory_limit_bytes=None if self.memory_limit_gb is None else int(self.memory_limit_gb * 1e9),
        )

    def replace(self, **changes: Any) -> RSAConfig:
        """Return a copy with other values. Raise `ConfigError` for an unknown name."""
        for name in changes:
            if name not in FIELD_NAMES:
                close = difflib.get_close_matches(name, FIELD_NAMES, n=1)
                hint = f"Did you mean {close[0]}?" if close else f"Settings are {', '.join(FIELD_NAMES)}."
                raise ConfigError(f"{name!r} is not a setting. {hint}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name, for JSON."""
        return dataclasses.asdict(self)

    def warnings(self, *, published_model: bool = True) -> list[str]:
        """Return warnings about these settings, a sentence each.

        Without `published_model`, leave out those that apply only to models like the published one (the token limits of
        the embedded reasoner are a thousandth of theirs).
        """
        found = []
        if self.rounds and self.thinking_tokens <= 8_000 and published_model:
            found.append(
                f"thinking_tokens is {self.thinking_tokens}: in the published runs 8,000 did worse than one long "
                "trace (86.5 against 88.3 on AIME'25); 16,000 is recommended where memory and time allow."
            )
        if self.rounds and self.tail_tokens != FULL and self.tail_limit == self.thinking_tokens:
            found.append(
                f"tail_tokens equals thinking_tokens ({self.tail_limit}): this is full-chain RSA and its prompts "
                f'are long; write tail_tokens = "{FULL}" if it is meant.'
            )
        if self.population > 1 and self.temperature == 0:
            found.append(f"temperature is 0 with a population of {self.population}: all traces of a round are clones.")
        if self.answer_selection == "majority" and self.final_count == 1:
            found.append("answer_selection is majority over one final candidate: there is nothing to vote on.")
        return found

    @classmethod
    def profile(cls, name: str) -> RSAConfig:
        """Return the profile of this name (see `PROFILES`)."""
        try:
            return PROFILES[name]
        except KeyError:
            raise ConfigError(f"{name!r} is not a profile. Profiles are {', '.join(PROFILES)}.") from None

    @classmethod
    def from_toml(cls, path: Path | str, base: RSAConfig | None = None) -> RSAConfig:
        """Read settings of a TOML file. Others are those of `base`, or of the profile that its key `profile` names."""
        return cls.from_mapping(read_toml(path), base)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], base: RSAConfig | None = None) -> RSAConfig:
        """Take settings by name. Others are those of `base`, or of the profile that the key `profile` names."""
        rest = dict(values)
        name = rest.pop("profile", None)
        start = cls.profile(str(name)) if name is not None else base or cls()
        return start.replace(**rest)

    @classmethod
    def default_16gb(cls) -> RSAConfig:
        """`default-16gb`: a 16 GB Mac; ZAYA1-8B fits there in 4 bits."""
        return cls.profile("default-16gb")

    @classmethod
    def paper_headline_40k(cls) -> RSAConfig:
        """`paper-headline-40k`: the paper's headline, about 740K decode tokens per problem."""
        return cls.profile("paper-headline-40k")

    @classmethod
    def paper_16k(cls) -> RSAConfig:
        """`paper-16k`: the paper's recommended deployment, about 440K decode tokens per problem."""
        return cls.profile("paper-16k")

    @classmethod
    def paper_light_8k(cls) -> RSAConfig:
        """`paper-light-8k`: the paper's lightweight setting."""
        return cls.profile("paper-light-8k")

    @classmethod
    def apex_xhigh(cls) -> RSAConfig:
        """`apex-xhigh`: the defaults of Zyphra's proxy, about 5.5M decode tokens per problem."""
        return cls.profile("apex-xhigh")

    @classmethod
    def embedded(cls) -> RSAConfig:
        """`embedded`: the embedded reasoner on its puzzles."""
        return cls.profile("embedded")


def read_toml(path: Path | str) -> dict[str, Any]:
    """Return the keys of a settings file, unchecked. Raise `ConfigError` if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The settings file {str(path)!r} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {str(path)!r} is not valid TOML: {error}.") from error


def allowed_values(name: str) -> str:
    """Return the allowed values of the setting `name`, in words."""
    return _RULES[name].allowed


@dataclass(frozen=True)
class _Rule:
    allowed: str
    accepts: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int, high: int) -> _Rule:
    return _Rule(f"a whole number from {low} to {high}", lambda v: _is_int(v) and low <= v <= high)


def _real(low: float, high: float, above: bool = False) -> _Rule:
    text = f"a number {'above' if above else 'from'} {low:g} {'and up' if above else ''} to {high:g}"
    return _Rule(
        " ".join(text.split()),
        lambda v: (_is_int(v) or isinstance(v, float)) and (low < v if above else low <= v) and v <= high,
    )


def _optional(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.allowed}, or unset", lambda v: v is None or rule.accepts(v))


def _one_of(*values: str) -> _Rule:
    return _Rule(" | ".join(values), lambda v: isinstance(v, str) and v in values)


def _or_word(rule: _Rule, word: str) -> _Rule:
    return _Rule(f'{rule.allowed}, or "{word}"', lambda v: v == word or rule.accepts(v))


_SAMPLING = {
    "temperature": _real(0, 10),
    "top_p": _real(0, 1, above=True),
    "top_k": _whole(0, 1_000_000),
    "min_p": _real(0, 1),
}
_RULES: dict[str, _Rule] = {
    "rounds": _whole(0, 1_000),
    "population": _whole(1, 10_000),
    "aggregation_size": _whole(1, 10_000),
    "thinking_tokens": _whole(1, _MAX_TOKENS),
    "tail_tokens": _or_word(_whole(1, _MAX_TOKENS), FULL),
    "final_tokens": _whole(1, _MAX_TOKENS),
    "final_candidates": _optional(_whole(0, 10_000)),
    **_SAMPLING,
    **{f"final_{name}": _optional(rule) for name, rule in _SAMPLING.items()},
    "seed": _optional(_whole(0, 2**63 - 1)),
    "carry": _one_of("tail", "answer", "summary"),
    "template": _Rule("zaya_v1 or the path of a Jinja2 file", lambda v: isinstance(v, str) and bool(v.strip())),
    "summary_prompt": _optional(_Rule("non-empty text", lambda v: isinstance(v, str) and bool(v.strip()))),
    "enable_thinking": _Rule("true or false", lambda v: isinstance(v, bool)),
    "answer_selection": _one_of("single", "majority", "final_aggregation"),
    "answer_kind": _one_of("math", "text"),
    "concurrency": _or_word(_whole(1, 10_000), "auto"),
    "memory_limit_gb": _optional(_real(0, 100_000, above=True)),
    "max_retries": _whole(0, 100),
    "token_budget": _optional(_whole(1, 10**12)),
    "time_budget_s": _optional(_real(0, 10**9, above=True)),
}
FIELD_NAMES: Final = tuple(field.name for field in dataclasses.fields(RSAConfig))

_PAPER = RSAConfig(
    rounds=2, population=16, aggregation_size=4, thinking_tokens=40_000, tail_tokens=4_000, final_tokens=40_000
)
#: Profiles by name. The embedded reasoner's figures were measured with it (see its card).
PROFILES: Final[dict[str, RSAConfig]] = {
    "default-16gb": RSAConfig(),
    "paper-light-8k": _PAPER.replace(population=8, thinking_tokens=8_000),
    "paper-16k": _PAPER.replace(thinking_tokens=16_000),
    "paper-headline-40k": _PAPER,
    "apex-xhigh": RSAConfig(
        rounds=8,
        population=32,
        aggregation_size=4,
        thinking_tokens=32_768,
        tail_tokens=4_096,
        final_tokens=61_440,
        final_temperature=0.6,
        final_top_p=0.95,
        final_top_k=40,
    ),
    "embedded": RSAConfig(
        rounds=2,
        population=8,
        aggregation_size=4,
        thinking_tokens=52,
        tail_tokens=32,
        final_tokens=52,
        temperature=0.8,
        answer_kind="text",
    ),
}


#: Settings that change how a run is carried out but not what it computes.
FREE_SETTINGS = frozenset({"concurrency", "memory_limit_gb", "max_retries", "token_budget", "time_budget_s"})

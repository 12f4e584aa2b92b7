"""The settings of a run: `RSAConfig`, its allowed values, and named profiles.

Comments give the symbols of the paper: N, C, T, beta, tau, F.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from .errors import ConfigError, SchemaError
from .text_files import read_text

#: `tail_tokens` as a user writes it for full-chain RSA: the tail is the whole trace (tau = beta).
FULL: Final = "full"
_MAX_TOKENS = 10_000_000
#: `thinking_tokens` of the paper's recommended deployment.
_RECOMMENDED_THINKING: Final = 16_000
#: Limits of a JSON Schema, in characters of JSON and in levels.
MAX_SCHEMA_LENGTH: Final = 64_000
MAX_SCHEMA_DEPTH: Final = 50


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
    population: int | tuple[int, ...] = 2  #: N, traces per round; or T + 1 numbers, one per round, not increasing
    aggregation_size: int = 2  #: C, tails in one aggregation prompt
    thinking_tokens: int = 16_000  #: beta, decode budget of a trace before the final round, in tokens
    tail_tokens: int | Literal["full"] = 4_000  #: tau, tokens carried forward; "full" means beta
    final_tokens: int = 16_000  #: decode budget of a final-round trace, in tokens
    #: of these, kept for the answer: thinking that is still open then is closed; 0: never; unset: see `answer_reserve`
    answer_tokens: int | None = field(default=None, kw_only=True)
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
    answer_selection: Literal["single", "majority", "final_aggregation", "tournament"] = "single"
    #: equal values are equal answers; or plain text decides (puzzles); or nothing is compared; auto: math or open
    answer_kind: Literal["math", "text", "open", "auto"] = "math"
    concurrency: int | Literal["auto"] = "auto"  #: maximum number of traces in a batch
    memory_limit_gb: float | None = None  #: for weights and caches, in 1e9 bytes; unset: what the device provides
    max_retries: int = 2  #: further attempts at a trace that failed
    token_budget: int | None = None  #: stop after this many generated tokens
    time_budget_s: float | None = None  #: stop after this many seconds
    thinking_marks: tuple[str, str] | None = None  #: begin and end of the thinking; unset: by template and vocabulary
    tail_order: Literal["drawn", "shared"] = "drawn"  #: of tails in a prompt; shared: many prompts begin alike
    kv_bits: int | None = None  #: bits of a number in the KV cache: 8; unset: as the engine was made
    #: JSON Schema of the answer: final candidates are bound to it after their thinking; unset: any text
    response_schema: dict[str, Any] | None = field(default=None, kw_only=True, hash=False)
    #: what is not generated, since it can hardly change the answer; agreement: traces whose parents agree; posterior:
    #: final candidates once the leader of a majority stays the leader with probability `stop_confidence`
    early_stop: Literal["off", "agreement", "posterior"] = field(default="off", kw_only=True)
    stop_confidence: float = field(default=0.95, kw_only=True)
    #: record how likely the drawn tokens of each trace were to the model; it changes no token
    trace_confidence: bool = field(default=False, kw_only=True)
    #: folder of a LoRA that is on in rounds >= 1 only; unset: none
    aggregation_adapter: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("thinking_marks", "population"):
            if isinstance(value := getattr(self, name), list):  # as TOML and JSON have it
                object.__setattr__(self, name, tuple(value))
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if not rule.accepts(value):
                kind = SchemaError if name == "response_schema" else ConfigError
                raise kind(f"{name} must be {rule.allowed} (got {repr(value)[:200]}).")
        self._check_population()
        if self.rounds >= 1 and self.tail_tokens != FULL and self.tail_tokens > self.thinking_tokens:
            raise ConfigError(
                f"tail_tokens must be at most thinking_tokens, {self.thinking_tokens:,} (got {self.tail_tokens}). "
                f'Write "{FULL}" for full-chain RSA.'
            )

        if self.answer_selection == "majority" and self.requested_kind == "open":
            raise ConfigError(
                "answer_selection must be single, final_aggregation or tournament where answer_kind is open (got "
                "'majority'): open answers are not compared."
            )

    def _check_population(self) -> None:
        """Check N against T, C and F. Equal numbers for all rounds become one number."""
        if isinstance(self.population, tuple):
            if len(self.population) != self.rounds + 1:
                raise ConfigError(
                    f"population must be one number, or rounds + 1 = {self.rounds + 1} of them "
                    f"(got {len(self.population)}: {list(self.population)})."
                )
            if len({*self.population}) == 1:
                object.__setattr__(self, "population", self.population[0])
        by_round = isinstance(self.population, tuple)
        if self.rounds >= 1 and self.aggregation_size > self.least_read:
            where = " of every round that is read" if by_round else ""
            raise ConfigError(
                f"aggregation_size must be at most the population{where}, {self.least_read} "
                f"(got {self.aggregation_size})."
            )
        if self.final_candidates is not None and self.final_candidates > self.populations[-1]:
            where = " of the last round" if by_round else ""
            raise ConfigError(
                f"final_candidates must be at most the population{where}, {self.populations[-1]} "
                f"(got {self.final_candidates})."
            )

    @property
    def populations(self) -> tuple[int, ...]:
        """N of each round, from 0 to T."""
        one = self.population
        return one if isinstance(one, tuple) else (one,) * (self.rounds + 1)

    @property
    def least_read(self) -> int:
        """The fewest traces from which parents are drawn: N of round T - 1."""
        return self.populations[max(self.rounds - 1, 0)]

    @property
    def tail_limit(self) -> int:
        """tau in tokens, with `full` resolved to beta."""
        return self.thinking_tokens if self.tail_tokens == FULL else int(self.tail_tokens)

    @property
    def final_count(self) -> int:
        """F resolved: the number of traces of round T."""
        if self.final_candidates is None:
            return self.populations[0] if self.rounds == 0 else 1
        return self.final_candidates or self.populations[-1]

    @property
    def answer_reserve(self) -> int:
        """`answer_tokens` resolved: a quarter of `final_tokens`, from 16 to 1,024, if unset. At most a half of them."""
        unset = min(max(self.final_tokens // 4, 16), 1_024)
        return min(unset if self.answer_tokens is None else self.answer_tokens, self.final_tokens // 2)

    @property
    def requested_kind(self) -> str:
        """`answer_kind`, or "json" for answers with a schema: the whole response, compared as canonical JSON."""
        return self.answer_kind if self.response_schema is None else "json"

    def schema_at(self, round_index: int) -> dict[str, Any] | None:
        """Return the schema that binds the answers of this round: `response_schema` from the final round on."""
        return self.response_schema if round_index >= self.rounds else None

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

    def may_inherit(self, round_index: int, *, bound: bool = False) -> bool:
        """Whether a trace of this round inherits the answer of its parents, should they agree.

        A trace of the final round that is `bound` to call a tool never does, and neither does one with a schema: its
        parents are not bound.
        """
        return (
            self.early_stop == "agreement"
            and 1 <= round_index <= self.rounds
            and self.aggregation_size >= 2
            and self.carry != "summary"
            and self.requested_kind != "open"
            and self.schema_at(round_index) is None
            and not (bound and round_index == self.rounds)
        )

    @property
    def may_stop_vote(self) -> bool:
        """Whether a vote over the final candidates may end before all of them are generated."""
        return self.early_stop == "posterior" and self.answer_selection == "majority" and self.final_count > 1

    def max_tokens(self, round_index: int) -> int:
        """Return the decode budget of a trace of this round (or of the final aggregation, round T + 1), in tokens."""
        return self.final_tokens if round_index >= self.rounds else self.thinking_tokens

    budget = max_tokens  #: the former name

    @property
    def closes_thinking(self) -> bool:
        """Whether thinking that is still open is closed, if the model has marks and the engine can."""
        return self.enable_thinking and self.answer_reserve > 0

    def close_thinking_at(self, round_index: int, closing_tokens: int) -> int | None:
        """Return the number of tokens after which unfinished thinking is closed, None for a round without a limit.

        `closing_tokens` are needed to close it (0: impossible), and must leave tokens for an answer.
        """
        if round_index < self.rounds or not 0 < closing_tokens < self.answer_reserve:
            return None
        return self.final_tokens - self.answer_reserve

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

    def for_any_question(self) -> RSAConfig:
        """Return the settings with `auto` in the place of the default `answer_kind`, as solve and serve use them."""
        return self.replace(answer_kind="auto") if self.answer_kind == "math" else self

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name, for JSON."""
        return dataclasses.asdict(self)

    def warnings(self, *, published_model: bool = True, context_length: int | None = None) -> list[str]:
        """Return warnings about these settings, a sentence each.

        Without `published_model`, leave out those that apply only to models like the published one (the token limits of
        the embedded reasoner are a thousandth of theirs). Also leave out a recommendation that a model with this
        `context_length` cannot follow.
        """
        found = []
        may_think_longer = context_length is None or context_length > _RECOMMENDED_THINKING
        if self.rounds and self.thinking_tokens <= 8_000 and published_model and may_think_longer:
            found.append(
                f"thinking_tokens is {self.thinking_tokens:,}: in the published runs 8,000 did worse than one long "
                f"trace (86.5 against 88.3 on AIME'25); {_RECOMMENDED_THINKING:,} is recommended where "
                "memory and time allow."
            )
        if self.rounds and self.tail_tokens != FULL and self.tail_limit == self.thinking_tokens:
            found.append(
                f"tail_tokens equals thinking_tokens ({self.tail_limit:,}): this is full-chain RSA and its prompts "
                f'are long; write tail_tokens = "{FULL}" if it is meant.'
            )
        if self.populations[0] > 1 and self.temperature == 0:
            largest = self.populations[0]
            found.append(f"temperature is 0 with a population of {largest}: all traces of a round are clones.")
        if self.answer_tokens is not None and self.answer_tokens > self.answer_reserve:
            found.append(
                f"answer_tokens is {self.answer_tokens:,}: at most half of final_tokens, {self.answer_reserve:,}, is "
                "kept for the answer."
            )
        if self.early_stop == "agreement" and not any(map(self.may_inherit, range(1, self.rounds + 1))):
            found.append(
                "early_stop is agreement, and no trace can inherit: that takes rounds >= 1, aggregation_size >= 2, a "
                "carry other than summary, and answers that are compared."
            )
        if self.aggregation_adapter is not None and not self.rounds:
            found.append("aggregation_adapter is given with 0 rounds: no trace aggregates, so none uses it.")
        if self.early_stop == "posterior" and not self.may_stop_vote:
            found.append("early_stop is posterior without a vote: it takes answer_selection majority over 2 or more.")
        if self.answer_selection == "majority" and self.final_count == 1:
            found.append("answer_selection is majority over one final candidate: there is nothing to vote on.")
        if self.answer_selection == "tournament" and self.final_count == 1:
            found.append("answer_selection is tournament over one final candidate: there is nothing to judge.")
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
        """Take settings by name. Others are those of `base`, or of the profile that the key `profile` names.

        Settings that lack only those of `ADDED_SETTINGS` are a recorded run's, and are read as `from_recorded` does.
        """
        if set(FIELD_NAMES) - set(values) <= set(ADDED_SETTINGS):
            values = {**ADDED_SETTINGS, **values}
        rest = dict(values)
        name = rest.pop("profile", None)
        start = cls.profile(str(name)) if name is not None else base or cls()
        return start.replace(**rest)

    @classmethod
    def from_recorded(cls, values: Mapping[str, Any]) -> RSAConfig:
        """Read the settings of an audit file. Settings of a newer version are left out.

        A setting that the file lacks has the value of `ADDED_SETTINGS`, never today's default.
        """
        known = {name: value for name, value in values.items() if name in FIELD_NAMES}
        return cls(**{**ADDED_SETTINGS, **known})

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
        return tomllib.loads(read_text(Path(path)))
    except OSError as error:
        raise ConfigError(f"The settings file {str(path)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not TOML or UTF-8, too large a number, nested too deeply
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
    return _Rule(f"a whole number from {low:,} to {high:,}", lambda v: _is_int(v) and low <= v <= high)


def _real(low: float, high: float, above: bool = False) -> _Rule:
    text = f"a number {'above' if above else 'from'} {low:g} {'and up' if above else ''} to {high:,g}"
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


def _is_population(value: Any) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    numbers = all(_is_int(number) and 1 <= number <= 10_000 for number in values)
    return numbers and bool(values) and list(values) == sorted(values, reverse=True)


def _are_marks(value: Any) -> bool:
    texts = isinstance(value, tuple) and all(isinstance(mark, str) and mark.strip() == mark != "" for mark in value)
    return texts and len(value) == 2 and value[0] != value[1]


def _is_schema(value: Any) -> bool:
    try:
        text = json.dumps(value, allow_nan=False) if isinstance(value, dict) else ""
    except (TypeError, ValueError, RecursionError):
        return False
    return 0 < len(text) <= MAX_SCHEMA_LENGTH and _depth(text) <= MAX_SCHEMA_DEPTH


def _depth(text: str) -> int:
    """Return how many objects and arrays of a JSON text are within each other."""
    depth = deepest = 0
    for character in _JSON_STRING.sub("", text):
        depth += (character in "{[") - (character in "}]")
        deepest = max(deepest, depth)
    return deepest


_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SAMPLING = {
    "temperature": _real(0, 10),
    "top_p": _real(0, 1, above=True),
    "top_k": _whole(0, 1_000_000),
    "min_p": _real(0, 1),
}
_RULES: dict[str, _Rule] = {
    "rounds": _whole(0, 1_000),
    "population": _Rule("a whole number from 1 to 10,000, or rounds + 1 of them that do not increase", _is_population),
    "aggregation_size": _whole(1, 10_000),
    "thinking_tokens": _whole(1, _MAX_TOKENS),
    "tail_tokens": _or_word(_whole(1, _MAX_TOKENS), FULL),
    "final_tokens": _whole(1, _MAX_TOKENS),
    "answer_tokens": _optional(_whole(0, _MAX_TOKENS)),
    "final_candidates": _optional(_whole(0, 10_000)),
    **_SAMPLING,
    **{f"final_{name}": _optional(rule) for name, rule in _SAMPLING.items()},
    "seed": _optional(_whole(0, 2**63 - 1)),
    "carry": _one_of("tail", "answer", "summary"),
    "template": _Rule(
        "zaya_v1, rsa_v1, open_v1 or the path of a Jinja2 file", lambda v: isinstance(v, str) and bool(v.strip())
    ),
    "summary_prompt": _optional(_Rule("non-empty text", lambda v: isinstance(v, str) and bool(v.strip()))),
    "enable_thinking": _Rule("true or false", lambda v: isinstance(v, bool)),
    "answer_selection": _one_of("single", "majority", "final_aggregation", "tournament"),
    "answer_kind": _one_of("math", "text", "open", "auto"),
    "concurrency": _or_word(_whole(1, 10_000), "auto"),
    "memory_limit_gb": _optional(_real(0, 100_000, above=True)),
    "max_retries": _whole(0, 100),
    "token_budget": _optional(_whole(1, 10**12)),
    "time_budget_s": _optional(_real(0, 10**9, above=True)),
    "tail_order": _one_of("drawn", "shared"),
    "kv_bits": _optional(_Rule("8", lambda v: _is_int(v) and v == 8)),
    "response_schema": _optional(
        _Rule(
            f"a JSON Schema: an object of at most {MAX_SCHEMA_LENGTH:,} characters, {MAX_SCHEMA_DEPTH} levels deep",
            _is_schema,
        )
    ),
    "early_stop": _one_of("off", "agreement", "posterior"),
    "stop_confidence": _real(0.5, 1),
    "aggregation_adapter": _optional(
        _Rule("the path of a folder with an adapter", lambda v: isinstance(v, str) and bool(v.strip()))
    ),
    "trace_confidence": _Rule("true or false", lambda v: isinstance(v, bool)),
    "thinking_marks": _optional(_Rule("two different texts, the begin and the end of the thinking", _are_marks)),
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
        answer_tokens=0,
        temperature=0.8,
        answer_kind="text",
    ),
}


#: Settings that older audit files lack, with the value that the runs in them had.
ADDED_SETTINGS: Final[dict[str, Any]] = {
    "answer_tokens": 0,
    "thinking_marks": None,
    "tail_order": "drawn",
    "kv_bits": None,
    "response_schema": None,
    "early_stop": "off",
    "stop_confidence": 0.95,
    "trace_confidence": False,
    "aggregation_adapter": None,
}

#: Settings that change how a run is carried out but not what it computes.
FREE_SETTINGS = frozenset({"concurrency", "memory_limit_gb", "max_retries", "token_budget", "time_budget_s"})

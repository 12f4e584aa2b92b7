"""Options for the settings of a run: the profile, the settings file, and one option per setting of `RSAConfig`.

A profile comes first, a settings file overrides it, and options override both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..config import RSAConfig, allowed_values, read_toml
from ..errors import ConfigError
from ..formatting import count
from .command import PATH, Decorator, combine, option, option_group
from .inputs import read_schema
from .terminal import print_status

#: The value of an option that unsets a setting of the profile or the settings file.
UNSET: Final = "unset"
_TEXT_SETTINGS: Final = frozenset(
    {
        "template",
        "carry",
        "tail_order",
        "summary_prompt",
        "answer_selection",
        "answer_kind",
        "early_stop",
        "aggregation_adapter",
    }
)
METHOD, SAMPLING, ENGINE = "Method settings", "Sampling settings", "Limits"
#: Heading, metavar and meaning of each setting. The allowed values are added from the setting's own rule.
HELP: Final[dict[str, tuple[str, str, str]]] = {
    "rounds": (METHOD, "T", "T, aggregation rounds; 0 means plain parallel sampling"),
    "population": (METHOD, "N[,N...]", "N, traces per round; 32,8,4: of round 0, of round 1, and so on"),
    "aggregation_size": (METHOD, "C", "C, tails in one aggregation prompt; 1 continues each trace on its own"),
    "thinking_tokens": (METHOD, "TOKENS", "beta, token limit of a trace before the final round"),
    "tail_tokens": (METHOD, "TOKENS", "tau, tokens carried forward; full means beta"),
    "final_tokens": (METHOD, "TOKENS", "token limit of a trace of the final round"),
    "answer_tokens": (
        METHOD,
        "TOKENS",
        "tokens of the final round that are kept for the answer; 0: none; unset: a quarter",
    ),
    "final_candidates": (METHOD, "F", "F, traces of the final round; 0 means N; unset: 1, or N if T is 0"),
    "carry": (METHOD, "WHAT", "the part of a trace that is carried forward"),
    "tail_order": (
        METHOD,
        "ORDER",
        "order of tails in a prompt; shared: begin many prompts of a round alike, to read that part once",
    ),
    "template": (METHOD, "NAME", "aggregation template"),
    "summary_prompt": (METHOD, "TEXT", "prompt for summaries; unset: the built-in one"),
    "enable_thinking": (METHOD, "", "passed to the model's chat template"),
    "response_schema": (METHOD, "FILE.json", "JSON Schema that the answer must fit; unset: any text"),
    "thinking_marks": (METHOD, "BEGIN END", "the marks around the model's thinking; unset: those of its template"),
    "answer_selection": (METHOD, "HOW", "selection of the answer among the final candidates"),
    "answer_kind": (
        METHOD,
        "KIND",
        "compare answers by their value, by their text, or not at all (open); auto: by value where most show one",
    ),
    "early_stop": (
        METHOD,
        "RULE",
        "agreement: a trace whose parents finished with equal answers inherits the answer instead of being generated; "
        "posterior: a majority ends once its leader would almost surely stay the leader",
    ),
    "stop_confidence": (METHOD, "P", "probability of the leader at which early-stop posterior ends a vote"),
    "aggregation_adapter": (
        METHOD,
        "FOLDER",
        "a LoRA adapter for rounds from 1 on, over the same weights; unset: none",
    ),
    "trace_confidence": (METHOD, "", "record how likely the drawn tokens of each trace were to the model"),
    "temperature": (SAMPLING, "X", "0 means greedy"),
    "top_p": (SAMPLING, "X", "1 means no filter"),
    "top_k": (SAMPLING, "K", "0 means no filter"),
    "min_p": (SAMPLING, "X", "0 means no filter"),
    "final_temperature": (SAMPLING, "X", "temperature of the final round; unset: the same"),
    "final_top_p": (SAMPLING, "X", "top-p of the final round; unset: the same"),
    "final_top_k": (SAMPLING, "K", "top-k of the final round; unset: the same"),
    "final_min_p": (SAMPLING, "X", "min-p of the final round; unset: the same"),
    "seed": (SAMPLING, "SEED", "seed of the run; unset: random, and recorded in the trail"),
    "concurrency": (ENGINE, "ROWS", "traces decoded concurrently; auto: as many as fit into memory"),
    "memory_limit_gb": (
        ENGINE,
        "GB",
        "limit for weights and caches; unset: most of what is free, on a Mac 70% of the working set",
    ),
    "kv_bits": (
        ENGINE,
        "BITS",
        "bits of each number in the KV cache, for more traces in the same memory; unset: the model's own type",
    ),
    "max_retries": (ENGINE, "COUNT", "further attempts after a trace failed"),
    "token_budget": (ENGINE, "TOKENS", "stop after this many generated tokens; the run can be resumed"),
    "time_budget_s": (ENGINE, "SECONDS", "stop after this many seconds; the run can be resumed"),
}
PROFILE_HELP: Final = (
    "Settings by name, see mrsa profiles; unset: embedded for the embedded reasoner, otherwise default-16gb, which has "
    "the defaults shown here."
)


def profile_options(panel: str, meaning: str = PROFILE_HELP) -> Decorator:
    """`--profile` and `--config` of a command that runs with one set of settings."""
    config_help = "Settings that override the profile; options override both."
    return combine(
        option("--profile", metavar="NAME", help=meaning, panel=panel),
        option("--config", type=PATH, metavar="FILE.toml", help=config_help, panel=panel),
    )


def settings_options(without: Collection[str] = (), *, any_question: bool = False) -> Decorator:
    """One option per setting not in `without`. The command receives those given as the dict `settings`.

    With `any_question` the default `answer_kind` is auto, as in `resolve`.
    """
    defaults = RSAConfig().for_any_question() if any_question else RSAConfig()

    def read(**given: str | bool | Path | tuple[str, str] | None) -> dict[str, object]:
        return {name: read_value(name, value) for name, value in given.items() if value is not None}

    options = {
        name: _setting_option(name, getattr(defaults, name), *entry)
        for name, entry in HELP.items()
        if name not in without
    }
    return option_group("settings", options, read)


def _setting_option(name: str, default: object, panel: str, metavar: str, meaning: str) -> Decorator:
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool):
        meaning = f"{meaning[0].upper()}{meaning[1:]} (default: {'yes' if default else 'no'})."
        return option(f"{flag}/--no-{flag[2:]}", default=None, help=meaning, panel=panel)
    if name == "response_schema":
        return option("--json-schema", name, type=PATH, metavar=metavar, help=f"{meaning}.", panel=panel)
    if name == "thinking_marks":
        return option(flag, nargs=2, metavar=metavar, help=meaning[0].upper() + meaning[1:] + ".", panel=panel)
    allowed = re.sub(r"^a (?:whole )?number (?:from )?", "", allowed_values(name)).replace(", or unset", " or unset")
    if not meaning.startswith(("beta", "tau")):
        meaning = meaning[0].upper() + meaning[1:]
    if default is not None:
        allowed += f"; default: {count(default) if isinstance(default, int) else default}"
    return option(flag, metavar=metavar, help=f"{meaning} ({allowed}).", panel=panel)


def as_options(settings: Mapping[str, object]) -> str:
    """Return settings as words of a command line, like "--thinking-tokens 4000"."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def read_value(name: str, raw: str | bool | Path | tuple[str, str]) -> object:
    """Convert an option's text, or read its file.

    Text that is not a number stays text, which `RSAConfig` accepts or rejects.
    """
    if raw in (UNSET, (UNSET, UNSET), Path(UNSET)) and getattr(RSAConfig(), name) is None:
        return None
    if isinstance(raw, Path):
        return read_schema(raw)
    if isinstance(raw, bool | tuple) or name in _TEXT_SETTINGS:
        return raw
    if name == "population" and re.fullmatch(r"\s*\d+(\s*,\s*\d+)+\s*", str(raw)):
        return tuple(map(int, str(raw).split(",")))
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            continue
    return raw


def resolve(
    *,
    profile: str | None = None,
    file: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    default: str,
    any_question: bool = False,
) -> RSAConfig:
    """Return the settings of a run: a profile (`default` if unnamed), a TOML file over it, and options over both.

    With `any_question` the default `answer_kind` is auto. Raises `ConfigError` for settings that are not allowed.
    """
    settings = settings or {}
    from_file = read_toml(file) if file else {}
    named = from_file.pop("profile", None)
    if profile is not None and named not in (None, profile):
        raise ConfigError(
            f"The settings file {str(file)!r} is based on profile {named!r}; leave --profile {profile} out, "
            "or take the key out of the file."
        )
    base = RSAConfig.profile(str(profile or named or default))
    if any_question:
        base = base.for_any_question()
    if "aggregation_size" not in {**from_file, **settings}:
        base = _clamped(base, {**from_file, **settings})
    try:
        return base.replace(**{**from_file, **settings})
    except ConfigError as error:
        try:
            base.replace(**from_file)
        except ConfigError as error_of_file:
            if str(error_of_file) == str(error):
                raise ConfigError(f"The settings file {str(file)!r} cannot be used: {error}") from error
        raise


def _clamped(base: RSAConfig, given: Mapping[str, Any]) -> RSAConfig:
    """Return the profile with its C lowered to the given N, and print that: a prompt shows at most N tails."""
    population, most, rounds = given.get("population"), base.aggregation_size, given.get("rounds", base.rounds)
    if isinstance(population, list | tuple) and isinstance(rounds, int) and len(population) == rounds + 1 >= 2:
        population = population[-2]  # the fewest traces that a prompt reads from
    if type(population) is not int or not 1 <= population < most or rounds == 0:
        return base
    print_status(f"aggregation_size is lowered from {most} to {population}, the population (C is at most N).")
    return base.replace(aggregation_size=population)


def load_settings_files(files: Sequence[Path], taken: Collection[str], default: str) -> dict[str, RSAConfig]:
    """Read settings files, each under its stem, or under its path if the stem is `taken` or not unique.

    A file that names no profile is based on `default`, and one that is given twice counts once. Raises `ConfigError`
    for a file that does not hold settings.
    """
    unique = list(dict.fromkeys(files))
    stems = Counter(path.stem for path in unique)
    reserved = {*taken, *(stem for stem, number in stems.items() if number > 1)}
    found = {}
    for path in unique:
        # The path of a file without a suffix in the working folder equals its stem.
        name = next((name for name in (path.stem, str(path)) if name not in reserved), str(path.absolute()))
        found[name] = resolve(file=path, default=default)
    return found

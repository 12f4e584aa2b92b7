"""An option for every setting of `RSAConfig`, and who wins: the profile, then the file, then the options."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..config import FIELD_NAMES, RSAConfig, allowed_values, read_toml
from ..errors import ConfigError

#: How an option unsets what a profile or a file has set.
UNSET: Final = "unset"
_WORDS: Final = frozenset({"template", "carry", "summary_prompt", "answer_selection", "answer_kind"})

METHOD, SAMPLING, ENGINE = "Method settings", "Sampling settings", "Limits"
#: Group, metavar and meaning of each setting; what is allowed is added from the setting's own rule.
HELP: Final[dict[str, tuple[str, str, str]]] = {
    "rounds": (METHOD, "T", "T, aggregation rounds; 0 is plain parallel sampling"),
    "population": (METHOD, "N", "N, traces per round"),
    "aggregation_size": (METHOD, "C", "C, tails in one aggregation prompt; 1 continues each trace by itself"),
    "thinking_tokens": (METHOD, "TOKENS", "beta, decode budget of a trace before the final round"),
    "tail_tokens": (METHOD, "TOKENS", "tau, tokens carried forward; full means beta"),
    "final_tokens": (METHOD, "TOKENS", "decode budget of a final-round trace"),
    "final_candidates": (METHOD, "F", "F, traces of the final round; 0 means N; unset: 1, or N if T is 0"),
    "carry": (METHOD, "WHAT", "what is carried of a trace"),
    "template": (METHOD, "NAME", "aggregation template"),
    "summary_prompt": (METHOD, "TEXT", "what a summary is asked for; unset: the built-in wording"),
    "enable_thinking": (METHOD, "", "handed to the model's chat template"),
    "answer_selection": (METHOD, "HOW", "how the answer is chosen among the final candidates"),
    "answer_kind": (METHOD, "KIND", "what makes two answers the same: their value, or their text"),
    "temperature": (SAMPLING, "X", "0 is greedy"),
    "top_p": (SAMPLING, "X", "1 filters nothing"),
    "top_k": (SAMPLING, "K", "0 filters nothing"),
    "min_p": (SAMPLING, "X", "0 filters nothing"),
    "final_temperature": (SAMPLING, "X", "temperature of the final round; unset: as before"),
    "final_top_p": (SAMPLING, "X", "top-p of the final round; unset: as before"),
    "final_top_k": (SAMPLING, "K", "top-k of the final round; unset: as before"),
    "final_min_p": (SAMPLING, "X", "min-p of the final round; unset: as before"),
    "seed": (SAMPLING, "SEED", "seed of the run; unset: drawn, and recorded in the trail"),
    "concurrency": (ENGINE, "ROWS", "traces decoded at once; auto: as many as the memory holds"),
    "memory_limit_gb": (ENGINE, "GB", "for weights and caches; unset: the device's working set"),
    "max_retries": (ENGINE, "COUNT", "further attempts at a trace that failed"),
    "token_budget": (ENGINE, "TOKENS", "stop after this many generated tokens; can be resumed"),
    "time_budget_s": (ENGINE, "SECONDS", "stop after this many seconds; can be resumed"),
}


def finite(value: float | None) -> float | None:
    """A callback for options that are numbers: a range alone lets nan through."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number.")
    return value


def profile_option(
    panel: str,
    meaning: str = "Settings by name, see mrsa profiles; "
    "unset: embedded with the embedded reasoner, else default-16gb.",
) -> Any:
    """`--profile` of a command that runs with one set of settings."""
    return typer.Option("--profile", metavar="NAME", help=meaning, rich_help_panel=panel)


def config_option(panel: str) -> Any:
    """`--config` beside it."""
    meaning = "Settings over the profile; options win over both."
    return typer.Option("--config", metavar="FILE.toml", help=meaning, rich_help_panel=panel)


def _place(name: str) -> int:
    """Options stand in the order of `HELP`, so that their groups hold together."""
    return list(HELP).index(name) if name in HELP else len(HELP)


def _help_of(name: str) -> tuple[str, str, str]:
    return HELP.get(name, (ENGINE, "VALUE", name.replace("_", " ")))


def with_settings(command: Callable[..., None], without: Collection[str] = ()) -> Callable[..., None]:
    """Give `command` an option for every setting not in `without`; those given reach it as the dict `settings`."""
    offered = [name for name in sorted(FIELD_NAMES, key=_place) if name not in without]
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "settings"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {name: values.pop(name) for name in offered}
        command(**values, settings={name: read_value(name, v) for name, v in given.items() if v is not None})

    wrapper.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*kept, *map(_option, offered)]
    )
    return wrapper


def read_value(name: str, raw: str | bool) -> object:
    """An option's text as a value; whatever is no number stays text, and `RSAConfig` says what is allowed."""
    if raw == UNSET and getattr(RSAConfig(), name) is None:
        return None
    if isinstance(raw, bool) or name in _WORDS:
        return raw
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            continue
    return raw


def resolve(profile: str | None, file: Path | None, settings: Mapping[str, Any], default: str) -> RSAConfig:
    """The settings of a run: a profile (`default` unless named), a TOML file over it, and options over both."""
    from_file = read_toml(file) if file else {}
    named = from_file.pop("profile", None)
    if profile is not None and named not in (None, profile):
        raise ConfigError(
            f"The settings file {str(file)!r} is based on profile {named!r}; leave --profile {profile} out, "
            "or take the key out of the file."
        )
    base = RSAConfig.profile(str(profile or named or default))
    try:
        return base.replace(**{**from_file, **settings})
    except ConfigError as error:
        if str(error) != _refusal(base, from_file):
            raise
        raise ConfigError(f"The settings file {str(file)!r} cannot be used: {error}") from error


def _refusal(base: RSAConfig, values: Mapping[str, Any]) -> str:
    """Why `base` does not take these values by themselves; "" where it does."""
    try:
        base.replace(**values)
    except ConfigError as error:
        return str(error)
    return ""


def _option(name: str) -> inspect.Parameter:
    group, metavar, meaning = _help_of(name)
    flag = "--" + name.replace("_", "-")
    rule = _allowed(name)
    if name == "enable_thinking":
        info = typer.Option(f"{flag}/--no-{flag[2:]}", help=_sentence(meaning), rich_help_panel=group)
        annotation: Any = Annotated[bool | None, info]
    else:
        info = typer.Option(flag, metavar=metavar, help=_sentence(f"{meaning} ({rule})"), rich_help_panel=group)
        annotation = Annotated[str | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _allowed(name: str) -> str:
    """The rule's own words, shorter and with thousands marked."""
    text = allowed_values(name)
    text = re.sub(r"\d{4,}", lambda match: f"{int(match[0]):,}", text)
    return re.sub(r"^a (?:whole )?number (?:from )?", "", text).replace(", or unset", " or unset")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "." if not text.startswith(("beta", "tau")) else text + "."

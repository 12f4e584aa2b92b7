"""An option for every setting of `RSAConfig`, and who wins: the profile, then the file, then the options.

The options that choose an engine, for every command that needs one: a model here, or servers elsewhere.

Settings files beside profiles, for commands that compare several: each under a name of its own.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..config import FIELD_NAMES, RSAConfig, allowed_values, read_toml
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..backends.upstream import Upstream


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


MODEL, UPSTREAM = "The model", "Upstream servers"


@dataclass(frozen=True)
class ModelChoice:
    """Which engine to open: a model (`embedded`: the one that ships with the package), or the servers of `upstream`."""

    model_id: str
    revision: str | None = None
    adapter: str | None = None
    embedded: bool = False
    upstream: Upstream | None = None

    @property
    def default_profile(self) -> str:
        return "embedded" if self.embedded else "default-16gb"


def choose_model(model: str | None, revision: str | None = None, adapter: str | None = None) -> ModelChoice:
    """The model asked for; the embedded reasoner where none is."""
    from .. import reasoner

    embedded = model is None or model == reasoner.MODEL_ID
    return ModelChoice(reasoner.MODEL_ID if model is None else model, revision, adapter, embedded)


def with_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the engine's options where its parameter `choice` stands; that gets the `ModelChoice`.

    A command with a key of its own (`api_key_env`) keeps that name for it; the upstream's is `--upstream-key-env`.
    """
    own = inspect.signature(command, eval_str=True)
    place = list(own.parameters).index("choice")
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "choice"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {name: values.pop(name) for name in _OPTIONS}
        command(**values, choice=choose_engine(**given))

    options = [_parameter(name, annotation) for name, annotation in (_OPTIONS | _own_key(own)).items()]
    wrapper.__signature__ = own.replace(parameters=[*kept[:place], *options, *kept[place:]])  # type: ignore[attr-defined]
    return wrapper


def choose_engine(
    model: str | None = None,
    revision: str | None = None,
    adapter: Path | None = None,
    upstream: list[str] | None = None,
    upstream_model: str | None = None,
    upstream_key_env: str | None = None,
    tokenizer: str | None = None,
    upstream_seeds: str | None = None,
    upstream_limit: int | None = None,
    upstream_timeout: float | None = None,
) -> ModelChoice:
    """The choice that the options make. Raises `ConfigError` for options that do not go together."""
    of_servers = {
        "--upstream-model": upstream_model,
        "--upstream-key-env": upstream_key_env,
        "--tokenizer": tokenizer,
        "--upstream-seeds": upstream_seeds,
        "--upstream-limit": upstream_limit,
        "--upstream-timeout": upstream_timeout,
    }
    if not upstream:
        _refuse(of_servers, "without --upstream", "name a server with --upstream URL")
        return choose_model(model, revision, None if adapter is None else str(adapter))
    here = {"--model": model, "--revision": revision, "--adapter": adapter}
    _refuse(here, "with --upstream", "the server chooses its model; --upstream-model names one of several")
    from ..backends.upstream.config import TimeLimits, Upstream

    times = TimeLimits()
    if upstream_timeout is not None:
        times = TimeLimits(first_token_s=upstream_timeout, stall_s=min(times.stall_s, upstream_timeout))
    servers: dict[str, Any] = {"seeds": upstream_seeds or "auto", "limit": upstream_limit, "times": times}
    settings = Upstream(tuple(upstream), upstream_model, _key(upstream_key_env), tokenizer, **servers)
    return ModelChoice(upstream_model or settings.urls[0], upstream=settings)


def _refuse(options: dict[str, Any], where: str, hint: str) -> None:
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ConfigError(f"{given} means nothing {where}; {hint}.")


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"The environment variable {name!r} for the upstream's key is not set; export it first.")
    return key


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _engine_option(flags: str, metavar: str, meaning: str, panel: str, **more: Any) -> Any:
    return typer.Option(*flags.split(), metavar=metavar, help=meaning, rich_help_panel=panel, **more)


def _key_option(flags: str) -> Any:
    return Annotated[
        str | None, _engine_option(flags, "NAME", "Environment variable that holds the server's key.", UPSTREAM)
    ]


def _own_key(command: inspect.Signature) -> dict[str, Any]:
    return {"upstream_key_env": _key_option("--upstream-key-env")} if "api_key_env" in command.parameters else {}


#: A model here, for the commands that take no server.
ModelOption = Annotated[
    str | None,
    _engine_option("--model", "MODEL", "A hub id or a local folder; unset: the small embedded reasoner.", MODEL),
]
RevisionOption = Annotated[str | None, _engine_option("--revision", "REV", "The hub's branch, tag or commit.", MODEL)]
AdapterOption = Annotated[
    Path | None, _engine_option("--adapter", "FOLDER", "A LoRA adapter to put on the model.", MODEL)
]
#: Asks the embedded reasoner all the same.
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Ask the embedded reasoner also what it was not made for.", rich_help_panel=MODEL),
]

_OPTIONS: Final[dict[str, Any]] = {
    "model": ModelOption,
    "revision": RevisionOption,
    "adapter": AdapterOption,
    "upstream": Annotated[
        list[str] | None,
        _engine_option(
            "--upstream",
            "URL",
            "An OpenAI-compatible server as the engine, like http://127.0.0.1:8080/v1; several share the load.",
            UPSTREAM,
        ),
    ],
    "upstream_model": Annotated[
        str | None,
        _engine_option("--upstream-model", "NAME", "Which of the server's models, where it has several.", UPSTREAM),
    ],
    "upstream_key_env": _key_option("--upstream-key-env --api-key-env"),
    "tokenizer": Annotated[
        str | None,
        _engine_option(
            "--tokenizer",
            "MODEL",
            "The model's tokenizer: a folder, a hub id or a GGUF file; unset: the model's own folder, or the server's.",
            UPSTREAM,
        ),
    ],
    "upstream_seeds": Annotated[
        str | None,
        _engine_option(
            "--upstream-seeds",
            "WHEN",
            "Send each trace's seed: auto (unless it costs the server its batching), always or never.",
            UPSTREAM,
        ),
    ],
    "upstream_limit": Annotated[
        int | None,
        _engine_option("--upstream-limit", "COUNT", "Requests in flight at each URL; unset: by the server.", UPSTREAM),
    ],
    "upstream_timeout": Annotated[
        float | None,
        _engine_option(
            "--upstream-timeout",
            "SECONDS",
            "Longest wait for a server's first token (600).",
            UPSTREAM,
            min=0.1,
            callback=finite,
        ),
    ],
}


def own_settings(files: Sequence[Path], taken: Collection[str]) -> dict[str, RSAConfig]:
    """Settings by the name of their file; by its path where that name is `taken`, or another file's too.

    A file that is given twice counts once. Raises `ConfigError` for a file that holds no settings.
    """
    once = list(dict.fromkeys(files))
    shared = {stem for stem, number in Counter(path.stem for path in once).items() if number > 1}
    return {_name(path, {*taken, *shared}): RSAConfig.from_toml(path) for path in once}


def _name(path: Path, taken: Collection[str]) -> str:
    """A file without a suffix in the working folder has a path like its name."""
    return next((name for name in (path.stem, str(path)) if name not in taken), str(path.absolute()))

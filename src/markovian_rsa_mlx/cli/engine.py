"""The options that choose an engine, for every command that needs one: a model here, or servers elsewhere."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import ConfigError
from .options import finite

if TYPE_CHECKING:
    from ..backends.openai import Upstream

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
    from ..backends.openai.settings import TimeLimits, Upstream

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


def _option(flags: str, metavar: str, meaning: str, panel: str, **more: Any) -> Any:
    return typer.Option(*flags.split(), metavar=metavar, help=meaning, rich_help_panel=panel, **more)


def _key_option(flags: str) -> Any:
    return Annotated[str | None, _option(flags, "NAME", "Environment variable that holds the server's key.", UPSTREAM)]


def _own_key(command: inspect.Signature) -> dict[str, Any]:
    return {"upstream_key_env": _key_option("--upstream-key-env")} if "api_key_env" in command.parameters else {}


#: A model here, for the commands that take no server.
ModelOption = Annotated[
    str | None,
    _option("--model", "MODEL", "A hub id or a local folder; unset: the small embedded reasoner.", MODEL),
]
RevisionOption = Annotated[str | None, _option("--revision", "REV", "The hub's branch, tag or commit.", MODEL)]
AdapterOption = Annotated[Path | None, _option("--adapter", "FOLDER", "A LoRA adapter to put on the model.", MODEL)]
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
        _option(
            "--upstream",
            "URL",
            "An OpenAI-compatible server as the engine, like http://127.0.0.1:8080/v1; several share the load.",
            UPSTREAM,
        ),
    ],
    "upstream_model": Annotated[
        str | None, _option("--upstream-model", "NAME", "Which of the server's models, where it has several.", UPSTREAM)
    ],
    "upstream_key_env": _key_option("--upstream-key-env --api-key-env"),
    "tokenizer": Annotated[
        str | None,
        _option(
            "--tokenizer",
            "MODEL",
            "The model's tokenizer: a folder, a hub id or a GGUF file; unset: the model's own folder, or the server's.",
            UPSTREAM,
        ),
    ],
    "upstream_seeds": Annotated[
        str | None,
        _option(
            "--upstream-seeds",
            "WHEN",
            "Send each trace's seed: auto (unless it costs the server its batching), always or never.",
            UPSTREAM,
        ),
    ],
    "upstream_limit": Annotated[
        int | None,
        _option("--upstream-limit", "COUNT", "Requests in flight at each URL; unset: by the server.", UPSTREAM),
    ],
    "upstream_timeout": Annotated[
        float | None,
        _option(
            "--upstream-timeout",
            "SECONDS",
            "Longest wait for a server's first token (600).",
            UPSTREAM,
            min=0.1,
            callback=finite,
        ),
    ],
}

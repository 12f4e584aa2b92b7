"""Options that choose the engine of a command: a model with its adapter, or upstream servers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import ConfigError
from .command import PATH, Decorator, FiniteFloat, option, option_group

if TYPE_CHECKING:
    from ..backends.upstream import Upstream

MODEL, UPSTREAM = "The model", "Upstream servers"


@dataclass(frozen=True)
class ModelChoice:
    """The engine to open: a model (`embedded` if it ships with the package), or the servers of `upstream`.

    `speculate` is that of `MLXEngine`. `options` are the words of the command line that made the choice, without the
    model's name.
    """

    model_id: str
    revision: str | None = None
    adapter: str | None = None
    embedded: bool = False
    upstream: Upstream | None = None
    speculate: bool = True
    options: tuple[str, ...] = ()

    @property
    def default_profile(self) -> str:
        return "embedded" if self.embedded else "default-16gb"


def choose_model(model: str | None, revision: str | None = None, adapter: Path | None = None) -> ModelChoice:
    """Return the named model, or the embedded reasoner if none is named."""
    from .. import reasoner

    embedded = model is None or model == reasoner.MODEL_ID
    name = reasoner.MODEL_ID if model is None else model
    return ModelChoice(name, revision, None if adapter is None else str(adapter), embedded)


def absolute_folder(path: str) -> str:
    """Return the absolute path of a folder: a relative one names another folder elsewhere."""
    return str(Path(path).expanduser().resolve())


def with_absolute_paths(choice: ModelChoice) -> ModelChoice:
    """Return the choice with absolute paths of a local model and an adapter."""
    if choice.upstream is not None:
        return choice
    is_folder = Path(choice.model_id).expanduser().is_dir() and not choice.embedded
    adapter = None if choice.adapter is None else absolute_folder(choice.adapter)
    return replace(choice, model_id=absolute_folder(choice.model_id) if is_folder else choice.model_id, adapter=adapter)


def benchmarked_name(choice: ModelChoice) -> str:
    """Return the name that a model has in benchmarks, if no server has it: a revision or an adapter makes another."""
    model = with_absolute_paths(choice)
    revision = f"@{model.revision}" if model.revision else ""
    return f"{model.model_id}{revision}{f' with {model.adapter}' if model.adapter else ''}"


MODEL_OPTION: Final = option(
    "--model",
    metavar="MODEL",
    help="A hub id or a local folder; unset: the small embedded reasoner.",
    panel=MODEL,
)
REVISION_OPTION: Final = option("--revision", metavar="REV", help="The hub's branch, tag or commit.", panel=MODEL)
ADAPTER_OPTION: Final = option(
    "--adapter", type=PATH, metavar="FOLDER", help="A LoRA adapter for the model.", panel=MODEL
)
SPECULATE_OPTION: Final = option(
    "--speculate",
    type=click.Choice(["on", "off"]),
    help="Guess tokens and keep those that equal their draws, where that is faster; on if unset. It changes no answer.",
    panel=MODEL,
)
FORCE_OPTION: Final = option(
    "--force",
    is_flag=True,
    help="Send the question even if the embedded model was not trained for it.",
    panel=MODEL,
)


def engine_options(key_flags: Sequence[str] = ("--upstream-key-env", "--api-key-env")) -> Decorator:
    """Options that choose an engine. The command receives the `ModelChoice` as `choice`.

    `mrsa serve` has a key of its own under `--api-key-env`, so it passes only the first of `key_flags`.
    """
    options = {
        "model": MODEL_OPTION,
        "revision": REVISION_OPTION,
        "adapter": ADAPTER_OPTION,
        "speculate": SPECULATE_OPTION,
        "upstream": option(
            "--upstream",
            multiple=True,
            metavar="URL",
            help="An OpenAI-compatible server as the engine, like http://127.0.0.1:8080/v1; several share the load.",
            panel=UPSTREAM,
        ),
        "upstream_model": option(
            "--upstream-model", metavar="NAME", help="Model to use, if the server has several.", panel=UPSTREAM
        ),
        "upstream_key_env": option(
            *key_flags, metavar="NAME", help="Environment variable that holds the server's key.", panel=UPSTREAM
        ),
        "tokenizer": option(
            "--tokenizer",
            metavar="MODEL",
            help="The model's tokenizer: a folder, a hub id or a GGUF file; unset: the model's own folder, or the "
            "server's.",
            panel=UPSTREAM,
        ),
        "upstream_seeds": option(
            "--upstream-seeds",
            metavar="WHEN",
            help="Send each trace's seed: auto (unless it costs the server its batching), always or never.",
            panel=UPSTREAM,
        ),
        "upstream_limit": option(
            "--upstream-limit",
            type=int,
            metavar="COUNT",
            help="Requests in flight at each URL; unset: by the server.",
            panel=UPSTREAM,
        ),
        "upstream_timeout": option(
            "--upstream-timeout",
            type=FiniteFloat(min=0.1),
            metavar="SECONDS",
            help="Longest wait for a server's first token (600).",
            panel=UPSTREAM,
        ),
    }
    return option_group("choice", options, choose_engine)


def choose_engine(
    *,
    model: str | None = None,
    revision: str | None = None,
    adapter: Path | None = None,
    speculate: str | None = None,
    upstream: Sequence[str] = (),
    upstream_model: str | None = None,
    upstream_key_env: str | None = None,
    tokenizer: str | None = None,
    upstream_seeds: str | None = None,
    upstream_limit: int | None = None,
    upstream_timeout: float | None = None,
) -> ModelChoice:
    """Return the choice that the options make. Raises `ConfigError` for options that do not go together."""
    server_options = {
        "--upstream-model": upstream_model,
        "--upstream-key-env": upstream_key_env,
        "--tokenizer": tokenizer,
        "--upstream-seeds": upstream_seeds,
        "--upstream-limit": upstream_limit,
        "--upstream-timeout": upstream_timeout,
    }
    model_options = {"--revision": revision, "--adapter": adapter, "--speculate": speculate}
    if not upstream:
        _refuse(server_options, "without --upstream", "name a server with --upstream URL")
        choice = choose_model(model, revision, adapter)
        return replace(choice, speculate=speculate != "off", options=_words(model_options))
    of_model = {"--model": model, **model_options}
    _refuse(of_model, "with --upstream", "the server chooses its model; --upstream-model names one of several")
    from ..backends.upstream.config import TimeLimits, Upstream

    key = None
    if upstream_key_env is not None and not (key := os.environ.get(upstream_key_env, "").strip()):
        raise ConfigError(
            f"The environment variable {upstream_key_env!r} for the upstream's key is not set; export it first."
        )
    times = TimeLimits()
    if upstream_timeout is not None:
        times = TimeLimits(first_token_s=upstream_timeout, stall_s=min(times.stall_s, upstream_timeout))
    seeds: Any = upstream_seeds or "auto"  # Upstream refuses other words
    settings = Upstream(tuple(upstream), upstream_model, key, tokenizer, seeds=seeds, limit=upstream_limit, times=times)
    addresses = [word for url in settings.urls for word in ("--upstream", url)]
    options = (*addresses, *_words(server_options))
    return ModelChoice(upstream_model or settings.urls[0], upstream=settings, options=options)


def _words(options: Mapping[str, object]) -> tuple[str, ...]:
    """Return the given options as words of a command line."""
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))


def _refuse(options: Mapping[str, object], where: str, hint: str) -> None:
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise ConfigError(f"{given} has no effect {where}; {hint}.")

"""`mrsa serve`: serve a model over the protocols of OpenAI and Anthropic until Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from ..config import read_toml
from ..errors import ConfigError, ModelError
from ..redact import protect
from .command import Command, FiniteFloat, option
from .engine_options import FORCE_OPTION, MODEL, ModelChoice, engine_options
from .settings_options import as_options, profile_options, resolve, settings_options
from .terminal import print_status

ACCESS, LIMITS = "Access", "Limits of the server"


@click.command(
    "serve",
    cls=Command,
    examples=(
        "mrsa serve",
        "mrsa serve --model mlx-community/Qwen3-1.7B-4bit --port 8080",
    ),
)
@engine_options(key_flags=["--upstream-key-env"])
@FORCE_OPTION
@profile_options(
    MODEL,
    "Defaults for settings that a request leaves unset, see mrsa profiles; unset: embedded for the embedded reasoner, "
    "for another model on this machine the largest one that answers in ten minutes, over a server default-16gb "
    "(apex-xhigh has the defaults of Zyphra's proxy).",
)
@option(
    "--served-name",
    multiple=True,
    metavar="NAME",
    help="A further name of the model for clients; may be given several times, the first one is used in responses.",
    panel=MODEL,
)
@option(
    "--rsa-models",
    type=click.Choice(["none", "default", "all"]),
    default="all",
    help="Names that stand for runs of Markovian RSA: MODEL-rsa with the profile of this server (default), and "
    "MODEL-rsa-NAME for each profile that fits the context (all).",
    panel=MODEL,
)
@option(
    "--rsa",
    type=click.Choice(["auto", "always"]),
    default="auto",
    help="always: every chat request is a run, unless it has rsa_t 0; auto: those with such keys or such a model name.",
    panel=MODEL,
)
@option("--strict", is_flag=True, help="Refuse unknown keys of a request instead of ignoring them.", panel=ACCESS)
@option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on.", panel=ACCESS)
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    metavar="PORT",
    help="Port to listen on; 0 takes a free one.",
    panel=ACCESS,
)
@option(
    "--api-key-env",
    metavar="NAME",
    help="Environment variable that holds the key which clients must send.",
    panel=ACCESS,
)
@option("--allow-without-key", is_flag=True, help="Admit other machines without a key.", panel=ACCESS)
@option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A further name by which clients address this server (a proxy's); may be given several times.",
    panel=ACCESS,
)
@option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A site or app whose pages may use the server, like https://chat.example.org or app://obsidian.md; may be "
    "given several times. *: any site, only on loopback and without a key.",
    panel=ACCESS,
)
@option(
    "--queue",
    type=click.IntRange(1, 100_000),
    default=64,
    metavar="N",
    help="Most concurrent requests, including waiting ones.",
    panel=LIMITS,
)
@option(
    "--max-body-mb",
    type=FiniteFloat(0.001, 1_000),
    default=4.0,
    metavar="MB",
    help="Largest request body.",
    panel=LIMITS,
)
@option(
    "--heartbeat",
    type=FiniteFloat(0, 3_600),
    default=0.0,
    metavar="SECONDS",
    help="Send a space this often while a whole (not streamed) response is generated, so that proxies and clients keep "
    "the connection; 0: never.",
    panel=LIMITS,
)
@option(
    "--grace",
    type=FiniteFloat(0, 86_400),
    default=30.0,
    metavar="SECONDS",
    help="Time for active runs after Ctrl-C or SIGTERM before they are cancelled; they can be resumed.",
    panel=LIMITS,
)
@settings_options(without=("response_schema",), any_question=True)
def serve(
    choice: ModelChoice,
    force: bool,
    profile: str | None,
    config: Path | None,
    served_name: tuple[str, ...],
    rsa_models: Literal["none", "default", "all"],
    rsa: str,
    strict: bool,
    host: str,
    port: int,
    api_key_env: str | None,
    allow_without_key: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    queue: int,
    max_body_mb: float,
    heartbeat: float,
    grace: float,
    settings: Mapping[str, Any],
) -> None:
    """Serve a model over the protocols of OpenAI and Anthropic.

    A request whose body has the keys of Zyphra's proxy (rsa_t, rsa_n, rsa_k, ...) becomes a run of Markovian RSA.

    Method and sampling settings are defaults for requests. Concurrency and memory limit apply to all requests together.
    """
    from .run import load_orchestrator

    key = _read_key(api_key_env)
    _check_access(host, key, allow_origin, allow_without_key=allow_without_key)
    for name in served_name:
        if not name.isprintable() or name != name.strip() or not name:
            raise ConfigError(f"--served-name is {name!r}; give a name of printable characters.")
    base = resolve(profile=profile, file=config, settings=settings, default=choice.default_profile, any_question=True)
    try:
        from ..serve.config import ServerSettings
        from ..serve.server import listen
        from ..serve.server import serve as run_server
    except ImportError as error:
        raise ModelError(
            f"The server's libraries are not installed ({error.name}): install the package with its extra serve."
        ) from error
    server = ServerSettings(
        base,
        queue,
        key,
        host,
        frozenset(allow_host),
        int(max_body_mb * 1e6),
        grace,
        names=tuple(dict.fromkeys(served_name)),
        any_question=force,
        strict=strict,
        rsa_models=rsa_models,
        always_rsa=rsa == "always",
        origins=frozenset(map(str.lower, allow_origin)),
        heartbeat_s=heartbeat,
    )
    listener = listen(host, port)
    orchestrator = load_orchestrator(
        choice, kv_bits=base.kv_bits, aggregation_adapter=base.aggregation_adapter, shared=True
    )
    try:
        orchestrator.backend.limit(*base.engine_limits())  # for all requests together
        if profile is None and "profile" not in (read_toml(config) if config else {}):
            named = _default_profile(orchestrator.backend, choice, config, settings)
            server = dataclasses.replace(
                server, base=resolve(profile=named, file=config, settings=settings, default=named, any_question=True)
            )
        run_server(orchestrator, server, listener, print_status)
    finally:
        orchestrator.close()


def _check_access(host: str, key: str | None, origins: Sequence[str], *, allow_without_key: bool) -> None:
    """Raise `ConfigError` if other machines or sites could use the server without the user's consent."""
    from ..serve.config import is_loopback

    if key is None and not allow_without_key and not is_loopback(host):
        raise ConfigError(
            f"Other machines could use this server on {host} without a key; give --api-key-env NAME "
            "(or --allow-without-key)."
        )
    for origin in origins:
        if origin == "*" and (key is not None or not is_loopback(host)):
            raise ConfigError("--allow-origin '*' is for servers on loopback without a key. Name the sites.")
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin, re.IGNORECASE):
            raise ConfigError(
                f"--allow-origin is {origin!r}; give a scheme and a host, like https://chat.example.org or "
                "app://obsidian.md."
            )


def _default_profile(engine: Any, choice: ModelChoice, config: Path | None, settings: Mapping[str, Any]) -> str:
    """Choose a profile for this machine, and report it with the reason."""
    from ..predict.default_profile import ELIGIBLE, DefaultProfile, choose_profile
    from ..run.sync import run_sync
    from .estimate import QUESTION_TOKENS

    if choice.embedded:
        chosen = DefaultProfile(choice.default_profile, "the one of the embedded reasoner")
    elif not hasattr(engine, "timer"):
        chosen = DefaultProfile(choice.default_profile, "the smallest, because the speed of the server is unknown")
    else:
        configs = {}
        for name in ELIGIBLE:
            with contextlib.suppress(ConfigError):  # settings that do not suit this profile, such as a small population
                configs[name] = resolve(profile=name, file=config, settings=settings, default=name, any_question=True)
        chosen = run_sync(choose_profile(engine, configs, question_tokens=QUESTION_TOKENS, report=print_status))
    if chosen.suits:
        print_status(f"Profile {chosen.name}: {chosen.reason}. --profile NAME names another.")
    else:
        remedy = f" {as_options(chosen.settings)} fit." if chosen.settings else ""
        print_status(f"No profile suits this model: {chosen.name} does not, since {chosen.reason}.{remedy}")
    return chosen.name


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii():
        raise ConfigError(f"The environment variable {variable} does not hold a key in ASCII; set it.")
    protect(key)
    return key

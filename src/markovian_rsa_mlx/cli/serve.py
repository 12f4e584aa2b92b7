"""`mrsa serve`: the model behind the OpenAI protocol, until Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, ModelError
from .options import (
    MODEL,
    ForceOption,
    ModelChoice,
    config_option,
    finite,
    profile_option,
    resolve,
    with_engine,
    with_settings,
)
from .terminal import print_status

if TYPE_CHECKING:
    from ..config import RSAConfig

ACCESS, LIMITS = "Who may ask", "Limits of the server"
#: The settings of Zyphra's proxy, whose keys the server reads.
_TABLE = "apex-xhigh"


@with_settings
@with_engine
def serve(
    *,
    choice: ModelChoice,
    force: ForceOption = False,
    profile: Annotated[
        str | None,
        profile_option(
            MODEL,
            "Settings that requests leave unset, see mrsa profiles; unset: embedded with the embedded reasoner, "
            "else apex-xhigh, the defaults of Zyphra's proxy.",
        ),
    ] = None,
    config: Annotated[Path | None, config_option(MODEL)] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.", rich_help_panel=ACCESS)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65535, help="0 takes any that is free.", rich_help_panel=ACCESS
        ),
    ] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            "--api-key-env",
            metavar="NAME",
            help="The environment variable that holds the key which clients must send.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    allow_without_key: Annotated[
        bool,
        typer.Option(
            "--allow-without-key",
            help="Let other machines in although there is no key.",
            rich_help_panel=ACCESS,
        ),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A further name that clients know this server by (a proxy's); may be given several times.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    served_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-name",
            metavar="NAME",
            help="What programs call the model, beside its own name; may be given several times, the first stands in "
            "answers.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    queue: Annotated[
        int,
        typer.Option(
            "--queue",
            metavar="N",
            min=1,
            max=100_000,
            help="Most requests at once, waiting ones included.",
            rich_help_panel=LIMITS,
        ),
    ] = 64,
    max_body_mb: Annotated[
        float,
        typer.Option(
            "--max-body-mb",
            metavar="MB",
            min=0.001,
            max=1_000,
            help="Largest request body.",
            rich_help_panel=LIMITS,
            callback=finite,
        ),
    ] = 4.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            max=86_400,
            help="How long runs may go on after Ctrl-C or SIGTERM before they are cancelled; they can be resumed.",
            rich_help_panel=LIMITS,
            callback=finite,
        ),
    ] = 30.0,
    settings: Mapping[str, Any] = {},
) -> None:
    """Serve a model to programs that speak the OpenAI protocol.

    The keys of Zyphra's proxy in a request's body (rsa_t, rsa_n, rsa_k, ...) make it a run of Markovian RSA.

    Method and sampling settings are what requests leave unset; concurrency and memory limit bound all requests at once.
    """
    from . import run as session

    key = _key(api_key_env)
    _require_key(host, key, allow_without_key)
    base = resolve(profile, config, settings, "embedded" if choice.embedded else _TABLE)
    try:
        from ..serve.config import ServerSettings
        from ..serve.server import listen
        from ..serve.server import serve as run_server
    except ImportError as error:
        raise ModelError(
            f"The server's libraries are not installed ({error.name}); pip install 'markovian-rsa-mlx[serve]'."
        ) from error
    server = ServerSettings(
        base,
        queue,
        key,
        host,
        frozenset(allow_host or ()),
        int(max_body_mb * 1e6),
        grace,
        names=_names(served_name or []),
        any_question=force,
    )
    listener = listen(host, port)
    orchestrator = session.load(choice)
    try:
        _apply_limits(orchestrator, base)
        run_server(orchestrator, server, listener, print_status)
    finally:
        orchestrator.close()


def _names(names: list[str]) -> tuple[str, ...]:
    """Raises `ConfigError` for a name that no program could send or show."""
    for name in names:
        if not name.isprintable() or name != name.strip() or not name:
            raise ConfigError(f"--served-name is {name!r}; give a name of printable characters.")
    return tuple(dict.fromkeys(names))


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii():
        raise ConfigError(f"The environment variable {variable} holds no key in ASCII; set it.")
    return key


def _require_key(host: str, key: str | None, allow_without_key: bool) -> None:
    from ..serve.config import is_loopback

    if key is None and not is_loopback(host) and not allow_without_key:
        raise ConfigError(
            f"Other machines could use this server on {host} without a key; give --api-key-env NAME "
            "(or --allow-without-key)."
        )


def _apply_limits(orchestrator: Any, base: RSAConfig) -> None:
    """The engine's bounds are the server's: all requests together keep to them."""
    rows = None if base.concurrency == "auto" else base.concurrency
    memory = None if base.memory_limit_gb is None else int(base.memory_limit_gb * 1e9)
    orchestrator.backend.limit(rows, memory)

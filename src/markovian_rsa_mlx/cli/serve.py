"""`mrsa serve`: serve a model over the OpenAI protocol until Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, ModelError
from .command import Command, FiniteFloat, option
from .options import FORCE_OPTION, MODEL, ModelChoice, engine_options, profile_options, resolve, settings_options
from .terminal import print_status

ACCESS, LIMITS = "Access", "Limits of the server"
#: The default settings of Zyphra's proxy, whose request keys the server reads.
_PROXY_PROFILE = "apex-xhigh"


@click.command("serve", cls=Command)
@engine_options(key_flags=["--upstream-key-env"])
@FORCE_OPTION
@profile_options(
    MODEL,
    "Defaults for settings that a request leaves unset, see mrsa profiles; unset: embedded for the embedded reasoner, "
    "otherwise apex-xhigh, the defaults of Zyphra's proxy.",
)
@option(
    "--served-name",
    multiple=True,
    metavar="NAME",
    help="A further name of the model for clients; may be given several times, the first one is used in responses.",
    panel=MODEL,
)
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
    "--grace",
    type=FiniteFloat(0, 86_400),
    default=30.0,
    metavar="SECONDS",
    help="Time for active runs after Ctrl-C or SIGTERM before they are cancelled; they can be resumed.",
    panel=LIMITS,
)
@settings_options()
def serve(
    choice: ModelChoice,
    force: bool,
    profile: str | None,
    config: Path | None,
    served_name: tuple[str, ...],
    host: str,
    port: int,
    api_key_env: str | None,
    allow_without_key: bool,
    allow_host: tuple[str, ...],
    queue: int,
    max_body_mb: float,
    grace: float,
    settings: Mapping[str, Any],
) -> None:
    """Serve a model to programs that speak the OpenAI protocol.

    A request whose body has the keys of Zyphra's proxy (rsa_t, rsa_n, rsa_k, ...) becomes a run of Markovian RSA.

    Method and sampling settings are defaults for requests. Concurrency and memory limit apply to all requests together.
    """
    from ..serve.config import is_loopback
    from .run import load_orchestrator

    key = _read_key(api_key_env)
    if key is None and not allow_without_key and not is_loopback(host):
        raise ConfigError(
            f"Other machines could use this server on {host} without a key; give --api-key-env NAME "
            "(or --allow-without-key)."
        )
    for name in served_name:
        if not name.isprintable() or name != name.strip() or not name:
            raise ConfigError(f"--served-name is {name!r}; give a name of printable characters.")
    base = resolve(profile, config, settings, "embedded" if choice.embedded else _PROXY_PROFILE)
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
        frozenset(allow_host),
        int(max_body_mb * 1e6),
        grace,
        names=tuple(dict.fromkeys(served_name)),
        any_question=force,
    )
    listener = listen(host, port)
    orchestrator = load_orchestrator(choice, shared=True)
    try:
        orchestrator.backend.limit(*base.engine_limits())  # for all requests together
        run_server(orchestrator, server, listener, print_status)
    finally:
        orchestrator.close()


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii():
        raise ConfigError(f"The environment variable {variable} does not hold a key in ASCII; set it.")
    return key

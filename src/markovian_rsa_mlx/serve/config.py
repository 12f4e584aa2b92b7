"""Settings of a server. A request cannot change them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

from ..config import RSAConfig


@dataclass(frozen=True)
class ServerSettings:
    """`base` holds the settings that a request leaves unset."""

    base: RSAConfig
    queue: int = 64  #: maximum number of concurrent runs, waiting ones included
    api_key: str | None = None  #: None: requests need no key
    host: str = "127.0.0.1"
    hosts: frozenset[str] = field(default_factory=frozenset)  #: further names accepted in the Host header
    max_body_bytes: int = 4_000_000
    grace_s: float = 30.0  #: time that active runs get to finish when the server stops
    names: tuple[str, ...] = ()  #: model names for clients, the first one is used in answers; empty: the model's own
    any_question: bool = False  #: accept questions that the embedded reasoner was not trained for
    strict: bool = False  #: refuse unknown keys of a request instead of ignoring them
    rsa_models: Literal["none", "default", "all"] = "all"  #: names that stand for runs: none, the profile's, or all
    always_rsa: bool = False  #: every chat request is a run
    origins: frozenset[str] = field(default_factory=frozenset)  #: sites whose pages may use the server
    heartbeat_s: float = 0.0  #: time between two spaces before the body of a long response; 0: none


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`."""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(name: str) -> bool:
    """Return whether `name` is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

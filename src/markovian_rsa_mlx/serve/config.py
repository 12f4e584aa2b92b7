"""How a server is set up; nothing here can be changed by a request."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from ..config import RSAConfig


@dataclass(frozen=True)
class ServerSettings:
    """`base` is what requests leave unset; `api_key` None asks for none; `hosts` are further names of this server."""

    base: RSAConfig
    queue: int = 64  #: runs at once, waiting for the engine or in it
    api_key: str | None = None
    host: str = "127.0.0.1"
    hosts: frozenset[str] = field(default_factory=frozenset)
    max_body_bytes: int = 4_000_000
    grace_s: float = 30.0  #: for the runs under way when the server is told to stop
    names: tuple[str, ...] = ()  #: what clients call the model, the first in answers; none: its own name
    any_question: bool = False  #: let the embedded reasoner be asked what it was not made for


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host.lower() == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback


def is_address(name: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

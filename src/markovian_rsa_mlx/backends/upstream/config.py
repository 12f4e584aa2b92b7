"""Validate the settings of upstream servers: URLs, model, key, tokenizer, seeds and time limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import httpx2

from ...errors import ConfigError
from ...redact import protect

Seeds = Literal["auto", "always", "never"]
_HOST_NAME = re.compile(r"""[^\s%*<>"|^`{}\\.]{1,63}(\.[^\s%*<>"|^`{}\\.]{1,63})*\.?""")
SEED_CHOICES: tuple[Seeds, ...] = ("auto", "always", "never")


@dataclass(frozen=True, init=False)
class TimeLimits:
    """Time limits in seconds.

    `first_token_s` also bounds how long to retry while all servers throttle their requests, and
    `unreachable_timeout_s` how long to retry while none can be reached.
    """

    connect_s: float
    first_token_s: float
    stall_s: float
    unreachable_timeout_s: float

    def __init__(
        self,
        connect_s: float = 10.0,
        first_token_s: float = 600.0,
        stall_s: float = 120.0,
        unreachable_timeout_s: float = 60.0,
        *,
        patience_s: float | None = None,
    ) -> None:
        """Accept `patience_s`, the former name of `unreachable_timeout_s`, too."""
        object.__setattr__(self, "connect_s", connect_s)
        object.__setattr__(self, "first_token_s", first_token_s)
        object.__setattr__(self, "stall_s", stall_s)
        object.__setattr__(self, "unreachable_timeout_s", unreachable_timeout_s if patience_s is None else patience_s)

    @property
    def patience_s(self) -> float:
        """The former name of `unreachable_timeout_s`."""
        return self.unreachable_timeout_s


@dataclass(frozen=True)
class Upstream:
    """The servers of one model. Raises `ConfigError` for invalid settings.

    `limit` bounds the requests in flight per URL (unset: the server's own limit). `tokenizer` is a folder, a hub id or
    a GGUF file (unset: the model's folder or hub id, or the server's tokenizer). `seeds` is "auto" to send each trace's
    seed unless that disables the server's batching, "always" or "never". The key is sent only to these URLs. It is
    neither shown nor recorded.
    """

    urls: tuple[str, ...]
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    tokenizer: str | None = None
    seeds: Seeds = "auto"
    limit: int | None = None
    times: TimeLimits = TimeLimits()

    def __post_init__(self) -> None:
        if not self.urls:
            raise ConfigError("No upstream URL is given. Give at least one, such as http://127.0.0.1:8080/v1.")
        object.__setattr__(self, "urls", tuple(dict.fromkeys(map(base_url, self.urls))))
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            # The error of the HTTP library would quote the header, and with it the key.
            raise ConfigError("The upstream key must consist of printable ASCII characters to be sent in a header.")
        protect(self.api_key)
        if self.seeds not in SEED_CHOICES:
            raise ConfigError(f"The upstream seeds must be one of {' | '.join(SEED_CHOICES)} (got {self.seeds!r}).")
        if self.limit is not None and not 1 <= self.limit <= 10_000:
            raise ConfigError(f"The upstream limit must be 1 to 10,000 requests per URL (got {self.limit}).")


def base_url(url: str) -> str:
    """Return the root of the API, such as http://127.0.0.1:8080/v1, without a trailing slash. Raises `ConfigError`."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname or ""
        valid = parts.scheme in ("http", "https") and parts.port != 0 and not re.search(r"\s", url.strip())
        valid = valid and bool(":" in host or _HOST_NAME.fullmatch(host))  # an IPv6 address has colons
        httpx2.URL(url.strip())  # has further rules for host names
    except (ValueError, httpx2.InvalidURL):
        # The error of the library would quote the URL, and with it a password.
        raise ConfigError(
            f"The upstream URL {_without_user(url)!r} has a bad address or port. Give one such as "
            "http://127.0.0.1:8080/v1."
        ) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"The upstream URL of host {parts.hostname} must not contain a user name, password, query or fragment. "
            "Give the key in an environment variable (--upstream-key-env NAME)."
        )
    if not valid:
        raise ConfigError(f"{_without_user(url)!r} is not an upstream URL. Give one such as http://127.0.0.1:8080/v1.")
    path = parts.path.rstrip("/")
    for endpoint in ("/chat/completions", "/completions"):
        path = path.removesuffix(endpoint)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _without_user(url: str) -> str:
    """Return a URL without the part before its host, which may be a password."""
    return url.rpartition("@")[2][:200]

"""Which servers to use and how: URLs, model, key, tokenizer, seeds and time limits, checked when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from ...errors import ConfigError

Seeds = Literal["auto", "always", "never"]
SEED_CHOICES: tuple[Seeds, ...] = ("auto", "always", "never")


@dataclass(frozen=True)
class TimeLimits:
    """Seconds. `patience_s` is how long servers of which none can be reached are waited for.

    `first_token_s` is also how long servers are waited for that put every call off.
    """

    connect_s: float = 10.0
    first_token_s: float = 600.0
    stall_s: float = 120.0
    patience_s: float = 60.0


@dataclass(frozen=True)
class Upstream:
    """Servers of one model. `limit` bounds the requests in flight at each URL (unset: what the server says it can).

    `tokenizer` is a folder, a hub id or a GGUF file; unset: the model's own folder, or the server's tokenizer.
    `seeds`: "auto" sends each trace's seed unless that costs the server its batching; "always"; "never".
    The key is sent to these URLs alone, and neither shown nor recorded. Raises `ConfigError`.
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
            raise ConfigError("No upstream URL is given; name one, as in http://127.0.0.1:8080/v1.")
        object.__setattr__(self, "urls", tuple(dict.fromkeys(map(base_url, self.urls))))
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            # HTTP's own error would quote the header, and with it the key.
            raise ConfigError("The upstream's key holds more than printable ASCII, so no header can carry it; mend it.")
        if self.seeds not in SEED_CHOICES:
            raise ConfigError(f"The upstream seeds are {self.seeds!r}; allowed: {' | '.join(SEED_CHOICES)}.")
        if self.limit is not None and not 1 <= self.limit <= 10_000:
            raise ConfigError(f"The upstream limit is {self.limit}; allowed: 1 to 10,000 requests at each URL.")


def base_url(url: str) -> str:
    """The API's root, `/v1` and all, without a slash at its end. Raises `ConfigError`."""
    parts = urlsplit(url.strip())
    try:
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        sound = False
    if not sound:
        raise ConfigError(f"{url!r} is no upstream URL; give one like http://127.0.0.1:8080/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"The upstream URL of {parts.hostname} holds more than an address; give keys through an environment "
            "variable (--upstream-key-env NAME)."
        )
    path = parts.path.rstrip("/")
    for endpoint in ("/chat/completions", "/completions"):
        path = path.removesuffix(endpoint)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"

"""Proxies and certificates as the user's environment names them, for upstream servers and the hub.

Servers on this machine's loopback are always reached directly. Others are reached through a proxy only if a variable
(HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) names one and NO_PROXY does not exempt them. Settings of the operating system are
not read.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from .errors import ConfigError
from .redact import protect

if TYPE_CHECKING:
    import httpx2

#: Variables that name trusted certificates, the first one that is set counts.
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class Proxy:
    """A proxy and the environment variable that names it."""

    variable: str
    url: str

    def __str__(self) -> str:
        """Describe it without its user name and password."""
        parts = urlsplit(self.url)
        return f"the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.variable})"


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy for a URL, or None to connect directly. Raises `ConfigError` for an unusable variable."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if is_this_machine(host) or _is_exempt(host, port):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if variable == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ:
                continue  # in a CGI program, a client sets it with the header "Proxy"
            if value := os.environ.get(variable, "").strip():
                return Proxy(variable, _checked_proxy(variable, value))
    return None


def is_this_machine(host: str) -> bool:
    """Return True for a name or an address by which this machine reaches itself, 0.0.0.0 included."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    if address is None:
        with contextlib.suppress(OSError, ValueError):  # short forms, such as 127.1
            address = ipaddress.ip_address(socket.inet_aton(host))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address is not None and (address.is_loopback or address.is_unspecified)


def client_settings(url: str) -> dict[str, Any]:
    """Return the arguments of an `httpx2` client for this URL. Raises `ConfigError` for an unusable variable."""
    import httpx2

    proxy = proxy_for(url)
    settings: dict[str, Any] = {"trust_env": False, "verify": _context_for(url)}
    if proxy is not None:
        settings["proxy"] = httpx2.Proxy(proxy.url, ssl_context=tls_context() if _is_tls(proxy.url) else None)
    return settings


def hub_client() -> httpx2.Client:
    """Return a client for downloads from the hub, which come from several hosts, each reached as its URL requires."""
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    class Transport(httpx2.BaseTransport):
        def __init__(self) -> None:
            self._transports: dict[tuple[bool, Proxy | None], httpx2.HTTPTransport] = {}

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            url = str(request.url)
            key = _is_tls(url), proxy_for(url)
            if key not in self._transports:
                self._transports[key] = httpx2.HTTPTransport(**client_settings(url))
            return self._transports[key].handle_request(request)

        def close(self) -> None:
            for transport in self._transports.values():
                transport.close()

    hooks = {"request": [hf_request_event_hook]}
    return httpx2.Client(transport=Transport(), event_hooks=hooks, follow_redirects=True, timeout=None)


def names_network(environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if the environment names a proxy or certificates."""
    return any(
        value and (name in CERTIFICATE_VARIABLES or name.lower().endswith("_proxy"))
        for name, value in environment.items()
    )


def tls_context() -> ssl.SSLContext:
    """Return the TLS context with the certificates of the environment. Raises `ConfigError` if it cannot be made."""
    for variable in CERTIFICATE_VARIABLES:
        if path := os.environ.get(variable, "").strip():
            return _context_of(variable, path)
    return _default_context()


def _is_tls(url: str) -> bool:
    return urlsplit(url).scheme == "https"


def _context_for(url: str) -> ssl.SSLContext:
    """Return the TLS context for a URL. One without TLS gets a context that trusts no certificate."""
    return tls_context() if _is_tls(url) else _context_without_certificates()


# A context is made once: loading the certificates takes longer than a call.


@functools.cache
def _default_context() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


@functools.cache
def _context_without_certificates() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def _context_of(variable: str, path: str) -> ssl.SSLContext:
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        if variable == "SSL_CERT_DIR":
            raise NotADirectoryError("there is no such folder")
        return ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        cause = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{variable} names certificates that cannot be read, {path!r} ({cause}); correct the variable or unset it."
        ) from error


def _checked_proxy(variable: str, value: str) -> str:
    """Return the URL of a proxy and protect its password. Raises `ConfigError`."""
    url = value if "://" in value else f"http://{value}"
    advice = "give one such as http://host:3128, or unset the variable."
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        # The value is not quoted, because it may hold a password.
        raise ConfigError(f"{variable} is not the URL of a proxy (bad address or port); {advice}") from error
    if parts.password:
        protect(parts.password)
        protect(unquote(parts.password))
    if not host or re.search(r"[\s\x00-\x1f]", url):
        raise ConfigError(f"{variable} is not the URL of a proxy (it names no host); {advice}")
    if parts.scheme not in _PROXY_SCHEMES:
        known = ", ".join(_PROXY_SCHEMES)
        raise ConfigError(f"{variable} names a proxy of the scheme {parts.scheme!r} (known: {known}); {advice}")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigError(f"{variable} names a SOCKS proxy, which needs a package: pip install socksio.")
    return url


def _is_exempt(host: str, port: int) -> bool:
    """Return True if NO_PROXY names a host: its name, a domain above it, its address, a network of it, or "*"."""
    entries = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    address = _address(host)
    for entry in re.split(r"[,\s]+", entries.lower()):
        name = entry.rpartition("://")[2]
        if name == "*":
            return True
        if in_brackets := re.fullmatch(r"\[(.*)\](?::(\d+))?(/\d+)?", name):  # IPv6, maybe with a port
            if in_brackets[2] not in (None, str(port)):
                continue
            name = in_brackets[1] + (in_brackets[3] or "")
        if address is not None:
            with contextlib.suppress(ValueError):
                if address in ipaddress.ip_network(name, strict=False):
                    return True
        name, _, of_port = name.partition(":") if name.count(":") == 1 else (name, "", "")
        domain = name.removeprefix("*").strip(".")
        if domain and (host.lower() == domain or host.lower().endswith(f".{domain}")) and of_port in ("", str(port)):
            return True
    return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

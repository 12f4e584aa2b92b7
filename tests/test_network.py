"""Proxies and certificates of the environment: which are used, which are passed over, which are errors."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx import hub, network
from markovian_rsa_mlx.backends.upstream import TimeLimits
from markovian_rsa_mlx.backends.upstream.errors import Unreachable
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.errors import ConfigError, ModelError
from markovian_rsa_mlx.network import client_settings, is_this_machine, proxy_for, tls_context
from markovian_rsa_mlx.redact import redact

from .backends.raw_server import MODELS, Answer, raw_server


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.lower().endswith("_proxy") or name in network.CERTIFICATE_VARIABLES:
            monkeypatch.delenv(name)


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that refuses everything: its address, and what it got."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    got.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", got


def get_models(url: str) -> object:
    client = HTTPClient(url, "sk-a-key-of-the-test", TimeLimits(connect_s=2))
    return asyncio.run(client.fetch(f"{url}/models", limit_s=10))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.8.7", "::1", "localhost", "LOCALHOST.", "a.b.localhost", "127.1", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["localhost.example", "mylocalhost", "128.0.0.1", "::2", "10.0.0.1", "127.0.0.1.example", ""]
)
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_this_machine(host)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_no_byte_of_a_loopback_call_reaches_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[bytes]], variable: str
) -> None:
    monkeypatch.setenv(variable, f"http://{proxy[0]}")
    with raw_server(lambda *_: Answer(404)) as url:
        assert get_models(url) == MODELS
        assert get_models(url.replace("127.0.0.1", "localhost")) == MODELS
    assert not proxy[1]


def test_named_proxy_is_used_for_other_hosts(monkeypatch: pytest.MonkeyPatch, proxy: tuple[str, list[bytes]]) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:pass-word-1@{proxy[0]}")
    with pytest.raises(Exception, match="502"):
        get_models("http://gpu.example:8000/v1")
    assert b"gpu.example:8000" in proxy[1][0]
    named = proxy_for("http://gpu.example:8000/v1")
    assert str(named) == f"the proxy http://{proxy[0]} (HTTP_PROXY)"
    assert redact("the pass-word-1 of it") == "the [redacted] of it"


def test_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "127.0.0.1:9")
    with pytest.raises(Unreachable, match="ALL_PROXY"):
        get_models("http://gpu.example/v1")


@pytest.mark.parametrize(
    ("exempt", "direct"),
    [
        ("gpu.example", True),
        (".example", True),
        ("*.example", True),
        ("example,other", True),
        ("other gpu.example", True),
        ("gpu.example:8000", True),
        ("GPU.Example", True),
        ("*", True),
        ("http://gpu.example", True),
        ("gpu.example:80", False),
        ("pu.example", False),
        ("gpu.example.org", False),
        ("10.0.0.0/8", False),
        ("", False),
    ],
)
def test_hosts_of_no_proxy(monkeypatch: pytest.MonkeyPatch, exempt: str, direct: bool) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert (proxy_for("http://gpu.example:8000/v1") is None) == direct


@pytest.mark.parametrize(
    ("exempt", "url", "direct"),
    [
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.1.2.3", "http://10.1.2.3:80/", True),
        ("11.0.0.0/8", "http://10.1.2.3/", False),
        ("fe80::/10,[fd00::1]", "http://[fd00::1]:8000/", True),
        ("fd00::/8", "http://[fd12::1]/", True),
        ("::1,fe80::/10", "http://[fd12::1]/", False),
        ("[fd12::1]:8000", "http://[fd12::1]:8000/", True),
        ("[fd12::1]:8000", "http://[fd12::1]:8001/", False),
        ("[fd12::]/16", "http://[fd12::1]/", True),
        ("10.1.2.3:8000", "http://10.1.2.3:8000/", True),
    ],
)
def test_networks_of_no_proxy(monkeypatch: pytest.MonkeyPatch, exempt: str, url: str, direct: bool) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert (proxy_for(url) is None) == direct


@pytest.mark.parametrize(
    "value", ["socks://p:1", "ftp://p", "http://p:port", "http://[::1", "http://:80", "://", "http://a b"]
)
def test_unusable_proxy_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        client_settings("https://gpu.example/v1")
    assert "proxy" not in client_settings("http://gpu.example/v1")


def test_socks_proxy_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://p:1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="all_proxy"):
        proxy_for("http://gpu.example")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert str(proxy_for("http://gpu.example")) == "the proxy socks5://p:1 (all_proxy)"


@pytest.mark.parametrize("variable", network.CERTIFICATE_VARIABLES)
def test_unusable_certificates_are_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        monkeypatch.setenv(variable, str(path))
        with pytest.raises(ConfigError, match=variable):
            client_settings("https://gpu.example")
        assert not client_settings("http://gpu.example")["verify"].get_ca_certs()


def test_certificates_of_a_folder_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert tls_context().verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    ("variable", "value"), [("HTTPS_PROXY", "http://p:port"), ("REQUESTS_CA_BUNDLE", "/no/such/file.pem")]
)
def test_hub_names_the_variable_that_is_in_the_way(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    import huggingface_hub
    from huggingface_hub import utils

    monkeypatch.setenv(variable, value)
    hub._use_environment.cache_clear()
    try:
        with pytest.raises(ModelError, match=variable):
            hub.fetch_files("some/model-that-is-not-cached", None, hub.CONFIG_FILES)
    finally:
        huggingface_hub.set_client_factory(utils._http.default_client_factory)
        hub._use_environment.cache_clear()


def test_proxy_that_a_client_of_a_cgi_program_names_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUEST_METHOD", "GET")
    monkeypatch.setenv("HTTP_PROXY", "http://evil:3128")
    assert proxy_for("http://gpu.example/v1") is None
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    found = proxy_for("http://gpu.example/v1")
    assert found is not None
    assert found.url == "http://proxy:3128"

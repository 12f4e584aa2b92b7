"""Tests of the options of `mrsa serve`; tests/serve has those of the server."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.serve import server
from markovian_rsa_mlx.serve.config import ServerSettings

from .conftest import Run

FAKE = ("serve", "--model", "fake/model", "--port", "0")


@pytest.fixture
def served(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """The settings of servers that the commands would have started."""
    found: list[ServerSettings] = []

    def serve(orchestrator: Any, settings: ServerSettings, listener: socket.socket, progress: Any) -> None:
        progress("Serving.")
        listener.close()
        found.append(settings)

    monkeypatch.setattr(server, "serve", serve)
    return found


def test_default_settings_depend_on_the_model(mrsa: Run, served: list[ServerSettings]) -> None:
    ran = mrsa(*FAKE)
    assert ran.code == 0
    assert "Serving." in ran.err
    assert served[0].base == RSAConfig.apex_xhigh()
    mrsa("serve", "--port", "0")
    assert served[1].base == RSAConfig.embedded()
    mrsa(*FAKE, "--profile", "paper-16k", "--population", "20")
    assert served[2].base == RSAConfig.paper_16k().replace(population=20)


def test_public_address_without_key_exits_2(
    mrsa: Run, served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = mrsa(*FAKE, "--host", "0.0.0.0")
    assert ran.code == 2
    assert "--api-key-env" in ran.err
    assert mrsa(*FAKE, "--host", "0.0.0.0", "--allow-without-key").code == 0
    monkeypatch.setenv("THE_KEY", "secret")
    assert mrsa(*FAKE, "--host", "0.0.0.0", "--api-key-env", "THE_KEY").code == 0
    assert [settings.api_key for settings in served] == [None, "secret"]


def test_served_names_are_unique_and_printable(mrsa: Run, served: list[ServerSettings]) -> None:
    assert mrsa(*FAKE, "--served-name", "gpt-4o", "--served-name", "b", "--served-name", "gpt-4o").code == 0
    assert served[0].names == ("gpt-4o", "b")
    for name in ("", " a", "a\n"):
        ran = mrsa(*FAKE, "--served-name", name)
        assert ran.code == 2
        assert "--served-name" in ran.err


@pytest.mark.parametrize("value", [None, "", "  ", "schlüssel"])
def test_variable_without_a_key_exits_2(
    mrsa: Run, served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("THE_KEY", value)
    ran = mrsa(*FAKE, "--api-key-env", "THE_KEY")
    assert ran.code == 2
    assert "THE_KEY" in ran.err
    assert not served


def test_port_in_use_exits_2(mrsa: Run, served: list[ServerSettings]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = mrsa("serve", "--model", "fake/model", "--port", str(taken.getsockname()[1]))
    assert ran.code == 2
    assert "cannot listen" in ran.err
    assert not served


def test_options_become_server_settings(mrsa: Run, served: list[ServerSettings]) -> None:
    mrsa(
        *FAKE,
        "--queue",
        "3",
        "--max-body-mb",
        "0.5",
        "--grace",
        "7",
        "--allow-host",
        "a",
        "--allow-host",
        "b",
        "--force",
    )
    (settings,) = served
    assert (settings.queue, settings.max_body_bytes, settings.grace_s) == (3, 500_000, 7)
    assert settings.hosts == {"a", "b"}
    assert settings.any_question

"""Tests of the options of `mrsa serve`; tests/serve has those of the server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import redact
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.predict import default_profile
from markovian_rsa_mlx.serve import server
from markovian_rsa_mlx.serve.config import ServerSettings

from ..support.fakes import FakeBackend
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
    assert served[0].base == RSAConfig.default_16gb().replace(answer_kind="auto")
    assert "Profile default-16gb" in ran.err
    assert "Profile embedded" in mrsa("serve", "--port", "0").err
    assert served[1].base == RSAConfig.embedded()
    assert "Profile" not in mrsa(*FAKE, "--profile", "paper-16k", "--population", "20").err
    assert served[2].base == RSAConfig.paper_16k().replace(population=20, answer_kind="auto")


def test_options_are_named_if_no_profile_suits(
    mrsa: Run, served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def choose_profile(*_: Any, **__: Any) -> default_profile.DefaultProfile:
        return default_profile.DefaultProfile("default-16gb", "it is long", suits=False, settings={"final_tokens": 7})

    monkeypatch.setattr(FakeBackend, "timer", None, raising=False)
    monkeypatch.setattr(default_profile, "choose_profile", choose_profile)
    ran = mrsa(*FAKE)
    assert "No profile suits this model" in ran.err
    assert "--final-tokens 7" in ran.err
    assert "--profile NAME" not in ran.err
    assert served[0].base.final_tokens == RSAConfig().final_tokens


def test_profile_of_this_machine_is_chosen_unless_one_is_named(
    mrsa: Run, served: list[ServerSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def choose_profile(engine: Any, configs: dict[str, RSAConfig], **_: Any) -> default_profile.DefaultProfile:
        assert configs["paper-light-8k"].temperature == 0.5
        return default_profile.DefaultProfile("paper-light-8k", "the best one")

    monkeypatch.setattr(FakeBackend, "timer", None, raising=False)
    monkeypatch.setattr(default_profile, "choose_profile", choose_profile)
    ran = mrsa(*FAKE, "--temperature", "0.5")
    assert "Profile paper-light-8k: the best one." in ran.err
    assert served[0].base == RSAConfig.paper_light_8k().replace(temperature=0.5, answer_kind="auto")
    file = tmp_path / "settings.toml"
    file.write_text("population = 5\ntemperature = 0.5\n")
    mrsa(*FAKE, "--config", str(file))
    assert (served[1].base.population, served[1].base.thinking_tokens) == (5, 8_000)
    file.write_text('profile = "paper-16k"\n')
    assert "Profile" not in mrsa(*FAKE, "--config", str(file)).err
    assert served[2].base.thinking_tokens == 16_000


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


ORIGINS = ("https://chat.example.org", "http://localhost:3000", "app://obsidian.md", "tauri://localhost", "Chrome-Extension://abc",
           "vscode-webview://x", "moz-extension://0-a", "web+app.x://y")  # fmt: skip


def test_sites_and_apps_are_allowed_by_their_origins(mrsa: Run, served: list[ServerSettings]) -> None:
    options = [word for origin in ORIGINS for word in ("--allow-origin", origin)]
    assert mrsa(*FAKE, *options).code == 0
    assert served[0].origins == {origin.lower() for origin in ORIGINS}
    for origin in (
        "obsidian.md",
        "app://",
        "app://x/y",
        "https://a@b",
        "https://a?b",
        "null",
        "://x",
        "1a://x",
        "a b://x",
    ):
        ran = mrsa(*FAKE, "--allow-origin", origin)
        assert (ran.code, "--allow-origin" in ran.err) == (2, True)


def test_key_of_the_server_is_struck_out_of_messages(
    mrsa: Run, served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redact, "_secrets", set())
    redact._forms.cache_clear()
    monkeypatch.setenv("THE_KEY", "sk-serve-0123456789")
    assert mrsa(*FAKE, "--api-key-env", "THE_KEY").code == 0
    assert served[0].api_key == "sk-serve-0123456789"
    assert redact.redact("key=sk-serve-0123456789") == f"key={redact.MASK}"
    redact._forms.cache_clear()


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
    assert "attempting" not in ran.err  # the text of create_server names the address a second time
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

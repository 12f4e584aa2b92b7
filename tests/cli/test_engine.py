"""Tests of the options that choose an engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.upstream import Upstream, UpstreamEngine, probe
from markovian_rsa_mlx.cli.engine_options import ModelChoice, choose_engine, choose_model
from markovian_rsa_mlx.cli.run import load_orchestrator
from markovian_rsa_mlx.errors import ConfigError

from ..backends import tiny_models
from ..backends.adapters import write_adapter
from ..backends.fake_upstream import FakeUpstream, Running
from ..support.fakes import CharacterTokenizer
from .conftest import Run

URL = "http://127.0.0.1:9/v1"
SMALL = ("--rounds", "1", "--population", "3", "--aggregation-size", "2", "--seed", "7", "--answer-kind", "text")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--upstream", URL, "--model", "a/b"), "--upstream-model"),
        (("--upstream", URL, "--adapter", "folder"), "--adapter"),
        (("--upstream", URL, "--revision", "main"), "--revision"),
        (("--upstream-model", "m"), "--upstream URL"),
        (("--api-key-env", "HOME"), "--upstream URL"),
        (("--tokenizer", "folder"), "--upstream URL"),
        (("--upstream", "nonsense"), "http://127.0.0.1:8080/v1"),
        (("--upstream", URL, "--upstream-seeds", "often"), "auto | always | never"),
        (("--upstream", URL, "--upstream-limit", "0"), "10,000"),
        (("--upstream", URL, "--api-key-env", "MRSA_NO_SUCH_KEY"), "MRSA_NO_SUCH_KEY"),
    ],
)
def test_conflicting_engine_options_exit_2(mrsa: Run, options: tuple[str, ...], part: str) -> None:
    ran = mrsa("solve", "What is it?", *options)
    assert ran.code == 2
    assert part in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", ["--api-key-env", "--upstream-key-env"])
def test_run_over_an_upstream_server_does_not_reveal_the_key(
    mrsa: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(probe, "choose_tokenizer", lambda *_, **__: CharacterTokenizer())
    monkeypatch.setenv("MRSA_TEST_KEY", "the-secret")
    server = Running(FakeUpstream("vllm", key="the-secret"))
    try:
        audit = tmp_path / "run.jsonl"
        line = ("solve", "What is it?", "--upstream", server.url, name, "MRSA_TEST_KEY", "--audit", str(audit), *SMALL)
        ran = mrsa(*line, "--json")
        assert ran.code == 0, ran.err
        result = json.loads(ran.out)
        assert result["model"] == "fake/model"
        assert result["peak_memory_bytes"] == 0
        assert "memory" not in ran.err
        assert "the-secret" not in ran.out + ran.err + audit.read_text()
        assert mrsa("runs", "verify", str(audit), "--allow-unchecked-text").code == 0
        assert "memory" not in mrsa("runs", "show", str(audit)).out
    finally:
        server.stop()


@pytest.mark.parametrize("command", ["solve X --force --profile embedded", "doctor", "tune", "plan"])
def test_revision_of_a_folder_or_the_embedded_model_is_refused(mrsa: Run, tmp_path: Path, command: str) -> None:
    for model in ([], ["--model", str(tiny_models.write(tmp_path / "tiny"))]):
        ran = mrsa(*command.split(), *model, "--revision", "v2")
        assert ran.code == (1 if command == "doctor" else 2)
        assert "revision is 'v2'" in ran.err + ran.out


def test_an_adapter_is_used_with_the_embedded_model(mrsa: Run, tmp_path: Path) -> None:
    ask = ("solve", "Calculate 12 + 34 - 11.", "--force", "--json", "--quiet", *SMALL)
    plain = json.loads(mrsa(*ask).out)
    missing = mrsa(*ask, "--adapter", str(tmp_path / "none"))
    assert missing.code == 1
    assert "adapter_config.json" in missing.err
    adapter = write_adapter(reasoner.model_path(), tmp_path / "adapter", size=0.3)
    adapted = mrsa(*ask, "--adapter", str(adapter))
    assert json.loads(adapted.out)["answer"] != plain["answer"]


def test_unreachable_server_exits_1_with_one_line(mrsa: Run) -> None:
    ran = mrsa("solve", "What is it?", "--upstream", "http://127.0.0.1:9/v1", "--quiet", "--profile", "paper-16k")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "cannot be reached" in ran.err


def test_choose_engine_without_options_is_the_embedded_reasoner() -> None:
    choice = choose_engine(upstream=[URL, URL], upstream_timeout=5.0)
    assert choice.upstream is not None
    assert choice.upstream.urls == (URL,)
    assert (choice.upstream.times.first_token_s, choice.upstream.times.stall_s) == (5.0, 5.0)
    assert not choice.embedded
    assert choose_engine().embedded
    assert choose_model("a/b", "main") == ModelChoice("a/b", "main")


def test_speculation_is_on_unless_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose_engine(speculate=given).speculate for given in (None, "on", "off")] == [True, True, False]
    orchestrator = load_orchestrator(choose_engine(speculate="off"), quiet=True)
    try:
        assert isinstance(orchestrator.engine, MLXEngine)
        assert not orchestrator.engine.speculate
    finally:
        orchestrator.close()
    with pytest.raises(ConfigError, match="--speculate has no effect with --upstream"):
        choose_engine(upstream=[URL], speculate="on")


def test_load_orchestrator_connects_to_the_chosen_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[Upstream] = []

    async def connect(upstream: Upstream, progress: object = None) -> object:
        connected.append(upstream)
        raise ConfigError("connected")

    monkeypatch.setattr(UpstreamEngine, "connect", connect)
    choice = choose_engine(upstream=[URL], upstream_limit=3)
    with pytest.raises(ConfigError, match="connected"):
        load_orchestrator(choice, quiet=True)
    assert connected == [dataclasses.replace(choice.upstream)] if choice.upstream else False


def test_a_width_of_the_cache_is_refused_for_servers() -> None:
    with pytest.raises(ConfigError, match=r"^kv_bits is 8, but a server [^.]+\.$"):
        load_orchestrator(choose_engine(upstream=[URL]), kv_bits=8)

"""The endpoints of models, health and metrics."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.backends.base import EngineInfo
from markovian_rsa_mlx.serve import completions

from ..support.fakes import FakeBackend
from .conftest import CHAT, RSA, PausedBackend, Running, Serve
from .test_disconnect import ask_in_the_background, wait_until


def values(server: Running) -> dict[str, float]:
    """Return each sample of the metrics, by name and labels."""
    text = server.get("/metrics").text
    assert re.fullmatch(r"((# (HELP|TYPE) .*|mrsa_\w+(\{.*\})? [\d.]+)\n)+", text)
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in samples}


class FolderBackend(FakeBackend):
    """An engine with a model from a folder."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, model_id="/home/user/models/zaya-4bit")


def test_models_lists_the_served_model(server: Running) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("fake", "model")
    assert server.get("/v1/models/fake").json() == model
    assert server.get("/v1/models/").json()["data"] == [model]
    assert server.get("/v1/models/other/one").status_code == 404


def test_served_names_replace_the_models_own(serve: Serve) -> None:
    server = serve(names=("gpt-4o", "local/best"))
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["gpt-4o", "local/best"]
    for name in ("gpt-4o", "local/best", "fake"):
        assert server.get(f"/v1/models/{name}").json()["id"] == name
        assert server.post(messages=CHAT, model=name).json()["model"] == "gpt-4o"
    for unset in ("", None):
        assert server.post(messages=CHAT, model=unset).json()["model"] == "gpt-4o"
    refusal = server.post(messages=CHAT, model="gpt-5").json()["error"]
    assert refusal["code"] == "model_not_found"
    assert "'gpt-4o'" in refusal["message"]


def test_folder_is_served_under_its_name(serve: Serve) -> None:
    server = serve(FolderBackend())
    assert server.get("/v1/models").json()["data"][0]["id"] == "zaya-4bit"
    assert server.post(messages=CHAT, model="zaya-4bit").json()["model"] == "zaya-4bit"
    assert server.post(messages=CHAT, model="/home/user/models/zaya-4bit").status_code == 200


def test_current_folder_is_served_under_its_name(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zaya-8bit").mkdir()
    monkeypatch.chdir(tmp_path / "zaya-8bit")
    monkeypatch.setattr(FolderBackend, "info", replace(FakeBackend().info, model_id="."))
    assert serve(FolderBackend()).get("/v1/models").json()["data"][0]["id"] == "zaya-8bit"


def test_metrics_count_runs_requests_and_tokens(server: Running) -> None:
    tokens = [server.post(**keys).json()["usage"]["completion_tokens"] for keys in ({"messages": CHAT}, RSA)]
    server.post(messages=[])
    server.get("/v1/nothing")
    found = values(server)
    assert found['mrsa_runs_total{kind="plain",outcome="ok"}'] == 1
    assert found['mrsa_runs_total{kind="rsa",outcome="ok"}'] == 1
    assert found['mrsa_requests_total{route="/v1/chat/completions",status="200"}'] == 2
    assert found['mrsa_requests_total{route="/v1/chat/completions",status="400"}'] == 1
    assert found['mrsa_requests_total{route="other",status="404"}'] == 1
    assert found["mrsa_generated_tokens_total"] == sum(tokens)
    assert found["mrsa_first_token_seconds_count"] == 2


def test_gauges_follow_the_active_runs(serve: Serve) -> None:
    server = serve(PausedBackend())
    thread, _ = ask_in_the_background(server, messages=CHAT, n=3)
    wait_until(lambda: values(server)["mrsa_engine_rows"] == 3)
    assert values(server)["mrsa_runs_active"] == 1
    wait_until(lambda: values(server)["mrsa_generated_tokens_total"] > 3)
    (run,) = server.manager.active
    server.post(f"/v1/runs/{run.state.run_id}/cancel")
    thread.join()
    found = values(server)
    assert (found["mrsa_engine_rows"], found["mrsa_runs_active"]) == (0, 0)
    assert found['mrsa_runs_total{kind="plain",outcome="cancelled"}'] == 1


def test_unexpected_error_is_counted(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "build_plan", lambda *_: 1 / 0)
    server.post(messages=CHAT)
    assert values(server)['mrsa_requests_total{route="/v1/chat/completions",status="500"}'] == 1


def test_metrics_keep_their_names_and_types(server: Running) -> None:
    server.post(messages=CHAT)
    lines = server.get("/metrics").text.splitlines()
    assert dict(line.split()[2:] for line in lines if line.startswith("# TYPE")) == {
        "mrsa_runs_total": "counter",
        "mrsa_run_seconds_total": "counter",
        "mrsa_requests_total": "counter",
        "mrsa_ignored_keys_total": "counter",
        "mrsa_first_token_seconds": "summary",
        "mrsa_generated_tokens_total": "counter",
        "mrsa_runs_active": "gauge",
        "mrsa_runs_waiting": "gauge",
        "mrsa_engine_rows": "gauge",
        "mrsa_queue_limit": "gauge",
    }
    assert not [line for line in lines if "_created" in line]

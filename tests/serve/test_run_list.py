"""The list of runs can be searched, filtered and sorted, and a run can be started in the background."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import run_store
from markovian_rsa_mlx.viewer import RunForm, runs_page
from tests.viewer.pages import data

from .conftest import CHAT, RSA, PausedBackend, Running, Serve
from .test_disconnect import ask_in_the_background, wait_until

QUESTIONS = ("How many primes?", "How many squares?", "Why <b>not</b>?")


def listed(server: Running, **params: Any) -> list[str]:
    return [item["prompt"] for item in server.get("/v1/runs", params=params).json()["data"]]


@pytest.fixture
def asked(server: Running) -> Running:
    """A server with three finished runs and one damaged file."""
    for seed, question in enumerate(QUESTIONS):
        body = {**RSA, "seed": seed, "messages": [{"role": "user", "content": question}], "rsa_n": 5 - seed}
        assert server.post(**body).status_code == 200
    (run_store.runs_folder() / "broken.jsonl").write_text("no JSON\n")
    return server


def test_runs_are_searched_filtered_and_sorted(asked: Running) -> None:
    primes, squares, why = QUESTIONS
    assert listed(asked, q="HOW many") == [squares, primes]
    assert listed(asked, q="fake how") == [squares, primes]  # the model's name counts, too
    assert listed(asked, q="<b>") == [why]
    assert listed(asked, q="nothing like it") == []
    assert listed(asked, state="damaged") == [""]
    assert listed(asked, state="finished", sort="oldest") == [primes, squares, why]
    assert listed(asked, state="finished", sort="question") == sorted(QUESTIONS, key=str.casefold)
    tokens = [item["generated_tokens"] for item in asked.get("/v1/runs?sort=most_tokens").json()["data"]]
    assert tokens == sorted(tokens, reverse=True)
    assert len(set(tokens)) > 1


def test_filtered_list_has_pages(asked: Running) -> None:
    first = asked.get("/v1/runs", params={"q": "how", "limit": 1}).json()
    assert first["has_more"]
    rest = asked.get("/v1/runs", params={"q": "how", "after": first["data"][0]["id"]}).json()
    assert [item["prompt"] for item in rest["data"]] == [QUESTIONS[0]]
    assert not rest["has_more"]
    elsewhere = asked.get("/v1/runs", params={"q": "why", "after": first["data"][0]["id"]})
    assert elsewhere.status_code == 400


def test_changed_file_is_described_again(asked: Running) -> None:
    assert len(listed(asked, state="finished")) == 3
    path = next(path for path in run_store.run_paths() if run_store.describe(path).prompt == QUESTIONS[0])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert listed(asked, state="unfinished") == [QUESTIONS[0]]


@pytest.mark.parametrize("params", [{"q": "x" * 201}, {"state": "ended"}, {"sort": "size"}])
def test_invalid_parameter_is_named(server: Running, params: dict[str, str]) -> None:
    answer = server.get("/v1/runs", params=params)
    assert (answer.status_code, [answer.json()["error"]["param"]]) == (400, list(params))


def test_run_without_a_trail_is_filtered_too(serve: Serve) -> None:
    paused = serve(PausedBackend())
    thread, _ = ask_in_the_background(paused, messages=CHAT)
    assert listed(paused, q="what", state="running") == ["What is it?"]
    assert listed(paused, q="why") == listed(paused, state="finished") == []
    paused.post(f"/v1/runs/{paused.get('/v1/runs').json()['data'][0]['id']}/cancel")
    thread.join()


def test_run_goes_on_in_the_background(server: Running) -> None:
    started = server.post("/v1/runs", **RSA)
    assert started.status_code == 202
    run_id = started.json()["id"]
    assert started.json()["trail"].endswith(".jsonl")
    wait_until(lambda: server.get(f"/v1/runs/{run_id}").json()["state"] == "finished")
    assert server.get(f"/v1/runs/{run_id}").json()["answer"]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"rsa_t": 0}, 400),
        ({"rsa_trail": False}, 400),
        ({"stream": True}, 400),
        ({"rsa_profile": "none such"}, 400),
        ({"model": "none such"}, 404),
        ({"messages": []}, 400),
    ],
)
def test_request_that_is_no_run_is_refused(server: Running, home: Path, changes: dict[str, Any], status: int) -> None:
    answer = server.post("/v1/runs", **RSA | changes)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert not home.exists()


def test_starting_a_run_respects_key_and_origin(serve: Serve) -> None:
    server = serve(api_key="secret")
    assert server.post("/v1/runs", **RSA).status_code == 401
    key = {"Authorization": "Bearer secret"}
    for foreign in ({"Origin": "https://other.example"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}):
        assert server.client.post("/v1/runs", json=RSA, headers=key | foreign).status_code == 403
    assert server.client.post("/v1/runs", json=RSA, headers=key | {"Origin": server.url}).status_code == 202
    as_form = server.client.post("/v1/runs", content=b"{}", headers=key | {"Content-Type": "text/plain"})
    assert as_form.status_code == 400  # a form of another site cannot send JSON


def test_page_has_a_form_only_where_runs_can_be_started(server: Running) -> None:
    start = data(server.get("/").text)["about"]["start"]
    assert start["models"] == list(server.manager.model_names)
    assert start["rounds"] == 1
    assert data(runs_page()[0])["about"]["start"] is None
    form = RunForm(["<b>"], [], 2)
    assert data(runs_page(start=form)[0])["about"]["start"] == {"models": ["<b>"], "profiles": [], "rounds": 2}

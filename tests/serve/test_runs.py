"""The endpoints of runs: list, describe, follow, download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.run_store import runs_folder

from ..support.fakes import FakeBackend
from ..support.runs import run as run_in_process
from .conftest import CHAT, RSA, PausedBackend, Running, Serve
from .test_disconnect import ask_in_the_background, wait_until


def events_of(text: str) -> list[tuple[int, str, dict[str, object]]]:
    """Return (id, event, data) of each event of a stream."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_runs_are_listed_newest_first_in_pages(server: Running) -> None:
    ids = [server.post(**RSA | {"seed": seed}).json()["rsa_metadata"]["run_id"] for seed in range(5)]
    page = server.get("/v1/runs", params={"limit": 2}).json()
    assert [item["id"] for item in page["data"]] == ids[:2:-1]
    assert page["has_more"]
    rest = server.get("/v1/runs", params={"limit": 10, "after": ids[3]}).json()
    assert [item["id"] for item in rest["data"]] == ids[2::-1]
    assert not rest["has_more"]


def test_run_of_the_command_line_is_listed(server: Running, home: Path) -> None:
    result = run_in_process(FakeBackend(), path=home / "of-solve.jsonl")
    item = server.get(f"/v1/runs/{result.run_id}").json()
    assert (item["state"], item["answer"], item["trail"]) == ("finished", result.answer, "of-solve.jsonl")
    assert server.get("/v1/runs").json()["data"] == [item]


def test_run_id_in_the_header_leads_to_the_trail(server: Running) -> None:
    answer = server.post(**RSA)
    run_id = answer.headers["X-MRSA-Run-Id"]
    assert answer.json()["rsa_metadata"]["run_id"] == run_id
    trail = server.get(f"/v1/runs/{run_id}/trail")
    assert trail.content == (runs_folder() / answer.json()["rsa_metadata"]["trail"]).read_bytes()
    assert json.loads(trail.text.splitlines()[0])["run_id"] == run_id


def test_events_of_a_finished_run_have_line_numbers(server: Running) -> None:
    metadata = server.post(**RSA).json()["rsa_metadata"]
    lines = (runs_folder() / metadata["trail"]).read_text().splitlines()
    events = events_of(server.get(f"/v1/runs/{metadata['run_id']}/events").text)
    assert [number for number, _, _ in events] == list(range(1, len(lines) + 1))
    assert [data for _, _, data in events] == [json.loads(line) for line in lines]
    assert all(name == data["event"] for _, name, data in events)
    rest = server.get(f"/v1/runs/{metadata['run_id']}/events", headers={"Last-Event-ID": "3"})
    assert events_of(rest.text) == events[3:]
    all_seen = server.get(f"/v1/runs/{metadata['run_id']}/events", headers={"Last-Event-ID": str(len(lines))})
    assert all_seen.status_code == 204


def test_long_and_damaged_lines_do_not_end_the_events(server: Running) -> None:
    metadata = server.post(**RSA).json()["rsa_metadata"]
    path = runs_folder() / metadata["trail"]
    lines = path.read_bytes().splitlines()
    lines[3:3] = [json.dumps({"event": "error", "message": "x" * 2_500_000}).encode(), b'{"event": "error\xff"}']
    path.write_bytes(b"\n".join(lines) + b"\n")
    events = events_of(server.get(f"/v1/runs/{metadata['run_id']}/events").text)
    assert [number for number, _, _ in events] == list(range(1, len(lines) + 1))
    assert events[-1][1] == "run_end"


def test_events_follow_a_run_until_it_is_cancelled(serve: Serve) -> None:
    paused = serve(PausedBackend(pause_s=0.01))
    thread, _ = ask_in_the_background(paused, **RSA)
    (run,) = paused.manager.active
    seen = []
    with paused.client.stream("GET", f"/v1/runs/{run.state.run_id}/events") as answer:
        for line in answer.iter_lines():
            seen.append(line)
            if line == "event: generation_start":
                wait_until(lambda: run.state.total_tokens > 5)
                run.task.get_loop().call_soon_threadsafe(run.cancel, "request")
    assert "event: run_setup" in seen
    assert "event: trace_checkpoint" in seen  # written when the run was cancelled
    thread.join()


def test_active_run_without_a_trail_is_listed_and_cancelled(serve: Serve) -> None:
    paused = serve(PausedBackend())
    thread, answers = ask_in_the_background(paused, messages=CHAT)
    (item,) = paused.get("/v1/runs").json()["data"]
    assert (item["state"], item["trail"]) == ("running", None)
    assert paused.get(f"/v1/runs/{item['id']}").json()["id"] == item["id"]
    assert paused.post(f"/v1/runs/{item['id']}/cancel").status_code == 200
    thread.join()
    assert answers[0].status_code == 409
    assert paused.get(f"/v1/runs/{item['id']}").status_code == 404
    wait_until(lambda: not paused.manager.active)


def test_paths_do_not_reach_other_files(server: Running, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir(parents=True)
    monkeypatch.chdir(home.parent)
    Path("abcdef").write_text('{"event": "run_start", "run_id": "abcdef"}\n')
    (home.parent / "secret.jsonl").write_text('{"event": "run_start", "run_id": "abc"}\n')
    for name in ("abc", "abcdef", "..%2Fsecret.jsonl", "%2Fetc%2Fpasswd", "x" * 500, "README.md", "%00"):
        assert server.get(f"/v1/runs/{name}/trail").status_code == 404
    assert server.get("/v1/runs", params={"limit": "0"}).status_code == 400
    assert server.get("/v1/runs", params={"limit": "1e3"}).status_code == 400
    assert server.get("/v1/runs", params={"after": "../secret"}).status_code == 400


def test_damaged_file_is_listed_as_damaged(server: Running, home: Path) -> None:
    home.mkdir(parents=True)
    (home / "bad.jsonl").write_bytes(b"\xff\n")
    (item,) = server.get("/v1/runs").json()["data"]
    assert (item["state"], item["id"]) == ("damaged", "")
    assert item["problem"]


def test_removed_file_does_not_break_the_list(server: Running, home: Path) -> None:
    metadata = server.post(**RSA).json()["rsa_metadata"]
    (home / "gone.jsonl").symlink_to(home / "nothing")  # in the folder, but without content
    assert [item["id"] for item in server.get("/v1/runs").json()["data"]] == [metadata["run_id"]]
    assert server.get(f"/v1/runs/{metadata['run_id']}").status_code == 200


def test_line_that_is_not_utf_8_does_not_end_the_events(server: Running, home: Path) -> None:
    home.mkdir(parents=True)
    lines = [b'{"event": "run_start", "run_id": "abcdef"}', b'{"event": "\xff"}', b'{"event": "run_end"}']
    (home / "2026-abcdef.jsonl").write_bytes(b"\n".join([*lines, b""]))
    text = server.get("/v1/runs/abcdef/events").text
    assert [line for line in text.splitlines() if line.startswith("id: ")] == ["id: 1", "id: 2", "id: 3"]
    assert 'data: {"event": "\ufffd"}' in text


def test_trail_of_the_server_is_valid(server: Running) -> None:
    metadata = server.post(**RSA | {"rsa_summarize": True, "summary_prompt": "{{ 7 }} 'Sum' it \"up\"!\n"}).json()
    verify_file(runs_folder() / metadata["rsa_metadata"]["trail"], equivalent=equal_text)
    prompts = [r.messages[-1]["content"] for r in server.backend.requests if "[notes]" in r.messages[-1]["content"]]
    assert prompts
    assert all(prompt.endswith("{{ 7 }} 'Sum' it \"up\"!") for prompt in prompts)


def test_answers_hold_no_path_of_the_server(server: Running, home: Path) -> None:
    answer = server.post(**RSA)
    run_id = answer.headers["X-MRSA-Run-Id"]
    name = answer.json()["rsa_metadata"]["trail"]
    assert (home / name).is_file()
    (home / name).write_bytes((home / name).read_bytes()[:-200] + b"no json\n")
    resumed = server.client.post(f"/v1/runs/{run_id}/resume")
    texts = [answer.text, server.get("/v1/runs").text, server.get(f"/v1/runs/{run_id}").text, resumed.text]
    assert not [text for text in texts if str(home) in text]

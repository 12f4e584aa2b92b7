"""Audit files of earlier versions still verify, show, open and resume, and seeds still give the recorded traces.

The files in `trails/` were recorded on earlier weights of the embedded model before the redesign; `vllm.jsonl` on
another model of a vLLM server. They must never be written again: a change that breaks one of them breaks the files
of users. `seeds.json` has digests of runs of the same questions and settings on the present weights. With new
weights, and only then, `python -m tests.test_recorded_runs` writes it.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit.log_file import OPTIONAL_FIELDS
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.cli import main
from markovian_rsa_mlx.config import ADDED_SETTINGS
from markovian_rsa_mlx.errors import ResumeError, VerificationError

FOLDER = Path(__file__).parent / "trails"
SEEDS = FOLDER / "seeds.json"
EMBEDDED = ["answer", "final_aggregation", "finished", "killed", "paired", "stopped", "summary"]
UNFINISHED = ["killed", "stopped"]
ALL = [*EMBEDDED, "vllm"]
FINISHED = [name for name in ALL if name not in UNFINISHED]
#: Fields that a seed does not determine.
VARIABLE = {
    "created_at", "elapsed_s", "engine_version", "memory_estimate_bytes", "memory_limit_bytes", "package_version",
    "peak_memory_bytes", "run_id",
}  # fmt: skip
Event = dict[str, Any]


@dataclass(frozen=True)
class Completed:
    """The exit code and the output of a command."""

    code: int
    out: str


def mrsa(*arguments: object) -> Completed:
    """Run a command in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(argument) for argument in arguments])
    return Completed(code, out.getvalue())


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.jsonl"


def read(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def recorded_question(events: list[Event]) -> tuple[str, RSAConfig]:
    """Return the question and the settings of a run."""
    (start,) = named(events, "run_start")
    return start["prompt"], RSAConfig.from_mapping(start["config"])


def comparable(events: list[Event]) -> list[str]:
    """Return what the seed determines of a run, in an order that does not depend on time.

    Fields that were added later are left out: the recorded files lack them.
    """
    found = []
    for event in events:
        if event["event"] != "trace_clock":
            added = OPTIONAL_FIELDS[event["event"]]
            content = {key: value for key, value in event.items() if key not in VARIABLE and key not in added}
            if "config" in content:
                content["config"] = {k: v for k, v in content["config"].items() if k not in ADDED_SETTINGS}
            found.append(json.dumps(content, ensure_ascii=False))
    return sorted(found)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep runs in a folder of the test."""
    monkeypatch.setenv("MRSA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def orchestrator() -> Iterator[MarkovianRSAOrchestrator]:
    """The embedded model."""
    with MarkovianRSAOrchestrator.from_pretrained() as opened:
        opened.any_question = True
        yield opened


@pytest.mark.parametrize("name", ALL)
def test_recorded_run_verifies(name: str) -> None:
    events = read(path_of(name))
    report = verify_file(path_of(name))
    assert report.run_id == events[0]["run_id"]
    assert report.finished == (name not in UNFINISHED)
    assert (report.lines, report.torn_bytes) == (len(events), 0)
    completed = named(events, "trace_complete") + named(events, "summary_complete")
    assert report.generated_tokens == sum(event["generated_tokens"] for event in completed)
    assert report.traces == len(named(events, "trace_complete"))


def test_recorded_runs_of_the_embedded_model_verify_with_its_tokenizer() -> None:
    verified = mrsa("runs", "verify", "--json", *map(path_of, EMBEDDED))
    assert verified.code == 0
    for report in json.loads(verified.out):
        assert (report["valid"], report["texts_checked"], report["unchecked"]) == (True, True, [])


def test_recorded_run_without_its_tokenizer_exits_with_3() -> None:
    verified = mrsa("runs", "verify", "--json", path_of("finished"), path_of("vllm"))
    assert verified.code == 3
    assert [report["texts_checked"] for report in json.loads(verified.out)] == [True, False]
    assert mrsa("runs", "verify", "--allow-unchecked-text", path_of("vllm")).code == 0
    assert mrsa("runs", "verify", path_of("vllm"), FOLDER / "none.jsonl").code == 1


def test_recorded_runs_verified_with_their_tokenizer_exit_with_0() -> None:
    assert mrsa("runs", "verify", "--model", "embedded-reasoner-v1", *map(path_of, EMBEDDED)).code == 0


@pytest.mark.parametrize("name", ALL)
def test_recorded_run_with_another_tail_is_refused(name: str, tmp_path: Path) -> None:
    lines = path_of(name).read_text(encoding="utf-8").splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"event": "tail_extracted"' in line)
    tail = json.loads(lines[number])
    tail["tail_token_ids"][0] += 1
    lines[number] = json.dumps(tail, ensure_ascii=False) + "\n"
    changed = tmp_path / "run.jsonl"
    changed.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(VerificationError, match=f"line {number + 1} "):
        verify_file(changed)
    assert mrsa("runs", "verify", changed).code == 1


@pytest.mark.parametrize("name", ALL)
def test_recorded_run_shows(name: str) -> None:
    events = read(path_of(name))
    shown = mrsa("runs", "show", path_of(name))
    assert shown.code == 0
    assert events[0]["prompt"].splitlines()[0] in shown.out
    for selection in named(events, "selection"):
        assert selection["answer"] in shown.out
        assert selection["chosen_trace_id"] in shown.out
    full = mrsa("runs", "show", "--full", path_of(name))
    assert full.code == 0
    rows = set(re.findall(r"^ *(r\d+-\d\d) ", full.out, re.MULTILINE))
    assert {event["trace_id"] for event in named(events, "trace_complete")} <= rows
    for final in named(events, "final"):
        prompts = [e for e in named(events, "aggregation_prompt") if e["trace_id"] == final["final_trace_id"]]
        read_ids = {trace_id for prompt in prompts for trace_id in prompt["selected_tail_trace_ids"]}
        texts = [e["tail_text"] for e in named(events, "tail_extracted") if e["trace_id"] in read_ids]
        lines = [line.strip(" |") for line in full.out.splitlines()]
        for text in (final["final_text"], *texts):
            # The first line of a tail may begin within a character.
            assert {line.strip(" |") for line in text.splitlines()[1:]} <= {*lines, ""}


def test_recorded_runs_are_listed(home: Path) -> None:
    (home / "runs").mkdir(parents=True)
    for name in ALL:
        shutil.copy(path_of(name), home / "runs")
    listed = mrsa("runs", "list", "--json")
    assert listed.code == 0
    entries = {Path(entry["path"]).stem: entry for entry in json.loads(listed.out)}
    assert set(entries) == set(ALL)
    for name, entry in entries.items():
        events = read(path_of(name))
        assert entry["state"] == ("unfinished" if name in UNFINISHED else "finished")
        assert {key: entry[key] for key in ("run_id", "created_at", "model_id", "prompt")} == {
            key: events[0][key] for key in ("run_id", "created_at", "model_id", "prompt")
        }
        assert entry["answer"] == next((event["answer"] for event in named(events, "selection")), "")
        assert entry["problem"] == ""
        assert mrsa("runs", "path", entry["run_id"]).out == f"{home / 'runs' / name}.jsonl\n"


@pytest.mark.parametrize("name", ALL)
def test_recorded_run_opens_as_a_page(name: str, tmp_path: Path) -> None:
    page_path = tmp_path / "run.html"
    opened = mrsa("view", path_of(name), "--with-trail", "--out", page_path)
    assert (opened.code, opened.out) == (0, f"{page_path}\n")
    page = page_path.read_text(encoding="utf-8")
    packed = re.findall(r'<script type="application/octet-stream" id="([\w-]+)">([A-Za-z0-9+/=]*)</script>', page)
    blocks = {block: gzip.decompress(base64.b64decode(content)) for block, content in packed}
    trail = path_of(name).read_bytes()
    assert trail in blocks.values()
    shown = "".join(content.decode() for content in blocks.values() if content != trail)
    events = read(path_of(name))
    traces = {event["trace_id"] for event in named(events, "trace_complete")}
    assert traces <= set(re.findall(r"r\d+-\d\d", shown))
    for final in named(events, "final"):
        assert json.dumps(final["final_text"], ensure_ascii=False)[1:-1] in shown


@pytest.mark.parametrize("name", [name for name in EMBEDDED if name not in UNFINISHED])
def test_finished_run_asked_again_returns_the_recorded_result(
    name: str, orchestrator: MarkovianRSAOrchestrator, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(path_of(name), tmp_path))
    events = read(copy)
    (final,), (selection,), (end,) = (named(events, name) for name in ("final", "selection", "run_end"))
    result = orchestrator.run(*recorded_question(events), audit_path=copy)
    assert result.resumed
    assert (result.run_id, result.text, result.answer) == (
        events[0]["run_id"], final["final_text"], selection["answer"],
    )  # fmt: skip
    assert (result.final_trace_id, result.generated_tokens) == (
        final["final_trace_id"], end["total_generated_tokens"],
    )  # fmt: skip
    assert copy.read_bytes() == path_of(name).read_bytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"rounds": 1}])
@pytest.mark.parametrize("name", ["finished", "killed"])
def test_recorded_run_with_another_setting_is_not_resumed(
    name: str, change: dict[str, Any], orchestrator: MarkovianRSAOrchestrator, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(path_of(name), tmp_path))
    question, config = recorded_question(read(copy))
    with pytest.raises(ResumeError):
        orchestrator.run(question, config.replace(**change), audit_path=copy)
    assert copy.read_bytes() == path_of(name).read_bytes()


def test_run_of_another_model_is_not_resumed(orchestrator: MarkovianRSAOrchestrator, tmp_path: Path) -> None:
    copy = Path(shutil.copy(path_of("vllm"), tmp_path))
    with pytest.raises(ResumeError):
        orchestrator.run(*recorded_question(read(copy)), audit_path=copy)
    assert copy.read_bytes() == path_of("vllm").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFINISHED)
def test_unfinished_run_resumes_to_the_end(name: str, orchestrator: MarkovianRSAOrchestrator, tmp_path: Path) -> None:
    copy = Path(shutil.copy(path_of(name), tmp_path))
    question, config = recorded_question(read(copy))
    generated: dict[str, int] = {}

    def count(trace_id: str, token_ids: Sequence[int]) -> None:
        generated[trace_id] = generated.get(trace_id, 0) + len(token_ids)

    result = orchestrator.run(question, config.replace(token_budget=None), audit_path=copy, on_progress=count)
    assert result.resumed
    assert copy.read_bytes().startswith(path_of(name).read_bytes())
    before, events = read(path_of(name)), read(copy)
    assert events[len(before)]["event"] == "run_resumed"
    assert events[-1]["event"] == "run_end"
    assert {event["run_id"] for event in events} == {before[0]["run_id"]}
    completed = [event["trace_id"] for event in named(events, "trace_complete")]
    assert len(completed) == len(set(completed))
    for checkpoint in named(before, "trace_checkpoint"):
        (trace,) = [e for e in named(events, "trace_complete") if e["trace_id"] == checkpoint["trace_id"]]
        ids = checkpoint["token_ids"]
        assert trace["token_ids"][: len(ids)] == ids
        assert generated[trace["trace_id"]] == len(trace["token_ids"]) - len(ids)
    assert not generated.keys() & {event["trace_id"] for event in named(before, "trace_complete")}
    report = verify_file(copy)
    assert report.finished
    assert mrsa("runs", "verify", "--model", "embedded-reasoner-v1", copy).code == 0
    assert mrsa("runs", "show", copy).code == 0
    assert mrsa("view", copy, "--out", tmp_path / "run.html").code == 0


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="recorded on a CPU")
@pytest.mark.parametrize(
    "name",
    [
        "finished",
        "answer",
        pytest.param("paired", marks=pytest.mark.slow),
        pytest.param("summary", marks=pytest.mark.slow),
        pytest.param("final_aggregation", marks=pytest.mark.slow),
    ],
)
def test_recorded_seed_gives_the_recorded_traces(
    name: str, orchestrator: MarkovianRSAOrchestrator, tmp_path: Path
) -> None:
    recorded = json.loads(SEEDS.read_text("utf-8"))
    events = repeat(name, orchestrator, tmp_path / "run.jsonl")
    (setup,) = named(events, "run_setup")
    assert setup["model_digest"] == recorded["model_digest"], "new weights: python -m tests.test_recorded_runs"
    assert digests(events) == recorded["runs"][name]


def repeat(name: str, orchestrator: MarkovianRSAOrchestrator, path: Path) -> list[Event]:
    """Run the question of a recorded file with its settings and its seed."""
    question, config = recorded_question(read(path_of(name)))
    orchestrator.run(question, config, audit_path=path)
    return read(path)


def digests(events: list[Event]) -> dict[str, str]:
    """Return digests of the token ids of every trace and summary, and of all that the seed determines."""

    def digest(value: object) -> str:
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]

    completed = named(events, "trace_complete") + named(events, "summary_complete")
    found = {f"{event['event']} {event['trace_id']}": digest(event["token_ids"]) for event in completed}
    return {**dict(sorted(found.items())), "run": digest(comparable(events))}


def record() -> None:
    """Write the digests of the present weights."""
    with MarkovianRSAOrchestrator.from_pretrained() as opened, tempfile.TemporaryDirectory() as folder:
        opened.any_question = True
        runs = {name: repeat(name, opened, Path(folder) / f"{name}.jsonl") for name in EMBEDDED if name in FINISHED}
    (setup,) = named(runs["finished"], "run_setup")
    values = {"model_digest": setup["model_digest"], "runs": {name: digests(events) for name, events in runs.items()}}
    SEEDS.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()

"""The trail of a run takes over only files that are a run's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import AuditWriter
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError, CallbackError, ResumeError, TemplateError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.run.audit_log import AuditLog
from markovian_rsa_mlx.run.same_run import check_may_restart

from ..support.fakes import FakeEngine
from ..support.runs import run, small

OTHER_FILES = ['{"event": "user logged in", "level": "info"}\n', "notes\n", '{"a": 1}\n{"b": 2}\n']


@pytest.mark.parametrize("content", OTHER_FILES)
def test_a_file_of_another_program_is_not_changed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "app.jsonl"
    path.write_text(content)
    with MarkovianRSAOrchestrator(FakeEngine()) as orchestrator, pytest.raises(AuditError):
        orchestrator.solve("What is it?", audit_path=path)
    assert path.read_text() == content


def test_a_prompt_that_differs_only_at_its_end_is_shown_there(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    question = "What is it? " * 20
    with MarkovianRSAOrchestrator(FakeEngine()) as orchestrator:
        orchestrator.solve(question, audit_path=path)
        with pytest.raises(ResumeError, match=r"What is it\? .*there, .*What is it\? now"):
            orchestrator.solve(question + "now", audit_path=path)


@pytest.mark.parametrize("callback", ["on_event", "on_progress"])
def test_a_callback_that_raises_ends_the_run_once_and_is_named(callback: str) -> None:
    def broken(*_: object) -> None:
        raise KeyError("oops")

    backend = FakeEngine()
    with MarkovianRSAOrchestrator(backend) as orchestrator, pytest.raises(CallbackError, match=f"{callback}.*KeyError"):
        orchestrator.run("What is it?", **{callback: broken})
    assert all(request.trace_id.startswith("r0") for request in backend.requests)
    assert len(backend.requests) <= 2


def test_a_run_that_is_refused_before_it_begins_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with MarkovianRSAOrchestrator(FakeEngine()) as orchestrator, pytest.raises(TemplateError):
        orchestrator.solve("What is it?", RSAConfig(template="nosuch"), audit_path=path)
    assert not path.exists()


QUESTION = "What is it?"
SETTINGS = small()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a finished run."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(), SETTINGS, path)
    return path.read_bytes().splitlines(keepends=True)


def as_contract(line: bytes) -> bool:
    """Return True for an event of the fixed nine, which other programs write."""
    names = (b"run_start", b"generation_start", b"trace_complete", b"tail_extracted", b"final", b"run_end")
    return line.startswith(tuple(b'{"event": "' + name + b'"' for name in names))


#: Contents that hold something else than the beginning of the requested run.
FOREIGN: dict[str, Callable[[list[bytes]], bytes]] = {
    "the fixed events only": lambda lines: b"".join(filter(as_contract, lines)),
    "a second line of another name": lambda lines: lines[0] + lines[1].replace(b"run_setup", b"run_set_up", 1),
    "no setup": lambda lines: b"".join([lines[0], *lines[2:]]),
    "another question": lambda lines: lines[0].replace(b"What is it?", b"What was it?"),
    "another question, torn": lambda lines: lines[0].replace(b"What is it?", b"What was it?")[:-20],
    "another setting": lambda lines: lines[0].replace(b'"rounds": 2', b'"rounds": 3'),
    "another seed": lambda lines: lines[0].replace(b'"seed": 1', b'"seed": 2'),
    "another model": lambda lines: lines[0].replace(b'"fake"', b'"other"'),
    "another model, torn": lambda lines: lines[0].replace(b'"fake"', b'"other"')[:90],
    "notes after the start": lambda lines: lines[0] + b'{"note": "buy milk',
    "a line twice": lambda lines: b"".join([*lines[:8], lines[7], *lines[8:]]),
    "two files": lambda lines: b"".join([*lines[:-1], *lines]),
    "a foreign line": lambda lines: b"".join([*lines[:-3], b'{"event": "note"}\n']),
    "a changed count": lambda lines: b"".join(lines[:-2]).replace(b'_token_count": ', b'_token_count": 1'),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_the_beginning_of_the_run_is_not_changed(
    kind: str, lines: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    content = FOREIGN[kind](lines)
    assert content not in (b"", b"".join(lines))
    path.write_bytes(content)
    with pytest.raises(AuditError):
        run(FakeEngine(), SETTINGS, path)
    assert path.read_bytes() == content


def test_a_first_line_torn_anywhere_is_started_again(lines: list[bytes], tmp_path: Path) -> None:
    path, first = tmp_path / "run.jsonl", lines[0]
    for size in range(1, len(first), 3):
        path.write_bytes(first[:size])
        log = AuditLog(path, None)
        try:
            check_may_restart(log, prompt="What is it?", config=SETTINGS, engine=FakeEngine())
        finally:
            log.close()


@pytest.mark.parametrize("seed", [1, None])
@pytest.mark.parametrize("size", ["a byte", "half a start", "most of a start", "a start", "half a setup", "NUL bytes"])
def test_a_file_of_the_beginning_of_the_run_is_started_again(
    size: str, seed: int | None, lines: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    first, second = lines[:2]
    contents = {
        "a byte": first[:1],
        "half a start": first[: len(first) // 2],
        "most of a start": first[:-3],
        "a start": first,
        "half a setup": first + second[: len(second) // 2],
        "NUL bytes": first[:200] + b"\0" * 9,
    }
    path.write_bytes(contents[size])
    result = run(FakeEngine(), SETTINGS.replace(seed=seed), path)
    assert not result.resumed
    assert verify_file(path).finished


def test_a_finished_run_gives_its_answer_where_nothing_can_be_written(tmp_path: Path) -> None:
    """The lock of another process stands for a disk that is read-only, which root can write to in a test."""
    path = tmp_path / "run.jsonl"
    answer = run(FakeEngine(), small(), path).text
    content, engine = path.read_bytes(), FakeEngine()
    with AuditWriter(path, "a"):
        assert run(engine, small(), path).text == answer
        with pytest.raises(ResumeError):
            run(engine, small(rounds=1), path)
    assert not engine.requests
    assert path.read_bytes() == content

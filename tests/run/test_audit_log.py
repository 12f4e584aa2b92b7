"""The trail of a run takes over only files that are a run's."""

from __future__ import annotations

from pathlib import Path

import pytest

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError, CallbackError, ResumeError, TemplateError
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ..support.fakes import FakeEngine

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

"""Recorded runs of the real orchestrator over a fake engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.audit_files import read_lines, record


@pytest.fixture(scope="session")
def trail(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The lines of a finished run with a vote over three final candidates, checkpoints included."""
    path = tmp_path_factory.mktemp("trail") / "run.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        _checkpoint_often(patch)
        return read_lines(record(path, final_candidates=0, answer_selection="majority"))


@pytest.fixture(autouse=True)
def _frequent_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    _checkpoint_often(monkeypatch)


def _checkpoint_often(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("markovian_rsa_mlx.run.generation.CHECKPOINT_TOKENS", 32)

"""Tests of `mrsa models`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from markovian_rsa_mlx import hub, reasoner

from .conftest import Run


def test_cached_models_are_listed_with_their_size_and_rows(
    mrsa: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    snapshot = cache / "models--owner--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(reasoner.model_path(), snapshot)
    (cache / "models--owner--other" / "snapshots" / ("b" * 40)).mkdir(parents=True)
    (cache / "models--owner--other" / "snapshots" / ("b" * 40) / "README.md").write_text("no model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert [model.model_id for model in hub.cached_models()] == ["owner/other", "owner/tiny"]
    rows = {row["model"]: row for row in json.loads(mrsa("models", "--profile", "embedded", "--json").out)}
    assert rows["owner/tiny"]["fits"] is True
    planned = json.loads(mrsa("plan", "--profile", "embedded", "--json").out)
    assert rows["owner/tiny"]["traces_at_once"] == planned["traces_at_once"] == 8
    assert rows["owner/tiny"]["size_bytes"] > 5_000_000
    assert rows["owner/other"]["fits"] is None
    assert "config.json" in rows["owner/other"]["problem"]
    text = mrsa("models").out
    assert "fits" in text.splitlines()[0]
    assert reasoner.MODEL_ID in text

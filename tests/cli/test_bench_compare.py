"""Test `mrsa bench compare`: table or JSON on standard output, other differences on standard error."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from markovian_rsa_mlx.bench.results import Results

from ..bench.sample_results import sample_results
from .conftest import Run

WEAK = sample_results(30)
STRONG = replace(sample_results(30, seed=1, skill=0.35), model="better/model")


def keep(results: Results, folder: Path) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results.to_dict()))
    return folder


def test_command_prints_a_table_or_json(mrsa: Run, tmp_path: Path) -> None:
    a, b = keep(WEAK, tmp_path / "a"), keep(STRONG, tmp_path / "b")
    ran = mrsa("bench", "compare", str(a), str(b))
    assert ran.code == 0
    head, single, *_ = ran.out.splitlines()
    assert re.split(r"  +", head) == [
        *("method", "A", "B", "B minus A", "better / worse", "p", "tokens A", "tokens B", "verdict"),
    ]
    assert single.startswith("single ")
    assert single.endswith("B is better")
    assert "30 problems in both; 95% intervals over problems; p adjusted for 6 comparisons." in ran.out
    assert ran.err == "not the same: model: embedded-reasoner-v1 and better/model\n"
    printed = json.loads(mrsa("bench", "compare", str(a), str(b / "results.json"), "--json").out)
    assert printed["problems"] == 30
    assert printed["pairs"][0]["comparison"]["second"] == "B"


def test_benchmarks_of_other_tasks_are_rejected(mrsa: Run, tmp_path: Path) -> None:
    a, b = keep(WEAK, tmp_path / "a"), keep(replace(WEAK, task="other"), tmp_path / "b")
    ran = mrsa("bench", "compare", str(a), str(b))
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert "'other'" in ran.err
    assert mrsa("bench", "compare", str(a), str(tmp_path / "gone")).code == 1

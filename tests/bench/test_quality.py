"""Test the standard comparisons: their commands, figures, and the tables that they write into documents."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.quality import DOCUMENTS, FIGURES, PARTS, figures, folder_of, render, renewed, write_tables
from markovian_rsa_mlx.bench.methods import read_grid
from markovian_rsa_mlx.bench.results import Results
from markovian_rsa_mlx.cli.app import mrsa as application

from .sample_results import sample_results


def results_of(name: str) -> Results:
    """Return made-up results with the methods of a part's command."""
    options = PARTS[name].options
    grid = read_grid(Path(options[options.index("--grid") + 1])) if "--grid" in options else None
    methods = options[options.index("--methods") + 1].split(",")
    return replace(sample_results(20, methods=methods, grid=grid), command=f"mrsa bench {name}")


PARTS_MADE_UP = {name: figures(name, results_of(name)) for name in PARTS}


@pytest.mark.parametrize("name", PARTS)
def test_commands_have_options_that_exist(name: str) -> None:
    group, *words = PARTS[name].words("folder")
    context = application.commands[group].make_context(group, list(words))
    command = application.commands[group].commands[words[0]]  # type: ignore[attr-defined]
    params = command.make_context("run", words[1:], parent=context).params
    assert params["limit"] == str(PARTS[name].problems)
    assert params["epochs"] == PARTS[name].epochs
    assert params["task"] == PARTS[name].task


@pytest.mark.parametrize("name", PARTS)
def test_figures_are_those_of_the_results(name: str) -> None:
    results, found = results_of(name), json.loads(json.dumps(PARTS_MADE_UP[name]))
    for row, summary in zip(found["rows"], results.table, strict=True):
        assert row["score"]["mean"] == summary.score.mean
        assert row["tokens"] == summary.generated_tokens
        assert len(row["rounds"]) == len(summary.rounds)
    for pair in found["differences"]:
        (known,) = [c for c in results.comparisons if (c.first, c.second) == (pair["first"], pair["second"])]
        assert pair["difference"]["mean"] == known.difference.mean
        assert pair["p"] == known.p_value


def test_every_method_has_its_line_in_the_tables() -> None:
    for name, part in PARTS_MADE_UP.items():
        text = render(name, PARTS_MADE_UP)
        assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == [
            row["method"].split(" ")[0] for row in part["rows"]
        ]
        assert f"| {quality.score_text(part['rows'][-1]['score'])} |" in text
        assert len(re.findall(r"^- .* p = ", text, re.MULTILINE)) == len(PARTS[name].pairs)


def test_the_summary_joins_both_parts_by_method() -> None:
    lines = {line.split("`")[1]: line for line in render("summary", PARTS_MADE_UP).splitlines() if line[:3] == "| `"}
    at_four = next(row for row in PARTS_MADE_UP["sums"]["rows"] if row["method"] == "markovian T=4")
    assert quality.score_text(at_four["score"]) in lines["markovian"]
    assert lines["vote-equal"].endswith("|  |  |")


def test_only_the_tables_of_a_document_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (
        "before\n<!-- quality: puzzles -->\nold\n<!-- end -->\nbetween\n<!-- quality: sums -->\n<!-- end -->\nafter"
    )
    text = renewed(document, PARTS_MADE_UP)
    assert "old" not in text
    assert text == renewed(text, PARTS_MADE_UP)
    assert [text.splitlines()[0], text.splitlines()[-1]] == ["before", "after"]
    path = tmp_path / "card.md"
    path.write_text(document)
    monkeypatch.setattr(quality, "DOCUMENTS", {path: ("puzzles", "sums")})
    write_tables(PARTS_MADE_UP)
    assert path.read_text() == text
    monkeypatch.setattr(quality, "DOCUMENTS", {path: ("summary",)})
    with pytest.raises(ValueError, match="must have the tables"):
        write_tables(PARTS_MADE_UP)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_have_their_tables_and_these_are_the_stored_figures(path: Path) -> None:
    document = path.read_text(encoding="utf-8")
    assert tuple(block[1] for block in quality._BLOCK.findall(document)) == DOCUMENTS[path]
    if FIGURES.exists():
        assert document == renewed(document, json.loads(FIGURES.read_text(encoding="utf-8")))


def test_other_weights_have_another_folder(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    a, b, c = (folder_of("sums", str(tmp_path / name)) for name in "abc")
    assert a == c != b

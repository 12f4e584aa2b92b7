"""The wording of the command line's help and errors, in one snapshot. `pytest --snapshot-update` records it again."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion

from markovian_rsa_mlx.cli.settings_options import HELP as SETTINGS

from .conftest import SMALL, Run

HELP = ["", "solve", "serve", "demo", "plan", "tune", "profiles", "convert"]
HELP += [
    "resume",
    "models",
    "completion",
    "export",
    "bench votes",
    "runs",
    "runs list",
    "runs show",
    "runs verify",
    "runs path",
    "runs rm",
]
ERRORS = [
    ["slove"],
    ["runs", "shw"],
    ["runs", "rm"],
    ["convert", "a/b"],
    ["solve", "--rond", "3"],
    ["solve", "one", "two"],
    ["solve", ""],
    ["solve", "1+1?", "--file", "question.txt"],
    ["solve", "1+1?", *SMALL, "--audit", "a.jsonl", "--no-audit"],
    ["solve", "1+1?", "--tokenizer", "folder"],
    ["solve", "1+1?", "--upstream", "http://127.0.0.1:9/v1", "--model", "a/b"],
    ["serve", "--grace", "nan"],
    ["serve", "--host", "0.0.0.0"],
    ["tune", "--minutes", "0"],
]


@pytest.mark.parametrize("command", HELP)
def test_help_text(command: str, mrsa: Run, snapshot: SnapshotAssertion) -> None:
    text = mrsa(*command.split(), "--help").out
    assert text.partition("Method settings:")[0] == snapshot  # config.py has the allowed values of settings


def test_meaning_of_settings(snapshot: SnapshotAssertion) -> None:
    assert snapshot == SETTINGS


@pytest.mark.parametrize("arguments", ERRORS, ids=" ".join)
def test_error_text(arguments: list[str], mrsa: Run, snapshot: SnapshotAssertion) -> None:
    assert mrsa(*arguments).err == snapshot

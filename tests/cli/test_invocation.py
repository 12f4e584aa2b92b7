"""Tests of printed commands: they run as they are printed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from markovian_rsa_mlx.cli.invocation import as_started, program

SCRIPT = Path(sys.executable).parent / "mrsa"


def test_name_alone_where_the_shell_finds_this_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    monkeypatch.setenv("PATH", str(SCRIPT.parent))
    assert program() == "mrsa"


def test_relative_path_where_it_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my env" / "bin" / "mrsa"
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.chdir(tmp_path)
    assert shlex.split(program()) == ["my env/bin/mrsa"]
    (tmp_path / "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/a/b/c/d").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/a/b/c/d")
    assert shlex.split(program()) == [str(script)]


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("`mrsa runs list` lists all", True),
        ("Try 'mrsa --help' for help.", True),
        ("  mrsa view 3fa9 --open", True),
        ("/home/mrsa view.html", False),
        ("mrsa is a program", False),
        ("mrsa solver", False),
    ],
)
def test_only_commands_are_rewritten(text: str, changed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/x/bin/mrsa"])
    monkeypatch.setenv("PATH", os.devnull)
    assert ("/opt/x/bin/mrsa " in as_started(text)) == changed


def test_printed_commands_run_as_printed(tmp_path: Path) -> None:
    home = {**os.environ, "MRSA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    folder = SCRIPT.parent.parent.parent
    line = [str(SCRIPT.relative_to(folder)), "runs", "show", "no-such-run"]
    refused = subprocess.run(line, cwd=folder, env=home, capture_output=True, text=True, check=False)
    command = refused.stderr.split("`")[1]
    assert command == f"{SCRIPT.relative_to(folder)} runs list"
    ran = subprocess.run(command, shell=True, cwd=folder, env=home, capture_output=True, text=True, check=False)
    assert ran.returncode == 0

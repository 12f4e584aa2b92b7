"""Tests of `--help`, shell completion and mistyped commands."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run

COMMANDS = [
    "",
    "solve",
    "serve",
    "demo",
    "view",
    "plan",
    "tune",
    "profiles",
    "convert",
    "runs",
    "runs list",
    "runs show",
    "runs verify",
    "runs path",
    "runs rm",
    "bench",
    "bench run",
    "bench compare",
]
HEAVY = {
    "mlx",
    "mlx_lm",
    "math_verify",
    "sympy",
    "transformers",
    "huggingface_hub",
    "jinja2",
    "numpy",
    "starlette",
    "uvicorn",
}


def cpu_seconds(command: list[str]) -> float:
    """Processor time, which another program on the machine cannot spoil."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", ["", "solve", "serve", "runs verify"])
def test_help_answers_within_half_a_second(command: str) -> None:
    line = [sys.executable, "-m", "markovian_rsa_mlx", *command.split(), "--help"]
    assert min(cpu_seconds(line) for _ in range(3)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    program = f"""
import sys
from markovian_rsa_mlx.cli import main
for command in {COMMANDS!r}:
    assert main([*command.split(), "--help"]) == 0
loaded = {HEAVY!r} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_console_scripts_and_module_print_the_version(mrsa: Run) -> None:
    folder = Path(sys.executable).parent
    for line in (
        [str(folder / "mrsa")],
        [str(folder / "markovian-rsa-mlx")],
        [sys.executable, "-m", "markovian_rsa_mlx"],
    ):
        done = subprocess.run([*line, "--version"], check=True, capture_output=True, text=True)
        assert re.fullmatch(r"markovian-rsa-mlx \d+\.\d+\.\d+\n", done.stdout)
    assert mrsa("--version").code == 0


def test_mistyped_command_exits_2_and_names_a_similar_one(mrsa: Run) -> None:
    ran = mrsa("slove")
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert "solve" in ran.err


@pytest.mark.parametrize("arguments", [["solve", "--rond", "3"], ["runs", "rm"], ["serve", "--grace", "nan"]])
def test_bad_option_exits_2_with_an_error_line_and_a_hint(mrsa: Run, arguments: list[str]) -> None:
    ran = mrsa(*arguments)
    error, hint = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert error.startswith("error: ")
    assert "--help" in hint


@pytest.mark.parametrize("command", COMMANDS)
def test_short_help_flag_prints_the_same_text(mrsa: Run, command: str) -> None:
    ran = mrsa(*command.split(), "-h")
    assert ran.code == 0
    assert ran.out == mrsa(*command.split(), "--help").out


def test_group_without_command_prints_help_and_exits_2(mrsa: Run) -> None:
    ran = mrsa("runs")
    assert (ran.code, ran.out) == (2, "")
    assert "verify" in ran.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [("mrsa so", "solve"), ("mrsa solve --thinking-", "--thinking-tokens"), ("mrsa runs v", "verify")],
)
def test_shell_completion_offers_commands_and_options(words: str, expected: str) -> None:
    environment = {
        **os.environ,
        "_MRSA_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-m", "markovian_rsa_mlx"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [f"plain,{expected}"]

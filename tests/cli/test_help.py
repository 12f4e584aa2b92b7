"""Help answers at once, knows every command, and the documentation holds its very words."""

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
    "schedules",
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
DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"```text\n\$ mrsa ?([a-z ]*?) ?--help\n.*?```", re.DOTALL)


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


def test_the_console_scripts_and_the_module_are_the_same_program(mrsa: Run) -> None:
    folder = Path(sys.executable).parent
    for line in (
        [str(folder / "mrsa")],
        [str(folder / "markovian-rsa-mlx")],
        [sys.executable, "-m", "markovian_rsa_mlx"],
    ):
        done = subprocess.run([*line, "--version"], check=True, capture_output=True, text=True)
        assert re.fullmatch(r"markovian-rsa-mlx \d+\.\d+\.\d+\n", done.stdout)
    assert mrsa("--version").code == 0


def test_a_command_that_does_not_exist_is_a_usage_error(mrsa: Run) -> None:
    ran = mrsa("slove")
    assert ran.code == 2
    assert "solve" in ran.err


def test_the_documentation_holds_the_help_texts(mrsa: Run) -> None:
    """MRSA_UPDATE_DOCS=1 writes them anew."""
    document = DOCUMENT.read_text(encoding="utf-8")

    def block(match: re.Match[str]) -> str:
        return f"```text\n$ mrsa{' ' + match[1] if match[1] else ''} --help\n{mrsa(*match[1].split(), '--help').out}```"

    renewed = BLOCK.sub(block, document)
    if os.environ.get("MRSA_UPDATE_DOCS"):
        DOCUMENT.write_text(renewed, encoding="utf-8")
    assert [match[1] for match in BLOCK.finditer(document)] == COMMANDS
    assert renewed == document or os.environ.get("MRSA_UPDATE_DOCS")

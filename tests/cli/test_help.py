"""Tests of `--help`, shell completion and mistyped commands."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from markovian_rsa_mlx.bench.methods import METHODS, SELECTIONS
from markovian_rsa_mlx.cli import app

from .conftest import Run

COMMANDS = [
    "",
    "solve",
    "serve",
    "demo",
    "view",
    "plan",
    "doctor",
    "tune",
    "models",
    "profiles",
    "convert",
    "resume",
    "completion",
    "export",
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
    # Where other tests keep the cores busy, all programs need more time: 0.1 s for these modules on an idle machine.
    modules = [sys.executable, "-c", "import asyncio, http.server, unittest.mock"]
    times = [(cpu_seconds(line), cpu_seconds(modules)) for _ in range(3)]
    assert min(time for time, _ in times) < 0.5 or min(time / other for time, other in times) < 4, times


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


def test_short_help_flag_works_after_a_command_was_parsed_without_its_group() -> None:
    """As when a benchmark reads the words that another one recorded."""
    program = """
from markovian_rsa_mlx.cli import main
from markovian_rsa_mlx.cli.bench import bench
bench.commands["run"].make_context("run", ["countdown"])
assert main(["bench", "run", "-h"]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_text_that_looks_like_an_option_names_the_way_to_pass_it(mrsa: Run) -> None:
    ran = mrsa("solve", "-3 + 5")
    assert ran.code == 2
    assert 'mrsa solve -- "-3 + 5"' in ran.err
    assert mrsa("solve", "--", "-3 + 5").err.startswith("Model:")


def test_narrow_help_keeps_the_sentences_whole(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "..." not in mrsa("--help").out.partition("Commands:")[2]


def test_group_without_command_prints_help_and_exits_2(mrsa: Run) -> None:
    ran = mrsa("runs")
    assert (ran.code, ran.out) == (2, "")
    assert "verify" in ran.err


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield names, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


def test_help_of_a_benchmark_lists_all_methods(mrsa: Run) -> None:
    text = mrsa("bench", "run", "--help").out
    words = set(re.findall(r"[\w+-]+", text[text.index("--methods") :]))
    assert words >= METHODS.keys() | SELECTIONS.keys()
    assert mrsa("bench", "run", "countdown", "--early-stop", "agreement").code == 2


def test_help_lists_all_commands() -> None:
    assert {" ".join(names) for names, _ in commands(app.mrsa)} == {
        *COMMANDS,
        "bench report",
        "bench rescore",
        "bench recommend",
        "bench votes",
    }


@pytest.mark.parametrize(("names", "command"), [*commands(app.mrsa)], ids=lambda value: str(value))
def test_each_help_has_two_examples_that_the_parser_accepts(names: tuple[str, ...], command: click.Command) -> None:
    examples: tuple[str, ...] = command.examples  # type: ignore[attr-defined]
    assert len(examples) == 2
    for example in examples:
        words = re.search(r"mrsa ([^)>]*)", example)
        assert words is not None
        given = shlex.split(words[1].removesuffix('"') if example.endswith(('")', ')"')) else words[1])
        assert given[: len(names)] == [*names]
        app.mrsa.make_context("mrsa", given)
        if not isinstance(command, click.Group):
            command.make_context(names[-1], given[len(names) :])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_the_shell(shell: str, mrsa: Run) -> None:
    ran = mrsa("completion", shell)
    assert ran.code == 0
    assert f"_MRSA_COMPLETE={shell}_complete" in ran.out


def test_the_bash_script_completes(mrsa: Run) -> None:
    script = mrsa("completion", "bash").out
    script += f'COMP_WORDS=(mrsa so); COMP_CWORD=1; _mrsa_completion "{Path(sys.executable).parent}/mrsa"\n'
    program = f"{script}echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "solve"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("mrsa so", "solve"), ("mrsa solve --thinking-t", "--thinking-tokens"), ("mrsa runs v", "verify")],
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


def test_help_breaks_lines_after_it_names_the_program_as_started(monkeypatch: pytest.MonkeyPatch, mrsa: Run) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.cli.invocation.program", lambda: "some/folder/bin/mrsa")
    monkeypatch.setenv("COLUMNS", "80")
    ran = mrsa()
    assert "some/folder/bin/mrsa bench" in ran.err
    assert max(map(len, ran.err.splitlines())) <= 80


def test_missing_choice_and_number_without_bounds_read_as_text(mrsa: Run) -> None:
    assert "Choose from: inspect, otel, jsonl" in " ".join(mrsa("export").err.split())
    assert "\t" not in mrsa("export").err
    assert "None" not in mrsa("tune", "--help").out

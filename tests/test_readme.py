"""The commands of the README run: with the embedded model here, those for other models as far as their options."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from markovian_rsa_mlx import RSAConfig
from markovian_rsa_mlx.cli.app import mrsa as application

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README.replace("\\\n", ""), re.DOTALL)
    for line in block.splitlines()
]
PROGRAM = Path(sys.executable).parent / "mrsa"


def of(program: str) -> list[list[str]]:
    return [words for words in map(shlex.split, LINES) if words[0] == program]


def test_every_line_belongs_to_a_test() -> None:
    assert {shlex.split(line)[0] for line in LINES} == {"make", "uv", "mrsa", "curl"}
    assert len(README.splitlines()) < 100


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_make_has_the_target(words: list[str]) -> None:
    subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def test_the_installed_file_is_the_one_that_make_wheel_writes() -> None:
    (words,) = of("uv")
    assert words == ["uv", "tool", "install", "$(ls dist/*.whl)[serve]"]
    assert "ls dist/*.whl" in subprocess.run(["make", "-n", "wheel"], cwd=ROOT, text=True, capture_output=True).stdout


@pytest.mark.parametrize("words", of("mrsa"), ids=" ".join)
def test_options_exist(words: list[str]) -> None:
    command = application.commands[words[1]]
    command.make_context(words[1], words[2:] if words[1] != "runs" else [*words[2:]])


@pytest.mark.slow
def test_commands_for_the_embedded_model_run_as_written(tmp_path: Path) -> None:
    environment = {**os.environ, "MRSA_HOME": str(tmp_path), "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    environment["BROWSER"] = "true"
    for words in of("mrsa"):
        if "--model" not in words and words[1] != "serve":
            ran = subprocess.run(words, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
            assert ran.returncode == 0, (words, ran.stderr)


@pytest.mark.slow
def test_the_request_is_answered(tmp_path: Path) -> None:
    (words,) = of("curl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = next(word for word in words if word.startswith("http")).replace("8000", str(port))
    server = subprocess.Popen(
        [PROGRAM, "serve", "--port", str(port)],
        env={**os.environ, "MRSA_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        line = [address if word.startswith("http") else word for word in words]
        answer = json.loads(subprocess.run(line, check=True, capture_output=True, timeout=60).stdout)
        assert "42" in answer["choices"][0]["message"]["content"]
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_python_names_what_exists() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tree = ast.parse(block)
    call = next(
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("replace")
    )
    RSAConfig.default_16gb().replace(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_to_files(target: str) -> None:
    assert (ROOT / target).exists()

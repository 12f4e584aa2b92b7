"""Environments of the clients, and the run of one client's scenario.

A client with a list `environments/NAME.txt` (all its packages in exact versions) gets an environment of its own; the
others run in this one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from markovian_rsa_mlx.serve.config import ServerSettings

from ..e2e.servers import MRSAServer
from ..support.runs import small
from ..support.serving import serving
from . import scripted

SCENARIOS, LISTS = Path(__file__).parent / "scenarios", Path(__file__).parent / "environments"
CLIENTS = tuple(sorted(path.stem.removeprefix("with_").replace("_", "-") for path in SCENARIOS.glob("with_*")))
#: The site of the page that uses the server from a browser.
ORIGIN = "https://chat.example.org"
#: Any question, always the same answers, and room for JSON with white space wherever a schema allows it. The scenarios'
#: schemas are closed: a small model would fill an object that allows further properties until its tokens end.
OPTIONS = ("--force", "--final-tokens", "320", "--answer-tokens", "240", "--seed", "1")
#: Longest installation and scenario, in seconds.
INSTALL_LIMIT_S, SCENARIO_LIMIT_S = 150, 300


@dataclass(frozen=True)
class Step:
    """A step of a scenario. `error` is "" if it succeeded."""

    client: str
    name: str
    seconds: float
    error: str


def needs_environment(client: str) -> bool:
    return (LISTS / f"{client}.txt").exists()


def install(client: str, folder: Path) -> Path:
    """Return the Python of the client's environment in the folder, made anew unless it has the packages of the list."""
    wanted, python = LISTS / f"{client}.txt", folder / client / "bin" / "python"
    installed = folder / client / "installed.txt"
    if installed.exists() and installed.read_bytes() == wanted.read_bytes():
        return python
    shutil.rmtree(folder / client, ignore_errors=True)
    uv = [find_uv_bin()]
    make = [*uv, "venv", "--quiet", "--python", sys.executable, folder / client]
    fill = [*uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "-r", wanted]
    for command in (make, fill):
        subprocess.run(command, check=True, timeout=INSTALL_LIMIT_S)
    shutil.copyfile(wanted, installed)
    return python


def run(client: str, python: Path, addresses: Mapping[str, str], home: Path) -> Iterator[Step]:
    """Run the client's scenario and give its steps. A scenario that ends early fails as the step "end"."""
    script = SCENARIOS / f"with_{client.replace('-', '_')}.py"
    environment = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), **addresses}
    done = subprocess.run(
        [python, script], env=environment, cwd=home, capture_output=True, text=True, timeout=SCENARIO_LIMIT_S
    )
    results: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"step"')
    ]
    for result in results:
        yield Step(client, result["step"], result["seconds"], result["error"])
    if not results or done.returncode != any(result["error"] for result in results):
        yield Step(client, "end", 0, done.stdout[-4_000:] + done.stderr[-4_000:] or f"exit code {done.returncode}")


@contextmanager
def servers(home: Path) -> Iterator[dict[str, str]]:
    """Start `mrsa serve` with the embedded reasoner, and a server of the scripted model. Give their root addresses."""
    base = small(rounds=1, thinking_tokens=2_000, tail_tokens=20, final_tokens=2_000, answer_tokens=0, seed=None)
    settings = ServerSettings(names=("scripted",), base=base, grace_s=0.2, rsa_models="default")
    server = MRSAServer(home, *OPTIONS, "--allow-origin", ORIGIN)
    try:
        with serving(scripted.engine(), settings) as (url, _, _):
            yield {"MRSA_SERVER": server.url, "MRSA_CALLER": url, "MRSA_ORIGIN": ORIGIN}
    finally:
        assert server.stop() == 0, server.output
        assert "Traceback" not in server.output

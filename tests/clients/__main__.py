"""Check the clients: `python -m tests.clients [--without NAME] [NAME ...]`; all of them if none is named."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .environments import CLIENTS, Step, install, needs_environment, run, servers

FOLDER = Path(sys.prefix) / "clients"


def main() -> None:
    """Print a line for each step of each client. The exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="NAME", help=f"one of {', '.join(CLIENTS)}")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave this client out")
    parser.add_argument("--allow-missing", action="store_true", help="leave out clients that cannot be installed")
    options = parser.parse_args()
    if unknown := {*options.clients, *options.without} - {*CLIENTS}:
        parser.error(f"There is no client {', '.join(sorted(unknown))}. Choose from {', '.join(CLIENTS)}.")
    clients = [client for client in options.clients or CLIENTS if client not in options.without]
    failures = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, servers(Path(folder)) as addresses:
        print(f"{'client':<18}{'step':<32}{'result':<8}seconds")
        for client in clients:
            for step in steps_of(client, addresses, Path(folder)):
                print(f"{step.client:<18}{step.name:<32}{'FAILED' if step.error else 'ok':<8}{step.seconds:7.2f}")
                is_missing = options.allow_missing and step.name == "install"
                failures += [step] if step.error and not is_missing else []
                sys.stdout.flush()
    for step in failures:
        print(f"\n{step.client}, {step.name}:\n{step.error}")
    sys.exit(bool(failures))


def steps_of(client: str, addresses: dict[str, str], home: Path) -> list[Step]:
    """Install the client where it needs an environment, and run its scenario."""
    python, steps = Path(sys.executable), []
    if needs_environment(client):
        start = time.monotonic()
        try:
            python = install(client, FOLDER)
        except (subprocess.SubprocessError, OSError) as error:
            return [Step(client, "install", time.monotonic() - start, str(error))]
        steps = [Step(client, "install", time.monotonic() - start, "")]
    try:
        return [*steps, *run(client, python, addresses, home)]
    except subprocess.TimeoutExpired as error:
        return [*steps, Step(client, "end", error.timeout, str(error))]


main()

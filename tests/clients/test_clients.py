"""The clients of the extra `test` against running servers. `make clients` has the others too."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .environments import CLIENTS, needs_environment, run, servers

HERE = [client for client in CLIENTS if not needs_environment(client)]
SLOW = {"browser"}
PROGRAMS = {"browser": "chromium", "curl": "curl"}


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("servers")
        patch.setenv("MRSA_HOME", str(home / "scripted"))
        with servers(home) as found:
            yield found


@pytest.mark.parametrize(
    "client", [pytest.param(client, marks=[pytest.mark.slow] if client in SLOW else []) for client in HERE]
)
def test_client_works_unchanged(client: str, addresses: dict[str, str], tmp_path: Path) -> None:
    if client in PROGRAMS and shutil.which(PROGRAMS[client]) is None:
        pytest.skip(f"{PROGRAMS[client]} is not installed on this machine")
    steps = list(run(client, Path(sys.executable), addresses, tmp_path))
    assert steps
    assert not [step for step in steps if step.error]

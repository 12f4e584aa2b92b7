from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from markovian_rsa_mlx.cli import main
from markovian_rsa_mlx.cli.engine_options import ModelChoice
from markovian_rsa_mlx.cli.plan import announce as _announce_plan
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ..support.fakes import FakeBackend, Model, boxed


@dataclass(frozen=True)
class Ran:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]
#: A short run on the fake model: traces r0-00, r0-02 and r1-00.
SMALL = ("--model", "fake/model", "--rounds", "1", "--population", "3", "--aggregation-size", "2", "--seed", "7")


def _announce(choice: ModelChoice, *arguments: object) -> None:
    """Print the plan of real models only: the fake one is on no hub."""
    if choice.model_id != "fake/model":
        _announce_plan(choice, *arguments)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the runs of each test in a folder of its own."""
    monkeypatch.setenv("MRSA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((100, 30)))
    monkeypatch.delenv("MRSA_DEBUG", raising=False)
    monkeypatch.setattr("markovian_rsa_mlx.cli.plan.announce", _announce)
    return tmp_path / "home"


@pytest.fixture
def mrsa(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with `stdin` as its standard input."""

    def run(*arguments: str, stdin: str = "") -> Ran:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        return Ran(code, out.getvalue(), err.getvalue())

    return run


def by_index(*texts: str) -> Model:
    """Return a model whose trace i of a round generates `texts[i % len(texts)]`."""
    return lambda request, rng: texts[int(request.trace_id.split("-")[1]) % len(texts)]


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the loaded model by a fake one. Call the fixture to change the texts that it generates."""

    def install(*texts: str) -> None:
        backend = FakeBackend(by_index(*texts))
        monkeypatch.setattr(
            "markovian_rsa_mlx.cli.run.load_orchestrator", lambda choice, **_: MarkovianRSAOrchestrator(backend)
        )

    install(boxed(2, "1+1"), boxed(0, "1-1"), boxed(2, "so"))
    return install


@pytest.fixture
def trail(mrsa: Run, fake_model: object, home: Path) -> Path:
    """The file of a finished run: r1-00 (answer 2) has read r0-00 and r0-02 (answer 2 each)."""
    assert mrsa("solve", "What is 1+1?", *SMALL).code == 0
    (path,) = (home / "runs").glob("*.jsonl")
    return path

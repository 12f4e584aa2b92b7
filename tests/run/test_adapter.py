"""A run whose traces all use an adapter (`--adapter`) records it, and is continued with the same one only."""

from __future__ import annotations

from pathlib import Path

import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, reasoner
from markovian_rsa_mlx.audit.events import RunSetupEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.errors import ResumeError
from markovian_rsa_mlx.hub import model_digest, sampled_adapter_digest
from tests.backends.adapters import write_adapter
from tests.support.runs import cut, line_ends, of_file

QUESTION = "What is 12 + 30 + 7?"
CONFIG = RSAConfig.embedded().replace(population=2, aggregation_size=1, rounds=1, final_candidates=0, seed=3)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    one, other = (write_adapter(reasoner.model_path(), folder / str(seed), seed, size=0.1) for seed in range(2))
    return one, other


def ask(path: Path, adapter: Path | None) -> None:
    with MarkovianRSAOrchestrator.from_pretrained(adapter_path=None if adapter is None else str(adapter)) as opened:
        opened.any_question = True
        opened.run(QUESTION, CONFIG, audit_path=path)


def recorded(path: Path) -> str:
    return of_file(path, RunSetupEvent)[0].model_digest


@pytest.fixture(scope="module")
def adapted(adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapted") / "run.jsonl"
    ask(path, adapters[0])
    return path


def test_the_digest_of_the_model_includes_the_adapter(adapted: Path, adapters: tuple[Path, Path]) -> None:
    assert recorded(adapted) == f"{model_digest(reasoner.model_path())} with {sampled_adapter_digest(adapters[0])}"
    verify_file(adapted)


@pytest.mark.parametrize("finished", [True, False])
def test_another_adapter_or_none_is_refused(
    adapted: Path, adapters: tuple[Path, Path], finished: bool, tmp_path: Path
) -> None:
    ends = line_ends(adapted)
    path = cut(adapted, ends[-1] if finished else ends[len(ends) // 2], tmp_path / "run.jsonl")
    content = path.read_bytes()
    for wrong, name in ((adapters[1], sampled_adapter_digest(adapters[1])), (None, "none")):
        with pytest.raises(ResumeError, match=rf"another adapter \(--adapter\): .*, '{name}' requested"):
            ask(path, wrong)
        assert path.read_bytes() == content
    moved = write_adapter(reasoner.model_path(), tmp_path / "moved", 0, size=0.1)
    ask(path, moved)
    verify_file(path)
    assert path.read_bytes()[: len(content)] == content


def test_a_run_without_an_adapter_is_not_continued_with_one(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    ask(path, None)
    assert recorded(path) == model_digest(reasoner.model_path())
    with pytest.raises(ResumeError, match="another adapter"):
        ask(path, adapters[0])
    ask(path, None)

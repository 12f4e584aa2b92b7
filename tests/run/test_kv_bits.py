"""A run records the width of the engine's KV cache, and is resumed with that width only."""

from __future__ import annotations

from pathlib import Path

import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit.events import RunSetupEvent, RunStartEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.errors import ConfigError, ResumeError, VerificationError
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import FakeEngine
from tests.support.runs import cut, line_ends, of_file, run, small

CONFIG = small(rounds=1, population=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(kv_bits=8), CONFIG, path)
    return path


def test_a_run_records_the_width_of_the_engine(whole: Path) -> None:
    assert of_file(whole, RunStartEvent)[0].config.kv_bits == 8
    assert of_file(whole, RunSetupEvent)[0].kv_bits == 8
    verify_file(whole)


def test_another_width_than_the_engines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^kv_bits is 8, but fake [^.]+\.$"):
        run(FakeEngine(), CONFIG.replace(kv_bits=8), tmp_path / "run.jsonl")
    assert not (tmp_path / "run.jsonl").exists()


def test_resuming_refuses_another_width(whole: Path, tmp_path: Path) -> None:
    path = cut(whole, line_ends(whole)[6], tmp_path / "cut.jsonl")
    with pytest.raises(ResumeError, match="another kv_bits: 8 there, None requested"):
        run(FakeEngine(), CONFIG, path)
    run(FakeEngine(kv_bits=8), CONFIG.replace(kv_bits=8), path)
    verify_file(path)


def test_an_older_file_has_no_width(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(FakeEngine(), CONFIG, path)
    lines = read_lines(path)[:7]
    del lines[0]["config"]["tail_order"], lines[0]["config"]["kv_bits"], lines[1]["kv_bits"]
    write_lines(path, lines)
    with pytest.raises(ResumeError, match="another kv_bits: None there, 8 requested"):
        run(FakeEngine(kv_bits=8), CONFIG, path)
    run(FakeEngine(), CONFIG, path)
    verify_file(path)


def test_a_changed_width_is_noticed(whole: Path, tmp_path: Path) -> None:
    lines = read_lines(whole)
    lines[1]["kv_bits"] = None
    write_lines(tmp_path / "run.jsonl", lines)
    with pytest.raises(VerificationError, match=r"line 2 .*kv_bits"):
        verify_file(tmp_path / "run.jsonl")


def test_the_embedded_model_solves_with_a_quantized_cache(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = RSAConfig.embedded().replace(population=2, aggregation_size=2, rounds=1, seed=3)
    with MarkovianRSAOrchestrator.from_pretrained(kv_bits=8) as opened:
        opened.any_question = True
        opened.solve("What is 12 + 30 + 7?", config, audit_path=path)
        again = opened.run("What is 12 + 30 + 7?", config)
    assert read_lines(path)[-1]["total_generated_tokens"] == again.generated_tokens
    verify_file(path)

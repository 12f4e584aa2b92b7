"""A run with an aggregation adapter uses it in rounds >= 1 only, records its digest and is resumed with it only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig, reasoner
from markovian_rsa_mlx.audit.events import (
    AggregationPromptEvent,
    GenerationStartEvent,
    RunSetupEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.upstream import Upstream
from markovian_rsa_mlx.cli.engine_options import ModelChoice
from markovian_rsa_mlx.cli.estimate import estimate
from markovian_rsa_mlx.cli.run import load_orchestrator
from markovian_rsa_mlx.errors import ConfigError, ResumeError, VerificationError
from tests.backends.adapters import write_adapter, write_fused
from tests.backends.traces import RecordingListener
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import FakeEngine
from tests.support.runs import cut, line_ends, of_file, run, small

QUESTION = "What is 12 + 30 + 7?"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(reasoner.model_path(), tmp_path_factory.mktemp("adapter") / "lora", size=0.1)


@pytest.fixture(scope="module")
def config(adapter: Path) -> RSAConfig:
    small_run = RSAConfig.embedded().replace(population=3, aggregation_size=2, rounds=2, final_candidates=0, seed=3)
    return small_run.replace(aggregation_adapter=str(adapter), trace_confidence=True)


@pytest.fixture(scope="module")
def opened(adapter: Path) -> Iterator[MarkovianRSAOrchestrator]:
    with MarkovianRSAOrchestrator.from_pretrained(aggregation_adapter=str(adapter)) as orchestrator:
        orchestrator.any_question = True
        yield orchestrator


@pytest.fixture(scope="module")
def whole(opened: MarkovianRSAOrchestrator, config: RSAConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    opened.run(QUESTION, config, audit_path=path)
    return path


def traces(path: Path) -> dict[str, tuple[int, ...]]:
    return {event.trace_id: tuple(event.token_ids) for event in of_file(path, TraceCompleteEvent)}


def test_round_zero_is_that_of_the_model_without_it(whole: Path, config: RSAConfig, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    with MarkovianRSAOrchestrator.from_pretrained() as plain:
        plain.any_question = True
        plain.run(QUESTION, config.replace(aggregation_adapter=None), audit_path=path)
    found, expected = traces(whole), traces(path)
    first = [trace_id for trace_id in expected if trace_id.startswith("r0")]
    assert [found[trace_id] for trace_id in first] == [expected[trace_id] for trace_id in first]
    assert found != expected


def test_later_rounds_are_those_of_the_model_with_it(
    whole: Path, adapter: Path, config: RSAConfig, tmp_path: Path
) -> None:
    prompts = {event.trace_id: event.prompt_token_ids for event in of_file(whole, AggregationPromptEvent)}
    starts = {event.trace_id: event for event in of_file(whole, GenerationStartEvent)}
    fused = MLXEngine.from_pretrained(write_fused(reasoner.model_path(), adapter, tmp_path / "fused"))
    try:
        for trace_id, prompt in prompts.items():
            start = starts[trace_id]
            sampling = config.sampling(final=start.round == config.rounds)
            request = GenerationRequest(trace_id, (), tuple(prompt), start.max_tokens, start.seed, sampling)
            result = asyncio.run(fused.generate(request, RecordingListener()))
            assert result.token_ids == traces(whole)[trace_id]
    finally:
        fused.close()
    assert len(prompts) == 6


def test_the_trail_names_the_adapter(whole: Path, opened: MarkovianRSAOrchestrator, tmp_path: Path) -> None:
    (setup,) = of_file(whole, RunSetupEvent)
    assert setup.adapter_digest == opened.backend.info.adapter_digest != ""
    verify_file(whole)
    lines = read_lines(whole)
    lines[1]["adapter_digest"] = ""
    write_lines(tmp_path / "run.jsonl", lines)
    with pytest.raises(VerificationError, match=r"line 2 .*adapter_digest"):
        verify_file(tmp_path / "run.jsonl")


def test_a_resumed_run_needs_the_same_adapter(
    whole: Path, opened: MarkovianRSAOrchestrator, config: RSAConfig, tmp_path: Path
) -> None:
    path = cut(whole, line_ends(whole)[12], tmp_path / "cut.jsonl")
    other = write_adapter(reasoner.model_path(), tmp_path / "other", seed=1)
    with MarkovianRSAOrchestrator.from_pretrained(aggregation_adapter=str(other)) as engine:
        engine.any_question = True
        with pytest.raises(ResumeError, match="another aggregation adapter"):
            engine.run(QUESTION, config.replace(aggregation_adapter=str(other)), audit_path=path)
    with pytest.raises(ResumeError, match="another aggregation_adapter"):
        opened.run(QUESTION, config.replace(aggregation_adapter=None), audit_path=path)
    opened.run(QUESTION, config, audit_path=path)
    assert traces(path) == traces(whole)
    verify_file(path)


def test_an_engine_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="aggregation_adapter is 'lora', but fake was opened with none"):
        run(FakeEngine(), small(aggregation_adapter="lora"), tmp_path / "run.jsonl")
    with pytest.raises(ConfigError, match="a server runs all rounds on the same weights"):
        run(FakeEngine(name="upstream/llama.cpp"), small(aggregation_adapter="lora"))
    choice = ModelChoice("m", upstream=Upstream(("http://127.0.0.1:1/v1",)))
    with pytest.raises(ConfigError, match="a server runs all rounds on the same weights"):
        load_orchestrator(choice, aggregation_adapter="lora")


def test_a_run_without_aggregation_warns_about_it() -> None:
    assert any("aggregation_adapter" in warning for warning in RSAConfig(rounds=0, aggregation_adapter="x").warnings())


def test_the_plan_counts_its_memory(adapter: Path, config: RSAConfig) -> None:
    folder = reasoner.model_path()
    plain = estimate(ModelChoice(str(folder)), config.replace(aggregation_adapter=None), 20)
    with_it = estimate(ModelChoice(str(folder)), config, 20)
    added = (adapter / "adapters.safetensors").stat().st_size
    assert with_it["weight_bytes"] == plain["weight_bytes"] + added

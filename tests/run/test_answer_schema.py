"""Runs whose answer has a JSON Schema: who is bound, the vote, the file, resume and verify."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.audit.events import RunSetupEvent, SelectionEvent, TraceCompleteEvent, TraceRetryEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.config import MAX_SCHEMA_LENGTH
from markovian_rsa_mlx.errors import ConfigError, ResumeError, RunFailedError, SchemaError, VerificationError
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import FakeEngine, boxed
from tests.support.runs import cut, line_ends, of, of_file, run, small

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
CONFIG = small(
    rounds=1, population=4, final_candidates=0, answer_selection="majority", response_schema=SCHEMA, answer_kind="auto"
)
WRITINGS = ('{"a": 1}', '{"a":1.0}', '{ "a" : 1 }', '{"a": 2}')


def writer(request: GenerationRequest, rng: random.Random) -> str:
    """A model that writes JSON where it is bound: 1 in three ways, and 2."""
    if request.answer_schema is None:
        return boxed(rng.randrange(10))
    return f"so</think>\n{WRITINGS[int(request.trace_id[-1])]}"


def engine(model: Any = writer, **values: Any) -> FakeEngine:
    return FakeEngine(model, binds_answers=True, **values)


def test_final_candidates_alone_are_bound() -> None:
    fake = engine()
    run(fake, CONFIG.replace(answer_selection="final_aggregation"))
    bound = {request.trace_id for request in fake.requests if request.answer_schema is not None}
    assert bound == {"r1-00", "r1-01", "r1-02", "r1-03", "r2-00"}
    assert all(request.answer_schema.schema == SCHEMA for request in fake.requests if request.answer_schema)


def test_votes_compare_canonical_json(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = run(engine(), CONFIG, path)
    assert result.answer_kind == "json"
    assert result.tally == [('{"a":1}', 3), ('{"a":2}', 1)]
    assert (result.text, result.answer) == ('{"a": 1}', '{"a":1}')
    (selection,) = of(result.events, SelectionEvent)
    assert (selection.equivalence, selection.requested_selection) == ("json", None)
    state = RunState(read_events(path))
    assert state.tally(dict(state.rounds())[1]) == [('{"a":1}', 3), ('{"a":2}', 1)]
    assert verify_file(path).finished


def test_setup_records_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(engine(), CONFIG, path)
    (setup,) = of_file(path, RunSetupEvent)
    assert setup.response_schema == SCHEMA
    lines = read_lines(path)
    lines[1]["response_schema"] = None
    write_lines(path, lines)
    with pytest.raises(VerificationError, match="response_schema"):
        verify_file(path)


def test_resume_uses_the_schema_and_refuses_another(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    whole = run(engine(), CONFIG, path)
    ends = line_ends(path)
    path = cut(path, ends[len(ends) // 2], tmp_path / "cut.jsonl")
    with pytest.raises(ResumeError, match="response_schema"):
        run(engine(), CONFIG.replace(response_schema=None), path)
    with pytest.raises(ResumeError, match="response_schema"):
        run(engine(), CONFIG.replace(response_schema={"type": "object"}), path)
    assert run(engine(), CONFIG, path).text == whole.text
    assert verify_file(path).finished


def test_finished_answer_that_does_not_fit_is_a_violation(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(engine(name="mlx-lm"), CONFIG, path)
    assert not verify_file(path).assumed
    other = tmp_path / "other.jsonl"
    run(engine(lambda *_: 'so</think>{"a": 12}'), CONFIG, other)
    lines = read_lines(other)
    next(line for line in lines if line["event"] == "run_setup")["engine"] = "mlx-lm"
    write_lines(other, lines)
    with pytest.raises(VerificationError, match="does not fit"):
        verify_file(other)


def test_answer_that_is_no_json_is_tried_again() -> None:
    def sloppy(request: GenerationRequest, rng: random.Random) -> str:
        return writer(request, rng) if rng.random() < 0.5 else "so</think>Sure: {}"

    result = run(engine(sloppy), CONFIG.replace(max_retries=20))
    assert of(result.events, TraceRetryEvent)
    assert all(json.loads(answer) for answer, _ in result.tally)
    with pytest.raises(RunFailedError):
        run(engine(lambda *_: "so</think>Sure"), CONFIG.replace(max_retries=0))


def test_answer_that_is_no_json_is_tried_again_after_a_kill(tmp_path: Path) -> None:
    """The first session is killed after the last ids of the attempt, before the retry is recorded."""
    seeds: list[int] = []

    def write(request: GenerationRequest, rng: random.Random) -> str:
        if request.trace_id == "r1-00" and not seeds:
            seeds.append(request.seed)
        return "so</think>no" if request.seed in seeds else writer(request, rng)

    path = tmp_path / "run.jsonl"
    run(engine(write), CONFIG, path)
    retry = next(i for i, line in enumerate(read_lines(path)) if line["event"] == "trace_retry")
    resumed = cut(path, line_ends(path)[retry - 1], tmp_path / "resumed.jsonl")
    assert run(engine(write), CONFIG, resumed).answer == '{"a":1}'
    assert [event.attempt for event in of_file(resumed, TraceRetryEvent)] == [1]
    assert verify_file(resumed).finished


def test_answer_that_no_grammar_prevents_is_tried_again() -> None:
    twice = {"type": "object", "minProperties": 2}

    def repeating(request: GenerationRequest, rng: random.Random) -> str:
        return "so</think>" + ('{"a": 1, "a": 2}' if rng.random() < 0.5 else '{"a": 1, "b": 2}')

    result = run(engine(repeating, name="mlx-lm"), CONFIG.replace(response_schema=twice, max_retries=20))
    assert of(result.events, TraceRetryEvent)
    assert result.tally == [('{"a":1,"b":2}', 4)]


def test_cut_off_answer_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = run(engine(lambda *_: 'so</think>{"a": ' + "1" * 300), CONFIG, path)
    assert (result.answer, result.tally) == ("", [])
    assert {e.finish_reason for e in of(result.events, TraceCompleteEvent) if e.round == 1} == {"max_tokens"}
    assert verify_file(path).finished


def test_same_answers_raise_no_alarm() -> None:
    result = run(engine(lambda *_: 'so</think>{"a": 1}'), CONFIG)
    assert not [warning for warning in result.warnings if "identical" in warning]


def test_engine_without_grammars_refuses() -> None:
    with pytest.raises(SchemaError, match="fake cannot bind"):
        run(FakeEngine(), CONFIG)
    with pytest.raises(SchemaError, match="too odd"):
        run(engine(unusable="too odd"), CONFIG)


@pytest.mark.parametrize("schema", ["text", 7, {"a": {1, 2}}, {"enum": ["x" * MAX_SCHEMA_LENGTH]}, {"a": float("nan")}])
def test_setting_is_an_object_of_limited_size(schema: Any) -> None:
    with pytest.raises(ConfigError, match="response_schema must be"):
        RSAConfig(response_schema=schema)


def test_open_answers_may_vote_as_json() -> None:
    assert CONFIG.replace(answer_kind="open").requested_kind == "json"
    with pytest.raises(ConfigError, match="open"):
        CONFIG.replace(answer_kind="open", response_schema=None)


def test_run_of_the_embedded_model(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = RSAConfig.embedded().replace(
        rounds=1, population=2, aggregation_size=2, final_candidates=2, final_tokens=160, answer_tokens=80, seed=3,
        response_schema=SCHEMA,
    )  # fmt: skip
    with MarkovianRSAOrchestrator.from_pretrained() as opened:
        opened.any_question = True
        result = opened.run("Tell me.", config, audit_path=path)
        finals = [event for event in of(result.events, TraceCompleteEvent) if event.round == 1]
        assert any(event.finish_reason == "eos" for event in finals)
        assert json.loads(result.text or "")["a"] <= 9
        report = verify_file(path, codec=opened.engine.tokenizer)
    assert report.finished
    assert not report.assumed

"""The beginnings of prompts to come are read while rows decode, and change no token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit.events import TraceCompleteEvent
from markovian_rsa_mlx.backends.base import GenerationRequest, ReadsAhead
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.prefix_cache import PrefixCache
from markovian_rsa_mlx.backends.mlx.read_ahead import Beginning, ReadAhead
from markovian_rsa_mlx.reasoner import demo_puzzle
from tests.support.runs import of

from ..traces import PROMPT, RecordingListener, replace_stores, request, run, wait_until, without_eos

BEGINNING = PROMPT * 4
KINDS = ("llama", "qwen3", "gemma3_text", "mamba2", "falcon_h1")


def child(seed: int = 9, beginning: Sequence[int] = BEGINNING) -> GenerationRequest:
    return replace(request(seed, (*beginning, *range(40, 70)), max_tokens=10), trace_id="r1-00", run_id="run")


def parent(seed: int = 1, run_id: str = "run") -> GenerationRequest:
    """A trace that decodes for seconds, if no EOS ends it."""
    return replace(request(seed, max_tokens=3_900), run_id=run_id)


async def child_alongside(
    engine: MLXEngine, parents: Sequence[GenerationRequest], until: Callable[[], bool] | None = None
) -> tuple[int, ...]:
    """Read the beginning of the child while its parents decode. Return the tokens of the child after that."""
    ahead, listeners = engine._scheduler.ahead, [RecordingListener() for _ in parents]
    before = ahead.tokens_read
    tasks = [asyncio.create_task(engine.generate(*pair)) for pair in zip(parents, listeners, strict=True)]
    for listener in listeners:
        await listener.first.wait()
    engine.read_ahead("run", "r1-00", BEGINNING)
    await wait_until(until or (lambda: ahead.tokens_read > before and ahead._current is None))
    result = await engine.generate(child(), RecordingListener())
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return result.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_continues_from_what_was_read_and_its_tokens_are_the_same(
    engine_of: Callable[[str], MLXEngine], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    assert isinstance(engine, ReadsAhead)
    without_eos(engine, monkeypatch)
    alone = run(engine, [child()])[0]
    replace_stores(engine)  # another test may have read the beginning
    known: list[int] = []
    match = engine._scheduler._prefixes.match

    def recorded(prompt: tuple[int, ...]) -> tuple[int, object]:
        found = match(prompt)
        known.append(found[0])
        return found

    monkeypatch.setattr(engine._scheduler._prefixes, "match", recorded)
    assert asyncio.run(child_alongside(engine, [parent()])) == alone
    assert known[-1] == len(BEGINNING)


@pytest.mark.parametrize("parents", [[parent(seed) for seed in range(5)], [parent(run_id="another")]])
def test_nothing_is_read_beside_many_rows_or_for_a_run_that_does_not_decode(
    engine: MLXEngine, parents: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_eos(engine, monkeypatch)
    alone = run(engine, [child()])[0]
    replace_stores(engine)
    ahead = engine._scheduler.ahead
    before, waits = ahead.tokens_read, iter(range(30))
    assert asyncio.run(child_alongside(engine, parents, until=lambda: next(waits) == 29)) == alone
    assert ahead.tokens_read == before
    assert not ahead._waiting


def test_a_later_call_takes_the_place_of_an_earlier_one_and_the_request_that_of_both() -> None:
    ahead = ReadAhead(None, PrefixCache())
    for length in (20, 30):
        for trace_id in ("r1-00", "r1-01"):
            ahead.add(Beginning("run", trace_id, BEGINNING[:length]))
    assert [len(each.token_ids) for each in ahead._waiting.values()] == [30, 30]
    ahead.drop("run", "r1-00")
    assert [each.trace_id for each in ahead._waiting.values()] == ["r1-01"]


def test_what_was_read_in_part_is_stored(engine: MLXEngine) -> None:
    prefixes = PrefixCache()
    prefixes.max_bytes = 10**9
    ahead = ReadAhead(engine._scheduler.model, prefixes)

    def read() -> None:
        ahead.add(Beginning("run", "r1-00", BEGINNING))
        assert ahead.advance(40, ["run"], lambda _: True) == 40
        ahead.drop("run", "r1-00")
        assert prefixes.match(BEGINNING)[0] == 40
        ahead.add(Beginning("run", "r1-01", BEGINNING))
        assert ahead.advance(1_000, ["run"], lambda _: True) == len(BEGINNING) - 40
        assert prefixes.match(BEGINNING)[0] == len(BEGINNING)
        ahead.add(Beginning("run", "r1-02", PROMPT * 9))
        assert ahead.advance(1_000, ["run"], lambda length: length < 200) == 0  # memory has no capacity

    engine._worker.call(read).result()


def tokens_of(orchestrator: MarkovianRSAOrchestrator, seed: int) -> dict[str, list[int]]:
    config = RSAConfig.embedded().replace(population=8, aggregation_size=4, rounds=2, final_candidates=1, seed=seed)
    events = orchestrator.run(demo_puzzle(seed).question, config).events
    return {event.trace_id: event.token_ids for event in of(events, TraceCompleteEvent)}


@pytest.mark.parametrize("runs", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_runs_are_equal_with_and_without(runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with MarkovianRSAOrchestrator.from_pretrained() as orchestrator:
        engine = orchestrator.backend
        assert isinstance(engine, MLXEngine)
        with_it = [tokens_of(orchestrator, seed) for seed in range(runs)]
        assert engine._scheduler.ahead.tokens_read > 100 * runs
        read = engine._scheduler.ahead.tokens_read
        monkeypatch.setattr(MLXEngine, "read_ahead", lambda *_, **__: None)
        assert [tokens_of(orchestrator, seed) for seed in range(runs)] == with_it
        assert engine._scheduler.ahead.tokens_read == read

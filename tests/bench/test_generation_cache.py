"""Test that methods share generations, that every audit log is complete, and that tokens count for each method."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.bench.generation_cache import (
    CachingEngine,
    Generation,
    GenerationCache,
    cancelled_rows,
    generations,
    row_times,
)
from markovian_rsa_mlx.bench.methods import METHODS
from markovian_rsa_mlx.bench.results import Results, RunRecord
from tests.support.fakes import EOS, FakeBackend, FakeEngine, boxed

from ..support.bench_harness import SMALL, FakeTask, coin, make_spec, run_bench, settled
from ..support.sizes import sizes

ALL = [*METHODS, "markovian:final_aggregation", "pacore:final_aggregation"]


def records(results: Results, cell: str) -> tuple[RunRecord, ...]:
    return next(c.records for c in results.cells if c.name == cell)


def test_all_methods_share_round_zero(tmp_path: Path) -> None:
    backend = FakeBackend(coin)
    run_bench(tmp_path, make_spec(FakeTask(1)), backend)
    first = [request for request in backend.requests if request.trace_id.startswith("r0")]
    # Four of N, eight more for the vote at equal budget; delethink and markovian need none of their own.
    assert sorted(request.trace_id for request in first) == [f"r0-{i:02d}" for i in range(12)]
    assert len({request.seed for request in first}) == 12


def test_shared_traces_are_in_every_audit_log(tmp_path: Path) -> None:
    results = run_bench(tmp_path, make_spec(FakeTask(1), ["single", "delethink"]))
    first, second = (_traces(tmp_path / records(results, cell)[0].trail) for cell in ("parallel", "delethink"))
    assert {name: ids for name, ids in second.items() if name.startswith("r0")} == first


def test_every_audit_log_verifies(tmp_path: Path) -> None:
    results = run_bench(tmp_path, make_spec(FakeTask(2), ALL))
    trails = [tmp_path / record.trail for cell in results.cells for record in cell.records]
    assert len(trails) == 2 * len(results.cells)
    for trail in trails:
        assert verify_file(trail).finished


def test_final_aggregation_costs_one_more_trace(tmp_path: Path) -> None:
    results = run_bench(tmp_path, make_spec(FakeTask(1), ["markovian", "markovian:final_aggregation"]))
    (plain,), (aggregated,) = records(results, "markovian"), records(results, "markovian:final_aggregation")
    assert plain.new_tokens == plain.generated_tokens
    last = aggregated.generated_tokens - plain.generated_tokens
    assert aggregated.new_tokens == last > 0


@sizes("problems", 1, 2)
def test_tokens_match_an_independent_count_over_the_audit_logs(problems: int, tmp_path: Path) -> None:
    results = run_bench(tmp_path, make_spec(FakeTask(problems), ALL, epochs=2))
    seen: set[tuple[Any, ...]] = set()
    once = 0
    for cell in results.cells:
        for record in cell.records:
            counted, generations = _count(tmp_path / record.trail)
            assert [r.generated_tokens for r in record.rounds] == counted
            assert record.generated_tokens == counted[-1] > 0
            for generation, tokens in generations:
                place = (record.index, record.epoch, *generation)
                once += tokens if place not in seen else 0
                seen.add(place)
    assert results.generated_once == once
    for row in results.table:
        method = results.method(row.method)
        runs = records(results, method.cell)
        mean = sum(record.generated_tokens for record in runs) / len(runs)
        assert abs(row.generated_tokens - mean / (4 if method.one_trace else 1)) < 1e-9


class InStep(FakeEngine):
    """All rows advance together, by eight tokens in four milliseconds."""

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        listener.started()
        text = self.model(request, random.Random(request.seed))
        ids = [*self.tokenizer.encode(text), EOS][: request.max_tokens]
        for start in range(len(request.generated_ids), len(ids), 8):
            await asyncio.sleep(0.004)
            listener.tokens(ids[start : start + 8])
        return GenerationResult(tuple(ids), "eos" if ids[-1] == EOS else "max_tokens")


def often_right(request: GenerationRequest, rng: random.Random) -> str:
    return boxed(rng.choice(["right", "right", "right", "wrong"]), "so " * rng.randrange(1, 50))


WIDE = SMALL.replace(population=12, concurrency=12, answer_kind="text")


def bench_of(path: Path, *methods: str) -> Results:
    return run_bench(path, make_spec(FakeTask(3), list(methods), WIDE), InStep(often_right), concurrency=1)


def test_cancelled_traces_count_once_and_with_their_time(tmp_path: Path) -> None:
    results = bench_of(tmp_path, "vote+posterior")
    runs = [record for cell in results.cells for record in cell.records]
    states = [RunState(read_events(tmp_path / record.trail)) for record in runs]
    assert any(cancelled_rows(state) for state in states)
    assert results.generated_once == sum(state.counted_tokens for state in states)
    for record, state in zip(runs, states, strict=True):
        assert record.new_tokens == record.generated_tokens == state.counted_tokens
        assert record.wall_s == pytest.approx(sum(time.engine_s for time in row_times(state).values()))
        assert record.rounds[-1].tokens_per_s == pytest.approx(record.generated_tokens / record.wall_s)
        cache = GenerationCache()
        assert (cache.add_run(state), cache.add_run(state)) == (record.new_tokens, 0)


def test_a_cancelled_trace_is_the_beginning_of_its_finished_generation(tmp_path: Path) -> None:
    states = []
    for name in ("vote", "vote+posterior"):
        results = bench_of(tmp_path / name.replace("+", "-"), name)
        (cell,) = results.cells
        trails = [tmp_path / name.replace("+", "-") / record.trail for record in cell.records]
        states.append([RunState(read_events(trail)) for trail in trails])
    for vote, stopped in zip(*states, strict=True):
        total = vote.counted_tokens
        whole_first, begun_first = GenerationCache(), GenerationCache()
        assert (whole_first.add_run(vote), whole_first.add_run(stopped)) == (total, 0)
        assert begun_first.add_run(stopped) == stopped.counted_tokens
        assert begun_first.add_run(vote) == total - stopped.counted_tokens
        assert begun_first.add_run(stopped) == 0
        times = whole_first.trace_times(stopped)
        assert all(times[trace.trace_id] is not None for trace in cancelled_rows(stopped))


def test_prompt_tokens_are_counted_separately(tmp_path: Path) -> None:
    (record,) = records(run_bench(tmp_path, make_spec(FakeTask(1), ["markovian"])), "markovian")
    lines = [json.loads(line) for line in (tmp_path / record.trail).read_text().splitlines()]
    starts = [line["prompt_token_count"] for line in lines if line["event"] == "generation_start"]
    assert record.prefill_tokens == sum(starts) == record.rounds[-1].prefill_tokens


def test_added_method_reuses_generations(tmp_path: Path) -> None:
    run_bench(tmp_path, make_spec(FakeTask(2), ["markovian"]))
    backend = FakeBackend(coin)
    grown = run_bench(tmp_path, make_spec(FakeTask(2), ["single", "markovian"]), backend)
    needed = {record.rounds[0].traces for record in records(grown, "markovian")}
    assert len(backend.requests) == sum(4 - record.rounds[0].traces for record in records(grown, "markovian"))
    assert needed <= {3, 4}


def test_reordered_methods_give_the_results_of_that_order(tmp_path: Path) -> None:
    """The first variant that needs a trace counts its tokens, also if the order was another one before."""
    specs = [make_spec(FakeTask(2), names) for names in (["single", "markovian"], ["markovian", "single"])]
    run_bench(tmp_path / "turned", specs[0])
    run_bench(tmp_path / "turned", specs[1])
    run_bench(tmp_path / "whole", specs[1])
    assert settled(tmp_path / "turned" / "results.json") == settled(tmp_path / "whole" / "results.json")


def test_cached_generation_continues_an_interrupted_trace(tmp_path: Path) -> None:
    (record,) = records(run_bench(tmp_path, make_spec(FakeTask(1), ["single"])), "parallel")
    history = RunState(read_events(tmp_path / record.trail))
    cache = GenerationCache()
    assert cache.add_run(history) == record.generated_tokens
    assert cache.add_run(history) == 0
    first = next(generations(history))
    ids, received = first.result.token_ids, list[int]()

    class Listener:
        def started(self) -> None:
            received.append(-1)

        def tokens(self, ids: Sequence[int]) -> None:
            received.extend(ids)

        def thinking_closed(self, closing_ids: Sequence[int]) -> None:
            raise AssertionError

        def warning(self, message: str) -> None:
            raise AssertionError(message)

    prompt, seed, max_tokens, sampling, adapter, closing = first.key
    assert (adapter, closing) == ("", None)
    request = GenerationRequest(first.trace_id, (), prompt, max_tokens, seed, sampling, ids[:5])
    engine = CachingEngine(FakeBackend(lambda *_: pytest.fail("the generation is cached")), cache)
    assert asyncio.run(engine.generate(request, Listener())).token_ids == ids
    assert received == [-1, *ids[5:]]


@dataclass
class Running:
    """A listener of one trace, which counts those that have begun and not ended."""

    names: set[str]
    name: str
    most: list[int]

    def started(self) -> None:
        self.names.add(self.name)
        self.most.append(len(self.names))

    def tokens(self, ids: Sequence[int]) -> None: ...

    def thinking_closed(self, closing_ids: Sequence[int]) -> None: ...

    def warning(self, message: str) -> None: ...


class TwoRows(FakeEngine):
    @property
    def info(self) -> EngineInfo:
        return dataclasses.replace(super().info, max_rows=2)


def test_known_generations_take_rows_of_the_engine_where_a_vote_stops_early(tmp_path: Path) -> None:
    """Otherwise all of them would end at once, and an early stop would have none to cancel."""
    (record,) = records(run_bench(tmp_path, make_spec(FakeTask(1), ["single"])), "parallel")
    history, cache = RunState(read_events(tmp_path / record.trail)), GenerationCache()
    cache.add_run(history)
    engine, running, most = CachingEngine(TwoRows(), cache), set[str](), list[int]()
    engine.stops_early = True

    async def generate(known: Generation) -> None:
        prompt, seed, max_tokens, sampling, _, _ = known.key
        request = GenerationRequest(known.trace_id, (), prompt, max_tokens, seed, sampling)
        await engine.generate(request, Running(running, known.trace_id, most))
        running.remove(known.trace_id)

    async def generate_all() -> None:
        await asyncio.gather(*map(generate, generations(history)))

    asyncio.run(generate_all())
    assert (len(most), max(most)) == (4, 2)


@pytest.mark.parametrize("name", ["read_ahead", "confidence"])
def test_optional_methods_of_the_engine_are_found_without_calling_anything(name: str) -> None:
    """As `isinstance` looks for the methods of a protocol from Python 3.12 on."""
    with_it, without = FakeBackend(), FakeBackend()
    setattr(with_it, name, print)
    assert inspect.getattr_static(CachingEngine(with_it, GenerationCache()), name) is print
    assert inspect.getattr_static(CachingEngine(without, GenerationCache()), name, None) is None


def test_each_problem_and_epoch_has_its_own_seed(tmp_path: Path) -> None:
    results = run_bench(tmp_path, make_spec(FakeTask(3), ["single", "markovian"], epochs=2))
    seeds = [record.seed for record in records(results, "parallel")]
    assert len(set(seeds)) == 6
    assert seeds == [record.seed for record in records(results, "markovian")]
    other = run_bench(tmp_path / "other", make_spec(FakeTask(3), ["single"], seed=2))
    assert not set(seeds) & {record.seed for record in records(other, "parallel")}


def test_generations_with_other_token_limits_are_not_shared(tmp_path: Path) -> None:
    backend = FakeBackend(lambda request, rng: boxed("right", "so " * 40))
    run_bench(
        tmp_path, make_spec(FakeTask(1), ["single", "markovian"], SMALL.replace(rounds=0, final_tokens=100)), backend
    )
    assert {request.max_tokens for request in backend.requests} == {100, 200}
    assert len(backend.requests) == 8


def _traces(trail: Path) -> dict[str, list[int]]:
    lines = map(json.loads, trail.read_text().splitlines())
    return {line["trace_id"]: line["token_ids"] for line in lines if line["event"] == "trace_complete"}


def _count(trail: Path) -> tuple[list[int], list[tuple[tuple[Any, ...], int]]]:
    """Count from the raw lines: tokens up to each round, and those of each (prompt, seed, token limit, sampling)."""
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    config, setup = lines[0]["config"], lines[1]
    prompts = {line["trace_id"]: line["prompt_token_ids"] for line in lines if line["event"] == "aggregation_prompt"}
    starts = {line["trace_id"]: line for line in lines if line["event"] == "generation_start"}
    rounds = [0] * (1 + max(line["round"] for line in lines if line["event"] == "round_complete"))
    generations = []
    stop = next((place for place, line in enumerate(lines) if line["event"] == "stopped_early"), len(lines))
    cancelled = [line for line in lines[stop:] if line["event"] == "trace_checkpoint"]  # short ones have no others
    rounds[-1] += sum(len(line["token_ids"]) for line in cancelled)
    for line in lines:
        if line["event"] == "judgement":
            rounds[-1] += len(line["token_ids"])
            temperature = config["final_temperature"] or config["temperature"]
            key = (tuple(line["prompt_token_ids"]), line["seed"], "judgement", temperature)
            generations.append((key, len(line["token_ids"])))
        if line["event"] not in ("trace_complete", "summary_complete"):
            continue
        assert line["generated_tokens"] == len(line["token_ids"])
        rounds[line["round"]] += len(line["token_ids"])
        start = starts[line["trace_id"]]
        final = line["event"] == "trace_complete" and line["round"] >= config["rounds"]
        prompt = line.get("prompt_token_ids") or prompts.get(line["trace_id"]) or setup["prompt_token_ids"]
        budget = start["max_tokens"] if line["event"] == "trace_complete" else "summary"
        seed = line["seed"] if line["event"] == "summary_complete" else start["seed"]
        sampling = config["final_temperature"] if final else config["temperature"]
        generations.append(((tuple(prompt), seed, budget, sampling or config["temperature"]), len(line["token_ids"])))
    return [sum(rounds[: number + 1]) for number in range(len(rounds))], generations

"""The shared order of tails: the drawn parents of each trace, ordered so that many prompts begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.audit.events import AggregationPromptEvent, GenerationStartEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.mlx.prefix_cache import common_prefix
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ResumeError, VerificationError
from markovian_rsa_mlx.method.lineage import Lineage, TailOrder, TraceKey
from markovian_rsa_mlx.method.tail_order import order_to_share
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import FakeEngine
from tests.support.runs import cut, line_ends, of_file, run, small

CONFIG = small(rounds=2, population=5, aggregation_size=3, final_candidates=0, tail_order="shared", seed=11)


def test_the_rule_is_pinned() -> None:
    """A change would make recorded runs unverifiable."""
    assert order_to_share([[3, 1, 2], [2, 5], [1, 5], [2, 3], [4]]) == [(2, 3, 1), (2, 5), (1, 5), (2, 3), (4,)]
    orders = [Lineage(2026, 8, 4, 1, 8, tail_order="shared").parents(TraceKey(1, i)) for i in range(3)]
    assert [[parent.index for parent in order] for order in orders] == [[2, 3, 1, 4], [0, 7, 5, 3], [0, 7, 5, 6]]


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=5), max_size=12))
def test_each_draw_keeps_its_numbers(draws: list[list[int]]) -> None:
    orders = order_to_share(draws)
    assert [sorted(order) for order in orders] == [sorted(draw) for draw in draws]
    assert order_to_share([list(reversed(draw)) for draw in draws]) == orders


def saved(tail_order: TailOrder, seed: int) -> float:
    """The share of tails that need not be read, at F = N = 16 and C = 4, if every common beginning is read once."""
    lineage = Lineage(seed, 16, 4, 1, 16, tail_order=tail_order)
    prompts = [lineage.parents(key) for key in lineage.finals]
    beginnings = {prompt[:length] for prompt in prompts for length in range(1, 5)}
    return 1 - len(beginnings) / 64


def test_prompts_share_a_third_of_their_tails() -> None:
    assert mean(saved("drawn", seed) for seed in range(100)) == pytest.approx(0.10, abs=0.02)
    assert mean(saved("shared", seed) for seed in range(100)) == pytest.approx(0.31, abs=0.02)


def test_parents_are_the_drawn_ones_whatever_f() -> None:
    drawn, few, every = (Lineage(5, 9, 4, 2, f, tail_order=o) for f, o in ((9, "drawn"), (1, "shared"), (9, "shared")))
    for index in range(9):
        key = TraceKey(1, index)
        assert sorted(every.parents(key)) == sorted(drawn.parents(key))
        assert few.parents(key) == every.parents(key)
    assert every.needed() == drawn.needed()


def test_one_parent_and_the_final_aggregation_keep_their_order() -> None:
    chain = Lineage(5, 4, 1, 2, 4, tail_order="shared")
    assert chain.parents(TraceKey(1, 3)) == (TraceKey(0, 3),)
    voted = Lineage(5, 4, 2, 1, 4, final_aggregation=True, tail_order="shared")
    assert voted.parents(TraceKey(2, 0)) == (TraceKey(1, 0), TraceKey(1, 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(FakeEngine(), CONFIG, path)
    return path


def test_a_run_shows_tails_in_the_shared_order(whole: Path) -> None:
    verify_file(whole)
    lineage = Lineage.of(CONFIG, 11)
    shown: Sequence[AggregationPromptEvent] = of_file(whole, AggregationPromptEvent)
    assert len(shown) == 10
    for event in shown:
        assert event.selected_tail_trace_ids == [str(key) for key in lineage.parents(TraceKey.parse(event.trace_id))]
    assert [e.parent_trace_ids for e in of_file(whole, GenerationStartEvent) if e.round] == [
        e.selected_tail_trace_ids for e in shown
    ]


@pytest.mark.parametrize("tail_order", ["drawn", "shared"])
def test_requests_tell_what_later_prompts_begin_with(tail_order: TailOrder) -> None:
    backend = FakeEngine()
    run(backend, CONFIG.replace(tail_order=tail_order, concurrency=1))
    for t in (1, 2):
        requests = [each for each in backend.requests if each.trace_id.startswith(f"r{t}")]
        assert len(requests) == 5
        for place, first in enumerate(requests):
            later = sorted(requests[place + 1 :], key=lambda each: each.trace_id)
            shared = [common_prefix(first.prompt_token_ids, each.prompt_token_ids) for each in later]
            assert len(first.shared_lengths) == len(shared)
            # Different tails may begin alike.
            assert all(told <= found for told, found in zip(first.shared_lengths, shared, strict=True))
    told = [length for each in backend.requests for length in each.shared_lengths]
    assert mean(told) > min(told)


def test_resuming_refuses_another_order(whole: Path, tmp_path: Path) -> None:
    path = cut(whole, line_ends(whole)[20], tmp_path / "cut.jsonl")
    with pytest.raises(ResumeError, match="another tail_order: 'shared' there, 'drawn' requested"):
        run(FakeEngine(), CONFIG.replace(tail_order="drawn"), path)
    run(FakeEngine(), CONFIG, path)
    verify_file(path)


def test_a_changed_order_is_noticed(whole: Path, tmp_path: Path) -> None:
    lines = read_lines(whole)
    lines[0]["config"]["tail_order"] = "drawn"
    write_lines(tmp_path / "run.jsonl", lines)
    with pytest.raises(VerificationError, match="the lineage and the failed traces leave"):
        verify_file(tmp_path / "run.jsonl")


def test_an_older_file_has_the_drawn_order() -> None:
    recorded = {name: value for name, value in RSAConfig().to_dict().items() if name != "tail_order"}
    assert RSAConfig.from_recorded(recorded).tail_order == "drawn"

"""Speeds and times predicted from a chip's bandwidth, and the published speeds behind the ranges."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from benchmarks import macs
from markovian_rsa_mlx.backends.mlx import device
from markovian_rsa_mlx.backends.mlx.memory import footprint_of, weight_reads
from markovian_rsa_mlx.backends.policy import MemoryBudget
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.predict.costs import BandwidthCosts, WeightReads
from markovian_rsa_mlx.predict.expected import Prospect
from markovian_rsa_mlx.predict.lengths import LogNormal
from markovian_rsa_mlx.predict.published import CHIPS, REPORTS, chip_of, expected_shares
from tests.backends import tiny_models

DOCS = Path(__file__).parents[2] / "docs" / "running.md"


@cache
def prospect(weights: str, chip: str = "M4") -> Prospect:
    return Prospect.of_model(chip, macs.model_of(weights))


def test_a_step_reads_the_experts_that_its_tokens_choose() -> None:
    reads = WeightReads(100, 1600, 1 / 16)
    assert reads.step_bytes(1) == pytest.approx(200)
    assert reads.step_bytes(2) == pytest.approx(100 + 1600 * (1 / 16 + 15 / 256))
    assert reads.step_bytes(10_000) == pytest.approx(1700)
    assert WeightReads(100).step_bytes(7) == 100


def test_only_a_tied_embedding_is_read() -> None:
    model = tiny_models.build("llama")
    dense, experts, _ = weight_reads(model, 1)
    embedding = model.model.embed_tokens.weight.nbytes
    assert (dense, experts) == (footprint_of(model).weight_bytes - embedding, 0)


@pytest.mark.parametrize(("weights", "gigabytes", "bound"), [("4-bit", 1.053, 114), ("8-bit", 1.409, 85)])
def test_the_bound_of_the_8b_follows_from_its_active_weights(weights: str, gigabytes: float, bound: float) -> None:
    found = prospect(weights)
    assert found.reads.step_bytes(1) / 1e9 == pytest.approx(gigabytes, abs=0.001)
    assert found.speed(1).bound == pytest.approx(bound, abs=0.5)


def test_published_bytes_are_those_of_the_weights() -> None:
    for report in REPORTS:
        if report.weights in ("8-bit", "bfloat16"):
            assert report.read_bytes == pytest.approx(prospect(report.weights).reads.step_bytes(1), rel=0.001)
        assert report.bandwidth_gb_s in CHIPS[report.chip]
        assert 0 < report.share < 1


@pytest.mark.parametrize("weights", ["4-bit", "bfloat16"])
def test_the_range_is_that_of_the_reports(weights: str) -> None:
    shares = expected_shares(quantized=weights != "bfloat16")
    speed = prospect(weights).speed(4)
    assert (speed.low, speed.high) == pytest.approx((speed.bound * shares[0], speed.bound * shares[1]))
    slower, faster = CHIPS["M4 Max"]
    wide = prospect(weights, "M4 Max").speed(1)
    assert wide.low == pytest.approx(wide.bound * shares[0] * slower / faster)


def test_other_models_have_a_bound_only() -> None:
    found = Prospect.of_model("M1", tiny_models.build("llama"))
    assert found.speed(1).low is None
    assert found.to_dict()["published"] == []
    assert len(found.sentences) == 1


def test_the_time_of_a_problem_scales_with_the_share() -> None:
    found, config = prospect("4-bit"), RSAConfig(rounds=0, population=1, final_candidates=None)
    budget = MemoryBudget(footprint_of(macs.model_of("4-bit")), 8, 10**10)
    time = found.seconds_per_problem(config, 1000, LogNormal(500, 0.0), budget)
    shares = expected_shares(quantized=True)
    assert (time.low, time.high) == pytest.approx((time.bound / shares[1], time.bound / shares[0]))
    step = found.reads.step_bytes(1) / 120e9
    caches = 500 * 1250 * found.kv_bytes_per_token / 120e9
    assert time.bound == pytest.approx(500 * step + caches + 1000 * step / 9, rel=0.01)


def test_costs_grow_with_rows_and_contexts() -> None:
    costs = BandwidthCosts(1e9, WeightReads(10**9), 10**3, 10.0)
    assert costs.step(3) == (1.0, 3e-6)
    assert costs.prefill(50, 10**6) == 5.0
    assert costs.change(3) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "chip"), [("Apple M4 Pro", "M4 Pro"), ("m4", "M4"), ("Apple M9", None), ("Intel", None), ("", None)]
)
def test_chips_are_found_by_the_name_of_the_device(name: str, chip: str | None) -> None:
    assert chip_of(name) == chip


def test_no_mac_is_filled_beyond_seven_tenths() -> None:
    for memory, chip, share in macs.MACS:
        working_set = macs.working_set_of(memory, share)
        assert device.default_limit_bytes(working_set) <= macs.MAX_SHARE * working_set
        found = macs.cell(memory, chip, share, "4-bit", "default-16gb")
        assert found.required_bytes <= macs.MAX_SHARE * working_set
        assert (found.rows > 0) == (memory > 8)


@pytest.mark.slow
def test_the_tables_of_the_page_are_those_of_the_script() -> None:
    assert macs.tables() in DOCS.read_text(encoding="utf-8")

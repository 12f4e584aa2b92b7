"""`python -m benchmarks.schedules`: the comparison of schedules, from options to output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.schedules import main
from markovian_rsa_mlx.predict.measure import DecodePoint, Speeds

Output = pytest.CaptureFixture[str]


def test_schedules_are_compared_with_the_loop_over_rounds(capsys: Output) -> None:
    options = ["--profile", "paper-16k", "--batches", "2", "--servers", "2", "--rows", "16", "--problems", "2"]
    main(options)
    out = capsys.readouterr().out
    first = out.splitlines()[1].split()
    assert first[:2] == ["paper-16k", "F=1"]
    assert first[-3:] == ["1.00x"] * 3
    assert "2 concurrent problems on 2 engines of 16 rows" in out
    main([*options, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in facts] == ["paper-16k F=1", "paper-16k F=N"]
    found = facts[0]["machines"]["compute-bound"]
    assert found[0]["schedule"] == "round barrier, all traces"
    assert found[-1]["speedup"] > 1.8
    assert found[-1]["traces"] < 0.6 * found[0]["traces"]


def test_prompts_with_many_tails_are_simulated(capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "big.toml"
    file.write_text("population = 80\naggregation_size = 70\nrounds = 1\n")
    main(["--config", str(file), "--batches", "1"])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["big", "round"]


def test_files_with_the_same_name_each_have_a_line(capsys: Output, tmp_path: Path) -> None:
    files = [tmp_path / folder / name for folder, name in (("x", "a.toml"), ("y", "a.toml"), ("x", "paper-16k.toml"))]
    for population, file in enumerate(files, start=4):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'profile = "default-16gb"\npopulation = {population}\n')
    options = [word for file in [*files, files[0]] for word in ("--config", str(file))]
    main([*options, "--profile", "paper-16k", "--batches", "1", "--json"])
    compared = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in compared] == ["paper-16k F=1", "paper-16k F=N", *map(str, files)]
    assert [each["config"]["population"] for each in compared[2:]] == [4, 5, 6]


def test_a_measured_engine_is_one_more_machine(capsys: Output, tmp_path: Path) -> None:
    speeds = Speeds(((64, 0, 0.1),), (DecodePoint(1, 64, 0.01, 0.0),))
    (tmp_path / "speeds.json").write_text(json.dumps({"model": "owner/fake", "speeds": speeds.to_dict()}))
    main(["--profile", "paper-light-8k", "--batches", "1", "--speeds", str(tmp_path / "speeds.json")])
    assert "measured (fake)" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("options", [["--rows", "0"], ["--length-sigma", "4"], ["--batches", "many"]])
def test_an_option_out_of_range_is_a_usage_error(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2

"""Test grids: combinations and single points over the base settings, and the names and folders of variants."""

from __future__ import annotations

from pathlib import Path

import pytest

from markovian_rsa_mlx.bench.experiment import cell_folder
from markovian_rsa_mlx.bench.methods import Plan, plan, read_grid
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ConfigError

BASE = RSAConfig.paper_16k()


def read(tmp_path: Path, text: str, *methods: str) -> Plan:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    return plan(BASE, methods or ["markovian"], read_grid(file))


def test_variant_names_contain_the_varying_settings(tmp_path: Path) -> None:
    found = read(tmp_path, '[grid]\nC = [1, 4]\nbeta = [8_000, 16_000]\nfinal_tokens = "beta"')
    assert list(found.configs) == [
        "markovian C=1 beta=8000",
        "markovian C=1 beta=16000",
        "markovian C=4 beta=8000",
        "markovian C=4 beta=16000",
    ]
    assert [c.final_tokens for c in found.configs.values()] == [8_000, 16_000, 8_000, 16_000]


def test_variants_with_equal_settings_are_run_once(tmp_path: Path) -> None:
    found = read(tmp_path, "[grid]\nC = [1, 2, 4]\ntau = [2_000, 4_000]", "single", "markovian")
    assert found.methods[0].name == "single"
    assert len(found.methods) == 7


def test_populations_by_round_are_compared(tmp_path: Path) -> None:
    found = read(tmp_path, "[grid]\nN = [16, [32, 8, 4]]", "single", "vote-equal", "delethink", "markovian")
    assert list(found.configs) == [
        "parallel N=16", "parallel N=32", "parallel-equal N=72", "parallel-equal N=50",
        "delethink N=16", "delethink N=32-8-4", "markovian N=16", "markovian N=32-8-4",
    ]  # fmt: skip
    by_round = found.configs["markovian N=32-8-4"]
    assert (by_round.population, by_round.final_count) == ((32, 8, 4), 4)
    (point,) = read(tmp_path, "[[point]]\nN = [32, 8, 4]").configs.values()
    assert point == by_round


def test_population_by_round_is_for_its_number_of_rounds(tmp_path: Path) -> None:
    found = read(tmp_path, "[grid]\nT = [1, 2]\nN = [[32, 8, 4]]")
    assert [config.rounds for config in found.configs.values()] == [2]
    assert "is left out: population must be" in found.notes[0]


def test_templates_are_compared_where_there_are_prompts_with_tails(tmp_path: Path) -> None:
    found = read(tmp_path, '[grid]\ntemplate = ["zaya_v1", "rsa_v1"]', "single", "vote-equal", "markovian")
    assert list(found.configs) == [
        "parallel",
        "parallel-equal",
        "markovian template=zaya_v1",
        "markovian template=rsa_v1",
    ]
    assert found.configs["markovian template=rsa_v1"].template == "rsa_v1"


@pytest.mark.parametrize(
    ("axis", "methods", "varying"),
    [
        ("stop_confidence = [0.9, 0.99]", ["vote", "vote+posterior", "markovian"], "vote+posterior"),
        ('tail_order = ["drawn", "shared"]', ["vote-equal", "delethink", "markovian"], "markovian"),
        (
            'tail_order = ["drawn", "shared"]',
            ["delethink", "delethink:final_aggregation"],
            "delethink:final_aggregation",
        ),
        ('summary_prompt = ["a", "b"]', ["single", "markovian", "summary"], "summary"),
    ],
)
def test_settings_vary_only_where_they_have_an_effect(
    axis: str, methods: list[str], varying: str, tmp_path: Path
) -> None:
    names = [method.name.split(" ")[0] for method in read(tmp_path, f"[grid]\n{axis}", *methods).methods]
    assert {name: names.count(name) for name in methods} == {name: 1 + (name == varying) for name in methods}


def test_invalid_combination_is_left_out_with_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, "[grid]\nN = [2, 16]\nC = [4]")
    assert [c.population for c in found.configs.values()] == [16]
    assert "N=2 C=4 is left out" in found.notes[0]


def test_invalid_point_is_an_error(tmp_path: Path) -> None:
    found = read(tmp_path, "[[point]]\nbeta = 40_000\ntau = 8_000\n[[point]]\nT = 4\nC = 1\nbeta = 8_000")
    assert list(found.configs) == ["markovian T=2 C=4 beta=40000 tau=8000", "markovian T=4 C=1 beta=8000 tau=4000"]
    with pytest.raises(ConfigError, match="tail_tokens"):
        read(tmp_path, "[[point]]\nbeta = 1_000")


def test_one_grid_covers_the_table_of_the_paper(tmp_path: Path) -> None:
    text = 'methods = ["markovian"]\n[grid]\nN = 16\nC = 4\nT = 2\nbeta = [8_000, 16_000, 40_000]\ntau = [4_000, 8_000]'
    assert len(read(tmp_path, text).configs) == 6
    file = tmp_path / "grid.toml"
    assert read_grid(file).methods == ("markovian",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid]\nseed = [1]", "'seed'"),
        ("[grid]\nfinal_candidates = [1]", "final_candidates"),
        ("[grid]\ngamma = [1]", "'gamma'"),
        ("beta = 3", "unknown beta"),
        ("", "is empty"),
        ("[grid]\nbeta = []", "is empty: thinking_tokens"),
        ("[grid]\nN = [2]\nC = [4]", "No point"),
        ("grid = [", "not valid TOML"),
        ('[grid]\nanswer_kind = ["math", "text"]', "'answer_kind'"),
        ("methods = 5\n[grid]\nN = [2]", "methods must be a list of names"),
        ('methods = "single"\n[grid]\nN = [2]', "methods must be .*'single'"),
        ("methods = [1]\n[grid]\nN = [2]", r"methods must be .*\[1\]\)"),
        ("point = [1, 2]", r"point must be tables.*\[1, 2\]"),
        ("point = 3", "point must be .*got 3"),
        ("grid = 3", "grid must be a table.*got 3"),
    ],
)
def test_invalid_grid_is_rejected(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "choices",
    [
        'summary_prompt = ["Summarise!", "Summarise?"]',
        'summary_prompt = ["要約して", "まとめて"]',
        f'summary_prompt = ["{"Write it out. " * 30}", "{"Write it out. " * 30}now"]',
        'template = ["a_b.j2", "a-b.j2", "A-b.j2"]',
    ],
)
def test_texts_are_shortened_in_names_but_folders_stay_unique(tmp_path: Path, choices: str) -> None:
    found = read(tmp_path, f"[grid]\n{choices}", "summary")
    assert len(found.configs) == choices.count(",") + 1
    assert all(len(name) < 60 for name in found.configs)
    assert len({cell_folder(name).lower() for name in found.configs}) == len(found.configs)


@pytest.mark.parametrize(
    ("cell", "folder"),
    [
        ("markovian", "markovian"),
        ("markovian C=1 beta=8000", "markovian-C=1-beta=8000"),
        ("markovian:final_aggregation", "markovian-final-aggregation"),
        ("markovian temperature=0.5", "markovian-temperature=0.5"),
    ],
)
def test_plain_variant_has_a_plain_folder(cell: str, folder: str) -> None:
    assert cell_folder(cell) == folder


def test_variant_of_many_settings_has_a_short_folder_name() -> None:
    cell = "markovian " + " ".join(f"setting_{letter}=1000" for letter in "abcdefghijklmnop")
    assert len(cell_folder(cell)) < 80
    assert cell_folder(cell) != cell_folder(cell + "1")

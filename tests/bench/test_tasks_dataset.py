"""Data sets of the hub: the real loading code against a hub on this machine, and what happens without one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from markovian_rsa_mlx.bench.tasks.loader import KNOWN, load_task
from markovian_rsa_mlx.errors import ConfigError, MarkovianRSAError, TaskError

from .fake_hub import fake_hub

CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# A card
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def contest(name: str, numbers: range) -> dict[str, Any]:
    """A set laid out as those of MathArena are."""
    rows = [
        {"problem_idx": n, "problem": f"{name} {n}", "answer": 10 * n, "problem_type": ["Algebra", "Geometry"]}
        for n in numbers
    ]
    return {"README.md": CARD, ".gitattributes": b"", "data/train-00000-of-00001.parquet": parquet(rows)}


JSONL = b'{"problem": "%s", "answer": "1"}\n'
DATASETS: dict[str, dict[str, bytes | None]] = {
    "MathArena/aime_2024_I": contest("I", range(1, 4)),
    "MathArena/aime_2024_II": contest("II", range(1, 4)),
    "MathArena/aime_2025": contest("2025", range(1, 6)),
    "MathArena/hmmt_feb_2025": contest("HMMT", range(1, 3)),
    "me/splits": {"train.jsonl": JSONL % b"train", "test.jsonl": JSONL % b"test", "notes.txt": b"x"},
    "me/odd": {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: easy\n    path: easy.jsonl\n"
        b"  - split: hard\n    path: [hard-1.jsonl, hard-2.jsonl]\n---\n",
        "easy.jsonl": JSONL % b"easy",
        "hard-1.jsonl": JSONL % b"hard 1",
        "hard-2.jsonl": JSONL % b"hard 2",
    },
    "me/subsets": {
        "README.md": b"---\nconfigs:\n- config_name: main\n  data_files: main/*.jsonl\n"
        b"- config_name: other\n  data_files:\n  - split: test\n    path: other/test.jsonl\n---\n",
        "main/a.jsonl": JSONL % b"main",
        "other/test.jsonl": JSONL % b"other",
    },
    "me/older": {
        "README.md": b"# no head",
        "data/train-00000-of-00001.parquet": parquet([{"problem": "older", "answer": "1"}]),
        "data/train.json": JSONL % b"the same again",
        "dataset_infos.json": b'{"default": {}}',
        "data/dataset_dict.json": b'{"splits": ["train"]}',
        "data/state.json": b"{}",
        "my_config_v2.json": b"{}",
        ".cache/train.jsonl": JSONL % b"hidden",
    },
    "me/default": {
        "README.md": b"---\nconfigs:\n- config_name: main\n  data_files: main/*.jsonl\n"
        b"- config_name: other\n  default: true\n  data_files: other/*.jsonl\n---\n",
        "main/a.jsonl": JSONL % b"main",
        "other/a.jsonl": JSONL % b"other",
    },
    "me/ragged": {"train-1.jsonl": JSONL % b"first", "train-2.jsonl": b'{"answer": "1"}\n'},
    "me/pictures": {"a.png": b""},
    "me/broken": {"a.jsonl": None},
}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(cache: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with fake_hub(DATASETS) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield monkeypatch


def questions(spec: str, **options: str) -> list[str]:
    return [problem.question.partition("\n")[0] for problem in load_task(spec, options, 0).problems(None)]


def refusal(spec: str, kind: type[MarkovianRSAError] = TaskError, **options: str) -> str:
    with pytest.raises(kind) as caught:
        load_task(spec, options, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("spec", ["aime-2025", "aime25", "AIME'25", "aime_2025", "MathArena/aime_2025"])
def test_a_contest_under_its_names(spec: str) -> None:
    task = load_task(spec, {}, 0)
    assert task.name.partition("@")[0] == ("aime-2025" if "/" not in spec else spec)
    found = task.problems((2, 3))
    assert [(p.index, p.problem_id, p.reference) for p in found] == [(1, "2", "20"), (2, "3", "30")]
    assert task.score(found[0], "20") == 1.0


@pytest.mark.usefixtures("hub")
def test_both_halves_of_aime_2024_are_one_task() -> None:
    found = load_task("aime24", {}, 0).problems(None)
    assert [p.question.partition("\n")[0] for p in found] == ["I 1", "I 2", "I 3", "II 1", "II 2", "II 3"]
    assert [p.problem_id for p in found] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.usefixtures("hub")
def test_splits_and_subsets_by_card_or_by_file_name() -> None:
    assert questions("me/splits") == ["test"]
    assert questions("me/splits", split="train") == ["train"]
    assert questions("me/odd", split="hard") == ["hard 1", "hard 2"]
    assert questions("me/subsets", subset="main") == ["main"]
    assert questions("me/subsets", subset="other") == ["other"]
    assert "has the splits easy, hard; choose one with --split" in refusal("me/odd", ConfigError)
    assert "has no split 'dev'; there are test, train" in refusal("me/splits", ConfigError, split="dev")
    assert "has the subsets main, other; choose one with --subset" in refusal("me/subsets", ConfigError)


@pytest.mark.usefixtures("hub")
def test_files_that_describe_a_data_set_hold_no_problems() -> None:
    assert questions("me/older") == ["older"]


@pytest.mark.usefixtures("hub")
def test_a_subset_is_the_cards_default_where_it_names_one() -> None:
    assert questions("me/default") == ["other"]
    assert questions("me/default", subset="main") == ["main"]


@pytest.mark.usefixtures("hub")
def test_a_fault_in_one_of_several_files_names_it() -> None:
    with pytest.raises(TaskError, match=r"^me/ragged, line 1 of train-2\.jsonl: it has no 'problem'\.$"):
        load_task("me/ragged", {}, 0).problems(None)


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have() -> None:
    assert "There is no data set 'me/nothing' on the hub" in refusal("me/nothing")
    assert "refs/convert/parquet" in refusal("me/pictures")
    assert "no column 'solution'; there are problem_idx, problem, answer, problem_type" in wrong_column()


def wrong_column() -> str:
    with pytest.raises(ConfigError) as caught:
        load_task("aime25", {"answer_column": "solution"}, 0).problems(None)
    return str(caught.value)


def test_an_outage_after_a_download_is_no_trouble(hub: pytest.MonkeyPatch) -> None:
    assert len(questions("aime25")) == 5
    hub.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert len(questions("aime25")) == 5


@pytest.mark.usefixtures("cache")
def test_an_outage_is_one_sentence_with_a_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refusal("aime25")
    assert said.startswith("The data set MathArena/aime_2025 is not on this machine and the hub cannot be reached")
    assert "try again later, or download it elsewhere and give its file or folder" in said


@pytest.mark.usefixtures("hub")
def test_a_download_that_breaks_off() -> None:
    said = refusal("me/broken")
    assert said.startswith("The download of me/broken broke off")
    assert said.endswith("run it again to go on.")


def test_a_downloaded_folder(tmp_path: Path) -> None:
    folder = tmp_path / "aime_2025"
    for name, content in contest("local", range(1, 3)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    task = load_task(str(folder), {}, 0)
    assert task.name.startswith("aime_2025@")
    assert len(task.problems(None)) == 2


@pytest.mark.parametrize(
    ("spec", "name"),
    [("aime26", "aime-2026"), ("HMMT-Feb'25", "hmmt-feb-2025"), ("hmmt25", "hmmt-feb-2025"), ("smt 2025", "smt-2025")],
)
def test_every_name_means_one_set(monkeypatch: pytest.MonkeyPatch, cache: None, spec: str, name: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert KNOWN[name][0] in refusal(spec)


def test_a_name_that_is_nothing_names_what_is_close() -> None:
    assert "did you mean aime-2025" in refusal("aime-20255", ConfigError)

"""Test data sets of the hub with the real loading code against a local server, and without a network."""

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
    """Return the files of a data set in the layout of MathArena."""
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


def error_of(spec: str, kind: type[MarkovianRSAError] = TaskError, **options: str) -> str:
    with pytest.raises(kind) as caught:
        load_task(spec, options, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("spec", ["aime-2025", "aime25", "AIME'25", "aime_2025", "MathArena/aime_2025"])
def test_known_set_loads_under_each_spelling(spec: str) -> None:
    task = load_task(spec, {}, 0)
    assert task.name.partition("@")[0] == ("aime-2025" if "/" not in spec else spec)
    found = task.problems((2, 3))
    assert [(p.index, p.problem_id, p.reference) for p in found] == [(1, "2", "20"), (2, "3", "30")]
    assert task.score(found[0], "20") == 1.0


@pytest.mark.usefixtures("hub")
def test_aime_2024_joins_both_data_sets() -> None:
    found = load_task("aime24", {}, 0).problems(None)
    assert [p.question.partition("\n")[0] for p in found] == ["I 1", "I 2", "I 3", "II 1", "II 2", "II 3"]
    assert [p.problem_id for p in found] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.usefixtures("hub")
def test_splits_and_subsets_follow_the_card_or_the_file_names() -> None:
    assert questions("me/splits") == ["test"]
    assert questions("me/splits", split="train") == ["train"]
    assert questions("me/odd", split="hard") == ["hard 1", "hard 2"]
    assert questions("me/subsets", subset="main") == ["main"]
    assert questions("me/subsets", subset="other") == ["other"]
    assert "has the splits easy, hard; choose one with --split" in error_of("me/odd", ConfigError)
    assert "has no split 'dev'; there are test, train" in error_of("me/splits", ConfigError, split="dev")
    assert "has the subsets main, other; choose one with --subset" in error_of("me/subsets", ConfigError)


@pytest.mark.usefixtures("hub")
def test_files_that_describe_a_data_set_are_not_read() -> None:
    assert questions("me/older") == ["older"]


@pytest.mark.usefixtures("hub")
def test_default_subset_of_the_card_is_used() -> None:
    assert questions("me/default") == ["other"]
    assert questions("me/default", subset="main") == ["main"]


@pytest.mark.usefixtures("hub")
def test_error_in_one_of_several_files_names_the_file() -> None:
    with pytest.raises(TaskError, match=r"^me/ragged, line 1 of train-2\.jsonl: there is no 'problem'"):
        load_task("me/ragged", {}, 0).problems(None)


@pytest.mark.usefixtures("hub")
def test_unknown_data_set_file_or_column_is_an_error() -> None:
    assert "'me/nothing'" in error_of("me/nothing")
    assert "refs/convert/parquet" in error_of("me/pictures")
    error_of("not/an/id@", ConfigError)
    with pytest.raises(
        ConfigError, match=r"no column 'solution' \(it has problem_idx, problem, answer, problem_type\)"
    ):
        load_task("aime25", {"answer_column": "solution"}, 0).problems(None)


def test_cached_data_set_loads_without_a_network(hub: pytest.MonkeyPatch) -> None:
    assert len(questions("aime25")) == 5
    hub.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert len(questions("aime25")) == 5


@pytest.mark.usefixtures("cache")
def test_uncached_data_set_without_a_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = error_of("aime25")
    assert message.startswith("The data set MathArena/aime_2025 is not on this machine")
    assert "give its file or folder" in message


@pytest.mark.usefixtures("hub")
def test_broken_download_asks_to_run_again() -> None:
    message = error_of("me/broken")
    assert message.startswith("The download of me/broken broke off")
    assert "run it again" in message


def test_downloaded_folder_is_a_task(tmp_path: Path) -> None:
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
def test_short_name_selects_one_set(monkeypatch: pytest.MonkeyPatch, cache: None, spec: str, name: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert KNOWN[name][0] in error_of(spec)


def test_unknown_name_suggests_a_similar_one() -> None:
    assert "did you mean aime-2025" in error_of("aime-20255", ConfigError)

"""Test files of problems: formats, columns, laziness, and errors that name the line."""

from __future__ import annotations

import io
import json
import re
import tracemalloc
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from markovian_rsa_mlx.bench.tasks.base import Problem
from markovian_rsa_mlx.bench.tasks.loader import load_task
from markovian_rsa_mlx.bench.tasks.options import base_task_name
from markovian_rsa_mlx.errors import ConfigError, MarkovianRSAError, TaskError

ROWS = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(1, 8)]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("".join(separator.join(f'"{cell}"' for cell in line) + "\n" for line in lines))
    return path


def problems(path: Path, limit: tuple[int, int] | None = None, **options: str) -> list[Problem]:
    return load_task(str(path), options, 0).problems(limit)


def error_of(path: Path, kind: type[MarkovianRSAError] = TaskError, **options: str) -> str:
    with pytest.raises(kind) as caught:
        problems(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_all_formats_give_the_same_problems(tmp_path: Path, suffix: str) -> None:
    found = problems(write(tmp_path / f"set{suffix}", ROWS))
    assert [p.index for p in found] == list(range(7))
    assert [p.problem_id for p in found] == [str(n) for n in range(1, 8)]
    assert found[2].question == "What is 3 + 3?\n\nPut your final answer within \\boxed{}."
    assert found[2].reference == "6"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_limit_counts_from_one_and_keeps_the_places(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"set{suffix}", ROWS)
    assert [(p.index, p.reference) for p in problems(path, (3, 4))] == [(2, "6"), (3, "8")]
    assert len(problems(path, (6, 100))) == 2
    with pytest.raises(ConfigError, match="has 7 problems; there is no problem 8"):
        problems(path, (8, 9))


def test_columns_id_and_wording_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [{"q": "Is \\{x\\} a set?", "a": "yes", "key": "first"}])
    (found,) = problems(
        path, problem_column="q", answer_column="a", id_column="key", answer_kind="text", wording="Q: {problem} A:"
    )
    assert found == Problem(0, "first", "Q: Is \\{x\\} a set? A:", "yes", "Is \\{x\\} a set?")


def test_answers_may_be_numbers_or_lists_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "set.parquet", [{"problem": "p", "answer": 33}])
    assert problems(path)[0].reference == "33"
    path = write(tmp_path / "set.jsonl", [{"problem": "p", "answer": ["1/2"]}])
    assert problems(path)[0].reference == "1/2"


#: Values as JSON writes them, and their text.
NUMBERS = {
    "0.00001": "0.00001",
    "1e-05": "0.00001",
    "-2.50E+3": "-2500",
    "1.50": "1.5",
    "5.0": "5",
    "-0.0": "0",
    "0.1": "0.1",
    "123456789012345678901234567890": "123456789012345678901234567890",
    "9007199254740993.0": "9007199254740993",
    "0.1234567890123456789012345678901": "0.1234567890123456789012345678901",
    "1e400": "1" + "0" * 400,
    "9" * 5_000: "9" * 5_000,
    '[3, 5.50, "x"]': "3, 5.5, x",
    '"1e-05"': "1e-05",
}


def test_numbers_in_json_keep_their_exact_value(tmp_path: Path) -> None:
    rows = [f'{{"problem": "p", "answer": {number}, "unused": NaN}}' for number in NUMBERS]
    for name, content in (("a.jsonl", "\r\n\r\n".join(rows)), ("a.json", "[" + ",\n".join(rows) + "]")):
        (tmp_path / name).write_text(content)
        assert [problem.reference for problem in problems(tmp_path / name)] == list(NUMBERS.values())
    (tmp_path / "list.jsonl").write_text(f"\ufeff[{rows[0]}]")
    assert problems(tmp_path / "list.jsonl")[0].reference == "0.00001"


@pytest.mark.parametrize(
    ("column", "references"),
    [
        (pa.array([Decimal("1.50"), Decimal("-0.00"), Decimal("100.00")]), ["1.5", "0", "100"]),
        (pa.array([Decimal("0.00001")], pa.decimal128(38, 20)), ["0.00001"]),
        (pa.array([Decimal("1" * 60 + ".5")], pa.decimal256(70, 2)), ["1" * 60 + ".5"]),
        (pa.array([0.1, 1e-5, 16777217.0], pa.float32()), ["0.1", "0.00001", "16777216"]),
        (pa.array([0.1, 1e22], pa.float64()), ["0.1", "1" + "0" * 22]),
        (pa.array([[0.1, 3.0]], pa.list_(pa.float32())), ["0.1, 3"]),
        (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
        (pa.array([-(2**63)], pa.int64()), [str(-(2**63))]),
        (pa.array(["Paris", "x^2+1"]).dictionary_encode(), ["Paris", "x^2+1"]),
        (pa.array([b"caf\xc3\xa9"], pa.binary()), ["café"]),
    ],
)
def test_numbers_in_parquet_keep_their_exact_value(tmp_path: Path, column: pa.Array, references: list[str]) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"problem": ["p"] * len(column), "answer": column}), path)
    assert [problem.reference for problem in problems(path)] == references


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([1.0, None]), "row 2: 'answer' must be text or a number (got nothing)"),
        (pa.array([1.0, float("nan")]), "row 2: 'answer' is nan"),
        (pa.array([1.0, float("-inf")], pa.float32()), "row 2: 'answer' is -inf"),
        (pa.array([[1], [1, None]]), "row 2: 'answer' must be text or a number (got nothing)"),
        (pa.array([b"1", b"\xff"]), "row 2: 'answer' must be text or a number (got bytes"),
    ],
)
def test_value_of_parquet_without_a_text_is_an_error_with_its_row(tmp_path: Path, column: pa.Array, words: str) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"problem": ["p"] * len(column), "answer": column}), path)
    assert words in error_of(path)


def test_value_inside_an_object_is_a_column(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"problem": "p", "answer": {"value": 0.5, "unit": {"name": "kg"}}, "a.b": "7"}]
    for suffix in (".jsonl", ".parquet"):
        path = write(tmp_path / f"set{suffix}", rows)
        assert problems(path, answer_column="answer.value")[0].reference == "0.5"
        assert problems(path, answer_column="answer.unit.name")[0].reference == "kg"
        assert problems(path, answer_column="a.b")[0].reference == "7"
        assert "no column 'answer.size'" in error_of(path, ConfigError, answer_column="answer.size")


def test_csv_has_cells_of_any_length_and_any_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    for end in ("\n", "\r\n", "\r"):
        rows = ["problem,answer,,", f'"p{end}{"x" * 200_000}",1e-05,,', "", "q,1e5,,", 'r," 007 ",,']
        path.write_bytes(end.join(rows).encode())
        found = problems(path)
        assert [problem.reference for problem in found] == ["0.00001", "100000", "007"]
        assert found[0].question.startswith(f"p{end}xx")
        rows[3] = "caf\xe9,1,,"
        path.write_bytes(end.join(rows).encode("latin-1"))
        assert "line 5: not UTF-8" in error_of(path)


def test_answer_is_taken_from_a_solution(tmp_path: Path) -> None:
    boxed = write(tmp_path / "a.jsonl", [{"problem": "p", "answer": "So \\boxed{1}, no, \\boxed{\\frac{1}{2}}."}])
    assert problems(boxed)[0].reference == "\\frac{1}{2}"
    marked = write(
        tmp_path / "b.jsonl", [{"problem": "p", "answer": "9 + 9 = 18\n#### 18"}, {"problem": "q", "answer": "7"}]
    )
    assert problems(marked, (1, 1), answer_after="####")[0].reference == "18"
    assert "line 2: 'answer' has no answer after '####'" in error_of(marked, answer_after="####")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".json"])
def test_missing_column_lists_the_columns(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"set{suffix}", [{"question": "p", "answer": "1"}])
    message = error_of(path, ConfigError)
    assert message.startswith(f"set{suffix} has no column 'problem' (it has question, answer)")
    assert "--problem-column" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_file_is_an_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"set{suffix}"
    path.write_bytes(content)
    assert "it is empty" in error_of(path)


def test_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("problem,answer\n")
    assert "it is empty" in error_of(tmp_path / "set.csv")
    pq.write_table(pa.table({"problem": pa.array([], pa.string())}), tmp_path / "set.parquet")
    assert "it is empty" in error_of(tmp_path / "set.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_byte_order_mark_is_skipped(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"set{suffix}", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(problems(path)) == 7


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"problem": "p", "answer": "1"}\n{"problem": ', "line 2: not valid JSON"),
        ("a.jsonl", '{"problem": "p", "answer": "1"}\n\n[1]\n', "line 3: not a JSON object (got list)"),
        ("a.jsonl", '{"problem": "p", "answer": "1"}\n{"problem": "q"}\n', "line 2: there is no 'answer'"),
        ("a.jsonl", '{"problem": "p", "answer": null}\n', "line 1: 'answer' must be text or a number (got nothing)"),
        ("a.jsonl", '{"problem": "p", "answer": true}\n', "line 1: 'answer' must be text or a number (got bool)"),
        ("a.jsonl", '{"problem": " ", "answer": "1"}\n', "line 1: 'problem' is empty"),
        ("a.jsonl", '{"problem": "p", "answer": NaN}\n', "line 1: 'answer' is nan"),
        (
            "a.jsonl",
            '{"problem": "p", "answer": 1}\n{"problem": "q", "answer": -Infinity}\n',
            "line 2: 'answer' is -inf",
        ),
        ("a.json", '[\n{"problem": "p", "answer": Infinity}]', "entry 1: 'answer' is inf"),
        ("a.json", '[\n{"problem": "p",\n"answer": oops}]', "line 3: not valid JSON"),
        ("a.jsonl", '{"problem": "p", "answer": [1, NaN]}\n', "line 1: 'answer' is nan"),
        ("a.jsonl", '{"problem": "p", "answer": []}\n', "line 1: 'answer' is empty"),
        ("a.jsonl", '{"problem": "p", "answer": [null]}\n', "line 1: 'answer' must be text or a number (got nothing)"),
        (
            "a.jsonl",
            '{"problem": "p", "answer": [[1, 2], [3, 4]]}\n',
            "line 1: 'answer' must be text, a number or a list",
        ),
        ("a.jsonl", '{"problem": "p", "answer": {"value": 1}}\n', "name a value in it, as in answer.value"),
        ("a.jsonl", '{"problem": "p", "answer": 1, "answer": 2}\n', "line 1: 'answer' occurs twice"),
        ("a.jsonl", '{"problem": ["p", "q"], "answer": 1}\n', "line 1: 'problem' must be text or a number (got list)"),
        ("a.jsonl", '{"problem": "p", "answer": 1e5000}\n', "line 1: 'answer' is 1.0000E+5000, too long"),
        ("a.csv", "problem,answer\np,inf\n", "line 2: 'answer' is inf"),
        ("a.csv", 'problem,answer\n"p\np",1\nq,NaN\n', "line 4: 'answer' is NaN"),
        ("a.csv", "problem,answer\np,1e99999999999999999999\n", "line 2: 'answer'"),
        ("a.csv", "problem,answer\rp,1\rq,\r", "line 3: 'answer' is empty"),
        ("a.jsonl", "[" * 100_000, "line 1: not valid JSON"),
        ("a.json", '[{"problem": "p"', "not valid JSON"),
        ("a.json", "[1]", "entry 1: not a JSON object (got int)"),
        ("a.csv", "problem,answer\np,1\nq,1,2\n", "line 3: 3 cells for the 2 columns"),
        ("a.csv", 'problem,answer\n"p\np",1\nq\n', "line 4: 1 cells"),
        ("a.csv", 'problem,answer\n"p,1\n', "not valid CSV"),
        ("a.csv", "problem,answer,answer\np,1,2\n", "names the column 'answer' twice"),
        ("a.parquet", "PAR1 not at all", "not a readable Parquet file"),
    ],
)
def test_invalid_row_is_an_error_with_its_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    assert words in error_of(tmp_path / name)


def test_other_encodings_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_bytes(b"problem,answer\np,1\n\xe9t\xe9,2\n")
    assert "line 3: not UTF-8" in error_of(path)
    path.write_text("problem,answer\np,1\n", encoding="utf-16")
    assert "UTF-16; save it as UTF-8" in error_of(path)


def test_duplicate_id_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [{"id": n, **row} for n, row in zip([1, 2, 1], ROWS, strict=False)])
    assert re.search(r"line 3: the id '1' .* line 1;", error_of(path))
    assert len(problems(path, id_column="none")) == 3
    assert len(problems(path, (2, 3))) == 2


def test_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    assert "line 1: longer than 64 MiB" in error_of(path)


def test_rows_after_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"problem": "p", "answer": "1"}\nnot JSON\n')
    assert len(problems(path, (1, 1))) == 1


@pytest.mark.parametrize("limit", [(1, 10), (30_001, 30_010)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, limit: tuple[int, int]) -> None:
    path = tmp_path / "set.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"problem": "{"x" * 100} {n}", "answer": "{n}"}}\n' for n in range(30_010))
    tracemalloc.start()
    found = problems(path, limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [p.index for p in found] == list(range(limit[0] - 1, limit[1]))
    assert peak < 2_000_000


def test_very_long_file_needs_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    buffer = io.StringIO("problem,answer\n")
    buffer.seek(0, io.SEEK_END)
    for n in range(10_001):
        buffer.write(f"p{n},{n}\n")
    path.write_text(buffer.getvalue())
    assert "more than 10,000 problems; choose some" in error_of(path)


def test_task_name_depends_on_problems_and_wording(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", ROWS)

    def name(**options: str) -> str:
        return load_task(str(path), options, 0).name

    plain = name()
    assert re.fullmatch(r"set\.jsonl@[0-9a-f]{8}", plain)
    assert name(answer_column="problem") != plain
    worded = name(wording="Q: {problem}")
    assert base_task_name(worded) == plain != worded
    write(path, ROWS[:-1])
    assert base_task_name(name()) != plain
    (tmp_path / "other").mkdir()
    assert load_task(str(write(tmp_path / "other" / "set.jsonl", ROWS)), {}, 5).name == plain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"wording": "no place"}, "a text with {problem}"),
        ({"answer_kind": "maths"}, "answer_kind must be one of math, text"),
        ({"split": "test"}, "--split does not apply to the task"),
        ({"param.x": "1"}, "--param does not apply to the task"),
    ],
)
def test_option_of_another_kind_of_task_is_rejected(tmp_path: Path, options: dict[str, str], words: str) -> None:
    path = write(tmp_path / "set.jsonl", ROWS)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_task(str(path), options, 0)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="There is no file"):
        load_task(str(tmp_path / "gone.csv"), {}, 0)


@pytest.mark.parametrize("spec", ["./countdown", "../countdown", "~/no/countdown", "/no/countdown"])
def test_missing_path_is_an_error(spec: str) -> None:
    with pytest.raises(TaskError, match=f"^There is no file or folder '{re.escape(spec)}'\\.$"):
        load_task(spec, {}, 0)


def test_folder_without_problems_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="give a folder or a file"):
        load_task(str(tmp_path), {}, 0)


def test_answers_are_compared_by_value_or_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", [{"problem": "p", "answer": "1/2"}])
    task = load_task(str(path), {}, 0)
    (problem,) = task.problems(None)
    assert [task.score(problem, answer) for answer in ("0.5", "\\frac12", "2", "")] == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(MarkovianRSAError, match="could not be compared"):
        task.score(problem, "1" * 5_000)
    text = load_task(str(path), {"answer_kind": "text"}, 0)
    assert [text.score(problem, answer) for answer in ("1/2.", "0.5")] == [1.0, 0.0]


@pytest.mark.parametrize("column", ["problem", "answer", "id"])
def test_lone_surrogate_is_an_error_with_its_line(tmp_path: Path, column: str) -> None:
    path = tmp_path / "set.jsonl"
    rows = [{"id": "1", "problem": "p", "answer": "1"}, {"id": "2", "problem": "p", "answer": "1", column: "a\ud83d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"set.jsonl, line 2: {column!r} has half a character" in error_of(path)
    with pytest.raises(ConfigError, match="must be UTF-8"):
        load_task(str(path), {"wording": "{problem} \udcff"}, 0)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_deeply_nested_value_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"set{suffix}"
    path.write_text("[" * 200_000 if suffix == ".json" else '{"problem":' * 200_000)
    assert "not valid JSON" in error_of(path)


def test_file_name_outside_utf_8_gives_a_printable_task_name(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", ROWS).rename(tmp_path / "s\udcfft.jsonl")
    assert load_task(str(path), {}, 0).name.startswith("s\ufffdt.jsonl@")

"""The pages of a benchmark's runs: which are written, which are written again, and which the report links to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx.bench.report import render
from markovian_rsa_mlx.bench.report.pages import linked_pages, page_of, write_pages
from markovian_rsa_mlx.bench.results import Results
from markovian_rsa_mlx.errors import AuditError

from ..support.bench_harness import FakeTask, make_spec, run_bench
from ..viewer.pages import data

METHODS, CELLS = ["single", "markovian"], ["parallel", "markovian"]


def bench(path: Path, count: int = 2) -> Results:
    return run_bench(path, make_spec(FakeTask(count), METHODS))


def written(path: Path) -> dict[str, int]:
    """Return the pages with the numbers of their files, which another writing changes."""
    return {file.relative_to(path).as_posix(): file.stat().st_ino for file in path.glob("pages/*/*.html")}


def trails(results: Results) -> set[str]:
    return {record.trail for cell in results.cells for record in cell.records}


def test_each_run_has_a_page_and_all_share_one_script(tmp_path: Path) -> None:
    results = bench(tmp_path)
    assert linked_pages(tmp_path, results) == {}
    assert write_pages(tmp_path, results) == 0
    assert linked_pages(tmp_path, results) == {trail: page_of(trail) for trail in trails(results)}
    assert set(written(tmp_path)) == {f"pages/{cell}/0000{number}-1.html" for cell in CELLS for number in (1, 2)}
    (script,) = tmp_path.glob("pages/*.js")
    for name in written(tmp_path):
        page = (tmp_path / name).read_text()
        assert f"../{script.name}" in page
        assert len(page) < 30_000 < len(script.read_bytes())
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_page_has_the_scores_of_the_benchmark(tmp_path: Path) -> None:
    results = bench(tmp_path, count=1)
    write_pages(tmp_path, results)
    for cell in results.cells:
        (record,) = cell.records
        about = data((tmp_path / page_of(record.trail)).read_text())["about"]
        assert about["verdicts"] == {trace.trace_id: trace.answer == "right" for trace in record.traces}
        assert set(about["verdicts"].values()) == {True, False}
        assert about["reference"] == "right"
        assert about["links"] == {"trail": f"../../{record.trail}", "home": "../../report.html"}


def test_only_new_and_changed_pages_are_written(tmp_path: Path) -> None:
    write_pages(tmp_path, bench(tmp_path))
    before = written(tmp_path)
    results = bench(tmp_path, count=3)
    calls: list[tuple[int, int]] = []
    write_pages(tmp_path, results, listener=lambda number, total: calls.append((number, total)))
    assert calls == [(0, 2), (1, 2)]
    assert {name: written(tmp_path)[name] for name in before} == before

    cell = results.cells[0]
    record = cell.records[0]
    other = replace(record, traces=tuple(replace(t, correct=1 - t.correct) for t in record.traces))
    changed = replace(results, cells=(replace(cell, records=(other, *cell.records[1:])), *results.cells[1:]))
    assert trails(results) - set(linked_pages(tmp_path, changed)) == {record.trail}
    before = written(tmp_path)
    write_pages(tmp_path, changed)
    after = written(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {page_of(record.trail)}


@pytest.mark.parametrize("damage", ["cut", "removed", "script"])
def test_damaged_pages_are_not_linked_and_written_again(tmp_path: Path, damage: str) -> None:
    results = bench(tmp_path)
    write_pages(tmp_path, results)
    page = tmp_path / page_of(results.cells[0].records[0].trail)
    match damage:
        case "cut":
            page.write_bytes(page.read_bytes()[:-100])
        case "removed":
            page.unlink()
        case "script":
            next(tmp_path.glob("pages/*.js")).unlink()
    missing = trails(results) - set(linked_pages(tmp_path, results))
    assert missing == (trails(results) if damage == "script" else {results.cells[0].records[0].trail})
    write_pages(tmp_path, results)
    assert set(linked_pages(tmp_path, results)) == trails(results)


def test_run_without_a_readable_log_has_no_page(tmp_path: Path) -> None:
    results = bench(tmp_path)
    first, second = (record.trail for record in results.cells[0].records)
    (tmp_path / first).write_bytes(b"nothing of a run\n")
    (tmp_path / second).unlink()
    assert write_pages(tmp_path, results) == 1
    assert trails(results) - set(linked_pages(tmp_path, results)) == {first, second}
    page = render(results, linked_pages(tmp_path, results))
    assert f'href="./{first}"' in page
    assert f'href="./{page_of(first)}"' not in page


def test_large_logs_have_no_pages_under_a_limit(tmp_path: Path) -> None:
    results = bench(tmp_path)
    assert write_pages(tmp_path, results, max_log_bytes=1000) == 4
    assert not (tmp_path / "pages").exists()
    assert write_pages(tmp_path, results) == 0
    assert len(linked_pages(tmp_path, results)) == 4


def test_interrupted_writing_continues(tmp_path: Path) -> None:
    results = bench(tmp_path)

    def stop(number: int, total: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pages(tmp_path, results, listener=stop)
    assert len(linked_pages(tmp_path, results)) == 3
    assert write_pages(tmp_path, results) == 0
    assert len(linked_pages(tmp_path, results)) == 4


def test_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    results = bench(tmp_path)
    (tmp_path / "pages").write_text("a file")
    with pytest.raises(AuditError, match="pages"):
        write_pages(tmp_path, results)


@pytest.mark.parametrize(
    "trail",
    [
        "../../etc/00001-1.jsonl",
        "trails/../00001-1.jsonl",
        "trails/../../x/00001-1.jsonl",
        "/trails/a/00001-1.jsonl",
        "trails/a/../../../00001-1.jsonl",
        "trails/.a/00001-1.jsonl",
        "trails/a/00001-1.jsonl\n",
        "trails\\a\\00001-1.jsonl",
        "trails/a/b.jsonl",
        "https://example.org/trails/a/00001-1.jsonl",
    ],
)
def test_foreign_paths_have_no_page(tmp_path: Path, trail: str) -> None:
    """Results from elsewhere can name any path. No page is written outside the folder of pages."""
    assert page_of(trail) == ""
    results = bench(tmp_path / "bench", count=1)
    cell = results.cells[0]
    foreign = replace(results, cells=(replace(cell, records=(replace(cell.records[0], trail=trail),)),))
    assert write_pages(tmp_path / "bench", foreign) == 0
    assert list(tmp_path.rglob("*.html")) == [tmp_path / "bench" / "report.html"]


def test_report_links_to_page_and_log(tmp_path: Path) -> None:
    results = bench(tmp_path)
    plain = render(results)
    write_pages(tmp_path, results)
    linked = render(results, linked_pages(tmp_path, results))
    for trail in trails(results):
        assert f'href="./{trail}"' in plain
        assert f'href="./{trail}"' in linked
        assert f'href="./{page_of(trail)}"' not in plain
        assert f'href="./{page_of(trail)}"' in linked

"""The report of a benchmark: one file without scripts, with the measured figures."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.bench.methods import Grid
from markovian_rsa_mlx.bench.report import Ranking, by_importance, findings, ranking, render
from markovian_rsa_mlx.bench.report import charts as problems
from markovian_rsa_mlx.bench.report.charts import NARROW, WIDE, curves, problem_rows
from markovian_rsa_mlx.bench.report.labels import link
from markovian_rsa_mlx.bench.results import Results, Variant, problem_scores, results_from_dict
from markovian_rsa_mlx.bench.stats import Interval
from markovian_rsa_mlx.bench.summary import comparisons, notice, summarize
from markovian_rsa_mlx.cli.bench_output import table_text, to_json

from .sample_results import sample_results

HOSTILE = "<script>alert(1)</script>\"' onload=alert(2) \u202edesrever\x1b[31m{{ 7 * 7 }}"


class Page(HTMLParser):
    """Elements with their attributes, and the text of the page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def results() -> Results:
    return sample_results()


def hostile(results: Results) -> Results:
    """Results with hostile text in every field that a model, a task or a file controls."""
    cells = tuple(
        replace(
            cell,
            records=tuple(
                replace(r, problem_id=HOSTILE, answer=HOSTILE, trail=f"javascript:alert(3)//{HOSTILE}")
                for r in cell.records
            ),
        )
        for cell in results.cells
    )
    return replace(
        results,
        task=HOSTILE,
        model=HOSTILE,
        cells=cells,
        warnings=(HOSTILE,),
        command=HOSTILE,
        engine={HOSTILE: HOSTILE},
    )


def test_every_element_is_closed_and_has_its_text(results: Results) -> None:
    page = Page(render(results))
    assert page.open == []
    for words in ("markovian", "embedded-countdown#1", "Accuracy against tokens", "mrsa bench countdown --limit 12"):
        assert words in page.text


def test_hostile_text_runs_and_loads_nothing(results: Results) -> None:
    page = Page(render(hostile(results)))
    assert not {"script", "iframe", "object", "embed", "img", "link", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "xlink:href")]
    assert all(str(attributes["href"]).startswith("./") for attributes in page.all("a"))
    assert all(":" not in str(attributes["href"]) for attributes in page.all("a"))
    assert "{{ 7 * 7 }}" in page.text
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    assert HOSTILE.partition("\u202e")[0] in page.text


def test_the_policy_allows_the_pages_own_style_alone(results: Results) -> None:
    source = render(results)
    policy = next(a["content"] for a in Page(source).all("meta") if "http-equiv" in a)
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search(r"url\(|@import|https?:", style[1])


def test_the_page_is_made_from_results_json_alone(results: Results) -> None:
    again = results_from_dict(json.loads(json.dumps(results.to_dict())))
    assert render(again) == render(results)


def test_tables_have_captions_and_heads_and_figures_have_words(results: Results) -> None:
    page = Page(render(results))
    assert len(page.all("caption")) == len(page.all("table")) == 5
    assert all("scope" in attributes for attributes in page.all("th"))
    figures = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(figures) == 3
    assert all("aria-label" in a or "aria-labelledby" in a for a in figures)
    assert page.all("html")[0]["lang"] == "en"
    ids = [str(a["id"]) for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_run_is_linked_once(results: Results) -> None:
    two_epochs = sample_results(3, epochs=2)
    page = Page(render(two_epochs))
    trails = {record.trail for cell in two_epochs.cells for record in cell.records}
    assert sorted(str(a["href"]) for a in page.all("a")) == sorted(f"./{trail}" for trail in trails)


@pytest.mark.parametrize(
    ("path", "href"),
    [
        ("trails/a b/00001-1.jsonl", "./trails/a%20b/00001-1.jsonl"),
        ("//host/x", "./host/x"),
        ("http://host/x", "./http%3A//host/x"),
        ("trails/N=8/ü?#.jsonl", "./trails/N=8/%C3%BC%3F%23.jsonl"),
    ],
)
def test_a_link_never_leaves_the_folders_host(path: str, href: str) -> None:
    assert link(path) == href


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_points_are_at_their_values(results: Results, frame: Any) -> None:
    plot = curves(results, frame)
    assert plot is not None
    names = {series.name: series for series in plot.series}
    assert set(names) == {"delethink", "markovian", "single", "vote → vote-equal", "pass"}
    assert [len(names[name].points) for name in ("delethink", "markovian", "single", "pass")] == [3, 3, 1, 1]
    assert names["pass"].oracle
    row = next(row for row in results.table if row.method == "markovian")
    share = [float(tick.label.rstrip("%")) / 100 for tick in plot.y_ticks]
    slope = (plot.y_ticks[-1].place - plot.y_ticks[0].place) / (share[-1] - share[0])
    last = names["markovian"].points[-1]
    assert last.y == pytest.approx(plot.y_ticks[0].place + slope * (row.score.mean - share[0]))
    for series in plot.series:
        for point in series.points:
            assert frame.left <= point.x <= frame.right
            assert frame.top - 0.01 <= point.high <= point.y <= point.low <= frame.bottom + 0.01


def test_labels_do_not_overlap() -> None:
    """Twelve methods that score much the same."""
    many = sample_results(
        30, methods=("markovian",), grid=Grid(points=tuple({"thinking_tokens": 52 + n} for n in range(12)))
    )
    plot = curves(many)
    assert plot is not None
    places = sorted(series.label_y for series in plot.series)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 16
    assert plot.frame.top <= places[0] <= places[-1] <= plot.frame.bottom


def test_findings_name_the_best_that_can_be_chosen_and_what_it_beats() -> None:
    sentences = findings(sample_results(60))
    assert re.match(r"markovian scores highest: \d+\.\d% \[\d+\.\d, \d+\.\d\] at 1,152 generated tokens", sentences[0])
    assert any(
        re.match(r"It is \d+\.\d points \[\+\d", sentence) and "than single" in sentence for sentence in sentences
    )
    assert not any("pass" in sentence for sentence in sentences)


def test_a_tie_has_no_winner() -> None:
    two = sample_results(30, methods=("single", "markovian"), skill=-2)  # all wrong
    for results, names in ((two, "single and markovian"), (sample_results(30, skill=2), "5 methods")):
        first, *rest = findings(results)
        assert first.startswith(f"{names} score equally: ")
        assert not any("better" in sentence for sentence in rest)


def test_rounding_errors_do_not_break_a_tie() -> None:
    results = sample_results(6, methods=("single", "markovian"))
    cheap, dear = (
        replace(row, score=Interval(mean, 0, 1), generated_tokens=tokens)
        for row, mean, tokens in zip(results.table, (0.1 + 0.2, 0.3), (8, 9), strict=True)
    )
    for rows in ((cheap, dear), (dear, cheap)):
        found = Ranking(rows, 6)
        assert (found.leaders, found.best) == (rows, cheap)


def test_missing_answers_are_reported_before_any_score() -> None:
    results = sample_results(12, methods=("single", "markovian"))

    def lose(cell: Variant, share: float) -> Variant:
        records = [
            replace(r, rounds=tuple(replace(e, not_found=round(share * e.traces), weak=1) for e in r.rounds))
            for r in cell.records
        ]
        return replace(cell, records=tuple(records))

    for shares, expected in (((0.0, 0.0), False), ((1.0, 0.0), False), ((1.0, 0.25), True)):
        cells = tuple(map(lose, results.cells, shares))
        found = replace(
            results,
            cells=cells,
            table=summarize(results.methods, cells),
            notice=notice(results.methods, cells),
        )
        traces = sum(record.rounds[0].traces for record in cells[0].records)
        terminal, document = table_text(found, 200), to_json(found, Path())
        assert bool(found.notice) == expected
        assert "single: 12 weak" in terminal
        if expected:
            assert f"single {traces:,} of {traces:,}" in found.notice
            assert terminal.startswith(found.notice)
            page = Page(render(found)).text
            assert "%" not in page[page.index("In short") : page.index(found.notice)]
            assert next(iter(document)) == "notice"
            assert document["warnings"][0] == found.notice
            assert list(found.to_dict())[:2] == ["schema_version", "notice"]


def test_findings_name_methods_without_a_significant_difference() -> None:
    sentences = findings(sample_results(3, methods=("single", "markovian")))
    assert "single has no significant difference from it on 3 problems" in sentences[-1]


def without(results: Results, keep: Callable[[str, int], bool], *, failed: bool = False) -> Results:
    """The results with the runs that `keep` names, by cell and problem; the others failed, or were not run yet."""
    cells = tuple(
        replace(
            cell,
            records=tuple(
                r if keep(cell.name, r.index) else replace(r, error="broke", rounds=())
                for r in cell.records
                if failed or keep(cell.name, r.index)
            ),
        )
        for cell in results.cells
    )
    methods = results.methods
    return replace(results, cells=cells, table=summarize(methods, cells), comparisons=comparisons(methods, cells))


def test_a_stopped_benchmark_names_its_complete_problems() -> None:
    stopped = without(sample_results(50), lambda cell, index: index < 3)
    page = Page(render(stopped)).text
    assert "Incomplete: 3 of 50 problems with the results of all methods." in page
    assert "embedded-reasoner-v1 · 3 of 50 problems" in page
    assert "Fewer than 5 problems: " in page
    sentences = findings(stopped)
    assert "scores highest on the 3 problems that all have:" in sentences[0]
    assert "have no significant difference from it on 3 problems" in sentences[1]
    assert "too few problems for any (fewer than 9)" in sentences[1]
    assert "50 problems" not in " ".join(sentences)


def test_methods_are_ranked_on_the_same_problems() -> None:
    """markovian has the easy half alone, where single is as good."""
    whole = sample_results(40, methods=("single", "markovian"))
    scores = problem_scores(whole, whole.method("single"))
    easy = sorted(scores, key=lambda index: -scores[index])[:20]
    some = without(whole, lambda cell, index: cell == "parallel" or index in easy)
    found = ranking(some)
    assert found.problems == 20
    assert {row.problems for row in found.rows} == {20}
    single = next(row for row in found.rows if row.method == "single")
    assert single.score.mean == pytest.approx(sum(scores[index] for index in easy) / 20)
    assert " on the 20 problems that all have" in findings(some)[0]
    page = Page(render(some)).text
    assert "20 of 40" in page
    assert "Incomplete: 20 of 40 problems" in page


def test_a_method_with_few_results_is_not_the_best() -> None:
    whole = sample_results(20, methods=("single", "vote", "markovian"))
    best = max(whole.cells[-1].records, key=lambda record: record.rounds[-1].mean).index
    failed = without(whole, lambda cell, index: cell == "parallel" or index == best, failed=True)
    sentences = findings(failed)
    assert not sentences[0].startswith("markovian")
    assert "scores highest: " in sentences[0]
    assert "markovian is not ranked: it has results on 1 of 20 problems." in sentences
    text = table_text(failed, 200)
    assert text.startswith("Incomplete: 1 of 20 problems with the results of all methods.")
    assert [line.split()[:4] for line in text.splitlines()[3:6]] == [
        ["single", "20", "of", "20"],
        ["vote", "20", "of", "20"],
        ["markovian", "1", "of", "20"],
    ]
    assert "points on 1 problem, adjusted p = 1: too few problems" in text
    document = to_json(failed, Path())
    assert (document["whole_problems"], document["problems"]) == (1, 20)
    assert [row["problems"] for row in document["table"]] == [20, 20, 1]
    assert document["warnings"][0].startswith("Incomplete: 1 of 20")
    assert "Fewer than 5 problems (markovian): " in document["warnings"][1]


def test_methods_without_common_problems_have_no_ranking() -> None:
    whole = sample_results(20, methods=("single", "markovian"))
    apart = without(whole, lambda cell, index: (cell == "parallel") == (index < 10))
    assert findings(apart) == ["No problem has the results of all methods."]


def test_grid_report_has_short_sentences_and_one_colour_per_method() -> None:
    points = [{"population": n, "thinking_tokens": beta} for n in (8, 16) for beta in (52, 60, 80)]
    grid = sample_results(30, methods=("single", "delethink", "markovian"), grid=Grid(points=tuple(points)))
    sentences = findings(grid)
    assert re.match(r"It is better than \d+ others, by \d+\.\d to \d+\.\d points\.", sentences[1])
    assert re.match(
        r"\d+ others have no significant difference from it on 30 problems, among them markovian", sentences[2]
    )
    page = Page(render(grid))
    own, others = by_importance(grid)
    assert len(own) == 17
    assert len(others) == 17 * 16 / 2
    assert f"{len(others)} comparisons of the other methods" in page.text
    plot = curves(grid)
    assert plot is not None
    assert {(s.name.partition(" ")[0], s.colour) for s in plot.series} == {
        ("delethink", 0),
        ("markovian", 1),
        ("single", 2),
    }


def test_an_empty_benchmark_is_reported(results: Results) -> None:
    empty = replace(results, cells=tuple(replace(cell, records=()) for cell in results.cells), table=(), comparisons=())
    page = Page(render(empty))
    assert "Nothing was measured yet." in page.text
    assert "Accuracy against tokens" not in page.text


def test_a_failed_run_is_not_a_wrong_answer(results: Results) -> None:
    cell = results.cells[-1]
    failed = dataclasses.replace(cell.records[0], error=f"broke {HOSTILE}", rounds=(), badges=())
    cells = (*results.cells[:-1], replace(cell, records=(failed, *cell.records[1:])))
    rows = problem_rows(replace(results, cells=cells))
    assert [value.text for value in rows[0].cells[-1].values] == ["–", "–", "–"]
    assert rows[0].badges == "cut off, 1 failed"
    assert rows[0].notes.startswith("broke <script>")
    assert "broke &lt;script&gt;" in render(replace(results, cells=cells))
    assert "alert(1)</script>" not in render(replace(results, cells=cells))


def test_a_failed_run_is_counted_once_however_many_methods_read_it(results: Results) -> None:
    cell = next(cell for cell in results.cells if cell.name == "parallel")
    assert len([method for method in results.methods if method.cell == cell.name]) > 1
    failed = [dataclasses.replace(record, error="broke", rounds=()) for record in cell.records[:2]]
    for count, expected in ((1, "1 run failed and is left out"), (2, "2 runs failed and are left out")):
        broken = replace(cell, records=(*failed[:count], *cell.records[count:]))
        cells = tuple(broken if each.name == cell.name else each for each in results.cells)
        sentences = replace(results, cells=cells, table=summarize(results.methods, cells))
        assert expected in findings(sentences)[-1]


def test_reason_of_unscored_answer_is_shown_once_per_problem(results: Results) -> None:
    cell = results.cells[0]
    records = [replace(r, unscored=("The verifier failed.", "Another reason."), mishaps=()) for r in cell.records]
    page = render(replace(results, cells=(replace(cell, records=tuple(records)), *results.cells[1:])))
    assert page.count("The verifier failed. (and 1 more)") == len(records)


def test_many_problems_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "MAX_COLUMNS", 50)
    monkeypatch.setattr(problems, "MAX_ROWS", 90)
    many = sample_results(120, methods=("single",))
    heat = problems.heat_map(many)
    assert heat is not None
    assert heat.grouped == 3
    assert [len(row.fields) for row in heat.rows] == [40]
    assert "and 2 more: parallel, round 0" in heat.rows[0].fields[0].title
    assert len(problems.problem_rows(many)) == 90
    page = Page(render(many)).text
    assert "Each field is the mean of up to 3 neighbouring problems." in page
    assert "Figures and trails of 90 problems (results.csv has all)" in page


CSS = (Path(__file__).parents[2] / "src/markovian_rsa_mlx/bench/report/report.css").read_text()


def colours(theme: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    return found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark)) if theme == "dark" else found


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_both_themes(theme: str) -> None:
    """WCAG AA: 4.5 for text, 3 for lines and marks."""
    found = colours(theme)
    for page in ("page", "panel"):
        for ink in ("ink", "dim", "accent"):
            assert contrast(found[ink], found[page]) >= 4.5, (ink, page)
    assert contrast(found["warn"], found["warn-page"]) >= 4.5
    for step in range(11):
        ink = "on-dark" if step >= 7 else "ink"
        assert contrast(found[ink], found[f"h{step}"]) >= 4.5, step
    for series in range(8):
        assert contrast(found[f"s{series}"], found["panel"]) >= 3, series

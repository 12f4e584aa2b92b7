"""A run's page in a real browser: everything is clicked through; nothing is loaded, nothing fails."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from tests.support.fakes import boxed
from tests.viewer.trails import FIXED, lines_of, small_run, write_lines

from .viewer_browser import Watched, watch, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("view") / "run.jsonl", population=5)


@pytest.fixture
def shown(chrome: Browser, trail: Path, tmp_path: Path) -> Iterator[Watched]:
    """The page of a small run; at the end of each test it must have kept to the rules."""
    context = chrome.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    watched = watch(context, write_page(trail, tmp_path / "run.html", judge=lambda answer: answer == "1"))
    yield watched
    watched.check()
    context.close()


def event(trail: Path, name: str, trace_id: str | None = None) -> dict[str, object]:
    return next(x for x in lines_of(trail) if x["event"] == name and trace_id in (None, x.get("trace_id")))


def test_overview_shows_the_run(shown: Watched, trail: Path) -> None:
    page, selection = shown.page, event(trail, "selection")
    run_id = str(event(trail, "run_start")["run_id"])
    assert page.locator("#header").inner_text().split("\n")[0] == f"Run {run_id[:8]}…"
    assert page.locator(".chosen .text").inner_text() == selection["answer"]
    tally = page.locator(".tally table tr").all_inner_texts()
    assert [row.split()[1] for row in tally[: len(selection["tally"])]] == sorted(
        map(str, selection["tally"]), reverse=True
    )  # type: ignore[arg-type]
    assert "read that tail" in page.locator(".how").inner_text() or "found it" in page.locator(".how").inner_text()
    started = [x["trace_id"] for x in lines_of(trail) if x["event"] == "trace_complete"]
    assert sorted(page.locator(".lineage .node").evaluate_all("nodes => nodes.map((n) => n.dataset.id)")) == sorted(
        started
    )
    reads = sum(len(x["selected_tail_trace_ids"]) for x in lines_of(trail) if x["event"] == "aggregation_prompt")
    assert page.locator(".edge").count() == reads
    assert page.locator(".pruned").count() == 3 * 5 - len(started)
    assert page.locator(".node.winner").get_attribute("data-id") == selection["chosen_trace_id"]
    assert page.locator(".share").count() == 3
    assert page.locator(".timeline .span").count() == len(started) + 1  # one failed and was tried again
    assert page.locator(".timeline .span.failed").count() == 1
    assert "the <b>engine</b> stumbled" in page.locator("#errors").inner_text()
    assert page.locator("#traces tbody tr").count() == len(started)
    assert page.locator(".node.right").count() + page.locator(".node.wrong").count() == len(started)
    assert "aggregation_size (C)" in page.locator("#settings").inner_text() or page.locator("#settings details").count()


def test_trace_page_shows_the_comparison_that_denied_an_inheritance(chrome: Browser, tmp_path: Path) -> None:
    answers = r"\sin(x)^2", r"1-\cos(x)^2", r"\tan(x)", r"\sin(x)/\cos(x)"

    def rare(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(answers[int(request.trace_id[-2:])])

    small_run(tmp_path / "run.jsonl", rare, rounds=1, early_stop="agreement")
    compared = event(tmp_path / "run.jsonl", "answers_compared")
    shown = watch(chrome.new_context(), write_page(tmp_path / "run.jsonl", tmp_path / "run.html"))
    shown.go(f"#/trace/{compared['trace_id']}")
    ((one, other, verdict),) = compared["verdicts"]  # type: ignore[misc]
    assert f"{one} and {other}: {verdict}" in shown.page.locator(".facts").first.inner_text()
    shown.check()


def test_pointing_at_a_box_highlights_its_family(shown: Watched, trail: Path) -> None:
    page, winner = shown.page, str(event(trail, "selection")["chosen_trace_id"])
    parents = {
        x["trace_id"]: x["selected_tail_trace_ids"] for x in lines_of(trail) if x["event"] == "aggregation_prompt"
    }
    family, open_ = {winner}, [winner]
    while open_:
        new = set(parents.get(open_.pop(), [])) - family
        family |= new
        open_ += new
    page.locator(f'.node[data-id="{winner}"]').hover()
    assert set(page.locator(".node.lit").evaluate_all("nodes => nodes.map((n) => n.dataset.id)")) == family
    page.mouse.move(5, 5)
    assert page.locator(".node.lit").count() == 0
    page.locator(f'.node[data-id="{winner}"]').focus()
    assert page.locator(".node.lit").count() == len(family)


def test_arrow_keys_move_through_the_graph(shown: Watched, trail: Path) -> None:
    page, winner = shown.page, str(event(trail, "selection")["chosen_trace_id"])
    assert page.locator('.node[tabindex="0"]').count() == 1
    page.locator('.node[tabindex="0"]').focus()
    page.keyboard.press("ArrowUp")
    parent = event(trail, "aggregation_prompt", winner)["selected_tail_trace_ids"][0]  # type: ignore[index]
    assert page.evaluate("document.activeElement.dataset.id") == parent
    page.keyboard.press("Enter")
    page.wait_for_selector("#reasoning")
    assert page.url.endswith(f"#/trace/{parent}")
    assert page.evaluate("document.activeElement.id") == "main"
    page.go_back()
    page.wait_for_selector(".lineage")


def test_trace_page_shows_prompt_text_and_tail(shown: Watched, trail: Path) -> None:
    page = shown.page
    for line in [x for x in lines_of(trail) if x["event"] == "trace_complete"]:
        trace_id = line["trace_id"]
        shown.go(f"#/trace/{trace_id}")
        shown_text = page.locator(".trace-text .text").evaluate_all("parts => parts.map((p) => p.textContent).join('')")
        assert shown_text == line["text"]
        prompt = page.locator("#prompt .text").evaluate_all("parts => parts.map((p) => p.textContent).join('')")
        recorded = event(
            trail, "aggregation_prompt" if line["round"] else "run_setup", trace_id if line["round"] else None
        )
        assert prompt == recorded["prompt_text"]
        tails = page.locator("#prompt figure a").all_inner_texts()
        assert tails == recorded.get("selected_tail_trace_ids", [])
        if line["round"] < 2:
            tail = event(trail, "tail_extracted", trace_id)["tail_text"]
            page.wait_for_function(
                "() => !document.querySelector('#reasoning') || document.querySelector('#reasoning .text mark.carried')"
            )
            carried = page.locator("#reasoning .text mark.carried").evaluate_all(
                "marks => marks.map((m) => m.textContent).join('')"
            )
            assert carried == tail


def test_kept_text_is_marked_in_tail_and_trace(shown: Watched, trail: Path) -> None:
    page = shown.page
    shown.go("#/")
    page.wait_for_function("() => mrsa.view.kept.size === document.querySelectorAll('.edge').length")
    shares = page.evaluate("Object.fromEntries(mrsa.view.kept)")
    edge = max(shares, key=lambda name: shares[name])
    assert shares[edge] > 0.5
    parent, child = edge.split(">")
    shown.go(f"#/trace/{child}")
    tail = page.locator("#prompt figure", has_text=parent).first
    tail.locator("mark").first.wait_for()
    kept = tail.locator("mark.kept").all_text_contents()
    assert kept
    text = event(trail, "trace_complete", child)["text"]
    for run in kept:
        assert run in str(text)


def test_text_in_two_tails_has_both_colours(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)
    reader = next(line for line in lines if line["event"] == "aggregation_prompt")
    for line in lines:
        if line["event"] == "tail_extracted" and line["trace_id"] in reader["selected_tail_trace_ids"]:
            line["tail_text"] = f"{line['trace_id']} alone generate this; seven times six is forty-two"
        if line["event"] == "trace_complete" and line["trace_id"] in reader["selected_tail_trace_ids"]:
            line["text"] = f"so</think>\\boxed{{{line['trace_id']}}}"  # each has an answer, and so a colour, of its own
        if line["event"] == "trace_complete" and line["trace_id"] == reader["trace_id"]:
            line["text"] = (
                f"{reader['selected_tail_trace_ids'][0]} alone generate this; seven times six is forty-two</think>42"
            )
    shown = open_lines(chrome, tmp_path, lines)
    shown.go(f"#/trace/{reader['trace_id']}")
    shown.page.wait_for_selector("#reasoning .text mark")
    colours = shown.page.locator("#reasoning .text mark").evaluate_all(
        "marks => marks.map((m) => [m.className, getComputedStyle(m).backgroundImage.split('rgb').length - 1, m.title])"
    )
    (alone, both) = colours[:2]
    assert re.fullmatch(r"kept class-[0-5] slot-0", alone[0])
    assert alone[1] == 0
    assert both[1] == 4  # each of two colours has two stops
    assert all(parent in both[2] for parent in reader["selected_tail_trace_ids"])
    shown.check()


def test_carried_answer_is_marked_in_the_answer(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(
        tmp_path / "run.jsonl", lambda request, rng: r"it is \boxed{42}, so</think>\boxed{42}", carry="answer"
    )
    shown = watch(chrome.new_context(), write_page(path, tmp_path / "run.html"))
    shown.go(f"#/trace/{event(path, 'tail_extracted')['trace_id']}")
    shown.page.locator("#answer mark.carried").wait_for()
    assert shown.page.locator("#answer mark.carried").all_text_contents() == [r"\boxed{42}"]
    assert shown.page.locator("#reasoning .text mark.carried").count() == 0
    assert "this is the tail, in the answer below" in shown.page.locator("#reasoning .key").inner_text()
    shown.check()


def test_comparison_shows_two_traces_side_by_side(shown: Watched, trail: Path) -> None:
    page = shown.page
    shown.go("#/trace/r0-00")
    page.locator("select[aria-label^=Compare]").select_option("r2-00")
    page.wait_for_selector(".sides")
    sides = page.locator(".sides .text").evaluate_all("parts => parts.map((p) => p.textContent)")
    assert sides == [event(trail, "trace_complete", trace_id)["text"] for trace_id in ("r0-00", "r2-00")]
    page.get_by_text("Swap").click()
    page.wait_for_function("() => document.querySelector('h1').textContent === 'r2-00 and r0-00'")


def test_search_finds_every_place_and_links_to_it(shown: Watched, trail: Path) -> None:
    page = shown.page
    page.keyboard.press("/")
    page.keyboard.type("HM \\(x")
    page.keyboard.press("Enter")
    page.wait_for_selector(".results")
    texts = {x["trace_id"]: x["text"] for x in lines_of(trail) if x["event"] == "trace_complete"}
    places = sum(len(re.findall(re.escape("hm \\(x"), text, re.IGNORECASE)) for text in texts.values())
    assert f"{places} places" in page.locator("main").inner_text()
    page.locator(".results ul a").first.click()
    page.wait_for_selector("mark.found")
    assert page.locator("mark.found").first.text_content() == "hm \\(x"
    page.wait_for_function(
        "() => (() => { const place = document.querySelector('mark.found').getBoundingClientRect();"
        " return place.top >= 0 && place.bottom <= innerHeight; })()"
    )


def test_search_links_to_each_place_of_a_text(shown: Watched, trail: Path) -> None:
    page = shown.page
    shown.go("#/search/m")
    total = int(page.locator("main p").first.inner_text().split()[0])
    assert page.locator(".results summary").count() > 0
    for summary in page.locator(".results summary").all():
        summary.click()
    page.wait_for_function(f"() => document.querySelectorAll('.results ul a').length === {total}")


@pytest.mark.parametrize(
    ("query", "name", "seen"),
    [
        ("What is", "Question", "#question"),
        ("engine</b> stumbled", "Retry of", "h1"),
        ("Check what the attempts", "Prompt around the tails", "#prompt mark.found"),
        ("What is", "Prompt of round 0", "#prompt mark.found"),
    ],
)
def test_search_covers_question_retries_and_prompts(shown: Watched, query: str, name: str, seen: str) -> None:
    page = shown.page
    shown.go(f"#/search/{quote(query, safe='')}")
    page.locator(".results > li", has_text=name).first.locator("ul a").first.click()
    page.locator(seen).first.wait_for()
    page.wait_for_function(
        "(seen) => { const box = document.querySelector(seen).getBoundingClientRect();"
        " return box.top >= 0 && box.top < innerHeight; }",
        arg=seen,
    )
    if "found" in seen:
        assert str(page.locator(seen).first.text_content()) == query


def test_summaries_and_tails_are_searched_and_downloaded(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl", carry="summary")
    summary = event(path, "summary_complete")
    lines = lines_of(path)
    apart = next(x for x in lines if x["event"] == "tail_extracted" and x["trace_id"] != summary["trace_id"])
    apart["tail_text"] = "recorded separately"
    lines[1]["messages"].insert(0, {"role": "system", "content": "be brief, please"})
    context = chrome.new_context(accept_downloads=True)
    shown = watch(context, write_page(write_lines(tmp_path / "x.jsonl", lines), tmp_path / "x.html"))
    page = shown.page
    for query, name, place in (
        (str(summary["text"])[:12], ", its summary", "#summary > .text mark.found"),
        (str(summary["prompt_text"])[-12:], ", the prompt of its summary", "#summary details mark.found"),
        ("recorded separately", ", its tail", "#tail mark.found"),
        ("be brief, please", "Message before it", "#question details .text"),
    ):
        shown.go(f"#/search/{quote(query, safe='')}")
        page.locator(".results > li", has=page.locator("h2", has_text=name)).first.locator("ul a").first.click()
        page.locator(place).first.wait_for()
    shown.go(f"#/trace/{summary['trace_id']}")
    page.locator("#summary summary").click()
    for words, text in (
        ("Download summary", summary["text"]),
        ("Download its prompt", summary["prompt_text"]),
        ("Download tail", event(path, "tail_extracted", str(summary["trace_id"]))["tail_text"]),
    ):
        with page.expect_download() as got:
            page.get_by_text(words).click()
        assert got.value.path().read_text(encoding="utf-8") == text
    shown.go(f"#/trace/{apart['trace_id']}")
    assert page.locator("#tail .text").text_content() == "recorded separately"
    shown.check()
    context.close()


def test_downloads_are_exact(shown: Watched, trail: Path) -> None:
    page = shown.page
    shown.go("#/trace/r0-00")
    with page.expect_download() as got:
        page.get_by_text("Download text").click()
    assert got.value.path().read_text(encoding="utf-8") == event(trail, "trace_complete", "r0-00")["text"]
    with page.expect_download() as got:
        page.get_by_text("Download prompt").click()
    assert got.value.path().read_text(encoding="utf-8") == event(trail, "run_setup")["prompt_text"]
    page.get_by_text("Options").click()
    with page.expect_download() as got:
        page.get_by_text("Download trail").click()
    assert got.value.path().read_bytes() == trail.read_bytes()
    assert got.value.suggested_filename == "run.jsonl"


def test_typed_reference_answer_marks_traces(shown: Watched, trail: Path) -> None:
    page = shown.page
    page.get_by_text("Options").click()
    page.locator("input[name=reference]").fill(" 2. ")
    page.keyboard.press("Tab")
    answers = {
        x["trace_id"]: re.findall(r"boxed\{(\d)", x["text"]) for x in lines_of(trail) if x["event"] == "trace_complete"
    }
    right = sum(found[-1:] == ["2"] for found in answers.values())
    page.wait_for_function(f"() => document.querySelectorAll('.node.right').length === {right}")
    assert page.locator(".node.wrong").count() == len(answers) - right
    assert page.locator(".node.is-truncated").count() == 0


def test_maths_is_rendered_only_when_switched_on(shown: Watched) -> None:
    page = shown.page
    shown.go("#/trace/r0-00")
    assert page.locator("math").count() == 0
    assert "\\(x^2" in page.locator("#reasoning .text").text_content()  # type: ignore[operator]
    page.get_by_text("Options").click()
    page.locator("input[name=maths]").check()
    page.wait_for_selector("math msup")
    page.locator("input[name=maths]").uncheck()
    page.wait_for_function("() => !document.querySelector('math')")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(shown: Watched, theme: str) -> None:
    page = shown.page
    page.get_by_text("Options").click()
    page.get_by_label("Theme").select_option(theme)
    for route in ("#/", "#/trace/r1-01", "#/compare/r0-00/r2-00", "#/search/hm"):
        shown.go(route)
        assert shown.faults() == [], route


def test_page_fits_on_a_phone_and_prints(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    context = chrome.new_context(
        viewport={"width": 360, "height": 740}, is_mobile=True, color_scheme="dark", offline=True
    )
    shown = watch(context, write_page(trail, tmp_path / "run.html"))
    for route in ("#/", "#/trace/r1-01", "#/compare/r0-00/r2-00"):
        shown.go(route)
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), route
    assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    shown.go("#/trace/r1-01")
    shown.page.emulate_media(media="print")
    assert not shown.page.locator("header").is_visible()
    assert len(shown.page.pdf()) > 10_000
    shown.check()
    context.close()


def test_long_names_do_not_widen_a_page(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    long, lines = "n" * 10_000, trail.read_text(encoding="utf-8")
    named = tmp_path / "long.jsonl"
    named.write_text(lines.replace('"r0-00"', f'"r0-00{long}"').replace('"fake"', f'"{long}"'), encoding="utf-8")
    context = chrome.new_context(viewport={"width": 390, "height": 740})
    shown = watch(context, write_page(named, tmp_path / "long.html"))
    for route in ("#/", "#/trace/r0-01", f"#/trace/r0-00{long}", f"#/compare/r0-01/r0-00{long}"):
        shown.go(route)
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), route[:20]
    context.close()


@pytest.mark.parametrize("width", [320, 375, 414])
def test_menu_and_table_fit_on_a_phone(chrome: Browser, trail: Path, tmp_path: Path, width: int) -> None:
    context = chrome.new_context(viewport={"width": width, "height": 740}, is_mobile=True)
    shown = watch(context, write_page(trail, tmp_path / "run.html"))
    shown.page.get_by_text("Options").click()
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    left, right = shown.page.evaluate(
        "(({ left, right }) => [left, right])(document.querySelector('.menu').getBoundingClientRect())"
    )
    assert 0 <= left < right <= width
    rows = shown.page.locator("#traces tbody tr").evaluate_all(
        "rows => rows.map((r) => r.scrollWidth <= r.clientWidth)"
    )
    assert all(rows)
    tallest = shown.page.evaluate(
        "Math.max(...[...document.querySelectorAll('#traces tbody tr')].map((r) => r.getBoundingClientRect().height))"
    )
    assert tallest < 120
    context.close()


@pytest.mark.parametrize("theme", ["auto", "dark"])
def test_print_is_white_and_opens_closed_parts(chrome: Browser, trail: Path, tmp_path: Path, theme: str) -> None:
    context = chrome.new_context(color_scheme="dark")
    shown = watch(context, write_page(trail, tmp_path / "run.html"))
    page = shown.page
    page.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
    page.emulate_media(media="print", color_scheme="dark")
    look = page.evaluate(
        "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()"
    )
    assert look == ["rgb(255, 255, 255)", "rgb(27, 31, 38)"]
    for part in (".bar", ".swatch"):
        assert page.locator(part).first.evaluate("(one) => getComputedStyle(one).printColorAdjust") == "exact", part
    page.locator("#settings summary").evaluate("(one) => (one.parentElement.open = true)")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details[open]").count() == 1  # the one that was open before
    shown.check()
    context.close()


def test_permalink_opens_its_trace(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    context = chrome.new_context()
    shown = watch(context, write_page(trail, tmp_path / "run.html") + "#/trace/r1-01")
    assert shown.page.locator("h1").text_content() == "Trace r1-01"
    shown.go("#/trace/r7-77")
    assert "No such trace" in shown.page.locator("main").inner_text()
    shown.check()
    context.close()


def open_lines(chrome: Browser, folder: Path, lines: list[dict[str, object]]) -> Watched:
    return watch(chrome.new_context(), write_page(write_lines(folder / "x.jsonl", lines), folder / "x.html"))


def test_unfinished_run_lists_missing_parts(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)
    end = next(i for i, line in enumerate(lines) if line["event"] == "aggregation_prompt" and line["round"] == 1) + 6
    shown = open_lines(chrome, tmp_path, lines[:end])
    text = shown.page.locator("main").inner_text()
    assert "The run did not finish" in text
    assert shown.page.locator(".node.is-waiting").count() > 0
    interrupted = [
        x["trace_id"]
        for x in lines[:end]
        if x["event"] == "generation_start"
        and not [y for y in lines[:end] if y["event"] == "trace_complete" and y["trace_id"] == x["trace_id"]]
    ]
    assert shown.page.locator(".node.is-interrupted").count() == len(set(interrupted))
    for trace_id in [*interrupted, "r2-00"]:
        shown.go(f"#/trace/{trace_id}")
        assert shown.page.locator(".missing").count() >= 1
    shown.check()


def test_damaged_and_foreign_files_are_shown(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    content = trail.read_bytes().split(b"\n")
    content[6] = b"\xff not JSON"
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"\n".join(content))
    shown = watch(chrome.new_context(), write_page(damaged, tmp_path / "d.html"))
    assert "Line 7" in shown.page.locator(".problems").inner_text()
    shown.check()
    foreign = [line for line in lines_of(trail) if line["event"] in FIXED]
    shown = open_lines(chrome, tmp_path, [*foreign, {"event": "theirs", "run_id": foreign[0]["run_id"]}])
    text = shown.page.locator("main").inner_text()
    assert "There is no run_setup" in text
    assert "theirs" in text
    assert shown.page.locator(".node.winner").count() == 1
    shown.go("#/trace/r1-01")
    prompt = shown.page.locator("#prompt .text").evaluate_all("parts => parts.map((p) => p.textContent).join('')")
    assert prompt == event(trail, "aggregation_prompt", "r1-01")["prompt_text"]
    shown.check()
    no_start = [line for line in foreign if line["event"] != "run_start"]
    shown = open_lines(chrome, tmp_path, no_start)
    assert "no run_start" in shown.page.locator("main").inner_text()
    shown.check()


def test_policy_stops_injected_markup(shown: Watched) -> None:
    """The second wall: even markup put into the page by a fault of ours runs nothing and asks for nothing."""
    page = shown.page
    outcome = page.evaluate(
        "() => { try { document.body.innerHTML = '<img src=x onerror=alert(1)>'; return 'written'; }"
        " catch (error) { return error.name; } }"
    )
    assert outcome == "TypeError"
    refused = page.evaluate("fetch('https://example.org/').then(() => 'sent', (error) => error.name)")
    assert refused == "TypeError"
    assert [text for text in shown.errors if "Content Security Policy" in text]
    assert json.dumps(shown.requests).count("example.org") == 0
    shown.errors.clear()


# ---------------------------------------------------------------- what the overview generate is so


def test_fallback_of_the_aggregation_names_its_rule(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(
        tmp_path / "run.jsonl",
        lambda request, rng: "for ever" if request.trace_id == "r3-00" else r"so</think>\boxed{7}",
        answer_selection="final_aggregation",
    )
    shown = watch(chrome.new_context(), write_page(path, tmp_path / "run.html"))
    words = shown.page.locator("#answer").inner_text()
    assert event(path, "selection")["chosen_trace_id"] == "r2-00"
    assert "since the aggregating trace has none" in words
    assert "the trace that aggregated the final candidates" not in words


def test_foreign_file_with_a_final_has_an_answer(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)
    foreign = [line for line in lines if line["event"] not in ("run_setup", "selection", "run_end")]
    shown = open_lines(chrome, tmp_path, foreign)
    banner = shown.page.locator(".problems").inner_text()
    assert "no answer was chosen" not in banner
    assert "resumes it" not in banner
    unfinished = [line for line in foreign if line["event"] != "final"]
    banner = open_lines(chrome, tmp_path, unfinished).page.locator(".problems").inner_text()
    assert "no answer was chosen" in banner
    assert "resumes it" not in banner


def test_large_population_is_counted_fully_and_drawn_partly(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)[:2]
    large = {"population": 1000, "aggregation_size": 4, "final_candidates": None, "answer_selection": "single"}
    lines[0]["config"] |= large
    shown = open_lines(chrome, tmp_path, lines)
    needed = {r: shown.page.locator(f'.node[data-id^="r{r}-"]').count() for r in range(3)}
    labels = shown.page.locator(".label").all_text_contents()
    assert labels == [f"Round {r}{needed[r]} of 1,000" for r in range(2)] + ["Round 21 trace"]
    assert shown.page.locator(".pruned").count() == 2 * 40
    more = str(shown.page.locator(".more-pruned").first.text_content())
    assert more.startswith(f"+ {1000 - 40 - needed[0]}")
    shown.check()


def test_population_by_round_is_drawn_by_round(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)[:2]
    lines[0]["config"] |= {"population": [30, 9, 4], "final_candidates": None, "answer_selection": "single"}
    shown = open_lines(chrome, tmp_path, lines)
    needed = {r: shown.page.locator(f'.node[data-id^="r{r}-"]').count() for r in range(3)}
    labels = shown.page.locator(".label").all_text_contents()
    assert labels == [f"Round 0{needed[0]} of 30", f"Round 1{needed[1]} of 9", "Round 21 trace"]
    assert shown.page.locator(".pruned").count() == 30 + 9 - needed[0] - needed[1]
    figures = shown.page.locator("#figures").inner_text()
    assert f"{30 + 9 + 1 - sum(needed.values())} more were not needed" in figures
    assert "[30,9,4]" in str(shown.page.locator("#settings").text_content())
    shown.check()


@pytest.mark.parametrize(
    "large",
    [
        {"population": 10_000, "rounds": 1000, "aggregation_size": 100, "final_candidates": None},
        {"population": 10_000, "rounds": 2, "aggregation_size": 4, "final_candidates": 0},
        {"population": 10**15, "rounds": 10**15, "aggregation_size": 10**15, "final_candidates": 10**15},
    ],
)
def test_too_large_lineage_is_not_drawn(
    large: dict[str, int | None], chrome: Browser, trail: Path, tmp_path: Path
) -> None:
    lines = lines_of(trail)[:6]
    lines[0]["config"] |= large
    begun = time.monotonic()
    shown = open_lines(chrome, tmp_path, lines)
    assert time.monotonic() - begun < 5
    assert "too many" in shown.page.locator(".problems").inner_text()
    assert "not needed" not in shown.page.locator("#figures").inner_text()
    started = {line["trace_id"] for line in lines if "trace_id" in line}
    assert shown.page.locator(".lineage .node").count() == len(started) > 0
    shown.check()


def test_back_restores_the_place_of_the_reader(shown: Watched) -> None:
    page = shown.page
    shown.go("#/")
    page.wait_for_function(
        "() => mrsa.view.kept.size === document.querySelectorAll('.edge').length"
    )  # nothing moves now
    link = page.locator("#traces tbody a").last
    link.scroll_into_view_if_needed()
    top, held = page.evaluate("scrollY"), link.get_attribute("href")
    assert top > 0
    title = page.title()
    link.click()
    page.wait_for_selector("#reasoning")
    assert page.evaluate("scrollY") == 0
    assert page.title().startswith("Trace r")
    assert page.title().endswith(title)
    page.go_back()
    page.wait_for_selector("#traces")
    page.wait_for_function(f"() => scrollY === {top}")
    assert page.evaluate("document.activeElement.getAttribute('href')") == held
    assert page.title() == title


def test_large_seed_is_shown_exactly(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)
    seed = 2**53 + 3
    lines[0]["config"]["seed"] = lines[1]["seed"] = seed
    for content in (lines, [line for line in lines if line["event"] != "run_setup"]):
        shown = open_lines(chrome, tmp_path, content)
        listed = shown.page.locator("#settings details").text_content()
        assert f"seed{seed}" in str(listed)


# ---------------------------------------------------------------- widths, colours, figures


def some_cut_off(request: GenerationRequest, rng: random.Random) -> str:
    """One trace in six does not end within its tokens."""
    return "for ever " * 60 if rng.random() < 1 / 6 else boxed(rng.choice([3, 3, 7, 12]), "hm so it is ")


@pytest.fixture(scope="module", params=[16, 32])
def wide_trail(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "run.jsonl"
    return small_run(path, some_cut_off, population=request.param, rounds=4, aggregation_size=4)


OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
BOXES = """() => [...document.querySelectorAll('.node .box')].map((box) => {
  const { left, right, width } = box.getBoundingClientRect();
  return [left, right, width];
})"""


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "dark")])
def test_lineage_of_many_traces_fits_the_window(
    chrome: Browser, wide_trail: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    context = chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    shown = watch(context, write_page(wide_trail, tmp_path / "run.html", judge=lambda answer: answer == "3"))
    page = shown.page
    for route in ("#/", "#/trace/r1-01"):
        shown.go(route)
        assert page.evaluate(OVERFLOW) <= 0, route
    shown.go("#/")
    boxes, cue = page.evaluate(BOXES), page.locator("#lineage .pan-cue")
    assert min(box[2] for box in boxes) > 25  # it is readable
    if width >= 1280:
        assert all(0 <= left < right <= width for left, right, _ in boxes)
        assert not cue.is_visible()
    else:
        page.wait_for_selector("#lineage .pans")
        assert cue.is_visible()
        page.locator("#lineage .scroller").evaluate("(part) => part.scrollTo(part.scrollWidth, 0)")
        page.wait_for_selector("#lineage .pans-back.at-end")
        assert max(right for _, right, _ in page.evaluate(BOXES)) <= width
    shown.check()
    context.close()


def test_wide_window_is_used(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    context = chrome.new_context(viewport={"width": 1920, "height": 1080})
    shown = watch(context, write_page(trail, tmp_path / "run.html"))
    place = "(name) => (({ left, right }) => [left, right])(document.querySelector(name).getBoundingClientRect())"
    assert shown.page.evaluate(place, "#question")[1] <= shown.page.evaluate(place, "#answer")[0]
    assert shown.page.evaluate(place, "#answer")[1] > 1800
    shown.go("#/trace/r1-01")
    assert shown.page.evaluate(place, "#prompt")[1] <= shown.page.evaluate(place, "#reasoning")[0]
    context.close()


def test_colour_stands_for_one_answer_everywhere(chrome: Browser, wide_trail: Path, tmp_path: Path) -> None:
    shown = watch(chrome.new_context(), write_page(wide_trail, tmp_path / "run.html"))
    used = shown.page.evaluate(
        """() => {
          const colour = (one) => getComputedStyle(one).getPropertyValue("--this");
          const idOf = (link) => link.getAttribute("href").replace("#/trace/", "");
          const found = {};
          for (const link of document.querySelectorAll(".node, .span")) {
            const key = mrsa.run.trace(idOf(link)).key;
            (found[key] ??= []).push(colour(link));
          }
          for (const item of document.querySelectorAll(".legend li")) {
            const answer = item.textContent.replace(" (the answer of the run)", "");
            (found[answer === "no answer" ? "" : answer] ??= []).push(colour(item.querySelector(".swatch")));
          }
          found[mrsa.run.winner.key].push(colour(document.querySelector(".how")));
          return Object.fromEntries(Object.entries(found).map(([key, all]) => [key, [...new Set(all)]]));
        }"""
    )
    assert set(used) == {"3", "7", "12", ""}
    assert all(len(colours) == 1 for colours in used.values())
    assert len({colours[0] for colours in used.values()}) == 4
    shown.go("#/trace/r1-01")
    parents = event(wide_trail, "aggregation_prompt", "r1-01")["selected_tail_trace_ids"]
    for figure, parent in zip(shown.page.locator("#prompt figure").all(), parents, strict=True):  # type: ignore[arg-type]
        colour = figure.evaluate("(one) => getComputedStyle(one).getPropertyValue('--this')")
        assert [colour] == used[shown.page.evaluate("(id) => mrsa.run.trace(id).key", parent)]
    shown.check()


def test_trace_that_was_cut_off_is_not_wrong(chrome: Browser, wide_trail: Path, tmp_path: Path) -> None:
    shown = watch(
        chrome.new_context(), write_page(wide_trail, tmp_path / "run.html", judge=lambda answer: answer == "3")
    )
    cut_off = shown.page.locator(".node.is-truncated")
    assert cut_off.count() > 0
    assert shown.page.locator(".node.is-truncated.wrong").count() == 0
    assert "cut off" in str(cut_off.first.get_attribute("aria-label"))
    assert shown.page.locator(".node.wrong").count() > 0


def test_an_answer_that_was_cut_off_is_marked_in_lineage_and_answer(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(
        tmp_path / "run.jsonl",
        lambda request, rng: "hm</think>" + "Well " * 99,
        answer_kind="open",
        final_tokens=40,
        answer_selection="single",
    )
    shown = watch(chrome.new_context(), write_page(path, tmp_path / "run.html"))
    assert shown.page.locator(".node.winner .sign").text_content() == "★ ✂"
    assert "was cut off at 40 tokens" in shown.page.locator("#answer").inner_text()
    weight = "(text) => getComputedStyle(text).fontWeight"
    assert shown.page.locator(".chosen .text").first.evaluate(weight) == "400"


def test_text_is_the_answer_where_none_can_be_found(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl", lambda request, rng: "hm</think>I <b>cannot</b> say.", answer_kind="math")
    shown = watch(chrome.new_context(), write_page(path, tmp_path / "run.html"))
    assert event(path, "selection")["answer"] == ""
    assert shown.page.locator(".chosen .text").inner_text() == "I <b>cannot</b> say."
    assert "No answer could be found" in shown.page.locator("#answer").inner_text()


def test_title_has_the_question(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    lines = lines_of(trail)
    lines[0]["prompt"] = "How many \u202e<b>primes</b> " + "are there " * 20
    shown = open_lines(chrome, tmp_path, lines)
    assert shown.page.title().startswith("How many ⟨202E⟩<b>primes</b> are there")
    assert len(shown.page.title()) < 100
    shown.go("#/trace/r1-01")
    assert shown.page.title().startswith("Trace r1-01 – How many")


def test_generating_is_time_in_the_engine_and_adds_up_with_waiting(
    chrome: Browser, trail: Path, tmp_path: Path
) -> None:
    """r0-00 runs for 2 s after 5 s of waiting, is tried again after 3 s more, and then runs for 4 s."""
    lines = lines_of(trail)
    complete = next(x for x in lines if x["event"] == "trace_complete" and x["trace_id"] == "r0-00")
    clock = next(x for x in lines if x["event"] == "trace_clock") | {
        "trace_id": "r0-00",
        "round": 0,
        "purpose": "trace",
    }
    times = [
        clock | {"phase": phase, "attempt": attempt, "elapsed_s": at}
        for phase, attempt, at in (("started", 0, 5.0), ("ended", 0, 7.0), ("started", 1, 10.0), ("ended", 1, 14.0))
    ]
    shown = open_lines(chrome, tmp_path, [*lines[:2], *times, complete])
    shown.go("#/trace/r0-00")
    facts = shown.page.locator("main > .facts").inner_text().split("\n")
    assert facts[facts.index("Generating") + 1] == "6.0 s"
    assert facts[facts.index("Waiting") + 1] == "8.0 s"
    shown.go("#/")
    figures = shown.page.locator("#figures").inner_text().split("\n")
    times = {name: figures[figures.index(name) + 1] for name in ("Generating", "Waiting", "Total time")}
    assert times == {"Generating": "6.0 s", "Waiting": "8.0 s", "Total time": "14.0 s"}

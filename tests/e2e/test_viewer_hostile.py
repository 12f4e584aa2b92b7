"""Hostile texts in a real browser: nothing executes, nothing is asked for, all text appears as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from markovian_rsa_mlx.audit import read_lenient
from tests.viewer import hostile
from tests.viewer.trails import lines_of, small_run, synthetic_run, write_lines

from .viewer_browser import Watched, watch, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


def hostile_trail(path: Path) -> Path:
    """Write a run with only hostile texts, some with half characters."""
    texts = hostile.texts()
    synthetic_run(path, texts)
    lines = lines_of(path)
    for line in lines:
        line["run_id"] = texts[3]
    lines[0]["model_id"], lines[0]["prompt"] = texts[6], "".join(texts[40:80])
    lines[1]["engine"], lines[1]["template_name"] = texts[9], texts[12]
    lines.insert(
        -1, {"event": "error", "run_id": texts[3], "stage": texts[15], "message": texts[21], "recoverable": True}
    )
    write_lines(path, lines)
    path.write_bytes(path.read_bytes().replace(b"BROKEN", hostile.HALF.encode()))
    return path


@pytest.fixture(scope="module")
def shown(chrome: Browser, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, dict[str, str]]:
    folder = tmp_path_factory.mktemp("hostile")
    path = hostile_trail(folder / "run.jsonl")
    trail = read_lenient(path)
    recorded = {line.raw["trace_id"]: line.raw["text"] for line in trail.lines if line.raw["event"] == "trace_complete"}
    assert len(recorded) == 200
    watched = watch(chrome.new_context(), write_page(path, folder / "run.html", judge=bool))
    return watched, recorded


def test_hostile_texts_are_shown_unchanged(shown: tuple[Watched, dict[str, str]]) -> None:
    watched, recorded = shown
    page = watched.page
    for trace_id, text in recorded.items():
        watched.go(f"#/trace/{trace_id}")
        same = page.evaluate(
            """(text) => {
              const parts = [...document.querySelectorAll('.trace-text .text')].map((p) => p.textContent);
              return parts.join('').toWellFormed() === text;
            }""",
            text.replace("\ud83d", "\ufffd"),  # the wire carries no half characters
        )
        assert same, (trace_id, text[:200])
    assert page.evaluate("typeof window.PWNED") == "undefined"
    assert (
        page.locator("main script, main img, main iframe, main object, main style, main link, main meta").count() == 0
    )
    watched.check()


def test_overview_and_search_run_no_hostile_text(shown: tuple[Watched, dict[str, str]]) -> None:
    watched, _ = shown
    page = watched.page
    for route in (
        "#/",
        "#/search/script",
        "#/search/%E2%80%AE",
        "#/search/(",
        "#/compare/r0-00/r0-01",
        "#/trace/%3Cimg%20src=x%3E",
    ):
        watched.go(route)
        page.wait_for_timeout(50)
        assert page.evaluate("typeof window.PWNED") == "undefined"
    watched.go("#/")
    assert page.locator(".lineage .node").count() == 200
    watched.check()


def test_rendered_maths_runs_no_hostile_text(shown: tuple[Watched, dict[str, str]]) -> None:
    watched, recorded = shown
    page = watched.page
    page.evaluate("document.querySelector('.more').open = true")
    page.locator("input[name=maths]").check()
    for trace_id, text in recorded.items():
        if len(text) < 5_000 and ("\\" in text or "$" in text):
            watched.go(f"#/trace/{trace_id}")
    page.evaluate("document.querySelector('.more').open = true")
    page.locator("input[name=maths]").uncheck()
    assert page.evaluate("typeof window.PWNED") == "undefined"
    assert page.locator("main a[href^=javascript]").count() == 0
    watched.check()


def test_text_direction_ends_with_its_text(shown: tuple[Watched, dict[str, str]]) -> None:
    """An unclosed override is shown as a glyph, reorders nothing after it, and is copied as it is."""
    watched, recorded = shown
    page = watched.page
    trace_id = next(key for key, text in recorded.items() if text.startswith("\u202eevil"))
    watched.go(f"#/trace/{trace_id}")
    page.wait_for_selector(".hidden", state="attached")
    assert "\u27e8202E\u27e9" in page.locator(".hidden").first.get_attribute("data-glyph")  # type: ignore[operator]
    order = page.evaluate(
        """() => {
          const node = document.querySelector('.hidden').nextSibling;
          const range = document.createRange();
          const left = (i) => (range.setStart(node, i), range.setEnd(node, i + 1), range.getBoundingClientRect().left);
          return [0, 1, 2, 3].map(left);
        }"""
    )
    assert order == sorted(order)
    assert len(set(order)) == 4
    copied = page.evaluate(
        """() => {
          const view = document.querySelector('#reasoning .text');
          getSelection().selectAllChildren(view);
          const data = new DataTransfer();
          view.dispatchEvent(new ClipboardEvent('copy', { clipboardData: data, bubbles: true }));
          return data.getData('text/plain');
        }"""
    )
    assert copied == recorded[trace_id]
    watched.check()


def test_megabyte_line_is_laid_out_in_time(shown: tuple[Watched, dict[str, str]]) -> None:
    watched, recorded = shown
    trace_id = next(key for key, text in recorded.items() if len(text) == 1_000_000)
    watched.go("#/")
    ms = watched.page.evaluate(
        """async (id) => {
          const start = performance.now();
          location.hash = `#/trace/${id}`;
          while (!document.querySelector('#reasoning')) await new Promise(requestAnimationFrame);
          await new Promise(requestAnimationFrame);
          return performance.now() - start;
        }""",
        trace_id,
    )
    assert ms < 3_000


def test_long_blanks_do_not_slow_down_the_marks(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl")
    lines = lines_of(path)
    blank = " " * 100_000
    reader = next(line["trace_id"] for line in lines if line["event"] == "aggregation_prompt")
    for line in lines:
        if line["event"] == "trace_complete":
            line["text"] = f"so {blank}what was kept of it{blank}{line['text']}"
        if line["event"] == "tail_extracted":
            line["tail_text"] = f"what was kept of it{blank}end"
    write_lines(path, lines)
    watched = watch(chrome.new_context(), write_page(path, tmp_path / "run.html"))
    watched.page.set_default_timeout(10_000)
    watched.go(f"#/trace/{reader}")
    assert watched.page.locator("#reasoning mark.kept").first.is_visible()
    watched.check()


ESCAPING = (
    r"a \(\smash{\raisebox{12em}{\Huge\text{SPOOF}}}\) b",
    r"a \(\raisebox{20em}{\Huge\text{SPOOF}}\) b",
    r"a \(\rlap{\kern{-30em}\Huge\text{SPOOF}}\) b",
    r"a \(\smash{\raisebox{-12em}{\Huge\text{SPOOF}}}\) b",
    r"\[\smash{\raisebox{12em}{\Huge\text{SPOOF}}}\]",
)
#: Points of the window at which a formula is painted outside its text.
STRAY = """() => {
  const stray = [];
  for (let y = 0; y < innerHeight; y += 6)
    for (let x = 0; x < innerWidth; x += 6) {
      const formula = document.elementFromPoint(x, y)?.closest('.formula');
      if (!formula) continue;
      const box = formula.closest('.text').getBoundingClientRect();
      if (x < box.left || x > box.right || y < box.top || y > box.bottom) stray.push([x, y]);
    }
  return stray;
}"""


def test_rendered_maths_stays_in_its_text(chrome: Browser, tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run.jsonl", ["plain</think>1", *(f"{text}</think>{text}" for text in ESCAPING)])
    watched = watch(chrome.new_context(viewport={"width": 1000, "height": 900}), write_page(path, tmp_path / "x.html"))
    watched.page.evaluate("document.querySelector('.more').open = true")
    watched.page.locator("input[name=maths]").check()
    watched.page.evaluate("document.querySelector('.more').open = false")
    for index in range(1, 1 + len(ESCAPING)):
        for route in (f"#/trace/r0-{index:02d}", f"#/compare/r0-{index:02d}/r0-00"):
            watched.go(route)
            watched.page.wait_for_selector(".formula math", state="attached")
            assert watched.page.evaluate(STRAY) == [], route
    watched.check()

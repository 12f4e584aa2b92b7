"""48 traces of 40,000 tokens: the page's size, its first view, its memory, its scrolling."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer.trails import large_run, lines_of

from .viewer_browser import browser, watch, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


def test_a_run_of_two_million_tokens_opens_at_once(tmp_path: Path) -> None:
    path = large_run(tmp_path / "large.jsonl")
    spoken = "".join(line["text"] for line in lines_of(path) if line["event"] == "trace_complete")
    figures: dict[str, Any] = {"texts_mb": len(spoken) / 1e6}
    with browser() as chrome:
        url = write_page(path, tmp_path / "large.html")
        size = (tmp_path / "large.html").stat().st_size
        figures["size_to_gzip"] = size / len(gzip.compress(spoken.encode(), 9))
        watched = watch(chrome.new_context(), url)
        page = watched.page
        page.wait_for_function("() => performance.getEntriesByName('shown').length")
        figures["first_view_ms"] = page.evaluate("performance.getEntriesByName('shown')[0].startTime")
        assert page.locator(".lineage .node").count() == 48
        page.wait_for_function(
            "() => mrsa.view.kept.size === document.querySelectorAll('.edge').length", timeout=60_000
        )
        figures["memory_mb"] = _memory_mb(page)
        watched.go("#/trace/r1-03")
        figures["slowest_frame_ms"] = _scroll(page)
        watched.go("#/search/therefore")
        watched.go("#/compare/r0-00/r2-00")
        figures["memory_after_all_mb"] = _memory_mb(page)
        watched.check()
    print({name: round(value, 2) for name, value in figures.items()})
    assert figures["size_to_gzip"] < 1.5
    assert figures["first_view_ms"] < 2_000
    assert figures["memory_after_all_mb"] < 500
    assert figures["slowest_frame_ms"] < 250


def _memory_mb(page: Page) -> float:
    """What the page's scripts and its document hold."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")
    return float(used["usedSize"] + used.get("backingStorageSize", 0) + used.get("embedderHeapUsedSize", 0)) / 1e6


def _scroll(page: Page) -> float:
    """The longest time between two frames on the way through a trace."""
    slowest: float = page.evaluate(
        """async () => {
          let worst = 0;
          let last = await new Promise(requestAnimationFrame);
          for (let y = 0; y < document.documentElement.scrollHeight; y += 1500) {
            scrollTo(0, y);
            const now = await new Promise(requestAnimationFrame);
            worst = Math.max(worst, now - last);
            last = now;
          }
          return worst;
        }"""
    )
    return slowest

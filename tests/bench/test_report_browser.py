"""The page in a real browser: it opens without a complaint, fits a telephone, and its trails open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from markovian_rsa_mlx.bench.report import render

from .sample_results import sample_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    results = sample_results(8, epochs=2)
    for cell in results.cells:
        for record in cell.records:
            trail = folder / record.trail
            trail.parent.mkdir(parents=True, exist_ok=True)
            trail.write_text(f'{{"event": "run_start", "of": "{record.trail}"}}\n')
    (folder / "report.html").write_text(render(results))
    return folder / "report.html"


@pytest.mark.parametrize("width", [360, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens_without_messages_or_requests(browser: Browser, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    assert messages == []
    assert requests == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("svg.plot:visible").count() == 1
    assert page.locator("svg.plot:visible .mark").first.evaluate("e => getComputedStyle(e).fill") != "rgb(0, 0, 0)"
    page_colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page_colour == "rgb(19, 20, 23)") is (scheme == "dark")
    context.close()


def test_a_trail_opens_from_the_table(browser: Browser, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.get_by_role("link", name="trail of 5, markovian, epoch 2").click()
    assert page.url.endswith("trails/markovian/00002-2.jsonl")
    assert "trails/markovian/00002-2.jsonl" in page.content()
    page.close()

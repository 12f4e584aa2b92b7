"""The report in a real browser: it opens without messages, fits a telephone, and its runs open as pages and files."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.bench.report import render
from markovian_rsa_mlx.bench.report.pages import linked_pages, write_pages
from markovian_rsa_mlx.bench.results import Results
from markovian_rsa_mlx.viewer import shared_script
from tests.support.fakes import FakeBackend, boxed

from ..support.bench_harness import SMALL, FakeTask, make_spec, run_bench
from ..viewer import hostile
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


def hostile_text(request: GenerationRequest, rng: random.Random) -> str:
    texts = [text for text in hostile.texts() if len(text) < 150]
    return boxed(rng.choice(["right", "wrong"]), rng.choice(texts) + rng.choice(texts))


def benchmark(folder: Path) -> Results:
    return run_bench(folder, make_spec(FakeTask(2), ["single", "markovian"], SMALL), FakeBackend(hostile_text))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a benchmark whose runs have hostile texts, with a page for each run."""
    folder = tmp_path_factory.mktemp("runs")
    with ThreadPoolExecutor(1) as thread:  # Playwright's loop occupies the main one
        results = thread.submit(benchmark, folder).result()
    assert write_pages(folder, results) == 0
    (folder / "report.html").write_text(render(results, linked_pages(folder, results)))
    return folder / "report.html"


def opened(browser: Browser, address: str) -> tuple[Page, list[str], list[str]]:
    """Return a page at the address, its requests, and its messages and dialogs."""
    page = browser.new_page()
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    return page, requests, messages


def test_run_opens_as_a_page_that_loads_only_the_shared_script(browser: Browser, report: Path) -> None:
    page, requests, messages = opened(browser, report.as_uri())
    page.get_by_role("link", name="page of p1, markovian, epoch 1").click()
    page.wait_for_selector("html[data-ready]")
    folder = report.parent
    assert requests == [
        report.as_uri(),
        (folder / "pages/markovian/00002-1.html").as_uri(),
        (folder / "pages" / shared_script()[0]).as_uri(),
    ]
    assert page.locator(".lineage .node").count() == 12
    assert page.locator("main").inner_text().count("Question 1?") >= 1
    page.locator(".lineage .node").first.click()
    page.wait_for_selector(".trace-text")
    assert page.evaluate("getComputedStyle(document.querySelector('header')).display") == "flex"
    page.locator("summary", has_text="Options").click()
    assert page.locator("input[name=maths]").count() == 1  # the library arrived as well
    page.get_by_role("link", name="Trail (JSON lines)").click()
    assert page.url == (folder / "trails/markovian/00002-1.jsonl").as_uri()
    page.go_back()
    page.wait_for_selector("html[data-ready]")
    page.get_by_role("link", name="Report").click()
    assert page.url == report.as_uri()
    page.get_by_role("link", name="trail of p1, markovian, epoch 1").click()
    assert page.url == (folder / "trails/markovian/00002-1.jsonl").as_uri()
    assert messages == []
    page.close()


def test_hostile_texts_do_nothing_in_a_page_with_a_shared_script(browser: Browser, report: Path) -> None:
    for file in sorted(report.parent.glob("pages/*/*.html")):
        page, requests, messages = opened(browser, file.as_uri())
        page.wait_for_selector("html[data-ready]")
        for trace_id in page.evaluate("mrsa.run.all().map((trace) => trace.id)"):
            page.evaluate("(id) => { location.hash = `#/trace/${id}`; }", trace_id)
            page.wait_for_function("() => mrsa.app.shown?.startsWith(location.hash)")
        assert page.evaluate("typeof window.PWNED") == "undefined"
        assert page.locator("main script, main img, main iframe, main style").count() == 0
        assert len(requests) == 2
        assert messages == []
        page.close()


#: Ways in which a script or markup could add code to a page, each with the words of its failure.
ATTACKS = {
    "address": "document.createElement('script').src = 'other.js'",
    "policy": "trustedTypes.createPolicy('mrsa-shared', { createScriptURL: (url) => url })",
    "other policy": "trustedTypes.createPolicy('other', { createScriptURL: (url) => url })",
    "markup": "document.body.innerHTML = '<img src=x>'",
    "code": "document.createElement('script').text = 'window.PWNED = 1'",
    "eval": "(0, eval)('window.PWNED = 1')",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_page_adds_no_other_script(browser: Browser, report: Path, attack: str) -> None:
    page, requests, _ = opened(browser, (report.parent / "pages/markovian/00001-1.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    thrown = page.evaluate(  # in a task of the page: the policy does not apply to the debugger's own
        f"""() => new Promise((done) => setTimeout(() => {{
          try {{ {ATTACKS[attack]}; done(null); }} catch (error) {{ done(error.name); }}
        }}))"""
    )
    assert thrown in ("TypeError", "EvalError")
    assert len(requests) == 2
    page.close()


def test_markup_in_a_page_cannot_load_a_script(browser: Browser, report: Path, tmp_path: Path) -> None:
    """A script element in the file, as if a text had become markup: the policy trusts no address."""
    shutil.copytree(report.parent / "pages", tmp_path / "pages")
    source = tmp_path / "pages/markovian/00001-1.html"
    (source.parent / "evil.js").write_text("window.PWNED = 1")
    file = source.parent / "changed.html"
    file.write_text(source.read_text().replace("<main", '<script src="evil.js"></script><main', 1))
    page, _, messages = opened(browser, file.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("typeof window.PWNED") == "undefined"
    assert any("Content Security Policy" in message for message in messages)
    page.close()


def test_page_without_its_script_names_it(browser: Browser, report: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    copy.write_bytes((report.parent / "pages/markovian/00001-1.html").read_bytes())
    page, _, _ = opened(browser, copy.as_uri())
    page.wait_for_function("() => document.getElementById('main').textContent.includes('is not there')")
    assert shared_script()[0] in page.locator("main").inner_text()
    page.close()

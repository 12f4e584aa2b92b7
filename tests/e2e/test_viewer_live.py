"""A live run: the page fills in, survives a lost server, and ends equal to the file's view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.reasoner import demo_puzzle
from tests.viewer.trails import lines_of, small_run

from ..backends.fake_upstream import free_port
from .servers import MRSAServer
from .viewer_browser import Watched, watch, write_page
from .viewer_server import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

#: The whole model of a run and all its texts, as the page holds them.
MODEL = """async () => {
  const texts = {};
  for (const key of mrsa.texts.keys().sort()) texts[key] = await mrsa.texts.get(key);
  const plain = (value) => value instanceof Map ? Object.fromEntries(value) : value;
  const run = Object.fromEntries(Object.entries(mrsa.run).map(([name, value]) => [name, plain(value)]));
  for (const trace of Object.values(run.traces)) delete trace.version;
  return JSON.stringify({ run, texts });
}"""


@pytest.fixture(scope="module", params=["tail", "answer", "summary"])
def trail(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("live") / "run.jsonl", carry=request.param)


def sections(shown: Watched) -> dict[str, Any]:
    """What the overview shows, section by section, once it has settled."""
    shown.go("#/")
    shown.page.wait_for_function("() => mrsa.view.kept.size === document.querySelectorAll('.edge').length")
    shown.go("#/")
    found: dict[str, Any] = shown.page.evaluate(
        """() => {
          // Where the file lies only the file's own page knows.
          const place = [...document.querySelectorAll('.settings div')].find((d) => d.textContent.startsWith('file'));
          place?.remove();
          return Object.fromEntries([...document.querySelectorAll('main section')].map((s) => [s.id, s.textContent]));
        }"""
    )
    return found


def test_the_page_fills_in_and_ends_equal_to_the_files(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(b"".join(whole[:2]))
    run_id = lines_of(trail)[0]["run_id"]
    with served(growing) as server:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{run_id}", server.url)
        page = shown.page
        page.wait_for_selector(".lineage .node.is-waiting")  # the whole lineage is known before the first trace
        needed = page.locator(".lineage .node").count()
        assert page.locator(".state").inner_text() == "running"
        seen = []
        for number, line in enumerate(whole[2:], start=3):
            with growing.open("ab") as file:
                file.write(line)
            if number == len(whole) // 2:
                server.stop()  # a restart in mid-run
                page.wait_for_function(
                    "() => document.querySelector('.state').textContent.startsWith('connection lost')"
                )
                server.start()
            if number % 12 == 0:
                page.wait_for_function(f"() => mrsa.run.lines >= {number}")
                seen.append(page.evaluate("mrsa.run.all().filter((t) => t.state !== 'waiting').length"))
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        assert seen[0] < seen[-1] == needed
        assert len(set(seen)) > 2
        assert page.locator(".lineage .node").count() == needed
        assert len(server.connections) >= 2
        assert server.connections[-1] >= len(whole) // 2 - 12  # it went on from where it was
        refused = [text for text in shown.errors if "ERR_CONNECTION" not in text and "ERR_INCOMPLETE" not in text]
        assert refused == []  # but for those of the dead server
        shown.errors.clear()
        from_file = watch(chrome.new_context(), write_page(trail, tmp_path / "run.html"))
        assert json.loads(page.evaluate(MODEL)) == json.loads(from_file.page.evaluate(MODEL))
        assert sections(shown) == sections(from_file)
        page.get_by_text("Options").click()
        with page.expect_download() as got:
            page.get_by_text("Download trail").click()
        assert got.value.path().read_bytes() == trail.read_bytes()
        shown.check()
        from_file.check()
        assert shown.faults() == []


def test_a_server_with_a_key_is_asked_with_it(chrome: Browser, trail: Path) -> None:
    run_id = lines_of(trail)[0]["run_id"]
    with served(trail, key="secret") as server:
        context = chrome.new_context()
        shown = watch(context, f"{server.url}/runs/{run_id}", server.url)
        shown.page.locator("input[name=key]").fill("secret")
        shown.page.keyboard.press("Enter")
        shown.page.wait_for_selector(".lineage .node.winner")
        shown.page.goto(f"{server.url}/")  # this tab knows the key now
        shown.page.wait_for_selector("table a")
        assert shown.faults() == []
        shown.page.locator("table a").first.click()
        shown.page.wait_for_selector(".lineage .node.winner")
        assert [text for text in shown.errors if "401" not in text] == []


def test_a_server_with_another_key_is_gone_on_with(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(b"".join(whole[:10]))
    with served(growing) as server:
        page = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url).page
        page.wait_for_function("() => mrsa.run.lines === 10")
        server.stop()
        server.key = "secret"
        server.start()
        page.locator("input[name=key]").fill("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector(".lineage .node")
        growing.write_bytes(trail.read_bytes())
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        assert page.evaluate("mrsa.run.lines") == len(whole)


def test_a_damaged_line_of_a_live_run_is_said(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"".join([*whole[:6], b'{"event": <b>', b"\n", *whole[7:]]))
    with served(damaged) as server:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url)
        shown.page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        shown.page.wait_for_selector(".problems li")
        assert shown.page.locator(".problems li").inner_text() == "Line 7: it is damaged (left out)"
        assert len(server.connections) == 1
        shown.check()


def test_a_server_that_is_started_again_in_mid_run(chrome: Browser, tmp_path: Path) -> None:
    port = free_port()
    body = {
        "messages": [{"role": "user", "content": demo_puzzle(3).question}],
        "rsa_t": 2,
        "rsa_n": 6,
        "rsa_k": 2,
        "rsa_final_n": 3,
        "stream": True,
    }
    first = MRSAServer(tmp_path, "--grace", "0", "--concurrency", "1", port=port)
    with httpx2.Client(timeout=60) as client:
        with client.stream("POST", f"{first.url}/v1/chat/completions", json=body) as answer:
            run_id = answer.headers["X-MRSA-Run-Id"]
            shown = watch(chrome.new_context(), f"{first.url}/runs/{run_id}", first.url)
            page = shown.page
            page.wait_for_function("() => mrsa.run.all().some((t) => t.state === 'finished' || t.state === 'cut off')")
            assert page.locator(".state").inner_text() == "running"
            assert first.stop() == 0
        page.wait_for_function("() => document.querySelector('.state').textContent !== 'running'")
        second = MRSAServer(tmp_path, port=port)
        assert client.post(f"{second.url}/v1/runs/{run_id}/resume").status_code == 202
    page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
    (trail,) = (tmp_path / "runs").glob("*.jsonl")
    verify_file(trail, equivalent=equal_text)
    from_file = watch(chrome.new_context(), write_page(trail, tmp_path / "run.html"))
    assert json.loads(page.evaluate(MODEL)) == json.loads(from_file.page.evaluate(MODEL))
    assert sections(shown) == sections(from_file)
    assert second.stop() == 0

"""The pages: the list of runs at /, one run at /runs/{id}, and a live run in a real browser."""

from __future__ import annotations

import bisect
import itertools
import random
import re
import threading
import time
from pathlib import Path

import pytest

from markovian_rsa_mlx import run_store
from markovian_rsa_mlx.backends.base import GenerationRequest
from tests.e2e.viewer_browser import browser, watch, write_page
from tests.support.fakes import FakeBackend, boxed

from .conftest import RSA, Running, Serve


def test_pages_have_a_policy_and_no_content_of_a_run(server: Running) -> None:
    assert server.post(**RSA).status_code == 200
    run_id = run_store.describe(run_store.run_paths()[0]).run_id
    for path in ("/", f"/runs/{run_id}"):
        page = server.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert "What is it?" not in page.text
    assert server.get("/runs/0000000000000000").status_code == 404


def test_pages_need_the_key(serve: Serve) -> None:
    server = serve(api_key="secret")
    page = server.get("/", headers={"Accept": "text/html", "Sec-Fetch-Mode": "navigate"})
    assert page.status_code in (303, 401)
    assert server.get("/", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.slow
def test_page_of_a_live_run_ends_like_the_page_of_its_file(serve: Serve, home: Path, tmp_path: Path) -> None:
    def slow(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.randrange(3), "hm " * 30)

    server = serve(FakeBackend(slow, on_step=lambda request, at: time.sleep(0.02)))
    client = threading.Thread(target=lambda: server.post(**{**RSA, "rsa_t": 2, "rsa_n": 4, "rsa_final_n": 4}))
    client.start()
    while not home.is_dir() or not run_store.run_paths() or not run_store.describe(run_store.run_paths()[0]).run_id:
        time.sleep(0.01)
    path = run_store.run_paths()[0]
    run_id = run_store.describe(path).run_id
    with browser() as chrome:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{run_id}", server.url)
        page = shown.page
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        client.join()
        page.wait_for_selector(".node.winner")
        from_file = watch(chrome.new_context(), write_page(path, tmp_path / "run.html"))
        for name in ("answer", "shares", "lineage"):
            texts = [one.page.locator(f"#{name}").text_content() for one in (shown, from_file)]
            assert texts[0] == texts[1]
        page.goto(f"{server.url}/")
        page.locator("table a").first.click()
        page.wait_for_selector(".node.winner")
        assert shown.faults() == []
        shown.check()


@pytest.mark.slow
def test_page_shows_what_running_traces_write(serve: Serve, home: Path) -> None:
    """The last lines are at most two seconds old, and hostile ones stay text."""
    lines = [f"{'so on ' * 15}<img src=x onerror=alert({number})>\n" for number in range(200)]
    encode = FakeBackend().tokenizer.encode
    ends = list(itertools.accumulate(len(encode(line)) for line in lines))  # tokens up to the end of each line
    reached: dict[tuple[str, int], float] = {}  # when each line was complete

    def on_step(request: GenerationRequest, at: int) -> None:
        time.sleep(0.01)
        reached.setdefault((request.trace_id, bisect.bisect_right(ends, at)), time.monotonic())

    server = serve(FakeBackend(lambda request, rng: "".join(lines), on_step=on_step))
    body = {**RSA, "short_resp_len": ends[-1] + 2, "max_tokens": ends[-1] + 2}
    client = threading.Thread(target=lambda: server.post(**body), daemon=True)
    client.start()
    while not run_store.run_paths() or not run_store.describe(run_store.run_paths()[0]).run_id:
        time.sleep(0.01)
    run_id = run_store.describe(run_store.run_paths()[0]).run_id
    with browser() as chrome:
        context = chrome.new_context(viewport={"width": 390, "height": 900})
        shown = watch(context, f"{server.url}/runs/{run_id}", server.url)
        page = shown.page
        page.locator("#running .last-lines bdi").nth(1).wait_for()
        page.wait_for_function("() => mrsa.view.progress.speed > 0")
        assert "tokens/s" in page.locator("#figures").inner_text()
        assert "at most" in page.locator("#figures").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        rows = page.locator("#running tbody tr")
        assert rows.count() == page.locator(".node.is-running").count() > 0
        assert page.locator("#running .last-lines img").count() == 0
        page.wait_for_function("() => document.querySelector('#running bdi').textContent.length > 60")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        age = []
        for _ in range(5):
            trace_id, line = page.evaluate(
                """() => {
                  const row = document.querySelector("#running tbody tr");
                  return [row.querySelector("a").textContent, [...row.querySelectorAll("bdi")].at(-1).textContent];
                }"""
            )
            numbers = re.findall(r"alert\((\d+)\)", line)  # not in a line that has just begun
            complete_s = reached.get((trace_id, int(numbers[0]) + 1)) if numbers else None
            age.append(0.0 if complete_s is None else time.monotonic() - complete_s)
            page.wait_for_timeout(400)
        assert sorted(age)[2] < 2
        shown.go(f"#/trace/{trace_id}")
        assert "alert(" in page.locator("#reasoning .text").inner_text()
        assert shown.faults() == []
        server.client.post(f"/v1/runs/{run_id}/cancel")
        shown.check()
    client.join(10)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "dark")])
def test_list_is_searched_and_starts_a_run(serve: Serve, width: int, scheme: str) -> None:
    server = serve()
    for seed, question in enumerate(("How many primes?", "How many squares?", "Why <img src=x onerror=alert(1)>?")):
        server.post(**{**RSA, "seed": seed, "messages": [{"role": "user", "content": question}]})
    with browser() as chrome:
        context = chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        shown = watch(context, f"{server.url}/", server.url)
        page = shown.page
        rows = "() => [...document.querySelectorAll('tbody tr td:last-child')].map((cell) => cell.textContent)"
        page.locator("input[name=q]").fill("how")
        page.wait_for_function(f"() => ({rows})().join() === 'How many squares?,How many primes?'")
        page.get_by_label("Sort").select_option("oldest")
        page.wait_for_function(f"() => ({rows})().join() === 'How many primes?,How many squares?'")
        page.get_by_label("State").select_option("unfinished")
        page.get_by_text("No run matches.").wait_for()
        page.reload()  # the address has the filter
        page.get_by_text("No run matches.").wait_for()
        assert page.locator("input[name=q]").input_value() == "how"
        page.get_by_label("State").select_option("all")
        page.wait_for_function(f"() => ({rows})().length === 2")
        page.locator("input[name=q]").fill("")
        page.wait_for_function(f"() => ({rows})().length === 3")
        page.get_by_text("Start a run").click()
        assert shown.faults() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("textarea").fill("What is <b>new</b>?")
        full = {"error": {"message": "The <b>queue</b> is full."}}
        page.route("**/v1/runs", lambda route: route.fulfill(status=429, json=full))
        page.get_by_role("button", name="Start").click()
        page.get_by_text("The <b>queue</b> is full.").wait_for()
        page.unroute("**/v1/runs")
        shown.errors.clear()  # the refused request
        page.get_by_role("button", name="Start").click()
        page.wait_for_selector(".node.winner")
        assert page.title().startswith("What is <b>new</b>?")
        assert page.locator(".state").inner_text() == "finished"
        page.go_back()
        page.wait_for_function(f"() => ({rows})().includes('What is <b>new</b>?')")
        shown.check()

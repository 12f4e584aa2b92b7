"""The pages: the list of runs at /, one run at /runs/{id}, and a live run in a real browser."""

from __future__ import annotations

import random
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

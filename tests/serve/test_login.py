"""The login in a real browser, which sends headers of its own mind."""

from __future__ import annotations

import pytest

from ..e2e.viewer_browser import browser
from .conftest import RSA, Serve

pytestmark = pytest.mark.slow


def test_a_wrong_key_is_told_and_the_right_one_leads_to_the_runs(serve: Serve) -> None:
    server = serve(api_key="a-long-key")
    bearer = {"Authorization": "Bearer a-long-key"}
    run_id = server.client.post("/v1/chat/completions", json=RSA, headers=bearer).headers["X-MRSA-Run-Id"]
    with browser() as chrome:
        page = chrome.new_page()
        page.goto(server.url)
        assert page.url == f"{server.url}/login"
        page.fill("#key", "a-wrong-key")
        page.click("button")
        page.get_by_text("That is not the key.").wait_for()
        page.fill("#key", "a-long-key")
        page.click("button")
        page.locator(f'a[href*="{run_id}"]').first.wait_for()
        assert page.url == f"{server.url}/"
        page.context.clear_cookies()
        page.goto("about:blank")
        page.goto(f"{server.url}/runs/{run_id}#/trace/r1-00")
        page.fill("#key", "a-long-key")
        page.click("button")
        page.get_by_role("heading", name="r1-00").first.wait_for()
        assert page.url == f"{server.url}/runs/{run_id}#/trace/r1-00"

"""A page of another site in Chromium: its script lists the models and reads a streamed answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, sync_playwright
from steps import MODEL, PUZZLE, RUN, SERVER, main, step

ASK = """async ({server, model, puzzle}) => {
  const listed = await (await fetch(`${server}/v1/models`)).json();
  const reply = await fetch(`${server}/v1/chat/completions`, {
    method: "POST",
    headers: {"Content-Type": "application/json", "Authorization": "Bearer none"},
    body: JSON.stringify({model, messages: [{role: "user", content: puzzle}], stream: true}),
  });
  const texts = [], reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done;) texts.push(part.value);
  return {models: listed.data.map(m => m.id), text: texts.join(""), parts: texts.length};
}"""


@contextmanager
def page_of(site: str) -> Iterator[Page]:
    """Open an empty page of the site, whose name need not exist."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        context = browser.new_context()
        context.grant_permissions(["local-network-access"], origin=site)
        page = context.new_page()
        page.route(f"{site}/", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        page.goto(f"{site}/")
        yield page
        browser.close()


def ask(page: Page) -> Any:
    return page.evaluate(ASK, {"server": SERVER, "model": RUN, "puzzle": PUZZLE})


@step("models and stream")
def allowed() -> None:
    with page_of(os.environ["MRSA_ORIGIN"]) as page:
        found = ask(page)
    assert {MODEL, RUN} <= set(found["models"])
    assert found["parts"] > 1
    assert "Round 0" in found["text"]
    assert found["text"].rstrip().endswith("data: [DONE]")


@step("refusal of other sites")
def refused() -> None:
    with page_of("https://evil.example.org") as page:
        failed = page.evaluate(f"fetch('{SERVER}/v1/models').then(() => false, () => true)")
    assert failed


main()

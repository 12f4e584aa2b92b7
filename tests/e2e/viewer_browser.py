"""A real Chromium for the viewer's tests, and what every page must keep to: no request, no error, no fault of axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-precise-memory-info",
]
#: Violations with these impacts are errors.
GRAVE = ("serious", "critical")


def chromium() -> str:
    """The path of an installed Chromium; skips the test where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed on this machine")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    executable = chromium()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


@dataclass
class Watched:
    """A page whose requests and errors are written down."""

    page: Page
    home: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def go(self, route: str) -> None:
        """Follow a route within the page and wait until it is shown."""
        self.page.evaluate(
            "(route) => { mrsa.app.shown = null; if (location.hash === route) mrsa.app.show(true);"
            " location.hash = route; }",
            route,
        )
        self.page.wait_for_function("() => mrsa.app.shown?.startsWith(location.hash)")

    def check(self) -> None:
        """Nothing but the page itself (and what its own server sends) was asked for, and nothing went wrong."""
        foreign = [url for url in self.requests if not url.startswith((self.home, "blob:", "data:"))]
        assert foreign == []
        assert self.errors == []
        assert self.dialogs == []

    def faults(self) -> list[str]:
        """Return the serious violations that axe finds in the page as it is shown now."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{fault['id']} ({fault['impact']}): {fault['nodes'][0]['html'][:200]}"
            for fault in found
            if fault["impact"] in GRAVE
        ]


def watch(context: BrowserContext, url: str, home: str | None = None) -> Watched:
    """Open a page and wait until it shows its run."""
    page = context.new_page()
    watched = Watched(page, home or url.partition("#")[0])
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("console", lambda message: _note(watched, message))
    page.on("dialog", lambda dialog: (watched.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    return watched


def _note(watched: Watched, message: Any) -> None:
    if message.type in ("error", "warning"):
        watched.errors.append(message.text)


def write_page(trail: Path, to: Path, **options: Any) -> str:
    """The address of a trail's page as a file."""
    from markovian_rsa_mlx.audit import read_lenient
    from markovian_rsa_mlx.viewer import file_page

    to.write_text(file_page(read_lenient(trail), path=str(trail), **options), encoding="utf-8")
    return to.as_uri()

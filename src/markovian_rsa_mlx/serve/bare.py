"""Small pages without scripts: a form, a refusal."""

from __future__ import annotations

from html import escape
from typing import Final

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 22rem; margin: 20vh auto; padding: 0 1rem;
overflow-wrap: anywhere }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin-top: .5rem }}</style></head>
<body><main>{body}</main></body></html>
"""


def bare_page(title: str, body: str) -> str:
    """A whole page; `title` is text, `body` is markup."""
    return _PAGE.format(title=escape(title), body=body)

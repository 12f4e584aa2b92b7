"""Assemble pages: a template, styles and scripts, data in blocks, and a policy that forbids the rest.

A page contains its styles and scripts (`assemble`), or loads one script with all of them from a file that pages in a
folder share (`assemble_sharing`). An inline script or style runs only if its hash is in the content security policy of
the page. No text may become markup (`require-trusted-types-for`). Only the live pages may connect, to their own server.

Data is JSON, compressed with gzip, in base64: no text can end its block.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .assets import asset, bundle
from .view_model import to_json

_LIBRARY = "vendor/temml.min.js"


@dataclass(frozen=True)
class Policy:
    """The content security policy of a page. `header` is its value; the page itself contains it too."""

    header: str


@dataclass(frozen=True)
class Links:
    """The relative addresses of a page among others."""

    scripts: str  #: the folder of the shared script, with a slash at its end
    trail: str  #: the audit file
    home: str  #: the page that lists the runs


def assemble(entry: str, *, title: str, blocks: Sequence[str], connect: str, maths: bool = True) -> tuple[str, Policy]:
    """Return a page that loads nothing, and its policy. `entry` is the main module of its script."""
    styles, script = asset("viewer.css"), bundle(entry)
    library = asset(_LIBRARY) if maths else ""
    policy = _policy(" ".join(_hash(content) for content in (library, script) if content), connect)
    scripts = f'{f"<script>{library}</script>" if library else ""}\n<script type="module">{script}</script>'
    return _fill(policy=policy, title=title, styles=f"<style>{styles}</style>", blocks=blocks, scripts=scripts), policy


def assemble_sharing(*, title: str, blocks: Sequence[str], folder: str) -> str:
    """Return the page of a run that loads `shared_script` from `folder`, an address relative to the page.

    A file from disk has no origin that a policy could name, so the page trusts the hash of a loader, and scripts that
    the loader adds (`strict-dynamic`). The loader can add one address only, because `trusted-types` allows no other
    source of addresses. The shared script adds the styles, whose hash is in the policy.
    """
    loader = asset("loader.js").replace("{address}", folder + shared_script()[0])
    policy = _policy(f"'strict-dynamic' {_hash(loader)}", "'none'", "; trusted-types mrsa-shared")
    return _fill(policy=policy, title=title, styles="", blocks=blocks, scripts=f"<script>{loader}</script>")


@cache
def shared_script() -> tuple[str, str]:
    """Return the name and the content of the script with all that pages of runs share.

    The name has a digest of the content, so that the pages of several versions can be in one folder.
    """
    styles = to_json(asset("viewer.css"))
    parts = (
        asset(_LIBRARY),
        ';(() => {\n"use strict";',
        f'const style = document.createElement("style");\nstyle.textContent = {styles};\ndocument.head.append(style);',
        bundle("app"),
        "})();\n",
    )
    content = "\n".join(parts)
    return f"viewer-{hashlib.sha256(content.encode()).hexdigest()[:12]}.js", content


def _policy(scripts: str, connect: str, more: str = "") -> Policy:
    return Policy(
        f"default-src 'none'; script-src {scripts}; style-src {_hash(asset('viewer.css'))}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'{more}"
    )


@cache
def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _fill(*, policy: Policy, title: str, styles: str, blocks: Sequence[str], scripts: str) -> str:
    values: Mapping[str, str] = {
        "policy": policy.header,
        "title": title,
        "styles": styles,
        "data": "\n".join(blocks),
        "scripts": scripts,
    }
    page = asset("page.html")
    for name, value in values.items():  # no value contains the placeholder of a later one
        page = page.replace(f"<!--{name}-->", value)
    return page


def data_block(name: str, packed: str) -> str:
    """Return a block of data that the browser neither runs nor shows."""
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>'


def pack(value: Any) -> str:
    """Compress a JSON value. Raises ValueError for NaN and infinity."""
    return pack_bytes(to_json(value).encode())


def pack_bytes(content: bytes) -> str:
    """Return the content as gzip in base64. The same content always gives the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")

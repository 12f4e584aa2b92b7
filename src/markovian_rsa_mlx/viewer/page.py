"""Assemble the pages: a template with inline styles and scripts, data in blocks, and a policy that forbids the rest.

A script or style runs only if its hash is in the content security policy of the page. Nothing may be loaded, and no
text may become markup (`require-trusted-types-for`). Only the live pages may connect, to their own server.

Data is JSON, compressed with gzip, in base64: no text can end its block. The browser unpacks a group of texts when it
first needs one of them.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..audit import LogFile
from ..audit.log_file import Raw
from ..method.answers import normalise
from .assets import asset, bundle
from .view_model import build_view, to_json

#: Returns whether an answer is right.
Judge = Callable[[str], bool]
#: A trail of more bytes is left out of its page unless requested.
MAX_TRAIL_BYTES = 5_000_000
#: Characters of texts in one group: few enough to unpack quickly, enough to compress well.
GROUP_SIZE = 400_000


@dataclass(frozen=True)
class Policy:
    """The content security policy of a page. `header` is its value; the page itself contains it too."""

    header: str


@dataclass(frozen=True)
class RunForm:
    """The choices of the form that starts a run. `rounds` is T of the server's own settings."""

    models: Sequence[str]
    profiles: Sequence[str]
    rounds: int


def file_page(
    log: LogFile,
    *,
    path: str = "",
    running: bool = False,
    reference: str = "",
    judge: Judge | None = None,
    with_trail: bool | None = None,
) -> str:
    """Return the page of an audit file, as read by `audit.read_lenient`. It needs no server and no network.

    The page shows `path`, and `running` (whether a run still writes the file). `reference` is the right answer, if
    known, and `judge` checks answers. `with_trail` includes the raw file for download. By default only a small file is
    included.
    """
    lines, texts = build_view(log.lines)
    blocks, places = [], {}
    for number, texts_of_group in enumerate(group(texts)):
        places.update(dict.fromkeys(texts_of_group, number))
        blocks.append(data_block(f"texts-{number}", pack(texts_of_group)))
    if with_trail or (with_trail is None and len(log.content) <= MAX_TRAIL_BYTES):
        blocks.append(data_block("trail", pack_bytes(log.content)))
    verdicts: dict[str, bool] = {}
    if judge is not None:
        answers: dict[str, str] = {}  # those that the selection recorded, otherwise those of the texts
        for line in lines:
            if line["event"] == "trace_complete":
                answers[line["trace_id"]] = line["answer"]
            elif line["event"] == "selection":
                answers.update(zip(line["candidate_trace_ids"], line["answers"], strict=False))
        judged = {answer: bool(normalise(answer)) and judge(answer) for answer in set(answers.values())}
        verdicts = {trace_id: judged[answer] for trace_id, answer in answers.items()}
    config: Raw = next((line["config"] for line in lines if line["event"] == "run_start"), {})
    about = {
        "mode": "file",
        "name": log.path.name,
        "path": path,
        "running": running,
        "seed": None if config.get("seed") is None else str(config["seed"]),  # can exceed a JavaScript number
        "problems": [asdict(problem) for problem in log.problems],
        "reference": reference,
        "verdicts": verdicts,
    }
    blocks.insert(0, data_block("run", pack({"about": about, "lines": lines, "places": places})))
    run_id = "".join(c for c in log.run_id if c in "0123456789abcdef")  # a title could otherwise contain markup
    return _assemble("app", title=f"Run {run_id[:8]}".strip(), blocks=blocks, connect="'none'")[0]


def live_page(run_id: str, base: str = "", keep_alive_s: float = 10) -> tuple[str, Policy]:
    """Return the page of a run on a server, and its policy.

    The server sends the messages of a `ViewStream` at `{base}/runs/{run_id}/view`, and something at least every
    `keep_alive_s` seconds. The page treats three times that without data as a lost connection.
    """
    about = {"mode": "live", "run_id": run_id, "base": base, "running": True, "silence_s": 3 * keep_alive_s}
    block = data_block("run", pack({"about": about}))
    return _assemble("app", title=f"Run {run_id[:8]}", blocks=[block], connect="'self'")


def runs_page(base: str = "", start: RunForm | None = None) -> tuple[str, Policy]:
    """Return the list of the runs of a server, and its policy.

    The page reads `{base}/v1/runs` with `limit`, `after`, `q`, `state` and `sort`. With `start`, it has a form that
    starts a run with `POST {base}/v1/runs`.
    """
    block = data_block("run", pack({"about": {"mode": "runs", "base": base, "start": start and asdict(start)}}))
    return _assemble("runs", title="Runs", blocks=[block], connect="'self'", maths=False)


def _assemble(entry: str, *, title: str, blocks: list[str], connect: str, maths: bool = True) -> tuple[str, Policy]:
    styles, script = asset("viewer.css"), bundle(entry)
    library = asset("vendor/temml.min.js") if maths else ""
    hashes = {
        content: f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
        for content in (library, script, styles)
    }
    scripts = " ".join(hashes[content] for content in (library, script) if content)
    policy = Policy(
        f"default-src 'none'; script-src {scripts}; style-src {hashes[styles]}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    values = {
        "policy": policy.header,
        "title": title,
        "styles": f"<style>{styles}</style>",
        "data": "\n".join(blocks),
        "scripts": f'{f"<script>{library}</script>" if library else ""}\n<script type="module">{script}</script>',
    }
    page = asset("page.html")
    for name, value in values.items():  # no value contains the placeholder of a later one
        page = page.replace(f"<!--{name}-->", value)
    return page, policy


def data_block(name: str, packed: str) -> str:
    """Return a block of data that the browser neither runs nor shows."""
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>'


def pack(value: Any) -> str:
    """Compress a JSON value. Raises ValueError for NaN and infinity."""
    return pack_bytes(to_json(value).encode())


def pack_bytes(content: bytes) -> str:
    """Return the content as gzip in base64. The same content always gives the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def group(texts: Mapping[str, str]) -> Iterable[dict[str, str]]:
    """Split texts into groups, in their order. A long text is a group by itself."""
    current: dict[str, str] = {}
    size = 0
    for key, text in texts.items():
        if current and size + len(text) > GROUP_SIZE:
            yield current
            current, size = {}, 0
        current[key] = text
        size += len(text)
    if current:
        yield current

"""Pages put together: template, styles and scripts inline, the data in blocks, and a policy that allows no more.

A script or style runs only if its hash stands in the page's content security policy; nothing may be loaded, and no text
may become markup (`require-trusted-types-for`). The live pages may talk to their own server.

Data within a page: JSON, gzip, base64. No text can break out of the base64 alphabet, and the browser unpacks a
group of texts only when one of them is looked at.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..audit import LogFile
from ..audit.log_file import Raw
from ..method.answers import normalise
from .assets import asset, program
from .view_model import build_view, to_json

#: Whether an answer is right.
Judge = Callable[[str], bool]
#: A trail of more bytes than this is not put into its page unless asked for.
TRAIL_LIMIT = 5_000_000


@dataclass(frozen=True)
class Policy:
    """What a page may do. `header` is the value for `Content-Security-Policy`; a page carries it itself, too."""

    header: str


@dataclass(frozen=True)
class _Parts:
    styles: str
    maths: str
    program: str

    def policy(self, connect: str) -> Policy:
        scripts = " ".join(_hash(script) for script in (self.maths, self.program) if script)
        return Policy(
            f"default-src 'none'; script-src {scripts}; style-src {_hash(self.styles)}; img-src data:; "
            f"connect-src {connect}; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
        )


def file_page(
    trail: LogFile,
    *,
    path: str = "",
    running: bool = False,
    reference: str = "",
    judge: Judge | None = None,
    with_trail: bool | None = None,
) -> str:
    """The page of a trail, for a file: it needs no server and no network.

    `path` and `running` (whether a run still writes the trail) are told to the reader. `judge` says whether an
    answer is right; `reference` is the right answer where there is one. `with_trail`: whether the raw file is put in
    for download; unset, if it is small.
    """
    lines, texts = build_view(trail.lines)
    blocks, places = [], {}
    for number, texts_of_group in enumerate(group(texts)):
        places.update(dict.fromkeys(texts_of_group, number))
        blocks.append(element(f"texts-{number}", pack(texts_of_group)))
    if with_trail or (with_trail is None and len(trail.content) <= TRAIL_LIMIT):
        blocks.append(element("trail", pack_bytes(trail.content)))
    about = {
        "mode": "file",
        "name": trail.path.name,
        "path": path,
        "running": running,
        "seed": _seed(lines),
        "problems": [asdict(problem) for problem in trail.problems],
        "reference": reference,
        "verdicts": _verdicts(lines, judge) if judge is not None else {},
    }
    blocks.insert(0, element("run", pack({"about": about, "lines": lines, "places": places})))
    return _assemble(_parts("app"), "'none'", _title(trail), blocks)


def live_page(run_id: str, base: str = "", keep_alive_s: float = 10) -> tuple[str, Policy]:
    """The page of a run on a server, fed by `{base}/v1/runs/{run_id}/events`, and its policy.

    The server sends something at least every `keep_alive_s`; the page takes three times that in silence for the loss of
    the connection.
    """
    about = {"mode": "live", "run_id": run_id, "base": base, "running": True, "silence_s": 3 * keep_alive_s}
    block = element("run", pack({"about": about}))
    parts = _parts("app")
    return _assemble(parts, "'self'", f"Run {run_id[:8]}", [block]), parts.policy("'self'")


def runs_page(base: str = "") -> tuple[str, Policy]:
    """The list of runs of a server, fed by `{base}/v1/runs`, and its policy."""
    block = element("run", pack({"about": {"mode": "runs", "base": base}}))
    parts = _parts("runs", maths=False)
    return _assemble(parts, "'self'", "Runs", [block]), parts.policy("'self'")


def _seed(lines: list[Raw]) -> str | None:
    """The seed that was set, as a text: it may be too large for a JavaScript number."""
    config: Raw = next((line["config"] for line in lines if line["event"] == "run_start"), {})
    return None if config.get("seed") is None else str(config["seed"])


def _verdicts(lines: list[Raw], judge: Judge) -> dict[str, bool]:
    """Whether each finished trace is right, by the answer that the selection recorded or its own text gives."""
    answers: dict[str, str] = {}
    for line in lines:
        if line["event"] == "trace_complete":
            answers[line["trace_id"]] = line["answer"]
        elif line["event"] == "selection":
            answers.update(zip(line["candidate_trace_ids"], line["answers"], strict=False))
    known = {answer: bool(normalise(answer)) and judge(answer) for answer in set(answers.values())}
    return {trace_id: known[answer] for trace_id, answer in answers.items()}


def _parts(entry: str, maths: bool = True) -> _Parts:
    return _Parts(asset("viewer.css"), asset("vendor/temml.min.js") if maths else "", program(entry))


def _assemble(parts: _Parts, connect: str, title: str, blocks: list[str]) -> str:
    maths = f"<script>{parts.maths}</script>" if parts.maths else ""
    values = {
        "policy": parts.policy(connect).header,
        "title": title,
        "styles": f"<style>{parts.styles}</style>",
        "data": "\n".join(blocks),
        "scripts": f'{maths}\n<script type="module">{parts.program}</script>',
    }
    page = asset("page.html")
    for name, value in values.items():  # the values of later names may hold anything but the marks of earlier ones
        page = page.replace(f"<!--{name}-->", value)
    return page


def _title(trail: LogFile) -> str:
    """Only hexadecimal digits of the id: the title is the one place where a run's text would be markup."""
    run_id = "".join(c for c in (trail.start.run_id if trail.start else "") if c in "0123456789abcdef")[:8]
    return f"Run {run_id}".strip()


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


#: Characters of texts in one group: small enough to unpack at once, large enough to compress well.
_GROUP = 400_000


def pack_bytes(content: bytes) -> str:
    """gzip in base64; the same content always gives the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")


def pack(value: Any) -> str:
    """Any JSON value."""
    return pack_bytes(to_json(value).encode())


def group(texts: Mapping[str, str]) -> Iterable[dict[str, str]]:
    """The texts in groups, in their order; a long one stands alone."""
    current: dict[str, str] = {}
    size = 0
    for key, text in texts.items():
        if current and size + len(text) > _GROUP:
            yield current
            current, size = {}, 0
        current[key] = text
        size += len(text)
    if current:
        yield current


def element(name: str, packed: str) -> str:
    """A block of data that the browser neither runs nor shows."""
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>'

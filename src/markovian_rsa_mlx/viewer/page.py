"""Make the pages: of an audit file, of a run on a server, and of the runs of a server.

The browser unpacks a group of texts when it first needs one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..audit import LogFile
from ..audit.log_file import Raw
from ..method.answers import normalise
from ..text_files import write_private_text
from .assembly import Links, Policy, assemble, assemble_sharing, data_block, pack, pack_bytes
from .view_model import build_view

#: Returns whether an answer is right.
Judge = Callable[[str], bool]
#: A trail of more bytes is left out of its page unless requested.
MAX_TRAIL_BYTES = 5_000_000
#: Characters of texts in one group: few enough to unpack quickly, enough to compress well.
GROUP_SIZE = 400_000


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
    verdicts: Mapping[str, bool] = {},
    with_trail: bool | None = None,
    links: Links | None = None,
) -> str:
    """Return the page of an audit file, as read by `audit.read_lenient`. It needs no server and no network.

    The page shows `path`, and `running` (whether a run still writes the file). `reference` is the right answer, if
    known. `judge` checks answers; without it, `verdicts` has by trace whether the answer is right. `with_trail`
    includes the raw file for download. By default only a small file is included. With `links`, the page neither
    contains the scripts nor the raw file, and refers to them.
    """
    lines, texts = build_view(log.lines)
    blocks, places = [], {}
    for number, texts_of_group in enumerate(group(texts)):
        places.update(dict.fromkeys(texts_of_group, number))
        blocks.append(data_block(f"texts-{number}", pack(texts_of_group)))
    if with_trail or (with_trail is None and links is None and len(log.content) <= MAX_TRAIL_BYTES):
        blocks.append(data_block("trail", pack_bytes(log.content)))
    config: Raw = next((line["config"] for line in lines if line["event"] == "run_start"), {})
    about = {
        "mode": "file",
        "name": log.path.name,
        "path": path,
        "running": running,
        "seed": None if config.get("seed") is None else str(config["seed"]),  # can exceed a JavaScript number
        "problems": [asdict(problem) for problem in log.problems],
        "reference": reference,
        "verdicts": dict(verdicts) if judge is None else _judged(lines, judge),
        "links": links and {"trail": links.trail, "home": links.home},
    }
    blocks.insert(0, data_block("run", pack({"about": about, "lines": lines, "places": places})))
    run_id = "".join(c for c in log.run_id if c in "0123456789abcdef")  # a title could otherwise contain markup
    title = f"Run {run_id[:8]}".strip()
    if links is not None:
        return assemble_sharing(title=title, blocks=blocks, folder=links.scripts)
    return assemble("app", title=title, blocks=blocks, connect="'none'")[0]


def _judged(lines: Sequence[Raw], judge: Judge) -> dict[str, bool]:
    """Return whether the answers of the traces are right: those that the selection recorded, otherwise the texts'."""
    answers: dict[str, str] = {}
    for line in lines:
        if line["event"] == "trace_complete":
            answers[line["trace_id"]] = line["answer"]
        elif line["event"] == "selection":
            answers.update(zip(line["candidate_trace_ids"], line["answers"], strict=False))
    judged = {answer: bool(normalise(answer)) and judge(answer) for answer in set(answers.values())}
    return {trace_id: judged[answer] for trace_id, answer in answers.items()}


def write_page(target: Path, page: str) -> None:
    """Write a page completely or not at all, readable by its owner only, like the trail. Raises `OSError`."""
    write_private_text(target, page)


def live_page(run_id: str, base: str = "", keep_alive_s: float = 10) -> tuple[str, Policy]:
    """Return the page of a run on a server, and its policy.

    The server sends the messages of a `ViewStream` at `{base}/runs/{run_id}/view`, and something at least every
    `keep_alive_s` seconds. The page treats three times that without data as a lost connection.
    """
    about = {"mode": "live", "run_id": run_id, "base": base, "running": True, "silence_s": 3 * keep_alive_s}
    block = data_block("run", pack({"about": about}))
    return assemble("app", title=f"Run {run_id[:8]}", blocks=[block], connect="'self'")


def runs_page(base: str = "", start: RunForm | None = None) -> tuple[str, Policy]:
    """Return the list of the runs of a server, and its policy.

    The page reads `{base}/v1/runs` with `limit`, `after`, `q`, `state` and `sort`. With `start`, it has a form that
    starts a run with `POST {base}/v1/runs`.
    """
    block = data_block("run", pack({"about": {"mode": "runs", "base": base, "start": start and asdict(start)}}))
    return assemble("runs", title="Runs", blocks=[block], connect="'self'", maths=False)


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

"""Build the view lines of a run: its events as the page shows them, with everything that has to be derived.

A view line is an event without its token ids. Long texts are kept apart under a key (`r0-01`, `r0-01/tail`): a tail is
a range in the text of its trace, a prompt is the static text of the run with tails between. Ranges count UTF-16 code
units, as strings in the browser do. The page of a file holds all view lines. A server sends the same lines one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..audit import EVENT_TYPES, Line, LineProblem, RunSetupEvent, RunStartEvent, SelectionEvent
from ..audit.log_file import Raw
from ..audit.state import LenientReader
from ..config import RSAConfig
from ..method.answers import NO_ANSWER, find_answer, normalise, resolve_kind
from ..method.lineage import Lineage
from ..method.prompts import marker_lines, quote_markers
from ..method.provenance import answer_keys, trace_answer
from ..method.tails import TraceParser
from ..tools import Tools

_SURROGATES = re.compile("[\ud800-\udfff]")
#: Characters of an open answer in tables and lists.
_EXCERPT = 200
_DROPPED = {
    "run_setup": (
        "prompt_token_ids",
        "segment_token_ids",
        "summary_segment_token_ids",
        "quote_token_ids",
        "closing_token_ids",
        "judge_segment_token_ids",
    ),
    "trace_complete": ("text", "token_ids"),
    "tail_extracted": ("tail_text", "tail_token_ids"),
    "aggregation_prompt": ("prompt_text", "prompt_token_ids"),
    "summary_complete": ("text", "token_ids", "prompt_text", "prompt_token_ids"),
    "judgement": ("shown_token_ids", "shown_texts", "prompt_text", "prompt_token_ids", "text", "token_ids"),
    "trace_checkpoint": ("token_ids",),
    "thinking_closed": ("token_ids",),
}


@dataclass
class _Trace:
    """The parts of a trace that later lines refer to."""

    parents: list[str] = field(default_factory=list)
    text: str = ""
    summary: str = ""
    tail: str | None = None
    reasoning_end: int | None = None
    answer_at: int | None = None


class ViewBuilder:
    """Builds view lines from the lines of one run, in their order.

    Fields that a view line has in addition to those of its event:

    - run_start: `final_count`
    - run_setup: `planned`, all traces of the run with their parents, or null if they cannot be derived
    - trace_complete: `chars`, `reasoning_end`, `answer_at`, `answer` (of an open one the beginning), `weak`, `key` (the
      same for equal answers, "" for an open one)
    - tail_extracted: `text` (a key), `from` and `to`
    - aggregation_prompt: `prompt_tokens`, `rebuilt`, `quoted` (the tails that are not shown verbatim)
    - trace_checkpoint and thinking_closed: `tokens`
    - selection and final: `keys` of all traces, `path` of the answer

    `kind` is the kind of answers, if it is known. Otherwise the settings have it, or under "auto" each trace by itself.
    """

    def __init__(self, kind: str = "") -> None:
        self._kind = kind
        self._texts: dict[str, str] = {}  # those of the current line
        self._setup: Raw = {}
        self._parser = TraceParser(None)
        self._tools: Tools | None = None
        self._config: Raw = {}
        self._valid_config: RSAConfig | None = None
        self._traces: dict[str, _Trace] = {}
        self._answers: dict[str, str] = {}
        self._classes: list[list[str]] = []
        self._chosen = False

    def add(self, line: Line) -> tuple[Raw, dict[str, str]]:
        """Return the view line of a line, and the texts that it adds by key.

        Of an event of an unknown type only the name is kept.
        """
        raw, name = line.raw, line.raw["event"]
        if isinstance(line.event, RunSetupEvent):
            self._parser = TraceParser(line.event)
            self._tools = Tools.of(line.event.tools, line.event.tool_form)
        if isinstance(line.event, RunStartEvent):
            self._valid_config = None if line.partial else line.event.config
        if name not in EVENT_TYPES:
            return {"event": "unknown", "name": name}, {}
        self._texts = {}
        dropped = _DROPPED.get(name, ())
        kept = {key: value for key, value in raw.items() if key not in dropped}
        return kept | self._derive(name, raw), self._texts

    def _trace(self, trace_id: str) -> _Trace:
        return self._traces.setdefault(trace_id, _Trace())

    def _derive(self, name: str, raw: Raw) -> Raw:
        """Return the fields that a view line has in addition to those of its event."""
        match name:
            case "run_start":
                self._config = raw["config"]
                is_json = self._config.get("response_schema") is not None
                self._kind = self._kind or ("json" if is_json else str(self._config.get("answer_kind", "math")))
                return {"final_count": self._valid_config.final_count if self._valid_config else None}
            case "run_setup":
                return self._run_setup(raw)
            case "trace_inherited":
                source = raw["from_trace_id"]
                self._traces[raw["trace_id"]] = replace(self._trace(source), parents=[source])
                self._answers[raw["trace_id"]] = self._answers.get(source, "")
            case "generation_start":
                self._trace(raw["trace_id"]).parents = raw["parent_trace_ids"]
            case "trace_complete":
                return self._trace_complete(raw)
            case "tail_extracted":
                return self._tail_extracted(raw)
            case "aggregation_prompt":
                return self._aggregation_prompt(raw)
            case "summary_complete":
                key = f"{raw['trace_id']}/summary"
                self._trace(raw["trace_id"]).summary = raw["text"]
                self._texts = {key: raw["text"], f"{key}-prompt": raw["prompt_text"]}
            case "trace_checkpoint" | "thinking_closed":
                return {"tokens": len(raw["token_ids"])}
            case "selection":
                self._chosen = True
                self._classes = raw["classes"]
                if raw["equivalence"] == "open":
                    return {"keys": dict.fromkeys(self._answers, ""), "path": None}
                self._answers |= dict(zip(raw["candidate_trace_ids"], raw["answers"], strict=False))
                return self._answer_path(raw["chosen_trace_id"])
            case "final" if not self._chosen:
                return self._answer_path(raw["final_trace_id"])
        return {}

    def _run_setup(self, raw: Raw) -> Raw:
        self._setup = raw
        planned: list[tuple[str, list[str]]] | None = None
        lineage = Lineage.of(self._valid_config, raw["seed"]) if self._valid_config else None
        if lineage is not None and lineage.is_listable:
            keys = [key for keys in lineage.needed().values() for key in keys]
            planned = [(str(key), [str(parent) for parent in lineage.parents(key)]) for key in keys]
            for trace_id, parents in planned:
                self._traces.setdefault(trace_id, _Trace(parents))
        return {"seed": str(raw["seed"]), "planned": planned}  # a seed may be too large for a JavaScript number

    def _trace_complete(self, raw: Raw) -> Raw:
        trace_id, text = raw["trace_id"], raw["text"]
        thinking = self._config.get("enable_thinking", True) is not False
        finished = raw["finish_reason"] == "eos"
        parsed = self._parser.parse(raw["token_ids"], text, thinking=thinking, finished=finished)
        end = parsed.thinking_end
        has_answer = parsed.has_answer and not (parsed.undivided and raw["finish_reason"] == "error")
        answer_at = parsed.answer_start if has_answer else None
        rules = self._setup.get("answer_rules", 1)
        kind = "math" if self._kind == "auto" else resolve_kind(self._kind, ())
        calls = ""
        if self._tools is not None and answer_at is not None:
            calls = self._tools.canonical(parsed.answer.strip(), finished=finished)
        found = NO_ANSWER if answer_at is None else find_answer(parsed.answer, kind, rules=rules, calls=calls)
        is_open = kind == "open" or (self._kind == "auto" and found.level in ("weak", "none"))
        answer = _excerpt(parsed.answer) if is_open and answer_at is not None else found.text
        key = "" if is_open else answer if kind == "json" else normalise(answer)
        self._texts[trace_id] = text
        self._answers[trace_id] = "" if is_open else answer
        trace = self._trace(trace_id)
        trace.text, trace.reasoning_end, trace.answer_at = text, end, answer_at
        return {
            "chars": utf16_length(text),
            "reasoning_end": utf16_length(text[:end]),
            "answer_at": None if answer_at is None else utf16_length(text[:answer_at]),
            "answer": answer,
            "weak": found.level == "weak" and kind == "math" and not is_open,
            "key": answer_keys(self._answers, self._classes)[trace_id] if self._classes else key,
        }

    def _tail_extracted(self, raw: Raw) -> Raw:
        trace_id, tail = raw["trace_id"], raw["tail_text"]
        trace, carry = self._trace(trace_id), self._config.get("carry", "tail")
        end = len(trace.text) if trace.reasoning_end is None else trace.reasoning_end
        in_text = find_tail(trace.text, tail, end, trace.answer_at if carry == "answer" else None)
        in_summary = find_tail(trace.summary, tail, len(trace.summary))
        places = [(trace_id, trace.text, in_text), (f"{trace_id}/summary", trace.summary, in_summary)]
        trace.tail = tail
        for key, text, at in reversed(places) if carry == "summary" else places:
            if at >= 0:
                start = utf16_length(text[:at])
                return {"text": key, "from": start, "to": start + utf16_length(tail)}
        self._texts[f"{trace_id}/tail"] = tail
        return {"text": f"{trace_id}/tail", "from": 0, "to": utf16_length(tail)}

    def _aggregation_prompt(self, raw: Raw) -> Raw:
        trace_id, parents, prompt = raw["trace_id"], raw["selected_tail_trace_ids"], raw["prompt_text"]
        self._trace(trace_id).parents = parents
        added = {"prompt_tokens": len(raw["prompt_token_ids"])}
        segments = self._setup.get("segments", [])
        tails = [self._traces[parent].tail if parent in self._traces else None for parent in parents]
        if 0 < len(tails) <= len(segments) and None not in tails:
            pieces = segments[len(tails) - 1]
            markers = marker_lines(pieces)
            quoted = [quote_markers(str(tail), markers) for tail in tails]
            if "".join([*pieces[:1], *(q + piece for q, piece in zip(quoted, pieces[1:], strict=False))]) == prompt:
                changed = [None if q == tail else q for q, tail in zip(quoted, tails, strict=True)]
                return {**added, "rebuilt": True, "quoted": changed}
        self._texts[f"{trace_id}/prompt"] = prompt
        return {**added, "rebuilt": False}

    def _answer_path(self, winner: str) -> Raw:
        keys = answer_keys(self._answers, self._classes)
        path = trace_answer(winner, lambda trace_id: self._trace(trace_id).parents, keys)
        return {"keys": keys, "path": None if path is None else asdict(path)}


def _excerpt(text: str) -> str:
    """Return the beginning of an open answer on one line."""
    words = " ".join(text[: 2 * _EXCERPT].split())
    return words if len(words) <= _EXCERPT else words[: _EXCERPT - 1] + "…"


def utf16_length(text: str) -> int:
    """Return the number of UTF-16 code units of `text`."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def find_tail(text: str, tail: str, end: int, answer_at: int | None = None) -> int:
    """Return where `tail` begins in the text of its trace, or -1.

    A tail is looked for at `end` (the end of the reasoning), then before it, then anywhere. In a run that carries
    answers the section from `answer_at` on comes first.
    """
    if not tail:
        return -1
    if answer_at is not None and (at := text.rfind(tail, answer_at)) >= 0:
        return at
    if text.endswith(tail, 0, end):
        return end - len(tail)
    at = text.rfind(tail, 0, end)
    return at if at >= 0 else text.rfind(tail)


def build_view(lines: Sequence[Line]) -> tuple[list[Raw], dict[str, str]]:
    """Return the view lines of a whole run, and their texts by key."""
    kinds = (line.event.equivalence for line in lines if isinstance(line.event, SelectionEvent))
    builder = ViewBuilder(next(kinds, ""))
    view_lines: list[Raw] = []
    texts: dict[str, str] = {}
    for line in lines:
        view_line, added = builder.add(line)
        view_lines.append(view_line)
        texts |= added
    return view_lines, texts


class ViewStream:
    """Builds the messages of a live page from the lines of a growing audit file.

    A message is an object. `line` is a view line and `texts` are the texts that came with it. Both are left out for a
    line that cannot be shown. `problems` are all problems so far, if this line adds one.
    """

    def __init__(self) -> None:
        self._reader = LenientReader()
        self._builder = ViewBuilder()
        self._problems: list[LineProblem] = []

    def add(self, number: int, line: bytes) -> str:
        """Return the message of a line as JSON. `number` counts from 1."""
        message: dict[str, Any] = {}
        read = self._reader.read(number, line)
        if read is not None:
            message["line"], message["texts"] = self._builder.add(read)
        if self._reader.problems != self._problems:
            self._problems = list(self._reader.problems)
            message["problems"] = [asdict(problem) for problem in self._problems]
        return to_json(message)


def to_json(value: Any) -> str:
    """Return a value as JSON for UTF-8: a lone surrogate is escaped. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

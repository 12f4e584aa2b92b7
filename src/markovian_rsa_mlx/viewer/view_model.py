"""A trail without its bulk: token ids are left out, texts stand apart, and what can be derived is not repeated.

A tail is a place in its trace's text, a prompt is the run's static texts with tails between. The browser does the
same to the lines of a live run (`assets/slim.js`); both must give the same, so that a run's two views agree.
Offsets count UTF-16 utf16_length, as the browser's strings do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..audit.events import EVENT_TYPES
from ..audit.log_file import Raw
from ..method.answers import AnswerKind, after_thinking, extract_answer
from ..method.prompts import marker_lines, quote_markers
from ..method.tails import split_thinking

_SETUP_DROPPED = ("prompt_token_ids", "segment_token_ids", "summary_segment_token_ids", "quote_token_ids")


def utf16_length(text: str) -> int:
    """Length in UTF-16 utf16_length."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


class ViewBuilder:
    """Takes a run's lines in order; `texts` holds what was taken out of them, by key (`r0-01`, `r0-01/tail` ...)."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._setup: Raw = {}
        self._config: Raw = {}
        self._tails: dict[str, str] = {}
        self._ends: dict[str, tuple[int, int | None]] = {}
        self._slim: dict[str, Callable[[Raw], Raw]] = {
            "run_start": self._start,
            "run_setup": self._take_setup,
            "trace_complete": self._complete,
            "tail_extracted": self._tail,
            "aggregation_prompt": self._prompt,
            "summary_complete": self._summary,
            "trace_checkpoint": self._checkpoint,
        }

    def add(self, raw: Raw) -> Raw:
        """The slim line of a line. Of an event type that is not known here only its name is kept."""
        name = raw["event"]
        if name not in EVENT_TYPES:
            return {"event": "unknown", "name": name}
        return self._slim.get(name, dict)(raw)

    def _start(self, raw: Raw) -> Raw:
        self._config = raw["config"]
        return raw

    def _take_setup(self, raw: Raw) -> Raw:
        self._setup = raw
        slim = {key: value for key, value in raw.items() if key not in _SETUP_DROPPED}
        return {**slim, "seed": str(raw["seed"])}  # may be too large for a JavaScript number

    def _complete(self, raw: Raw) -> Raw:
        key, text = raw["trace_id"], raw["text"]
        self.texts[key] = text
        end, start, has_answer = self._split(raw)
        self._ends[key] = (end, start if has_answer else None)
        answer = extract_answer(text[start:], self._kind) if has_answer else ""
        return {
            **{name: value for name, value in raw.items() if name not in ("text", "token_ids")},
            "chars": utf16_length(text),
            "reasoning_end": utf16_length(text[:end]),
            "answer_at": utf16_length(text[:start]) if has_answer else None,
            "answer": answer,
        }

    @property
    def _kind(self) -> AnswerKind:
        return "text" if self._config.get("answer_kind") == "text" else "math"

    def _split(self, raw: Raw) -> tuple[int, int, bool]:
        """Where the reasoning ends, where the answer begins, and whether there is an answer's section."""
        text, markers = raw["text"], self._setup.get("end_of_thinking", [])
        thinking = self._config.get("enable_thinking", True) is not False
        split = split_thinking(raw["token_ids"], markers, stopped=raw["finish_reason"] == "eos", thinking=thinking)
        if not markers or (not split.finished and not thinking):
            return len(text), 0, raw["finish_reason"] != "error"
        if not split.finished:
            return len(text), len(text), False
        place = after_thinking(text, self._setup.get("end_of_thinking_texts", []))
        return (*place, True) if place else (len(text), 0, True)

    def _tail(self, raw: Raw) -> Raw:
        key, tail = raw["trace_id"], raw["tail_text"]
        self._tails[key] = tail
        slim = {name: value for name, value in raw.items() if name not in ("tail_text", "tail_token_ids")}
        carry = self._config.get("carry", "tail")
        for source in (f"{key}/summary", key) if carry == "summary" else (key, f"{key}/summary"):
            text = self.texts.get(source, "")
            end, answer_at = self._ends.get(source, (len(text), None))
            at = find_tail(text, tail, end, answer_at if carry == "answer" else None)
            if at >= 0:
                begin = utf16_length(text[:at])
                return {**slim, "text": source, "from": begin, "to": begin + utf16_length(tail)}
        self.texts[f"{key}/tail"] = tail
        return {**slim, "text": f"{key}/tail", "from": 0, "to": utf16_length(tail)}

    def _prompt(self, raw: Raw) -> Raw:
        key, read = raw["trace_id"], raw["selected_tail_trace_ids"]
        slim = {name: value for name, value in raw.items() if name not in ("prompt_text", "prompt_token_ids")}
        rebuilt = self._rebuild(read) == raw["prompt_text"]
        if not rebuilt:
            self.texts[f"{key}/prompt"] = raw["prompt_text"]
        return {**slim, "prompt_tokens": len(raw["prompt_token_ids"]), "rebuilt": rebuilt}

    def _rebuild(self, read: Sequence[str]) -> str | None:
        segments = self._setup.get("segments", [])
        if not 0 < len(read) <= len(segments) or any(parent not in self._tails for parent in read):
            return None
        pieces = segments[len(read) - 1]
        markers = marker_lines(pieces)
        between = [
            quote_markers(self._tails[parent], markers) + piece for parent, piece in zip(read, pieces[1:], strict=False)
        ]
        return "".join([*pieces[:1], *between])

    def _summary(self, raw: Raw) -> Raw:
        key = raw["trace_id"]
        self.texts[f"{key}/summary"] = raw["text"]
        self.texts[f"{key}/summary-prompt"] = raw["prompt_text"]
        dropped = ("text", "token_ids", "prompt_text", "prompt_token_ids")
        return {name: value for name, value in raw.items() if name not in dropped}

    @staticmethod
    def _checkpoint(raw: Raw) -> Raw:
        return {**{k: v for k, v in raw.items() if k != "token_ids"}, "tokens": len(raw["token_ids"])}


def find_tail(text: str, tail: str, end: int, answer_at: int | None = None) -> int:
    """Where the tail stands: at the end of the reasoning as a rule, else its last place before that, or anywhere.

    Where a run carries answers, the answer's section (from `answer_at`) comes first.
    """
    if not tail:
        return -1
    if answer_at is not None and (at := text.rfind(tail, answer_at)) >= 0:
        return at
    if text.endswith(tail, 0, end):
        return end - len(tail)
    at = text.rfind(tail, 0, end)
    return at if at >= 0 else text.rfind(tail)


def build_view(lines: Sequence[Raw]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All lines, slim, and their texts."""
    slimmer = ViewBuilder()
    return [slimmer.add(line) for line in lines], slimmer.texts

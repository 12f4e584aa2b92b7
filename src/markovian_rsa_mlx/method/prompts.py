"""Prompts: the aggregation template, its rendering, and the splicing of tails into token ids.

A prompt is made of static text around slots. The static text is tokenised once for each number of
attempts; the ids of the tails are put between, never tokenised again. So the token ids of every
prompt follow from the segments (recorded with the run) and the tails alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.sandbox

from ..errors import PromptError, TemplateError
from ..tokenizer import ChatMessage, Tokenizer
from .tails import Tail

#: Variables an aggregation template may use; `attempts` holds objects with `.number` and `.text`.
TEMPLATE_VARIABLES = frozenset({"problem", "attempts", "carry"})
SUMMARY_VARIABLES = frozenset({"problem", "notes"})
#: Put before a line of a tail that equals one of the template's markers.
QUOTE = "> "

_SLOT = "\ue000{}\ue001"
_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


@dataclass(frozen=True)
class Attempt:
    """One slot of an aggregation prompt as the template sees it."""

    number: int
    text: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as the token ids that the model reads."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ChatFrame:
    """What the model's chat template puts before and after the last user message."""

    prefix: str
    suffix: str


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raise `PromptError` unless this is a chat in plain text whose last message is a user's and says something."""
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            raise PromptError(f"{message!r} is no chat message; give objects with a role and a content.")
        if not isinstance(message.get("content"), str):
            raise PromptError(f"The content of a {message['role']} message is no text; give plain text.")
    if not messages or messages[-1]["role"] != "user":
        raise PromptError("The chat does not end with a user message; add the question as its last message.")
    if not messages[-1]["content"].strip():
        raise PromptError("The prompt is empty; give the question as text.")


def chat_frame(tokenizer: Tokenizer, messages: Sequence[ChatMessage], enable_thinking: bool) -> ChatFrame:
    """Render the chat with a stand-in for the last user message, and cut there."""
    stand_in = _SLOT.format("message")
    framed = [*messages[:-1], ChatMessage(role="user", content=stand_in)]
    rendered = tokenizer.render_chat(framed, enable_thinking)
    if rendered.count(stand_in) != 1:
        raise TemplateError(
            f"The model's chat template shows the last user message {rendered.count(stand_in)} times; "
            "it must show it exactly once."
        )
    prefix, suffix = rendered.split(stand_in)
    return ChatFrame(prefix, suffix)


class PromptTemplate:
    """A Jinja2 template, strict about its variables and sandboxed."""

    def __init__(self, source: str, name: str, variables: frozenset[str] = TEMPLATE_VARIABLES) -> None:
        self.source, self.name = source, name
        try:
            used = jinja2.meta.find_undeclared_variables(_environment.parse(source))
            self._template = _environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"The template {name} is not valid Jinja2: {error}.") from error
        if used - variables:
            raise TemplateError(
                f"The template {name} uses the unknown variable {sorted(used - variables)[0]!r}; "
                f"allowed are {', '.join(sorted(variables))}."
            )
        if "problem" not in used:
            raise TemplateError(f"The template {name} does not show the problem; put {{{{ problem }}}} into it.")

    @classmethod
    def load(cls, name: str, variables: frozenset[str] = TEMPLATE_VARIABLES) -> PromptTemplate:
        """A template of this package by its name (`zaya_v1`), or any Jinja2 file by its path."""
        built_in = resources.files(__package__).joinpath("templates", f"{name}.j2")
        if "/" not in name and built_in.is_file():
            return cls(built_in.read_text(encoding="utf-8"), name, variables)
        try:
            return cls(Path(name).read_text(encoding="utf-8"), name, variables)
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(
                f"The template {name!r} is neither built in (zaya_v1) nor a readable UTF-8 file: {error}."
            ) from error

    def render(self, **values: object) -> str:
        """The rendered text, without surrounding blank lines."""
        try:
            return self._template.render(**values).strip("\n")
        except Exception as error:  # a template is the user's code: whatever it raises is theirs to read
            raise TemplateError(f"The template {self.name} cannot be rendered: {error}.") from error


def static_segments(template: PromptTemplate, problem: str, carry: str, count: int) -> list[str]:
    """The `count` + 1 pieces of text around the attempts' slots."""
    slots = [_SLOT.format(i) for i in range(1, count + 1)]
    attempts = [Attempt(i, slot) for i, slot in enumerate(slots, start=1)]
    rest = template.render(problem=problem, attempts=attempts, carry=carry)
    segments = []
    for slot in slots:
        if rest.count(slot) != 1:
            raise TemplateError(
                f"The template {template.name} must show the text of every attempt exactly once and in order."
            )
        before, rest = rest.split(slot)
        segments.append(before)
    return [*segments, rest]


def summary_template(wording: str | None) -> PromptTemplate:
    """The built-in summary template; `wording` takes the place of its last paragraph, which says what to write."""
    built_in = PromptTemplate.load("summary_v1", SUMMARY_VARIABLES)
    if wording is None:
        return built_in
    notes = built_in.source.rstrip().rpartition("\n\n")[0]
    # As a literal, so that nothing in the wording is taken for a template's syntax.
    return PromptTemplate(f"{notes}\n\n{{{{ {wording!r} }}}}\n", "summary_prompt", SUMMARY_VARIABLES)


def summary_segments(template: PromptTemplate, problem: str) -> list[str]:
    """The two pieces of text around the notes of a summary prompt."""
    slot = _SLOT.format("notes")
    pieces = template.render(problem=problem, notes=slot).split(slot)
    if len(pieces) != 2:
        raise TemplateError(f"The template {template.name} must show the notes exactly once.")
    return pieces


def framed(segments: list[str], frame: ChatFrame) -> list[str]:
    """`segments` with the chat's text before the first and after the last."""
    return [frame.prefix + segments[0], *segments[1:-1], segments[-1] + frame.suffix]


def marker_lines(segments: Sequence[str]) -> frozenset[str]:
    """The template's markers: the lines next to a slot, by which a reader tells the attempts apart."""
    lines: set[str] = set()
    for index, segment in enumerate(segments):
        stripped = [line.strip() for line in segment.splitlines() if line.strip()]
        if stripped and index > 0:
            lines.add(stripped[0])
        if stripped and index < len(segments) - 1:
            lines.add(stripped[-1])
    return frozenset(lines)


def quote_markers(text: str, markers: frozenset[str]) -> str:
    """`text` with `QUOTE` put before each line that equals a marker (white space around it aside)."""
    lines = text.split("\n")
    return "\n".join(QUOTE + line if line.strip() in markers else line for line in lines)


class PromptBuilder:
    """Builds the prompts of one run: one problem, one chat, one template.

    `segments[k]` and `segment_ids[k]` are the static pieces of a prompt with k attempts (k + 1 of them),
    chat frame included; `quote_ids` are the ids of `QUOTE`.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: PromptTemplate, frame: ChatFrame, problem: str, carry: str, largest: int
    ) -> None:
        segments = [framed(static_segments(template, problem, carry, count), frame) for count in range(1, largest + 1)]
        encoded = {piece: tokenizer.encode(piece) for piece in dict.fromkeys(chain.from_iterable(segments))}
        ids = [[encoded[piece] for piece in pieces] for pieces in segments]
        self._take(tokenizer, segments, ids, tokenizer.encode(QUOTE))

    @classmethod
    def recorded(
        cls,
        tokenizer: Tokenizer,
        segments: Sequence[Sequence[str]],
        segment_ids: Sequence[Sequence[Sequence[int]]],
        quote_ids: Sequence[int],
    ) -> PromptBuilder:
        """The prompter of a recorded run, from what its setup holds."""
        prompter = cls.__new__(cls)
        prompter._take(tokenizer, segments, segment_ids, quote_ids)
        return prompter

    def _take(
        self,
        tokenizer: Tokenizer,
        segments: Sequence[Sequence[str]],
        segment_ids: Sequence[Sequence[Sequence[int]]],
        quote_ids: Sequence[int],
    ) -> None:
        self._tokenizer = tokenizer
        self.segments = {count: list(pieces) for count, pieces in enumerate(segments, start=1)}
        self.segment_ids = {count: [tuple(ids) for ids in pieces] for count, pieces in enumerate(segment_ids, start=1)}
        self.markers = {count: marker_lines(pieces) for count, pieces in self.segments.items()}
        self.quote_ids = tuple(quote_ids)

    def build(self, tails: Sequence[Tail]) -> Prompt:
        """The prompt that shows `tails` in this order; between 1 and `largest` of them."""
        pieces, ids = self.segments[len(tails)], self.segment_ids[len(tails)]
        text, token_ids = pieces[0], list(ids[0])
        for tail, piece, piece_ids in zip(tails, pieces[1:], ids[1:], strict=True):
            quoted = self._quote(tail, self.markers[len(tails)])
            text += quoted.text + piece
            token_ids += [*quoted.token_ids, *piece_ids]
        return Prompt(text, tuple(token_ids))

    def _quote(self, tail: Tail, markers: frozenset[str]) -> Tail:
        starts = deque(_line_starts(tail.text, markers))
        if not starts:
            return tail
        ids: list[int] = []
        line_at, offset = 0, 0  # where the current line begins, in ids and in characters
        for index, token in enumerate(tail.token_ids):
            line_so_far = self._tokenizer.decode(tail.token_ids[line_at:index])
            reached = offset + len(line_so_far)
            whole = tail.text.startswith(line_so_far, offset)  # no torn character at its end
            while whole and starts and starts[0] <= reached:
                ids.extend(self.quote_ids)
                starts.popleft()
            if line_so_far.endswith("\n"):
                line_at, offset = index, reached
            ids.append(token)
        return Tail((*ids, *self.quote_ids * len(starts)), quote_markers(tail.text, markers))


def _line_starts(text: str, markers: frozenset[str]) -> Iterator[int]:
    """Where the lines begin that are quoted, in characters."""
    offset = 0
    for line in text.split("\n"):
        if line.strip() in markers:
            yield offset
        offset += len(line) + 1

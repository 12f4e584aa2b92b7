"""Render the aggregation and summary templates and splice tails into the token ids of prompts.

A prompt is static text around slots. The static text is tokenised once per number of attempts. The ids of the tails
go between the pieces and are never tokenised again. So the token ids of a prompt follow from the segments (recorded
with the run) and the tails alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
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
    """An attempt as an aggregation template sees it: its number, from 1, and the text of its slot."""

    number: int
    text: str


@dataclass(frozen=True)
class Prompt:
    """A prompt: the content of its last user message, the whole text, and the token ids that the model reads."""

    content: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ChatFrame:
    """The text that the model's chat template puts before and after the content of the last user message."""

    prefix: str
    suffix: str

    def content_of(self, text: str) -> str:
        """Return the content of the last user message of a prompt's text."""
        return text.removeprefix(self.prefix).removesuffix(self.suffix)


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raise `PromptError` unless this is a chat in plain text that ends with a non-empty user message."""
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            raise PromptError(f"A message needs a role and a content, both text (got {message!r}).")
        if not isinstance(message.get("content"), str):
            raise PromptError(f"The content of a {message['role']} message must be plain text.")
    if not messages or messages[-1]["role"] != "user":
        raise PromptError("The chat must end with a user message. Add the question as its last message.")
    if not messages[-1]["content"].strip():
        raise PromptError("The prompt is empty. Give the question as text.")


def chat_frame(tokenizer: Tokenizer, messages: Sequence[ChatMessage], enable_thinking: bool) -> ChatFrame:
    """Render the chat with a placeholder for the last user message, and split the text there."""
    placeholder = _SLOT.format("message")
    chat = [*messages[:-1], ChatMessage(role="user", content=placeholder)]
    rendered = tokenizer.render_chat(chat, enable_thinking)
    if rendered.count(placeholder) != 1:
        raise TemplateError(
            "The model's chat template must show the last user message exactly once "
            f"(it shows it {rendered.count(placeholder)} times)."
        )
    prefix, suffix = rendered.split(placeholder)
    return ChatFrame(prefix, suffix)


class PromptTemplate:
    """A sandboxed Jinja2 template. `variables` are all that it may use, and it must use `problem`."""

    def __init__(self, source: str, name: str, variables: frozenset[str] = TEMPLATE_VARIABLES) -> None:
        self.source, self.name = source, name
        try:
            used = jinja2.meta.find_undeclared_variables(_environment.parse(source))
            self._template = _environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"The template {name} is not valid Jinja2: {error}.") from error
        if used - variables:
            raise TemplateError(
                f"The template {name} uses the unknown variable {sorted(used - variables)[0]!r} "
                f"(known: {', '.join(sorted(variables))})."
            )
        if "problem" not in used:
            raise TemplateError(f"The template {name} does not show the problem. Add {{{{ problem }}}} to it.")

    @classmethod
    def load(cls, name: str, variables: frozenset[str] = TEMPLATE_VARIABLES) -> PromptTemplate:
        """Load a built-in template by its name (`zaya_v1`), or a Jinja2 file by its path."""
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
        """Return the rendered text without blank lines around it."""
        try:
            return self._template.render(**values).strip("\n")
        except Exception as error:  # a template is the user's code and may raise anything
            raise TemplateError(f"The template {self.name} cannot be rendered: {error}.") from error


def static_segments(template: PromptTemplate, problem: str, carry: str, count: int) -> list[str]:
    """Return the `count` + 1 pieces of text around the slots of the attempts."""
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
    """Return the built-in summary template, its last paragraph (the instruction) replaced by `wording`."""
    built_in = PromptTemplate.load("summary_v1", SUMMARY_VARIABLES)
    if wording is None:
        return built_in
    notes = built_in.source.rstrip().rpartition("\n\n")[0]
    # As a literal, so that Jinja2 does not interpret the wording.
    return PromptTemplate(f"{notes}\n\n{{{{ {wording!r} }}}}\n", "summary_prompt", SUMMARY_VARIABLES)


def summary_segments(template: PromptTemplate, problem: str) -> list[str]:
    """Return the two pieces of text around the notes of a summary prompt."""
    slot = _SLOT.format("notes")
    pieces = template.render(problem=problem, notes=slot).split(slot)
    if len(pieces) != 2:
        raise TemplateError(f"The template {template.name} must show the notes exactly once.")
    return pieces


def framed(segments: list[str], frame: ChatFrame) -> list[str]:
    """Return `segments` with the chat frame before the first and after the last."""
    return [frame.prefix + segments[0], *segments[1:-1], segments[-1] + frame.suffix]


def marker_lines(segments: Sequence[str]) -> frozenset[str]:
    """Return the template's markers: the lines next to a slot, which separate the attempts for a reader."""
    lines: set[str] = set()
    for index, segment in enumerate(segments):
        stripped = [line.strip() for line in segment.splitlines() if line.strip()]
        if stripped and index > 0:
            lines.add(stripped[0])
        if stripped and index < len(segments) - 1:
            lines.add(stripped[-1])
    return frozenset(lines)


def quote_markers(text: str, markers: frozenset[str]) -> str:
    """Put `QUOTE` before each line of `text` that equals a marker, apart from white space around it."""
    lines = text.split("\n")
    return "\n".join(QUOTE + line if line.strip() in markers else line for line in lines)


@dataclass(frozen=True)
class Segments:
    """The static text of the aggregation prompts of one run, chat frame included, as `run_setup` records it.

    At index k - 1 are the k + 1 pieces around the slots of a prompt with k tails: in `texts` as text, in `token_ids` as
    ids. `quote_ids` are the ids of `QUOTE`.
    """

    texts: Sequence[Sequence[str]]
    token_ids: Sequence[Sequence[Sequence[int]]]
    quote_ids: Sequence[int]


def build_segments(
    tokenizer: Tokenizer, template: PromptTemplate, frame: ChatFrame, *, problem: str, carry: str, max_parents: int
) -> Segments:
    """Render and tokenise the segments for 1 to `max_parents` tails. Raise `TemplateError` for an unusable template."""
    texts = [framed(static_segments(template, problem, carry, n), frame) for n in range(1, max_parents + 1)]
    encoded = {piece: tokenizer.encode(piece) for piece in dict.fromkeys(chain.from_iterable(texts))}
    token_ids = [[encoded[piece] for piece in pieces] for pieces in texts]
    return Segments(texts, token_ids, tokenizer.encode(QUOTE))


class PromptBuilder:
    """Builds the aggregation prompts of one run from its segments. The tokenizer only decodes."""

    def __init__(self, tokenizer: Tokenizer, segments: Segments, frame: ChatFrame) -> None:
        self._tokenizer, self._segments, self._frame = tokenizer, segments, frame
        self._markers = [marker_lines(pieces) for pieces in segments.texts]

    def build(self, tails: Sequence[Tail]) -> Prompt:
        """Return the prompt that shows `tails` in this order. There are segments for 1 to `max_parents` of them."""
        index = len(tails) - 1
        pieces, ids = self._segments.texts[index], self._segments.token_ids[index]
        text, token_ids = pieces[0], list(ids[0])
        for tail, piece, piece_ids in zip(tails, pieces[1:], ids[1:], strict=True):
            quoted = self._quote(tail, self._markers[index])
            text += quoted.text + piece
            token_ids += [*quoted.token_ids, *piece_ids]
        return Prompt(self._frame.content_of(text), text, tuple(token_ids))

    def _quote(self, tail: Tail, markers: frozenset[str]) -> Tail:
        """Put the ids of `QUOTE` before the first id of each line that equals a marker."""
        starts = deque[int]()  # where these lines begin, in characters
        offset = 0
        for line in tail.text.split("\n"):
            if line.strip() in markers:
                starts.append(offset)
            offset += len(line) + 1
        if not starts:
            return tail
        ids: list[int] = []
        line_at, offset = 0, 0  # where the current line begins, in ids and in characters
        for index, token in enumerate(tail.token_ids):
            line_so_far = self._tokenizer.decode(tail.token_ids[line_at:index])
            reached = offset + len(line_so_far)
            whole = tail.text.startswith(line_so_far, offset)  # no torn character at its end
            while whole and starts and starts[0] <= reached:
                ids.extend(self._segments.quote_ids)
                starts.popleft()
            if line_so_far.endswith("\n"):
                line_at, offset = index, reached
            ids.append(token)
        quotes = [*self._segments.quote_ids] * len(starts)
        return Tail((*ids, *quotes), quote_markers(tail.text, markers))

"""Render the aggregation and summary templates and splice tails into the token ids of prompts.

A prompt is static text around slots. The static text is tokenised once per number of attempts. The ids of the tails
go between the pieces and are never tokenised again. So the token ids of a prompt follow from the segments (recorded
with the run) and the tails alone.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, cast

import jinja2
import jinja2.meta
import jinja2.sandbox

from ..errors import PromptError, TemplateError
from ..text_files import NotTextError, read_text
from ..tokenizer import ChatMessage, TextPart, Tokenizer, encode_parts, encode_text
from ..tools import (
    Chat,
    ends_with_question,
    is_call,
    is_tool,
    question_of,
    waits_for_answer,
)
from .chat_form import accepted_form, render_chat, render_form
from .tails import Tail

#: Variables an aggregation template may use; `attempts` holds objects with `.number` and `.text`.
#: `newline` is a line break; a template that uses it keeps the line breaks at its beginning and end.
TEMPLATE_VARIABLES = frozenset({"problem", "attempts", "carry", "newline"})
SUMMARY_VARIABLES = frozenset({"problem", "notes"})
#: The aggregation templates of the package, for messages.
BUILT_IN_TEMPLATES = "zaya_v1, rsa_v1, open_v1"
JUDGE_VARIABLES = frozenset({"problem", "a", "b"})
#: The template of judgements. Its name holds a version, so its text never changes.
JUDGE_TEMPLATE = "judge_v1"
#: Put before a line of a tail that equals one of the template's markers.
QUOTE = "> "

_SLOT = "\ue000{}\ue001"
#: The assistant's words between results of tools and a further message of the user, where a template needs some.
_AFTER_RESULTS = "I have the results."
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
    """A prompt: the content of its last user message, the whole text, and the token ids that the model reads.

    `tail_starts` are the places of its tails in the ids, if it was built from tails.
    """

    content: str
    text: str
    token_ids: tuple[int, ...]
    tail_starts: tuple[int, ...] = ()


#: The beginnings and ends of parts of a text.
Places = Sequence[Sequence[int]]


@dataclass(frozen=True)
class ChatFrame:
    """The text that the model's chat template puts before and after the content of the last user message."""

    prefix: str
    suffix: str
    #: Where texts of other messages are in the prefix and in the suffix. None: an older version did not record it.
    texts: tuple[Places, Places] | None = ((), ())

    def content_of(self, text: str) -> str:
        """Return the content of the last user message of a prompt's text."""
        return text.removeprefix(self.prefix).removesuffix(self.suffix)


def check_chat(chat: Chat) -> None:
    """Raise `PromptError` unless this is a chat in plain text with valid tools.

    It ends with a user message that is not empty, or with the result of a call somewhere after one.
    """
    for tool in chat.tools:
        if not is_tool(tool):
            raise PromptError(f'A tool must be of the form {{"type": "function", "function": ...}} (got {tool!r}).')
    for message in chat.messages:
        _check_message(message)
        if not all(map(is_call, message.get("tool_calls") or ())):
            raise PromptError(f"The calls of a message need a name and an object of arguments (got {message!r}).")
    if not waits_for_answer(chat.messages):
        raise PromptError("The chat must end with a user message. Add the question as its last message.")
    if not chat.question.strip():
        raise PromptError("The prompt is empty. Give the question as text.")


def _check_message(message: ChatMessage) -> None:
    if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
        raise PromptError(f"A message needs a role and a content, both text (got {message!r}).")
    if not isinstance(message.get("content"), str):
        raise PromptError(f"The content of a {message['role']} message must be plain text.")


#: Words, which template code may compare, and which cannot be marks.
_WORDS = re.compile(r"[\w ./:$#-]*", re.ASCII)


@dataclass(frozen=True)
class _Wrapper:
    """Finds the texts of messages and tools in a rendered chat, by a sign before and one after each of them."""

    begin: str
    end: str
    reserved: re.Pattern[str]

    @classmethod
    def unlike(cls, text: str, reserved: Collection[str]) -> _Wrapper:
        """Take characters for private use that are not in `text`."""
        unused = (character for character in map(chr, range(0xF0000, 0xFFFFE)) if character not in text)
        names = "|".join(map(re.escape, sorted(reserved, key=len, reverse=True))) or "(?!)"
        return cls(next(unused), next(unused), re.compile(f"({names})"))

    def wrap(self, content: str) -> str:
        """Put signs around the text without white space at its edges, and around each reserved text in it."""
        core = content.strip()
        pieces = "".join(f"{self.begin}{piece}{self.end}" for piece in self.reserved.split(core) if piece)
        return content.replace(core, pieces, 1) if core else content

    def wrap_around(self, content: str, slot: str) -> str:
        """Wrap the text before and after a slot."""
        return slot.join(map(self.wrap, content.split(slot)))

    def wrap_all(self, value: Any) -> Any:
        """Wrap the texts in a JSON value, names of keys among them. Words without a reserved text stay as they are."""
        if isinstance(value, Mapping):
            return {self.wrap_all(key): self.wrap_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.wrap_all(item) for item in value]
        if not isinstance(value, str) or (_WORDS.fullmatch(value) and not self.reserved.search(value)):
            return value
        return self.wrap(value)

    def wrap_message(self, message: ChatMessage, slot: str) -> ChatMessage:
        """Wrap the texts of a message."""
        rest = {name: self.wrap_all(value) for name, value in message.items() if name not in ("role", "content")}
        content = self.wrap_around(message["content"], slot)
        return cast(ChatMessage, {"role": message["role"], "content": content, **rest})

    def read(self, wrapped: str) -> tuple[str, Places]:
        """Return the text without signs, and where the wrapped parts are in it."""
        for sign in (self.begin, self.end):
            wrapped = wrapped.replace(json.dumps(sign)[1:-1], sign)  # as a template that escapes them writes them
        places = []
        for part in re.finditer(f"{self.begin}([^{self.begin}{self.end}]*){self.end}", wrapped):
            before = wrapped[: part.start()]
            at = part.start() - before.count(self.begin) - before.count(self.end)
            places.append((at, at + len(part[1])))
        return wrapped.replace(self.begin, "").replace(self.end, ""), places


def chat_frame(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    enable_thinking: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> ChatFrame:
    """Render the chat with a placeholder for the last user message, and split the text there.

    Calls and results after the question stay in place, and the placeholder is one more user message after them.
    """
    placeholder = _SLOT.format("message")
    chat = [*earlier_messages(messages), user_message(messages, placeholder)]
    try:
        sides = _render_apart(tokenizer, chat, enable_thinking=enable_thinking, tools=tools, slot=placeholder)
    except PromptError:
        if ends_with_question(messages):
            raise
        # Some templates require an answer between two messages of the user.
        chat.insert(-1, ChatMessage(role="assistant", content=_AFTER_RESULTS))
        sides = _render_apart(tokenizer, chat, enable_thinking=enable_thinking, tools=tools, slot=placeholder)
    (before, places_before), (after, places_after) = sides
    return ChatFrame(before, after, (places_before, places_after))


def earlier_messages(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """Return the messages before the last user message of a prompt: all of a chat that ends with results of calls."""
    return messages[:-1] if ends_with_question(messages) else messages


def user_message(messages: Sequence[ChatMessage], content: str) -> ChatMessage:
    """Return the last user message of a prompt with this content. It has the name of the question's author."""
    message = ChatMessage(role="user", content=content)
    if ends_with_question(messages) and "name" in messages[-1]:
        message["name"] = messages[-1]["name"]
    return message


def round_zero_frame(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    enable_thinking: bool,
    tools: Sequence[Mapping[str, Any]],
) -> ChatFrame:
    """Render a chat that ends with results of calls. All of it is the prefix of the frame, which encloses nothing."""
    ((text, places),) = _render_apart(tokenizer, messages, enable_thinking=enable_thinking, tools=tools, slot="")
    return ChatFrame(text, "", (places, ()))


def _render_apart(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    enable_thinking: bool,
    tools: Sequence[Mapping[str, Any]],
    slot: str,
) -> list[tuple[str, Places]]:
    """Render a chat. Return the text on each side of the slot, and where texts of messages and tools are in it."""
    chat, rendered_tools, rendered = accepted_form(tokenizer, messages, enable_thinking=enable_thinking, tools=tools)
    if slot and rendered.count(slot) != 1:
        raise TemplateError(
            "The model's chat template must show the last user message exactly once "
            f"(it shows it {rendered.count(slot)} times)."
        )
    if slot and not rendered_tools and [message["content"] for message in chat] == [slot] and "name" not in chat[0]:
        return [(text, ()) for text in rendered.split(slot)]
    texts = json.dumps([chat, list(rendered_tools)], ensure_ascii=False)
    wrapper = _Wrapper.unlike(texts + rendered, tokenizer.reserved)
    # A template that looks at the beginning of a message does not find a mark there: messages are text.
    wrapped_chat = [wrapper.wrap_message(message, slot or "\0") for message in chat]
    wrapped = render_form(
        tokenizer, wrapped_chat, tools=wrapper.wrap_all(rendered_tools), enable_thinking=enable_thinking
    )
    sides = wrapped.partition(slot)[::2] if slot else (wrapped,)
    return [wrapper.read(side) for side in sides]


def question_in_frame(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    enable_thinking: bool,
    frame: ChatFrame,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the last user message as the model's chat template shows it, which may strip it."""
    content = messages[-1]["content"]
    if content == content.strip():
        return content
    rendered = render_chat(tokenizer, messages, enable_thinking=enable_thinking, tools=tools)
    inner = frame.content_of(rendered)
    # A template that reads the clock may make another frame than before.
    return inner if frame.prefix + inner + frame.suffix == rendered and inner.strip() == content.strip() else content


def encode_framed(tokenizer: Tokenizer, segments: Sequence[str], frame: ChatFrame) -> list[list[int]]:
    """Return the ids of segments with the frame around them. Only the frame is parsed for reserved tokens."""
    if frame.texts is None:
        return [tokenizer.encode(text) for text in framed(list(segments), frame)]
    before, after = (
        _template_parts(text, places) for text, places in zip((frame.prefix, frame.suffix), frame.texts, strict=True)
    )
    last = len(segments) - 1
    return [
        encode_parts(tokenizer, [*before * (index == 0), TextPart(segment), *after * (index == last)])
        for index, segment in enumerate(segments)
    ]


def _template_parts(text: str, places: Places) -> list[TextPart]:
    parts, at = [], 0
    for start, end in places:
        parts += [TextPart(text[at:start], is_template=True), TextPart(text[start:end])]
        at = end
    return [*parts, TextPart(text[at:], is_template=True)]


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
        self._keeps_ends = "newline" in used

    @classmethod
    def built_in(cls, name: str, variables: frozenset[str] = TEMPLATE_VARIABLES) -> PromptTemplate | None:
        """Return the built-in template of this name, or None if there is none."""
        file = resources.files(__package__).joinpath("templates", f"{name}.j2")
        if "/" in name or "\0" in name or not file.is_file():
            return None
        return cls(file.read_text(encoding="utf-8"), name, variables)

    @classmethod
    def load(cls, name: str, variables: frozenset[str] = TEMPLATE_VARIABLES) -> PromptTemplate:
        """Load a built-in template by name, or a Jinja2 file by its path.

        `zaya_v1` shows attempts after the problem, `rsa_v1` says first what they are, and `open_v1` asks for no box.
        """
        if (built_in := cls.built_in(name, variables)) is not None:
            return built_in
        try:
            return cls(read_text(Path(name)), name, variables)
        except (OSError, NotTextError) as error:
            raise TemplateError(
                f"The template {name!r} is neither built in ({BUILT_IN_TEMPLATES}) nor a readable UTF-8 file: {error}."
            ) from error

    def render(self, **values: object) -> str:
        """Return the rendered text, without blank lines around it unless the template uses `newline`."""
        try:
            text = self._template.render(**values, newline="\n")
            return text if self._keeps_ends else text.strip("\n")
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


def judge_segments(problem: str) -> list[str]:
    """Return the three pieces of text around the two attempts of a judgement."""
    template = PromptTemplate.load(JUDGE_TEMPLATE, JUDGE_VARIABLES)
    a, b = _SLOT.format("a"), _SLOT.format("b")
    before, rest = template.render(problem=problem, a=a, b=b).split(a)
    between, after = rest.split(b)
    return [before, between, after]


class RecordedFrames(Protocol):
    """The facts of `run_setup` about the chat frames of its prompts."""

    messages: list[dict[str, str]]
    prompt_text: str
    chat_prefix: str
    chat_suffix: str
    summary_source: str
    summary_segments: list[str]
    frame_texts: dict[str, list[list[list[int]]]]


def recorded_frame(setup: RecordedFrames) -> ChatFrame:
    """Return the recorded chat frame of the run's prompts. It is never rendered again."""
    return ChatFrame(setup.chat_prefix, setup.chat_suffix, _recorded_places(setup, "chat"))


def recorded_round_zero(setup: RecordedFrames) -> ChatFrame:
    """Return the recorded frame of round 0's prompt. After results of calls it is the whole prompt."""
    if ends_with_question(setup.messages):
        return recorded_frame(setup)
    return ChatFrame(setup.prompt_text, "", _recorded_places(setup, "round_zero"))


def summary_frame(setup: RecordedFrames) -> ChatFrame:
    """Return the chat frame of the recorded summary prompts: their text outside the template."""
    if not setup.summary_segments:
        return ChatFrame("", "")
    template = PromptTemplate(setup.summary_source, "summary", SUMMARY_VARIABLES)
    inner = summary_segments(template, question_of(setup.messages))
    first, last = setup.summary_segments
    return ChatFrame(first.removesuffix(inner[0]), last.removeprefix(inner[1]), _recorded_places(setup, "summary"))


def _recorded_places(setup: RecordedFrames, name: str) -> tuple[Places, Places] | None:
    pair = setup.frame_texts.get(name)
    return None if pair is None else (pair[0], pair[1])


def framed(segments: list[str], frame: ChatFrame) -> list[str]:
    """Return `segments` with the chat frame before the first and after the last."""
    first, *rest = segments
    *middle, last = [frame.prefix + first, *rest]
    return [*middle, last + frame.suffix]


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


def pair_segments(texts: Sequence[str], token_ids: Sequence[Sequence[int]], quote_ids: Sequence[int]) -> Segments:
    """Return the segments of judgements, which show two attempts and never one."""
    return Segments([[], texts], [[], token_ids], quote_ids)


def build_segments(
    tokenizer: Tokenizer, template: PromptTemplate, frame: ChatFrame, *, problem: str, carry: str, max_parents: int
) -> Segments:
    """Render and tokenise the segments for 1 to `max_parents` tails. Raise `TemplateError` for an unusable template."""
    inner = [static_segments(template, problem, carry, n) for n in range(1, max_parents + 1)]
    texts = [framed(segments, frame) for segments in inner]
    token_ids = encode_segments(tokenizer, inner, frame)
    return Segments(texts, token_ids, encode_text(tokenizer, QUOTE))


def encode_segments(tokenizer: Tokenizer, inner: Sequence[list[str]], frame: ChatFrame) -> list[list[list[int]]]:
    """Return the ids of the segments of prompts with 1, 2, ... attempts. Each text is encoded once."""
    known: dict[tuple[str, str], list[int]] = {}
    found = []
    for segments in inner:
        places = ["first", *["middle"] * (len(segments) - 2), "last"]
        keys = list(zip(places, segments, strict=True))
        if any(key not in known for key in keys):
            known |= dict(zip(keys, encode_framed(tokenizer, segments, frame), strict=True))
        found.append([known[key] for key in keys])
    return found


class PromptBuilder:
    """Builds the aggregation prompts of one run from its segments. The tokenizer only decodes."""

    def __init__(self, tokenizer: Tokenizer, segments: Segments, frame: ChatFrame) -> None:
        self._tokenizer, self._segments, self._frame = tokenizer, segments, frame
        self._markers = [marker_lines(pieces) for pieces in segments.texts]

    def build(self, tails: Sequence[Tail]) -> Prompt:
        """Return the prompt that shows `tails` in this order. There are segments for 1 to `max_parents` of them."""
        index = len(tails) - 1
        text, token_ids = self._segments.texts[index][0], list(self._segments.token_ids[index][0])
        tail_starts = list[int]()
        for quoted, piece, piece_ids in self._quoted(tails, len(tails)):
            tail_starts.append(len(token_ids))
            text += quoted.text + piece
            token_ids += [*quoted.token_ids, *piece_ids]
        return Prompt(self._frame.content_of(text), text, tuple(token_ids), tuple(tail_starts))

    def beginning(self, tails: Sequence[Tail], count: int) -> tuple[int, ...]:
        """Return the first ids of a prompt of `count` tails, of which these are the first: all before the next one."""
        token_ids = list(self._segments.token_ids[count - 1][0])
        for quoted, _, piece_ids in self._quoted(tails, count):
            token_ids += [*quoted.token_ids, *piece_ids]
        return tuple(token_ids)

    def _quoted(self, tails: Sequence[Tail], count: int) -> Iterator[tuple[Tail, str, Sequence[int]]]:
        """Yield the first of `count` tails as a prompt shows them, and the segment after each, as text and as ids."""
        _, *pieces = self._segments.texts[count - 1]
        _, *ids = self._segments.token_ids[count - 1]
        for tail, piece, piece_ids in zip(tails, pieces, ids, strict=len(tails) == count):
            yield self._quote(tail, self._markers[count - 1]), piece, piece_ids

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

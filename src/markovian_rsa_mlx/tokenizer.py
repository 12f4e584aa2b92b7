"""The interface of a tokenizer, as the method and the engines use it."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, cast, runtime_checkable

from .marks import ThinkingMarks


class ChatMessage(TypedDict):
    """One message of a chat: `role` is system, user, assistant or tool; `content` is plain text.

    A message of the assistant may have `tool_calls`: objects of OpenAI's form, but with the arguments as an object. The
    message of a tool is the result of the call `tool_call_id` of the tool `name`. In other messages `name` is the
    author, whom few chat templates show.
    """

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


def thinking_switches(enable_thinking: bool) -> dict[str, bool]:
    """Return the variables that turn the thinking on or off in chat templates: each template uses one, or none."""
    return {"enable_thinking": enable_thinking, "thinking": enable_thinking}


class Tokenizer(Protocol):
    """Text to token ids and back, and the marks that structure a trace.

    `end_of_thinking` lists the id sequences that end the reasoning (empty: a model without markers), and `closing_ids`
    end it with the line breaks of the chat template. `control_ids` are EOS, chat markers and the like, which never
    enter a prompt as part of a tail.
    """

    @property
    def end_of_thinking(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def closing_ids(self) -> tuple[int, ...]: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def control_ids(self) -> frozenset[int]: ...

    @property
    def template(self) -> str:
        """The source of the chat template, "" if there is none or it is not known."""
        ...

    @property
    def reserved(self) -> Mapping[str, int]:
        """The texts of the tokens that text of users and models never becomes, and their ids.

        They are special tokens, EOS, and the marks of turns, thinking and tools, flagged as special or not.
        """
        ...

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        """Return the marks around the model's thinking: the ones that a user named, or those of its template."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of the model's template: reserved tokens in it become their ids, and none is added.

        Use `encode_text` for any other text.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; EOS and other control ids leave no text."""
        ...

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The model's own chat rendering, up to where the assistant's turn begins."""
        ...


@runtime_checkable
class Vocabulary(Protocol):
    """A tokenizer that knows its tokens one by one, for servers of its model."""

    def spell(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens as the vocabulary spells them."""
        ...

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control ids included."""
        ...


class TextPart(NamedTuple):
    """A part of a prompt. Only the model's own template (`is_template`) is parsed for reserved tokens."""

    text: str
    is_template: bool = False


class _MarkingTokenizer:
    """A tokenizer that also reserves the tokens of `marks`."""

    def __init__(self, tokenizer: Tokenizer, marks: ThinkingMarks) -> None:
        self._tokenizer, self._marks = tokenizer, marks

    @property
    def reserved(self) -> dict[str, int]:
        return {**self._tokenizer.reserved, **self._marks.tokens}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def reserve_marks(tokenizer: Tokenizer, marks: ThinkingMarks | None) -> Tokenizer:
    """Return the tokenizer with the tokens of a run's marks among the reserved ones. Named marks may be any tokens."""
    if marks is None or marks.tokens.items() <= tokenizer.reserved.items():
        return tokenizer
    return cast(Tokenizer, _MarkingTokenizer(tokenizer, marks))


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of text that is only text. None of them is reserved."""
    return encode_parts(tokenizer, [TextPart(text)])


def encode_parts(tokenizer: Tokenizer, parts: Sequence[TextPart]) -> list[int]:
    """Return the token ids of a prompt in which only the template's parts become reserved tokens.

    The parts are encoded together, so that the ids are those of the whole text where no other part has the text of a
    reserved token. Such a text is encoded in two pieces.
    """
    text = "".join(part.text for part in parts)
    # A server does not list its special tokens, but shows those that a text becomes.
    if (reserve := getattr(tokenizer, "reserve_tokens_of", None)) is not None:
        reserve(text)
    ids: list[int] = []
    start = 0
    for end in [*_breaks(tokenizer, parts, text), len(text)]:
        ids += tokenizer.encode(text[:end]) if start == 0 else _encode_rest(tokenizer, text[start:end])
        start = end
    reserved = set(tokenizer.reserved.values())
    own = [i for part in parts if part.is_template for i in tokenizer.encode(part.text) if i in reserved]
    if [i for i in ids if i in reserved] == own:
        return ids
    # The tokenizer makes reserved tokens of other spellings, too. Single characters cannot be one of several.
    ids = []
    for part in parts:
        pieces = [tokenizer.encode(part.text)] if part.is_template else [_encode_rest(tokenizer, c) for c in part.text]
        ids += [i for piece in pieces for i in piece if part.is_template or i not in reserved]
    return ids


def _breaks(tokenizer: Tokenizer, parts: Sequence[TextPart], text: str) -> list[int]:
    """Return the places that divide each text of a reserved token which is not the template's own."""
    pattern = _pattern(tuple(name for name in tokenizer.reserved if len(name) > 1))
    ends = list(accumulate(len(part.text) for part in parts))
    breaks = []
    for match in pattern.finditer(text):
        index = bisect_right(ends, match.start())
        while index < len(parts) and parts[index].is_template and ends[index] < match.end(1):
            index += 1
        if not parts[index].is_template:
            first = ends[index - 1] if index else 0
            breaks.append(max(match.start() + 1, first))
    return sorted({*breaks})


@functools.lru_cache(8)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern that matches at each place where one of the names begins, and has the longest as its group."""
    names = tuple(sorted(names, key=len, reverse=True))
    return re.compile(f"(?=({'|'.join(map(re.escape, names))}))" if names else "(?!)")


def _encode_rest(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of text that follows other text: without the space that some tokenizers put first."""
    before = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text)
    return ids[len(before) :] if ids[: len(before)] == before else tokenizer.encode(text)

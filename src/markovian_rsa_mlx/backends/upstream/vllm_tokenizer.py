"""The tokenizer of vLLM's server, over `/tokenize` and `/detokenize`.

The server does not report which tokens are special. That follows from the strings of the tokens that it returns for
known marks, and from their neighbours in the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...errors import ModelError, PromptError
from ...tokenizer import ChatMessage, encode_text, thinking_switches
from ..tokenizers import is_mark
from .dialects import token_ids
from .errors import ProtocolError, TransientError, UnsupportedRequest
from .tokenizers import CHATS, EOS_NAMES, PARTS, TEST_TEXT, RemoteTokenizer
from .transport import HTTPClient

#: Marks of chat templates that are tokens of their own in many vocabularies.
_NAMES = """
    <s> </s> <unk> <pad> <bos> <eos> <mask> <|im_start|> <|im_sep|> <|begin_of_text|> <|start_header_id|>
    <|end_header_id|> <start_of_turn> <|turn> <|system|> <|user|> <|assistant|> <|observation|> <|tool|> <|start|>
    <|message|> <|channel|> <|constrain|> <|python_tag|> <|start_of_role|> <|end_of_role|> <tool_call> </tool_call>
    <tool_response> </tool_response> <|tool_call|> <|tool_calls_section_begin|> <|endofprompt|> <|fim_prefix|>
    <|fim_middle|> <|fim_suffix|> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [TOOL_CALLS] [gMASK]
    <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|>
"""
#: The forms of tokens that structure a chat.
_MARK = re.compile(r"<[^<>\s]{1,80}>|\[/?[A-Za-z_]{3,40}\]|◁[^◁▷]{1,40}▷|<｜[^｜]{1,60}｜>")
#: The form of other such tokens, as in [|user|] and ]~b].
_FRAMED = re.compile(r"[^\w\s]\S*\w\S*[^\w\s]")
#: Texts with spaces, of which the strings of tokens show the kind of the vocabulary.
_SAMPLE = "a b c"
_CALL_S, _GENERATION_S = 10.0, 60.0
#: How far from a special token others are looked for, in ids.
_WINDOW = 256


class VLLMTokenizer(RemoteTokenizer):
    """A `Tokenizer` over `/tokenize` and `/detokenize` of vLLM's server, for the model that it serves as `model`.

    Raises `ModelError` if the server has no such endpoints, or if they do not give a text back as it was.
    """

    def __init__(self, client: HTTPClient, model: str) -> None:
        self._model = model
        self._byte_of: dict[str, int] | None = None
        try:
            sample = client.fetch_blocking(f"{client.root}/tokenize", self._tokenize_body(_SAMPLE), _CALL_S, 2**16)
            strings = self._strings_of(sample)
            if any(string.startswith("Ġ") for string in strings):
                self._byte_of = _byte_alphabet()
            #: A token before others, so that the server keeps the space of the first one.
            self._has_anchor = any(string.startswith("▁") for string in strings)
            super().__init__(client, model, {})
            self._check()
        except (UnsupportedRequest, ProtocolError, TransientError) as error:
            raise ModelError(f"The server's tokenizer cannot be used ({error}).") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without control ids. Incomplete characters become U+FFFD."""
        kept = tuple(token for token in ids if token not in self.control_ids)
        if not self._has_anchor or all(token in self._bytes for token in kept):
            return super().decode(ids)
        anchor = self._encoded("a")
        return self._decoded((*anchor, *kept))[len(self._decoded(anchor)) :]

    def _read_facts(self, props: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
        frames = [self._apply_template(CHATS[0], thinking) for thinking in (True, False)]
        try:
            turns = self._apply_template(CHATS[1], True)
        except PromptError:
            turns = ""
        template = " ".join([*frames, turns])  # a line break would count as one that the template writes around marks
        special = self._find_marks_among({*_NAMES.split(), *EOS_NAMES, *PARTS, *_MARK.findall(template)})
        special |= self._find_marks_among(set(filter(self._is_framed, self._texts_of(self._encoded(template)))))
        special |= self._find_neighbours(special)
        # The mark after the assistant's turn ends it, whatever its name.
        after = turns.partition("first answer")[2]
        eos = min((name for name in special if name in after), key=after.index, default="")
        if not eos and not set(EOS_NAMES) & special.keys():
            raise ModelError("The server's tokenizer shows no token that ends a turn. Name the model with --tokenizer.")
        return template, eos, special

    def reserve_tokens_of(self, text: str) -> None:
        """Add the tokens that are marks, and that the server would make of a text, to `reserved`."""
        words = set(_MARK.findall(text)) - self.reserved.keys()
        if names := {word for word in words if is_mark(word, self.template)}:
            self.reserved |= self._find_marks_among(names)

    def _is_framed(self, text: str) -> bool:
        """Return True for a word between other characters that stays a token whatever its neighbours are.

        A vocabulary has few ordinary tokens of this form, and joins them with their neighbours.
        """
        if not _FRAMED.fullmatch(text):
            return False
        ids = self._encoded(text)
        return len(ids) == 1 and all(ids[0] in self._encoded(a + text + b) for a, b in ("aa", (text[0], text[-1])))

    def _find_eos_ids(self, eos: str, special: dict[str, int]) -> frozenset[int]:
        """Return the ids at which the server ends a generation, of those that may be such ends."""
        candidates = frozenset(special[mark] for mark in {eos, *EOS_NAMES} if mark in special)
        found = frozenset(token for token in candidates if self._ends_generation(token))
        return found or candidates

    def _ends_generation(self, token: int) -> bool:
        """Return True if the server stops after a token that it is made to generate."""
        body = {
            "model": self._model,
            "prompt": list(self._encoded("a")),
            "max_tokens": 2,
            "temperature": 0.0,
            "logit_bias": {str(token): 100.0},
        }
        try:
            answer = self._client.fetch_blocking(f"{self._client.url}/completions", body, _GENERATION_S, 2**20)
            return bool(answer["choices"][0]["finish_reason"] == "stop")
        except (UnsupportedRequest, TransientError, KeyError, IndexError, TypeError):
            return False

    def _find_marks_among(self, names: set[str]) -> dict[str, int]:
        """Return the ids of the names that are tokens of their own: the only token on a line of their own."""
        answer = self._call("/tokenize", self._tokenize_body("\n".join(sorted(names))))
        pairs = zip(self._strings_of(answer), token_ids(answer["tokens"]), strict=True)
        return {string: token for string, token in pairs if string in names}

    def _find_neighbours(self, special: dict[str, int]) -> dict[str, int]:
        """Return `special` and the marks near them in the vocabulary: special tokens have ids next to each other."""
        found, seen = dict(special), set[int]()
        line = self._encoded("\n")
        while near := {n for token in found.values() for n in range(token - _WINDOW, token + _WINDOW) if n >= 0} - seen:
            seen |= near
            lines = [token for neighbour in sorted(near) for token in (neighbour, *line)]
            try:
                text = self._text_of(self._call("/detokenize", self._detokenize_body(lines)))
            except UnsupportedRequest:  # beyond the end of the vocabulary
                break
            words = set(text.split("\n")) - found.keys()
            names = {word for word in words if _MARK.fullmatch(word) or self._is_framed(word)}
            if not names:
                break
            found |= self._find_marks_among(names)
        return found

    def _check(self) -> None:
        """Check that texts and chats come back as they were."""
        ids, text = self.encode(TEST_TEXT), TEST_TEXT
        if self.decode(ids).removeprefix(" ") != text or encode_text(self, text) != ids:
            raise ModelError("The server's tokenizer changes texts. Name the model's own with --tokenizer.")
        chat = self._call("/tokenize", self._chat_body((("user", text),), True))
        if self.encode(self.render_chat([ChatMessage(role="user", content=text)], True)) != chat["tokens"]:
            raise ModelError(
                "The server's chat template cannot be read through its tokenizer. Name it with --tokenizer."
            )

    def _tokenize(self, text: str, *, parse_special: bool = True, add_special: bool = False) -> tuple[int, ...]:
        return self._keep_pieces(self._call("/tokenize", self._tokenize_body(text))) if text else ()

    def _tokenize_body(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}

    def _detokenize_body(self, ids: Sequence[int]) -> dict[str, Any]:
        return {"model": self._model, "tokens": list(ids)}

    def _chat_body(self, messages: tuple[tuple[str, str], ...], enable_thinking: bool) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "chat_template_kwargs": thinking_switches(enable_thinking),
        }

    def _text_of(self, answer: Any) -> str:
        text = answer.get("prompt", answer.get("text")) if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise ProtocolError("the server's tokenizer returned no text")
        return text

    def _apply_template(self, messages: tuple[tuple[str, str], ...], enable_thinking: bool) -> str:
        try:
            answer = self._call("/tokenize", self._chat_body(messages, enable_thinking))
        except UnsupportedRequest as error:
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return self._decoded(tuple(token_ids(answer.get("tokens"))))

    def _keep_pieces(self, answer: Any) -> tuple[int, ...]:
        ids = token_ids(answer.get("tokens") if isinstance(answer, dict) else None)
        for token, string in zip(ids, self._strings_of(answer), strict=True):
            if self._byte_of is not None and all(character in self._byte_of for character in string):
                self._bytes[token] = bytes(self._byte_of[character] for character in string)
            elif self._has_anchor:
                byte = re.fullmatch("<0x([0-9A-F]{2})>", string)
                self._bytes[token] = bytes.fromhex(byte[1]) if byte else string.replace("▁", " ").encode()
        return tuple(ids)

    def _strings_of(self, answer: Any) -> list[str]:
        """Return the strings of the tokens in an answer of `/tokenize`."""
        strings = answer.get("token_strs") if isinstance(answer, dict) else None
        count = len(token_ids(answer.get("tokens") if isinstance(answer, dict) else None))
        if not isinstance(strings, list) or len(strings) != count or not all(isinstance(s, str) for s in strings):
            raise ProtocolError("the server's tokenizer returns no strings of its tokens")
        return strings


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character stands for in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}

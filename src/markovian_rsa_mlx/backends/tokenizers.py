"""Tokenizers of mlx-lm without a model's weights, as the method's `Tokenizer`.

mlx_lm is imported inside `load_tokenizer`, so that upstream engines can use this module without MLX.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, PromptError
from ..hub import (
    PROCESSOR_TEMPLATE,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    cached_folder,
    fetch_files,
    local_folder,
    read_config,
)
from ..marks import ThinkingMarks, find_marks
from ..models import tokenizer_options
from ..tokenizer import ChatMessage, thinking_switches
from ..tools import find_form

#: The forms of marks of turns and tools, which not all tokenizers flag as special.
_MARK = re.compile(r"<\|[^<>]*\|?>|<[^<>]*\|>|</?tool[^<>]*>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_[^<>]*>")


def is_mark(text: str, template: str) -> bool:
    """Return True if the text of an added token is that of a mark of turns or tools, or one in the chat template."""
    return _MARK.fullmatch(text) is not None or ("<" in text and text in template)


def marked_ids(
    marks: ThinkingMarks | None, encode: Callable[[str], list[int]], special: Collection[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], frozenset[int]]:
    """Return the ids of the end mark, those that close the thinking, and `special` with the marks but the end mark."""
    if marks is None:
        return (), (), frozenset(special)
    end = marks.tokens.get(marks.end)
    control = frozenset(special) | set(marks.tokens.values())
    return (tuple(encode(marks.end)),), tuple(encode(marks.closing)), control - ({end} if end is not None else set())


class MLXTokenizer:
    """Text to token ids and back for one model.

    `control_ids` are EOS, the tokenizer's special tokens (chat markers, BOS, padding) and a start-of-thinking mark of
    one token. They must not be part of a tail. The end-of-thinking mark is not among them, because tails end before it
    and readers want to see it in the text of a trace. `digest` is that of its files, "" if unknown. `tool_form` is the
    form of calls that the template renders, or None.
    """

    digest = ""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._added: dict[str, int] = {str(token.content): int(index) for index, token in added.items()}
        self.eos_ids: frozenset[int] = frozenset(int(token) for token in tokenizer.eos_token_ids)
        special = {int(token) for token in tokenizer.all_special_ids}
        special |= {int(index) for index, token in added.items() if token.special}
        marks = self.find_marks()
        self.end_of_thinking, self.closing_ids, self.control_ids = marked_ids(
            marks, self.encode, special | self.eos_ids
        )
        template = str(tokenizer.chat_template or "")
        self.reserved: dict[str, int] = {
            text: index for text, index in self._added.items() if index in self.control_ids or is_mark(text, template)
        }
        self.reserved |= {text: index for index in self.eos_ids if (text := self._raw([index])).strip()}
        self.reserved |= marks.tokens if marks else {}
        self.template = template
        self.tool_form = find_form(template, self._added.get, self._mlx_form())
        self.vocabulary_size = 1 + max(map(int, tokenizer.get_vocab().values()), default=-1)
        # SentencePiece strips the first space of any text, so decode with an id in front there.
        ids = self.encode("a b")
        strips_space = self._raw(ids)[len(self._raw(ids[:1])) :] != self._raw(ids[1:])
        self._anchor = ids[:1] if strips_space else []

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        """Return the marks around the model's thinking: the ones that a user named, or those of its template."""
        return find_marks(str(self._tokenizer.chat_template or ""), self._added.get, named)

    def _mlx_form(self) -> tuple[str, str, str] | None:
        """Return the parser of calls that mlx-lm chose for the template, and its marks."""
        if not getattr(self._tokenizer, "has_tool_calling", False):
            return None
        parser = self._tokenizer.tool_parser.__module__.rpartition(".")[2]
        return parser, str(self._tokenizer.tool_call_start), str(self._tokenizer.tool_call_end)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` without special tokens added. Markers written in the text become their ids."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` with every space kept. Control ids give no text, torn characters U+FFFD."""
        kept = [token for token in ids if token not in self.control_ids]
        if not self._anchor:
            return self._raw(kept)
        return self._raw([*self._anchor, *kept])[len(self._raw(self._anchor)) :]

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control ids included."""
        return self._raw(list(ids))

    def fast_tokenizer_json(self) -> str | None:
        """Return the contents of `tokenizer.json`, or None for a tokenizer that has no such form."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if fast is None else str(fast.to_str())

    def spell(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens as the vocabulary spells them."""
        return [str(token) for token in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def render_chat(
        self, messages: Sequence[ChatMessage], enable_thinking: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Apply the model's chat template up to the assistant's turn. Without a template, join the contents.

        Calls and tools are rendered where `tool_form` is not None.

        Raises `PromptError` if the template refuses the chat.
        """
        if not self._tokenizer.has_chat_template:
            text = "\n\n".join(message["content"] for message in messages)
            plain, with_special = self.encode("a"), list(self._tokenizer.encode("a"))
            starts_with_bos = len(with_special) > len(plain) and with_special[0] == self._tokenizer.bos_token_id
            return (str(self._tokenizer.bos_token) if starts_with_bos else "") + text
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    tokenize=False,
                    add_generation_prompt=True,
                    # mlx-lm has templates that are functions, and these know one of the switches.
                    **(thinking_switches(enable_thinking) if self.template else {"enable_thinking": enable_thinking}),
                )
            )
        except Exception as error:  # templates are code of the model's maker, and many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error

    def _raw(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Lone surrogates cannot be written to the audit log, which is UTF-8.
        return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def processor_template(folder: Path) -> str | None:
    """Return the chat template of `chat_template.json`, or None if the tokenizer's own files have one."""
    own = _json_object(folder / "tokenizer_config.json")
    if own.get("chat_template") or own.get("chat_template_type"):
        return None
    if any(
        next(folder.glob(pattern), None) for pattern in ("chat_template.jinja", "additional_chat_templates/*.jinja")
    ):
        return None
    template = _json_object(folder / PROCESSOR_TEMPLATE).get("chat_template")
    return template if isinstance(template, str) else None


def _json_object(path: Path) -> Mapping[str, Any]:
    """Return the object in a file, or an empty one if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def loader_options(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of mlx-lm's loader for the tokenizer of a folder with this config."""
    template = processor_template(folder)
    return tokenizer_options(config) | ({} if template is None else {"chat_template": template})


def load_tokenizer(model: str | Path) -> MLXTokenizer:
    """Load the tokenizer of a folder or a hub id. Raises `ModelError`."""
    try:
        from mlx_lm.utils import load_tokenizer as load_with_mlx_lm
    except ImportError as error:
        raise ModelError("MLX is not installed here. It runs on Apple silicon and on Linux.") from error

    folder = local_folder(model) or fetch_files(str(model), None, TOKENIZER_FILES)
    config = read_config(folder)
    try:
        tokenizer = MLXTokenizer(
            load_with_mlx_lm(folder, loader_options(folder, config), eos_token_ids=config.get("eos_token_id"))
        )
    except Exception as error:  # tokenizers raise errors of many types
        raise ModelError(f"The tokenizer in {str(folder)!r} cannot be loaded: {error}.") from error
    tokenizer.digest = files_digest(folder)
    return tokenizer


def files_digest(folder: Path) -> str:
    """Return the SHA-256 of the tokenizer's files in a model's folder and of the EOS ids in its config."""
    files = {path for pattern in VOCABULARY_FILES for path in folder.glob(pattern) if path.is_file()}
    if processor_template(folder) is not None:
        files.add(folder / PROCESSOR_TEMPLATE)
    digest = hashlib.sha256(str(read_config(folder).get("eos_token_id")).encode())
    for path in sorted(files):
        digest.update(f"\n{path.name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


def cached_tokenizer(model: str, digest: str) -> MLXTokenizer | None:
    """Return the tokenizer of a folder or of a cached hub id if its files have this digest. Uses no network."""
    try:
        folder = cached_folder(model, TOKENIZER_FILES) if model and digest else None
        return load_tokenizer(folder) if folder is not None and files_digest(folder) == digest else None
    except (ModelError, OSError, RuntimeError):  # not a model's folder, or MLX is not installed
        return None

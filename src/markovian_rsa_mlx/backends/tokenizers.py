"""Tokenizers of mlx-lm without a model's weights, as the method's `Tokenizer`.

mlx_lm is imported inside `load_tokenizer`, so that upstream engines can use this module without MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, PromptError
from ..hub import TOKENIZER_FILES, fetch_files, local_folder, read_config
from ..models import tokenizer_options
from ..tokenizer import ChatMessage

#: The end-of-thinking mark of most models.
_END_OF_THINKING = "</think>"


class MLXTokenizer:
    """Text to token ids and back for one model.

    `control_ids` are EOS, the tokenizer's special tokens (chat markers, BOS, padding) and a start-of-thinking mark of
    one token. They must not be part of a tail. The end-of-thinking mark is not among them, because tails end before it
    and readers want to see it in the text of a trace.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ends = tokenizer.think_end_tokens
        if not ends and _END_OF_THINKING in str(tokenizer.chat_template):
            ends = self.encode(_END_OF_THINKING)  # the template writes the mark, and the vocabulary has no token for it
        self.end_of_thinking: tuple[tuple[int, ...], ...] = (tuple(ends),) if ends else ()
        self.eos_ids: frozenset[int] = frozenset(int(token) for token in tokenizer.eos_token_ids)
        special = {int(token) for token in tokenizer.all_special_ids}
        special |= {int(token) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        for marks, keep in ((tokenizer.think_start_tokens, False), (tokenizer.think_end_tokens, True)):
            if marks and len(marks) == 1:
                (special.discard if keep else special.add)(int(marks[0]))
        self.control_ids: frozenset[int] = self.eos_ids | special
        # SentencePiece strips the first space of any text, so decode with an id in front there.
        ids = self.encode("a b")
        strips_space = self._raw(ids)[len(self._raw(ids[:1])) :] != self._raw(ids[1:])
        self._anchor = ids[:1] if strips_space else []

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` without special tokens added. Markers written in the text become their ids."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` with every space kept. Control ids give no text, torn characters U+FFFD."""
        kept = [token for token in ids if token not in self.control_ids]
        if not self._anchor:
            return self._raw(kept)
        return self._raw([*self._anchor, *kept])[len(self._raw(self._anchor)) :]

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """Apply the model's chat template up to the assistant's turn. Without a template, join the contents.

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
                    list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
                )
            )
        except Exception as error:  # templates are code of the model's maker, and many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error

    def _raw(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Lone surrogates cannot be written to the audit log, which is UTF-8.
        return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def load_tokenizer(model: str | Path) -> MLXTokenizer:
    """Load the tokenizer of a folder or a hub id. Raises `ModelError`."""
    try:
        from mlx_lm.utils import load_tokenizer as load_with_mlx_lm
    except ImportError as error:
        raise ModelError("MLX is not installed here. It runs on Apple silicon and on Linux.") from error

    folder = local_folder(model) or fetch_files(str(model), None, TOKENIZER_FILES)
    config = read_config(folder)
    try:
        return MLXTokenizer(
            load_with_mlx_lm(folder, tokenizer_options(config), eos_token_ids=config.get("eos_token_id"))
        )
    except Exception as error:  # tokenizers raise errors of many types
        raise ModelError(f"The tokenizer in {str(folder)!r} cannot be loaded: {error}.") from error

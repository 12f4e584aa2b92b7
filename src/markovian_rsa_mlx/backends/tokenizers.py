"""The method's `Tokenizer` over an mlx-lm tokenizer.

A model's tokenizer alone: the tokenizer of a folder or a hub id, without its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, PromptError
from ..hub import TOKENIZER_FILES, fetch_files, local_folder, read_config
from ..models import tokenizer_options
from ..tokenizer import ChatMessage

#: How most models write it.
_END_OF_THINKING = "</think>"


class MLXTokenizer:
    """Text to token ids and back for one model; needs no weights.

    `control_ids` are EOS, the tokenizer's special tokens (chat markers, BOS, padding) and a one-token
    start-of-thinking mark, which must not stand inside a carried tail. The end-of-thinking mark is none of
    them: it never gets into a tail, and a reader wants to see it in a trace's text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ends = tokenizer.think_end_tokens or self._written_end_of_thinking()
        self.end_of_thinking: tuple[tuple[int, ...], ...] = (tuple(ends),) if ends else ()
        self.eos_ids: frozenset[int] = frozenset(int(token) for token in tokenizer.eos_token_ids)
        self.control_ids: frozenset[int] = self.eos_ids | _special_ids(tokenizer)
        self._anchor = self._decoding_anchor()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added; markers written in the text become their ids."""
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` with every space kept; control ids leave none, torn characters become U+FFFD."""
        kept = [token for token in ids if token not in self.control_ids]
        if not self._anchor:
            return self._raw(kept)
        return self._raw([*self._anchor, *kept])[len(self._raw(self._anchor)) :]

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The model's chat template up to the assistant's turn; without one, the contents in order.

        Raises `PromptError` if the template refuses the chat.
        """
        if not self._tokenizer.has_chat_template:
            text = "\n\n".join(message["content"] for message in messages)
            return self._leading_bos() + text
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
                )
            )
        except Exception as error:  # templates are the model maker's code; many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error

    def _raw(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # Lone surrogates cannot be written as UTF-8, and the audit is.
        return str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _written_end_of_thinking(self) -> list[int]:
        """The end-of-thinking mark as the chat template writes it, where the vocabulary has no token for it."""
        return self.encode(_END_OF_THINKING) if _END_OF_THINKING in str(self._tokenizer.chat_template) else []

    def _decoding_anchor(self) -> list[int]:
        """Ids to decode in front where the tokenizer strips the first space of any text (SentencePiece does)."""
        ids = self.encode("a b")
        head = self._raw(ids[:1])
        return ids[:1] if self._raw(ids)[len(head) :] != self._raw(ids[1:]) else []

    def _leading_bos(self) -> str:
        plain, with_special = self.encode("a"), list(self._tokenizer.encode("a"))
        starts_with_bos = len(with_special) > len(plain) and with_special[0] == self._tokenizer.bos_token_id
        return str(self._tokenizer.bos_token) if starts_with_bos else ""


def _special_ids(tokenizer: Any) -> frozenset[int]:
    special = {int(token) for token in tokenizer.all_special_ids}
    special |= {int(token) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    for marks, keep in ((tokenizer.think_start_tokens, False), (tokenizer.think_end_tokens, True)):
        if marks and len(marks) == 1:
            (special.discard if keep else special.add)(int(marks[0]))
    return frozenset(special)


def load_tokenizer(model: str | Path) -> MLXTokenizer:
    """Load the tokenizer of a folder or a hub id, without its weights. Raises `ModelError`."""
    try:
        from mlx_lm.utils import load_tokenizer as load_with_mlx_lm
    except ImportError as error:
        raise ModelError("MLX is not installed here; it runs on Apple silicon and on Linux.") from error

    folder = local_folder(model) or fetch_files(str(model), None, TOKENIZER_FILES)
    config = read_config(folder)
    try:
        return MLXTokenizer(
            load_with_mlx_lm(folder, tokenizer_options(config), eos_token_ids=config.get("eos_token_id"))
        )
    except Exception as error:  # tokenizers fail in many ways; all of them mean this
        raise ModelError(f"The tokenizer in {str(folder)!r} cannot be loaded: {error}.") from error

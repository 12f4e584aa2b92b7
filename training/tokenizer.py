"""The reasoner's tokenizer: bytes, the numbers 0 to 999, and the phrases of its own wordings.

Text is split into numbers of up to three digits and the stretches between them; a stretch that is a
known phrase is one token, anything else falls back to bytes. So its prompts are short, and any text can be
encoded. `ReasonerTokenizer` is the `Tokenizer` that the project's prompt builder works with.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
from tokenizers import Tokenizer

from markovian_rsa_mlx.tokenizer import ChatMessage

SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
THINKING = ("<think>", "</think>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '<|assistant|>\\n' + message['content'] + '<|end|>' }}"
    "{%- else -%}{{ '<|' + message['role'] + '|>' + message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n<think>\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '</think>\\n' }}{%- endif -%}{%- endif -%}"
)


class ReasonerTokenizer:
    """The project's `Tokenizer` over a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = {token: tokenizer.token_to_id(token) for token in (*SPECIAL, *THINKING)}
        self.end_of_thinking: tuple[tuple[int, ...], ...] = ((ids["</think>"],),)
        self.eos_ids: frozenset[int] = frozenset({ids["<|end|>"]})
        self.control_ids: frozenset[int] = frozenset(ids[token] for token in SPECIAL)
        self.reserved: dict[str, int] = ids
        self.pad_id: int = ids["<|pad|>"]
        self._chat = jinja2.Environment().from_string(CHAT_TEMPLATE)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        return self._chat.render(messages=messages, add_generation_prompt=True, enable_thinking=enable_thinking)

"""The reasoner's tokenizer: bytes, the numbers 0 to 999, and the phrases of its own wordings.

Text is split into numbers of up to three digits and the stretches between them; a stretch that is a
known phrase is one token, anything else falls back to bytes. So its prompts are short, and any text can be
encoded. `ReasonerTokenizer` is the `Tokenizer` that the project's prompt builder works with.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from markovian_rsa_mlx.tokenizer import ChatMessage

SPLIT = r"\d{1,3}|[^\d\n]*\n|[^\d\n]+"
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


def _splitter() -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])


def phrases(texts: Iterable[str]) -> list[str]:
    """The stretches between numbers that occur at least a dozen times, longest last, in byte-level spelling."""
    splitter, counts = _splitter(), Counter[str]()
    markers = re.compile("|".join(map(re.escape, (*SPECIAL, *THINKING))))
    for stretch in (stretch for text in texts for stretch in markers.split(text)):
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(stretch) if not piece.isdigit())
    found = [piece for piece, count in counts.items() if count >= 12 and len(piece) > 1]
    return sorted(found, key=lambda piece: (len(piece), piece))


def build(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer whose vocabulary is bytes, numbers and the phrases found in `texts`."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(str(n) for n in range(1000)), *phrases(texts)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in THINKING])
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """`tokenizer_config.json` of the exported model."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=1) + "\n", encoding="utf-8")


class ReasonerTokenizer:
    """The project's `Tokenizer` over a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = {token: tokenizer.token_to_id(token) for token in (*SPECIAL, *THINKING)}
        self.end_of_thinking: tuple[tuple[int, ...], ...] = ((ids["</think>"],),)
        self.eos_ids: frozenset[int] = frozenset({ids["<|end|>"]})
        self.control_ids: frozenset[int] = frozenset(ids[token] for token in SPECIAL)
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

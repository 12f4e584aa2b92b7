"""A tokenizer like that of ZAYA1-8B: pieces as in Gemma 3, ChatML turns, thinking marks, and an invented vocabulary.

Public ports of the original show that `<|im_start|>` and `<|im_end|>` replace Gemma's turns, that `<|im_end|>` is the
EOS 106, and that the template opens `<think>` in the prompt, or also closes it if thinking is off. They do not show
whether the marks are one token each, so both are tested.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

PAD, EOS_OF_TEXT, BOS, UNKNOWN = 0, 1, 2, 3
TURN, END_OF_TURN = 105, 106
THINK, END_THINK = 99, 100
FIRST_BYTE = 238
FULL_SIZE = 262_144
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789▁.,:;!?<>/\\{}|_=+-*()'\"\n"
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


def write(folder: Path, *, size: int = 1024, marks: bool = True) -> Path:
    """tokenizer.json of `size` entries and its settings; without `marks` the thinking marks are text."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"<pad>": PAD, "<eos>": EOS_OF_TEXT, "<bos>": BOS, "<unk>": UNKNOWN}
    named |= {"<|im_start|>": TURN, "<|im_end|>": END_OF_TURN}
    if marks:
        named |= {"<think>": THINK, "</think>": END_THINK}
    named |= {f"<0x{byte:02X}>": FIRST_BYTE + byte for byte in range(256)}
    free = (index for index in range(4, size) if index not in set(named.values()))
    vocab = named | {letter: next(free) for letter in _LETTERS}
    vocab |= {f"▁w{index}": index for index in free}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"])
    if marks:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder

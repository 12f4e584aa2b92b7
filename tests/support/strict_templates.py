"""Tokenizers whose chat templates refuse some chats, as those of widely used models do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markovian_rsa_mlx.errors import PromptError
from markovian_rsa_mlx.tokenizer import ChatMessage

from .fakes import CharacterTokenizer


def refuse_late_system(roles: Sequence[str]) -> bool:
    """Qwen3.5: a system message must be the first message."""
    return "system" in roles[1:]


def refuse_repeated_role(roles: Sequence[str]) -> bool:
    """Mistral: messages of the user and the assistant take turns after the system message."""
    return any(first == second for first, second in pairwise(roles)) or "system" in roles[1:]


def refuse_system(roles: Sequence[str]) -> bool:
    """Gemma 2: no system message, and turns."""
    return "system" in roles or refuse_repeated_role(roles)


TEMPLATES = {"late system": refuse_late_system, "repeated role": refuse_repeated_role, "system": refuse_system}


class Strict(CharacterTokenizer):
    """A tokenizer whose chat template refuses some chats."""

    def __init__(self, template: str) -> None:
        super().__init__()
        self.refuses = TEMPLATES[template]

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        if self.refuses([message["role"] for message in messages]):
            raise PromptError("The model's chat template refuses this chat.")
        return super().render_chat(messages, enable_thinking)

"""The tokenizer of a GGUF file, as llama.cpp itself reads it (through llama-cpp-python, without the weights)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox

from ...errors import ModelError, PromptError
from ...method.codec import ChatMessage

_END_OF_THINKING, _START_OF_THINKING = "</think>", "<think>"
_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)


class GGUFCodec:
    """A `Codec` over the vocabulary and the chat template in a GGUF file. Raises `ModelError`."""

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise ModelError(
                f"To read the tokenizer of {str(path)!r} llama-cpp-python is needed (pip install llama-cpp-python); or "
                "give the model's folder or hub id."
            ) from error
        # It warns about a context that is never used.
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, None)
        try:
            self._model: Any = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        except Exception as error:  # llama.cpp's own words for a file that it cannot read
            raise ModelError(f"The tokenizer in {str(path)!r} cannot be loaded: {error}.") from error
        vocabulary = self._model._model.vocab
        tokens = range(self._model.n_vocab())
        self._template = str(self._model.metadata.get("tokenizer.chat_template", ""))
        self.eos_ids = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, i))
        control = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_control(vocabulary, i))
        start, end = self.encode(_START_OF_THINKING), self.encode(_END_OF_THINKING)
        thinks = len(end) == 1 or _END_OF_THINKING in self._template
        self.end_of_thinking: tuple[tuple[int, ...], ...] = (tuple(end),) if thinks else ()
        marks = control | self.eos_ids | frozenset(start if len(start) == 1 else ())
        self.control_ids = marks - (frozenset(end) if len(end) == 1 else frozenset())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, no special token added; markers written in the text become their ids."""
        return list(self._model.tokenize(text.encode("utf-8", "replace"), add_bos=False, special=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control ids leave none, torn characters become U+FFFD."""
        kept = [token for token in ids if token not in self.control_ids]
        # A token before the others keeps the first one's space.
        return bytes(self._model.detokenize(kept, prev_tokens=[0], special=True)).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """The file's chat template; without one, the contents in order."""
        bos, eos = (self._piece(token) for token in (self._model.token_bos(), self._model.token_eos()))
        first = bos if self._model.metadata.get("tokenizer.ggml.add_bos_token") == "true" else ""
        if not self._template:
            return first + "\n\n".join(message["content"] for message in messages)
        try:
            text = _environment.from_string(self._template).render(
                messages=list(messages),
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
                bos_token=bos,
                eos_token=eos,
                raise_exception=_refuse,
            )
        except Exception as error:  # templates are the model maker's code; many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(first) else first + text

    def _piece(self, token: int) -> str:
        if token < 0:
            return ""
        return bytes(self._model.detokenize([token], prev_tokens=[0], special=True)).decode("utf-8", "replace")


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)

"""The types of parts of a message's content, as clients and servers name them."""

from __future__ import annotations

from typing import Final

TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
#: The thinking of an answer, or its summary.
THINKING_PARTS: Final = frozenset({
    "thinking", "redacted_thinking", "thinking_delta", "reasoning", "reasoning_text", "reasoning_content",
    "reasoning.text", "think", "thought", "summary_text", "reasoning.summary",
})  # fmt: skip

"""One trace of an upstream engine: its ids, its next request, and its end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from ...errors import BackendError, ContextLengthError, ModelError, PromptError
from ...tokenizer import ChatMessage, Tokenizer
from ..base import GenerationListener, GenerationRequest
from .dialects import CompletionReply, CompletionRequest
from .errors import TransientError
from .probe import ServerInfo


class UpstreamGeneration:
    """Collect the ids of one trace from one reply or several.

    The ids of a reply that another call cannot continue are added when it is complete. `eos` is the id to add for a
    server that ends a trace without its EOS id (`end_of_turn`). `log_chance` is the log of the probability of all its
    tokens, or an upper bound of it, or None if unknown.
    """

    def __init__(
        self, request: GenerationRequest, listener: GenerationListener, *, tokenizer: Tokenizer, eos: int
    ) -> None:
        self.request, self.listener, self.tokenizer, self._eos = request, listener, tokenizer, eos
        self.ids = list(request.generated_ids)
        self.log_chance: float | None = None if self.ids else 0.0
        self.started = False

    @property
    def finish_reason(self) -> Literal["eos", "max_tokens"] | None:
        """The reason why the trace is finished, or None if it is not."""
        if self.ids and self.ids[-1] in self.tokenizer.eos_ids:
            return "eos"
        return "max_tokens" if len(self.ids) >= self.request.max_tokens else None

    def next_request(self, info: ServerInfo) -> CompletionRequest:
        """Return the request for the whole trace, or for the missing part of it.

        Raises `BackendError` if the server cannot continue a trace.
        """
        request, dialect = self.request, info.dialect
        if self.ids and dialect.prompt_format != "ids":
            raise BackendError(f"{info.name} cannot continue after generated tokens; the trace starts again.")
        seed = request.seed if info.seeded else None
        if seed is not None and self.ids:
            # With the trace's own seed, a continuation would repeat the random numbers of its beginning.
            digest = hashlib.sha256(f"{seed}|{len(self.ids)}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big") >> 1
        text = request.prompt_text or self.tokenizer.render_chat(list(request.messages), request.enable_thinking)
        left = request.max_tokens - len(self.ids)
        return CompletionRequest(
            model=info.model,
            prompt_ids=(*request.prompt_token_ids, *self.ids),
            prompt_text=text.removeprefix(info.own_bos),
            messages=request.messages,
            enable_thinking=request.enable_thinking,
            max_tokens=left if dialect.chunk_tokens is None else min(left, dialect.chunk_tokens),
            sampling=request.sampling,
            seed=seed,
            eos_ids=tuple(sorted(self.tokenizer.eos_ids)),
        )

    def append(self, ids: Sequence[int]) -> None:
        """Add ids up to the first EOS or to `max_tokens`, and report them to the listener."""
        start = len(self.ids)
        for token in ids:
            if self.finish_reason is not None:
                break
            self.ids.append(token)
        if len(self.ids) > start:
            self.listener.tokens(self.ids[start:])

    def finish_call(self, reply: CompletionReply, call: CompletionRequest, info: ServerInfo) -> None:
        """Add the ids of a text reply and the end of the trace. Check that no ids are missing."""
        if info.dialect.prompt_format == "text" and reply.prompt_tokens not in (None, len(call.prompt_ids)):
            self.listener.warning(
                f"{info.name} read the text of the prompt as {reply.prompt_tokens} tokens, and the audit file records "
                f"{len(call.prompt_ids)}, because the server tokenizes texts by itself"
            )
        if not info.dialect.returns_token_ids:
            self.append(self._encode_reply(reply, info.name))
        elif reply.generated_tokens not in (None, len(reply.ids)):
            raise BackendError(
                f"{info.name} generated {reply.generated_tokens} tokens and returned the ids of {len(reply.ids)}."
            )
        if self.log_chance is not None:
            self.log_chance = None if reply.log_chance is None else self.log_chance + reply.log_chance
        if self.finish_reason is not None:
            return
        if reply.finish == "stop":
            self.append([self._eos])
        elif reply.truncated:
            raise ContextLengthError(
                f"{info.name} truncated trace {self.request.trace_id} after {len(self.ids)} tokens because its context "
                "is full; lower thinking_tokens, tail_tokens or final_tokens, or start it with a longer one."
            )
        elif info.dialect.returns_token_ids and len(reply.ids) < call.max_tokens:
            raise TransientError(f"{info.name} ended the trace after {len(reply.ids)} of {call.max_tokens} tokens")

    def _encode_reply(self, reply: CompletionReply, server_name: str) -> list[int]:
        """Return the tokenizer's ids of a text reply, with the end-of-thinking mark after a separate reasoning."""
        # A piece of a stream is a token, so encoding the pieces gives the sampled ids. If these do not make the same
        # text, because a piece was part of a character, encode the whole.
        content = [token for piece in reply.pieces if piece for token in self.tokenizer.encode(piece)]
        whole = self.tokenizer.encode(reply.content)
        if self.tokenizer.decode(content) != self.tokenizer.decode(whole):
            content = whole
        if not reply.reasoning:
            return content
        marks = self.tokenizer.end_of_thinking
        if not marks:
            raise ModelError(
                f"{server_name} returns the reasoning separately, and the tokenizer has no end-of-thinking mark; name "
                "the model's own tokenizer (--tokenizer)."
            )
        reasoning = self.tokenizer.encode(reply.reasoning)
        thinking_ended = reply.content or reply.finish == "stop"
        return [*reasoning, *marks[0], *content] if thinking_ended else reasoning


def end_of_turn(tokenizer: Tokenizer) -> int:
    """Return the EOS id that ends a turn in the model's chats, or the smallest one if the template has none."""
    chat = [ChatMessage(role=role, content="a") for role in ("user", "assistant", "user")]
    try:
        ids = tokenizer.encode(tokenizer.render_chat(chat, True))
    except PromptError:
        ids = []
    return next((token for token in reversed(ids) if token in tokenizer.eos_ids), min(tokenizer.eos_ids))

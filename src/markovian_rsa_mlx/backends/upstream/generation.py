"""One trace as calls fill it: its ids so far, what its listener has heard, and how it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from ...errors import BackendError, ContextLengthError, ModelError, PromptError
from ...tokenizer import ChatMessage, Tokenizer
from ..base import GenerationListener, GenerationRequest, GenerationResult
from .dialects import CompletionReply, CompletionRequest
from .errors import TransientError
from .probe import ServerInfo


class UpstreamGeneration:
    """Ids grow by what the server gives. Those of a reply that cannot be gone on from are told only when it is whole.

    `eos` stands for the end that a server does not tell the id of (`end_of_turn`).
    `log_chance` is the log of the chance of all its tokens, or a bound above it; None: not known.
    """

    def __init__(
        self, request: GenerationRequest, listener: GenerationListener, tokenizer: Tokenizer, eos: int
    ) -> None:
        self.request, self.listener, self.tokenizer, self._eos = request, listener, tokenizer, eos
        self.ids = list(request.generated_ids)
        self.log_chance: float | None = None if self.ids else 0.0
        self._started = False

    @property
    def finish_reason(self) -> Literal["eos", "max_tokens"] | None:
        """Why the trace is over, or None; the model's own end goes before the budget's."""
        if self.ids and self.ids[-1] in self.tokenizer.eos_ids:
            return "eos"
        return "max_tokens" if len(self.ids) >= self.request.max_tokens else None

    def started(self) -> None:
        """Tell the listener, once."""
        if not self._started:
            self._started = True
            self.listener.started()

    def note(self, message: str) -> None:
        """Have the listener record a warning."""
        self.listener.warning(message)

    def ask(self, identity: ServerInfo, sends_seed: bool) -> CompletionRequest:
        """The next call: the whole trace, or what is still missing of it."""
        request, dialect = self.request, identity.dialect
        if self.ids and dialect.prompt_as != "ids":
            raise BackendError(f"{identity.name} cannot go on from generated tokens; the trace starts again.")
        text = request.prompt_text or self.tokenizer.render_chat(list(request.messages), request.enable_thinking)
        left = request.max_tokens - len(self.ids)
        return CompletionRequest(
            model=identity.model,
            prompt_ids=(*request.prompt_token_ids, *self.ids),
            prompt_text=text.removeprefix(identity.own_bos),
            messages=request.messages,
            enable_thinking=request.enable_thinking,
            max_tokens=left if dialect.segment is None else min(left, dialect.segment),
            sampling=request.sampling,
            seed=continuation_seed(request.seed, len(self.ids)) if sends_seed else None,
            eos_ids=tuple(sorted(self.tokenizer.eos_ids)),
        )

    def take(self, ids: Sequence[int]) -> None:
        """Further ids, in order; what stands behind an EOS or the budget is dropped."""
        start = len(self.ids)
        for token in ids:
            if self.finish_reason is not None:
                break
            self.ids.append(token)
        if len(self.ids) > start:
            self.listener.tokens(self.ids[start:])

    def end(self, reply: CompletionReply, ask: CompletionRequest, identity: ServerInfo) -> None:
        """The call is over: take what a text says, and see why it ended."""
        if identity.dialect.prompt_as == "text" and reply.prompt_tokens not in (None, len(ask.prompt_ids)):
            self.note(
                f"{identity.name} read the prompt's text as {reply.prompt_tokens} tokens, where the trail has "
                f"{len(ask.prompt_ids)}: it tokenises by itself"
            )
        if not identity.dialect.gives_ids:
            self.take(self._ids_of(reply, identity))
        elif reply.generated_tokens not in (None, len(reply.ids)):
            raise BackendError(
                f"{identity.name} generated {reply.generated_tokens} tokens and told the ids of {len(reply.ids)}."
            )
        if self.log_chance is not None:
            self.log_chance = None if reply.log_chance is None else self.log_chance + reply.log_chance
        if reply.finish == "stop" and self.finish_reason is None:
            self.take([self._eos])  # a server that keeps it to itself
        elif reply.truncated and self.finish_reason is None:
            raise ContextLengthError(
                f"{identity.name} cut trace {self.request.trace_id} after {len(self.ids)} tokens: its context is full; "
                "lower thinking_tokens, tail_tokens or final_tokens, or start it with a longer one."
            )
        elif identity.dialect.gives_ids and len(reply.ids) < ask.max_tokens and self.finish_reason is None:
            raise TransientError(f"{identity.name} ended the trace after {len(reply.ids)} of {ask.max_tokens} tokens")

    def result(self) -> GenerationResult:
        return GenerationResult(tuple(self.ids), self.finish_reason or "max_tokens")

    def _ids_of(self, reply: CompletionReply, identity: ServerInfo) -> list[int]:
        """The tokenizer's ids of a text; a reasoning that the server split off ends with the mark of that."""
        content = self._content_ids(reply)
        if not reply.reasoning:
            return content
        marks = self.tokenizer.end_of_thinking
        if not marks:
            raise ModelError(
                f"{identity.name} splits the reasoning off, but the tokenizer knows no end of thinking; give the "
                "model's own (--tokenizer)."
            )
        reasoning = self.tokenizer.encode(reply.reasoning)
        over = reply.content or reply.finish == "stop"
        return [*reasoning, *marks[0], *content] if over else reasoning

    def _content_ids(self, reply: CompletionReply) -> list[int]:
        """Ids piece by piece, which are those that were sampled; of the whole where the pieces do not add up to it."""
        whole = self.tokenizer.encode(reply.content)
        ids = [token for piece in reply.pieces if piece for token in self.tokenizer.encode(piece)]
        return ids if self.tokenizer.decode(ids) == self.tokenizer.decode(whole) else whole


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The EOS id that ends a turn in the model's chats; the smallest where the template shows none."""
    chat = [ChatMessage(role=role, content="a") for role in ("user", "assistant", "user")]
    try:
        ids = tokenizer.encode(tokenizer.render_chat(chat, True))
    except PromptError:
        ids = []
    return next((token for token in reversed(ids) if token in tokenizer.eos_ids), min(tokenizer.eos_ids))


def continuation_seed(seed: int, position: int) -> int:
    """The seed of a call that goes on at `position`: the trace's own at 0, else a hash of both, below 2^31.

    With its own seed again, a continuation would draw the same random numbers as the trace's beginning did.
    """
    if position == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}|{position}".encode()).digest()[:4], "big") >> 1

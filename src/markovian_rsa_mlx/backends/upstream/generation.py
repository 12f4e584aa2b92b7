"""One trace of an upstream engine: its ids, its next request, and its end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ...confidence import Confidence, ConfidenceMeter
from ...errors import BackendError, ContextLengthError, ModelError, PromptError
from ...json_strict import is_valid_utf8, replace_surrogates
from ...marks import ThinkingMarks, begins_in_thinking
from ...redact import has_secrets, holds_secret
from ...tokenizer import ChatMessage, Tokenizer, encode_text, reserve_marks
from ..base import GenerationListener, GenerationRequest
from .dialects import CompletionReply, CompletionRequest
from .errors import TransientError
from .probe import ServerInfo

#: Tokens in which a secret may have begun before the last part of a reply.
_SECRET_TOKENS = 200


class UpstreamGeneration:
    """Collect the ids of one trace from one reply or several.

    The ids of a reply that another call cannot continue are added when it is complete. `eos` is the id to add for a
    server that ends a trace without its EOS id (`end_of_turn`). `log_chance` is the log of the probability of all its
    tokens, or of those after closing ids, or an upper bound of it, or None if unknown. `chances` has it by the ids that
    come before, and the ids themselves.
    """

    def __init__(
        self, request: GenerationRequest, listener: GenerationListener, *, tokenizer: Tokenizer, eos: int
    ) -> None:
        self.request, self.listener, self.tokenizer, self._eos = request, listener, tokenizer, eos
        self.ids = list(request.generated_ids)
        self.log_chance: float | None = None if self.ids else 0.0
        self.chances: dict[tuple[tuple[int, ...], tuple[int, ...]], float | None] = {}
        self._confidence: ConfidenceMeter | None = None if self.ids else ConfidenceMeter()
        self._drawn_from = 0  # the first id that `log_chance` covers
        self.started = False
        self._watch = request.answer_schema.watch() if request.answer_schema is not None else None
        self._bound_from: int | None = None  # the number of ids before the call that binds the answer
        self._has_answer_text = False
        for token in self.ids:
            self._watch_answer(token)

    @property
    def finish_reason(self) -> Literal["eos", "max_tokens"] | None:
        """The reason why the trace is finished, or None if it is not."""
        if self.ids and self.ids[-1] in self.tokenizer.eos_ids:
            return "eos"
        return "max_tokens" if len(self.ids) >= self.request.max_tokens else None

    @property
    def must_close_thinking(self) -> bool:
        """Whether the closing ids come next: the thinking is still open at its limit."""
        limit = self.request.thinking_limit
        at_limit = limit is not None and len(self.ids) == limit.position and self.finish_reason is None
        return at_limit and limit is not None and limit.is_open(self.ids)

    @property
    def must_interrupt(self) -> bool:
        """Whether the reply under way is left here, because the next call differs from it."""
        return self.must_close_thinking or self.must_bind_answer

    @property
    def must_bind_answer(self) -> bool:
        """Whether the answer begins, and the call under way does not bind it to its schema."""
        begun = self._watch is not None and self._watch.begun and self._bound_from is None
        return begun and self.finish_reason is None

    def next_request(self, info: ServerInfo) -> CompletionRequest:
        """Return the request for the whole trace, or for the missing part of it, after closing ids if they come next.

        Raises `BackendError` if the server cannot continue a trace.
        """
        request, dialect = self.request, info.dialect
        if self.must_close_thinking:
            self._close_thinking()
        if self.ids and dialect.prompt_format != "ids":
            raise BackendError(f"{info.name} cannot continue after generated tokens; the trace starts again.")
        schema = self._schema_of_next_call(info)
        seed = request.seed if info.seeded else None
        if seed is not None and self.ids:
            # With the trace's own seed, a continuation would repeat the random numbers of its beginning.
            digest = hashlib.sha256(f"{seed}|{len(self.ids)}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big") >> 1
        text = request.prompt_text or self.tokenizer.render_chat(list(request.messages), request.enable_thinking)
        left = request.max_tokens - len(self.ids)
        limit = request.thinking_limit
        if limit is not None and len(self.ids) < limit.position and not dialect.streams:
            left = limit.position - len(self.ids)  # a stream is left at the limit
        return CompletionRequest(
            model=info.model,
            prompt_ids=(*request.prompt_token_ids, *self.ids),
            prompt_text=text.removeprefix(info.own_bos),
            messages=request.messages,
            enable_thinking=request.enable_thinking,
            max_tokens=left if dialect.chunk_tokens is None or schema else min(left, dialect.chunk_tokens),
            sampling=request.sampling,
            seed=seed,
            eos_ids=tuple(sorted(self.tokenizer.eos_ids)),
            schema=schema,
            tools=request.tools if dialect.prompt_format == "chat" else None,
        )

    def _schema_of_next_call(self, info: ServerInfo) -> Mapping[str, Any] | None:
        """Return the schema if the answer begins with the next call, or if the server finds its beginning.

        Raise `BackendError` if a bound answer has begun: the server would begin its grammar again.
        """
        if self._watch is None or self.request.answer_schema is None:
            return None
        if info.dialect.prompt_format != "ids":
            self._bound_from = 0
            return self.request.answer_schema.schema
        if not self._watch.begun:
            return None
        if self._bound_from is None:
            self._bound_from = len(self.ids)
        if self._has_answer_text or len(self.ids) > self._bound_from:
            raise BackendError(f"{info.name} cannot continue within an answer in JSON; the trace starts again.")
        return self.request.answer_schema.schema

    def append(self, ids: Sequence[int]) -> None:
        """Add ids up to the first EOS, to `max_tokens` or to the limit of the thinking, and report them.

        Raises `BackendError` for an id that is not the tokenizer's, and for a text that repeats a secret of the user,
        which would be recorded.
        """
        start, size = len(self.ids), getattr(self.tokenizer, "vocabulary_size", None)
        if size is not None and (beyond := max(ids, default=0)) >= size:
            raise BackendError(f"The server sent the token id {beyond:,}, and the tokenizer has {size:,} tokens.")
        if has_secrets() and holds_secret(self.tokenizer.decode([*self.ids[-_SECRET_TOKENS:], *ids])):
            raise BackendError("The server's reply repeats the upstream key or another secret; it is not recorded.")
        for token in ids:
            if self.finish_reason is not None or self.must_interrupt:
                break
            self._add(token)
        if len(self.ids) > start:
            self.listener.tokens(self.ids[start:])

    def _add(self, token: int) -> None:
        self.ids.append(token)
        self._watch_answer(token)

    def _watch_answer(self, token: int) -> None:
        if self._watch is not None and not self._has_answer_text:
            self._has_answer_text = bool(self._watch.add(token).strip())

    def _close_thinking(self) -> None:
        limit = self.request.thinking_limit
        assert limit is not None
        self.note_chance()
        for token in limit.closing_ids:
            self._add(token)
        self.log_chance, self._drawn_from = 0.0, len(self.ids)
        self.listener.thinking_closed(limit.closing_ids)

    def note_chance(self) -> None:
        """Add the ids that `log_chance` covers to `chances`."""
        before = (*self.request.prompt_token_ids, *self.ids[: self._drawn_from])
        self.chances[before, tuple(self.ids[self._drawn_from :])] = self.log_chance

    def leave_reply(self) -> None:
        """Note that the reply under way is left, and its log-probabilities with it."""
        self.log_chance = self._confidence = None

    def finish_call(self, reply: CompletionReply, call: CompletionRequest, info: ServerInfo) -> None:
        """Add the ids of a text reply and the end of the trace. Check that no ids are missing."""
        if info.dialect.prompt_format == "text" and reply.prompt_tokens not in (None, len(call.prompt_ids)):
            self.listener.warning(
                f"{info.name} read the text of the prompt as {reply.prompt_tokens:,} tokens, and the audit file "
                f"records {len(call.prompt_ids):,}, because the server tokenizes texts by itself"
            )
        if not info.dialect.returns_token_ids:
            reply.write_calls()
            self.append(self._encode_reply(reply, info))
        elif reply.generated_tokens not in (None, len(reply.ids)):
            raise BackendError(
                f"{info.name} generated {reply.generated_tokens} tokens and returned the ids of {len(reply.ids)}."
            )
        if self.log_chance is not None:
            self.log_chance = None if reply.log_chance is None else self.log_chance + reply.log_chance
        self._note_confidence(reply.logprobs)
        if self.finish_reason is not None:
            return
        if reply.finish == "stop":
            self.append([self._eos])
        elif reply.truncated:
            raise ContextLengthError(
                f"{info.name} truncated trace {self.request.trace_id} after {len(self.ids):,} tokens because its "
                "context is full; lower thinking_tokens, tail_tokens or final_tokens, or start it with a longer one."
            )
        elif info.dialect.returns_token_ids and len(reply.ids) < call.max_tokens:
            raise TransientError(f"{info.name} ended the trace after {len(reply.ids):,} of {call.max_tokens:,} tokens")

    @property
    def confidence(self) -> Confidence | None:
        """The confidence of the drawn ids, if the server sent the log-probability of each."""
        meter = self._confidence if self.request.wants_confidence else None
        # The server may have ended the trace without its EOS id.
        return meter.result if meter is not None and len(self.ids) - meter.count in (0, 1) else None

    def _note_confidence(self, logprobs: Sequence[float] | None) -> None:
        if self._confidence is None or logprobs is None:
            self._confidence = None
            return
        for logprob in logprobs:
            self._confidence.add(logprob)

    def _encode_reply(self, reply: CompletionReply, info: ServerInfo) -> list[int]:
        """Return the tokenizer's ids of a text reply, with the marks of thinking around a separate reasoning."""
        # A piece of a stream is a token, so encoding the pieces gives the sampled ids. If these do not make the same
        # text, because a piece was part of a character or of a mark, encode the whole.
        marks = self.tokenizer.find_marks(self.request.thinking_marks)
        tokenizer = reserve_marks(self.tokenizer, marks)
        pieces = reply.pieces if all(map(is_valid_utf8, reply.pieces)) else [reply.content]
        tokens = marks.tokens if marks is not None and not reply.reasoning else {}
        end = marks.end if marks is not None and not marks.channels else ""
        content = _encode_marked(tokenizer, pieces, tokens, end)
        whole = _encode_marked(tokenizer, [reply.content], tokens, end)
        counts = [sum(token in tokens.values() for token in ids) for ids in (content, whole)]
        if counts[0] != counts[1] or tokenizer.decode(content) != tokenizer.decode(whole):
            content = whole
        if marks is None:
            if not reply.reasoning:
                return content
            raise ModelError(
                f"{info.name} returns the reasoning separately, and the tokenizer has no end-of-thinking mark; name "
                "the model's own tokenizer (--tokenizer)."
            )
        closing = tokenizer.encode(marks.closing if marks.channels else marks.end)
        if not reply.reasoning:
            is_answer = info.dialect.prompt_format == "chat" and self._is_answer(reply, marks)
            return [*closing, *content] if is_answer else content
        # Without the begin mark, the reasoning would be read as the answer.
        ids = [] if self._begins_in_thinking(marks) else tokenizer.encode(marks.begin)
        ids += encode_text(tokenizer, replace_surrogates(reply.reasoning))
        if not reply.content and reply.finish != "stop":
            return ids  # the thinking is not over
        return [*ids, *closing, *content]

    def _is_answer(self, reply: CompletionReply, marks: ThinkingMarks) -> bool:
        """Return True if a chat's whole reply without reasoning is an answer, and would be read as thinking.

        A server that separates the reasoning writes no marks, also where the model did not think.
        """
        written = reply.finish == "stop" and bool(reply.content.strip())
        has_marks = marks.begin in reply.content or marks.end in reply.content
        return written and not has_marks and self._begins_in_thinking(marks)

    def _begins_in_thinking(self, marks: ThinkingMarks) -> bool:
        """Return True if a reply without marks is thinking."""
        prompt, content = self.request.prompt_text, self.request.messages[-1]["content"].strip()
        shown = prompt
        for mark in (marks.begin, marks.end):  # a question like "hi" is not that part of <think>
            shown = shown.replace(mark, "\0" * len(mark))
        end = shown.rfind(content) + len(content) if content and content in shown else 0
        return begins_in_thinking(marks, prompt[end:], thinking=self.request.enable_thinking)


def _encode_marked(tokenizer: Tokenizer, pieces: Sequence[str], tokens: Mapping[str, int], end: str) -> list[int]:
    """Return the ids of a reply's text, in which marks of thinking become tokens up to the first `end`, if any."""
    pattern = re.compile("(" + ("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)") + ")")
    ids: list[int] = []
    for piece in pieces:
        parts = pattern.split(piece) if tokens else [piece]
        for index, part in enumerate(parts):
            if index % 2 and tokens:
                ids.append(tokens[part])
                if part == end:
                    ids += encode_text(tokenizer, "".join(parts[index + 1 :]))
                    tokens = {}
                    break
            elif part:
                ids += encode_text(tokenizer, part)
    return ids


def end_of_turn(tokenizer: Tokenizer) -> int:
    """Return the EOS id that ends a turn in the model's chats, or the smallest one if the template has none."""
    chat = [ChatMessage(role=role, content="a") for role in ("user", "assistant", "user")]
    try:
        ids = tokenizer.encode(tokenizer.render_chat(chat, True))
    except PromptError:
        ids = []
    return next((token for token in reversed(ids) if token in tokenizer.eos_ids), min(tokenizer.eos_ids))

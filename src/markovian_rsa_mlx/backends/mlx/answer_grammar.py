"""Exclude the ids that may not follow in a row whose answer has a schema."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..base import AnswerSchema

if TYPE_CHECKING:
    from llguidance import LLMatcher

#: Limit on the tokens of white space between the thinking and the answer.
_MAX_BLANKS = 2


class AnswerGrammar:
    """The grammar of one generation. Before the answer, every id is allowed but the EOS.

    `matcher` is a new one of llguidance, and `call_matcher` that of a tool call after its mark (None: any text may
    follow). `reserved` are ids that an answer may not have. `count` is the number of ids that the grammar has read.
    `error` is the reason why the generation cannot continue, or "".
    """

    def __init__(
        self,
        schema: AnswerSchema,
        matcher: LLMatcher | None,
        *,
        call_matcher: LLMatcher | None = None,
        encode: Callable[[str], list[int]],
        eos_ids: Collection[int],
        reserved: Collection[int],
    ) -> None:
        self._schema, self._first, self._encode = schema, matcher, encode
        self._call, self._first_of_call = schema.call, call_matcher
        blanks = [encode(text) for text in (" ", "\n", "\n\n")]
        self._blank_ids = frozenset(ids[0] for ids in blanks if len(ids) == 1)
        self._eos_ids, self._barred = sorted(eos_ids), sorted({*reserved} - {*eos_ids})
        self.restart(())

    def restart(self, ids: Iterable[int]) -> None:
        """Begin again after these ids of the trace."""
        self._matcher, self._watch = self._first and self._first.deep_copy(), self._schema.watch()
        self.count, self.error, self._in_answer, self._blanks = 0, "", False, 0
        self._call_at = 0  # the number of ids of the mark of a call
        for token in ids:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Read the next id of the trace."""
        self.count += 1
        if self._in_answer:
            self._consume([token])
            return
        if self._watch.begun and token == self._next_of_call:
            self._watch.add(token)
            self._call_at += 1
            if self._next_of_call is None:
                self._in_answer, self._matcher = True, self._first_of_call and self._first_of_call.deep_copy()
            return
        was_begun = self._watch.begun
        text = self._watch.add(token).lstrip()
        if text or token in self._eos_ids:
            self._in_answer = True
            self._consume([token] if was_begun else self._encode(text))
        elif was_begun:
            self._blanks += 1

    @property
    def _next_of_call(self) -> int | None:
        """The next id of the mark that begins a call, None if there is no more."""
        ids = self._call.begin_ids if self._call is not None else ()
        return ids[self._call_at] if self._call_at < len(ids) else None

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Return which of the first `size` ids may come next. After an error, all of them."""
        if self.error or not (self._in_answer or self._watch.begun):
            mask = np.ones(size, dtype=np.bool_)
            mask[_below(self._eos_ids, size)] = bool(self.error)
            return mask
        mask = np.zeros(size, dtype=np.bool_)
        if self._call_at and not self._in_answer and self._next_of_call is not None:
            mask[self._next_of_call] = True
            return mask
        if self._in_answer and self._matcher is None:
            return ~mask
        if self._matcher is not None and not (self._call and self._call.required and not self._in_answer):
            self._allow_next(mask)
        if not self._in_answer:
            before = self._watch.alternatives | (self._blank_ids if self._blanks < _MAX_BLANKS else frozenset())
            mask[_below(before, size)] = True
            mask[_below([] if self._next_of_call is None else [self._next_of_call], size)] = True
        if not mask.any():
            self._fail()
            mask[:] = True
        return mask

    def _allow_next(self, mask: NDArray[np.bool_]) -> None:
        """Allow the ids that the grammar allows."""
        assert self._matcher is not None
        size = len(mask)
        found = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[:size] > 0
        mask[: len(found)] = found
        mask[_below(self._barred, size)] = False

    def _consume(self, ids: list[int]) -> None:
        if not self.error and self._matcher is not None and not self._matcher.consume_tokens(ids):
            self._fail()

    def _fail(self) -> None:
        reason = (self._matcher.get_error() or self._matcher.stop_reason()) if self._matcher else "no id is allowed"
        self.error = f"The answer left its JSON Schema, or it became too complex to follow ({reason[:200]})."


def _below(ids: Iterable[int], size: int) -> list[int]:
    return [token for token in ids if token < size]

"""Log-probabilities in the forms of OpenAI: which tokens belong to a text, and how they are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..audit.events import RunSetupEvent
from ..backends.base import AnswerWatch, TokenLogProbs
from ..config import RSAConfig
from ..method.tails import AnswerStart, TraceParser
from ..tokenizer import Tokenizer, Vocabulary
from .schemas import ChoiceLogProbs, LikelyToken, TextLogProbs, TokenLogProb

#: The values of all ids, by trace.
TraceValues = Mapping[str, Sequence[TokenLogProbs]]
#: The value for minus infinity, which JSON lacks.
_MIN_LOGPROB = -9_999.0


class AnswerLogProbs:
    """Finds the values of the tokens of an answer, as far as the answer was given out.

    `new_watch` makes what finds the beginning of the answer. If `trimmed`, white space in front of it has no values.
    """

    def __init__(self, new_watch: Callable[[], AnswerWatch], *, trimmed: bool = True) -> None:
        self._new_watch, self._trimmed = new_watch, trimmed
        self._values: Sequence[TokenLogProbs] = ()
        self._begin(())

    @classmethod
    def of_text(cls, tokenizer: Tokenizer, *, trimmed: bool = True) -> AnswerLogProbs:
        """Return what finds them in a text that is an answer from its first token on."""
        return cls(partial(AnswerStart, None, tokenizer.decode, suffix="", thinking=False), trimmed=trimmed)

    @classmethod
    def of_run(cls, setup: RunSetupEvent, tokenizer: Tokenizer, config: RSAConfig) -> AnswerLogProbs:
        """Return what finds them in a trace of a run."""
        parser = TraceParser(setup, tokenizer.decode)
        return cls(lambda: parser.answer_start(thinking=config.enable_thinking))

    def take(self, values: Sequence[TokenLogProbs], characters: int) -> list[tuple[TokenLogProbs, int]]:
        """Return the values of the tokens that begin within so many characters, and were not returned before.

        `values` are those of all ids of the trace so far, a list that grows; another list is that of a new attempt.
        """
        if values is not self._values:
            self._begin(values)
        for value in values[self._read :]:
            self._add(value)
        found = []
        while self._waiting and self._waiting[0][1] < characters:
            found.append(self._waiting.popleft())
        return found

    def _begin(self, values: Sequence[TokenLogProbs]) -> None:
        self._values, self._watch = values, self._new_watch()
        self._waiting: deque[tuple[TokenLogProbs, int]] = deque()  # with the place of the token's first character
        self._read = self._length = 0  # values, and characters of the answer

    def _add(self, value: TokenLogProbs) -> None:
        was_begun = self._watch.begun
        text = self._watch.add(value.token)
        self._read += 1
        if self._trimmed and not self._length:
            text = text.lstrip()
            was_begun = was_begun and bool(text)
        if was_begun:
            self._waiting.append((value, self._length))
        self._length += len(text)


def chat_logprobs(tokenizer: Tokenizer, values: Sequence[tuple[TokenLogProbs, int]]) -> ChoiceLogProbs:
    """Write values as a chat has them."""
    spell = speller(tokenizer)

    def likely(token: int, logprob: float) -> LikelyToken:
        text = spell(token)
        known = None if "\ufffd" in text else list(text.encode())
        return LikelyToken(token=text, logprob=max(logprob, _MIN_LOGPROB), bytes=known)

    content = []
    for value, _ in values:
        own = likely(value.token, value.logprob)
        top = [likely(*pair) for pair in value.top]
        content.append(TokenLogProb(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChoiceLogProbs(content=content, refusal=None)


def text_logprobs(tokenizer: Tokenizer, values: Sequence[tuple[TokenLogProbs, int]]) -> TextLogProbs:
    """Write values as the completion of a text has them. Each token is among the likeliest of its place."""
    spell = speller(tokenizer)
    return TextLogProbs(
        tokens=[spell(value.token) for value, _ in values],
        token_logprobs=[max(value.logprob, _MIN_LOGPROB) for value, _ in values],
        top_logprobs=[
            {spell(token): max(logprob, _MIN_LOGPROB) for token, logprob in (*value.top, (value.token, value.logprob))}
            for value, _ in values
        ],
        text_offset=[place for _, place in values],
    )


def speller(tokenizer: Tokenizer) -> Callable[[int], str]:
    """Return what gives the text of one token, special ones included."""
    decode = tokenizer.decode_all if isinstance(tokenizer, Vocabulary) else tokenizer.decode
    return lambda token: decode([token])

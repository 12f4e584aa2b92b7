"""Fake engines: a character tokenizer and a backend whose model is a Python function."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from markovian_rsa_mlx.backends.base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult
from markovian_rsa_mlx.confidence import Confidence
from markovian_rsa_mlx.config import Sampling
from markovian_rsa_mlx.errors import SchemaError
from markovian_rsa_mlx.marks import ThinkingMarks, find_marks
from markovian_rsa_mlx.tokenizer import ChatMessage

EOS, USER, ASSISTANT, SYSTEM, THINK_END = 0, 1, 2, 3, 4
_NAMES = {USER: "<user>", ASSISTANT: "<assistant>", SYSTEM: "<system>", THINK_END: "</think>"}
FIRST_CHARACTER = 10


class CharacterTokenizer:
    """One token a character, and a few special ones. `thinking` False: a model without markers."""

    def __init__(self, thinking: bool = True) -> None:
        self.thinking = thinking

    @property
    def end_of_thinking(self) -> tuple[tuple[int, ...], ...]:
        return ((THINK_END,),) if self.thinking else ()

    @property
    def closing_ids(self) -> tuple[int, ...]:
        marks = self.find_marks()
        return tuple(self.encode(marks.closing)) if marks else ()

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        return find_marks("" if self.end_of_thinking == () else "<think></think>", self.reserved.get, named)

    template = ""

    @property
    def reserved(self) -> dict[str, int]:
        return {name: token for token, name in _NAMES.items() if self.encode(name) == [token]}

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset({EOS})

    @property
    def control_ids(self) -> frozenset[int]:
        return frozenset({EOS, USER, ASSISTANT, SYSTEM})

    def encode(self, text: str) -> list[int]:
        ids, rest = [], text
        while rest:
            for token, name in _NAMES.items():
                if rest.startswith(name):
                    ids.append(token)
                    rest = rest[len(name) :]
                    break
            else:
                ids.append(ord(rest[0]) + FIRST_CHARACTER)
                rest = rest[1:]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(
            "</think>" if i == THINK_END else chr(i - FIRST_CHARACTER) if i >= FIRST_CHARACTER else "" for i in ids
        )

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        turns = "".join(f"<{m['role']}>{m['content']}\n" for m in messages)
        return turns + ("<assistant>" if enable_thinking else "<assistant>-")


class WithEOS(CharacterTokenizer):
    """Accepts its EOS as text, as real tokenizers do."""

    def encode(self, text: str) -> list[int]:
        first, *rest = (super(WithEOS, self).encode(part) for part in text.split("<eos>"))
        return [*first, *(token for part in rest for token in (EOS, *part))]


class ByteTokenizer(CharacterTokenizer):
    """One token a byte, as a byte-level tokenizer falls back to; the end of thinking is eight tokens long."""

    MARKER = "</think>"

    @property
    def end_of_thinking(self) -> tuple[tuple[int, ...], ...]:
        return (tuple(self.encode(self.MARKER)),)

    def encode(self, text: str) -> list[int]:
        return [byte + FIRST_CHARACTER for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - FIRST_CHARACTER for i in ids if i >= FIRST_CHARACTER).decode(errors="replace")


Model = Callable[[GenerationRequest, random.Random], str]


def boxed(answer: object, reasoning: str = "so it goes") -> str:
    """A finished trace as a fake model writes it."""
    return f"{reasoning} {answer}</think>\\boxed{{{answer}}}"


def guesser(request: GenerationRequest, rng: random.Random) -> str:
    """A model that is uncertain: any of a million answers, after some thinking."""
    return boxed(rng.randrange(10**6), "think " * rng.randrange(1, 6))


@dataclass
class FakeEngine:
    """An engine whose random stream is a function of the seed; one token a step, `chunk` tokens a callback.

    `model` writes the trace's text from the request and `random.Random(request.seed)`; the result is cut at
    `max_tokens`. `fail` may raise for a request. `rows` records how many traces ran at once. `stats` is what the model
    counted. `unusable` is the reason against every JSON Schema.
    """

    model: Model = guesser
    tokenizer: CharacterTokenizer = field(default_factory=CharacterTokenizer)
    fail: Callable[[GenerationRequest], None] | None = None
    context_length: int | None = None
    chunk: int = 16
    requests: list[GenerationRequest] = field(default_factory=list)
    running: int = 0
    rows: int = 0
    on_step: Callable[[GenerationRequest, int], None] | None = None
    stats: dict[str, Any] | None = None
    closes_thinking: bool | None = True
    kv_bits: int | None = None
    binds_answers: bool = False
    unusable: str = ""
    name: str = "fake"

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            "fake", "none", self.name, "1", "none", self.context_length, None, None,
            closes_thinking=self.closes_thinking, kv_bits=self.kv_bits, binds_answers=self.binds_answers,
        )  # fmt: skip

    def check_schema(self, schema: Mapping[str, Any]) -> None:
        if self.unusable:
            raise SchemaError(f"response_schema cannot be used: {self.unusable}.")

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        self.requests.append(request)
        self.running += 1
        self.rows = max(self.rows, self.running)
        try:
            listener.started()
            ids = [*self.tokenizer.encode(self.model(request, random.Random(request.seed))), EOS]
            closing, limit = range(0), request.thinking_limit
            if limit is not None and len(ids) > limit.position and limit.is_open(ids[: limit.position]):
                closing = range(limit.position, limit.position + len(limit.closing_ids))
                answer = ids[ids.index(THINK_END) + 1 :] if THINK_END in ids else ids[limit.position :]
                ids = [*ids[: limit.position], *limit.closing_ids, *answer]
            ids = ids[: request.max_tokens]
            start = len(request.generated_ids)
            while start < len(ids):
                await asyncio.sleep(0)
                if self.on_step is not None:
                    self.on_step(request, start)
                if self.fail is not None:
                    self.fail(request)
                end = min(start + self.chunk, len(ids))
                if start in closing:
                    end = closing.stop
                    listener.thinking_closed(ids[start:end])
                else:
                    end = min(end, closing.start) if start < closing.start else end
                    listener.tokens(ids[start:end])
                start = end
            return GenerationResult(tuple(ids), "eos" if ids[-1] == EOS else "max_tokens")
        finally:
            self.running -= 1

    async def log_probability(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
    ) -> float | None:
        return None

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        pass

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        return rows * longest

    def peak_memory_bytes(self) -> int:
        return 1

    async def model_stats(self) -> dict[str, Any] | None:
        return self.stats

    def reset_peak_memory(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


FakeBackend = FakeEngine  #: the former name


@dataclass
class SureEngine(FakeEngine):
    """A fake engine that reports the confidence of a trace, if it is asked for: a function of its request and ids."""

    sureness: Callable[[GenerationRequest, Sequence[int]], Confidence | None] = lambda request, ids: None

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        result = await super().generate(request, listener)
        found = self.sureness(request, result.token_ids) if request.wants_confidence else None
        return replace(result, confidence=found)

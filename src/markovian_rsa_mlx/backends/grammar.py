"""Compile JSON Schemas to grammars over a tokenizer's tokens, with llguidance.

A schema comes from a client, and compiling it can take any time and memory. So each new schema is first compiled in a
worker process, which is ended at a limit, and only one that passed is compiled here.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import SchemaError
from ..formatting import shortened
from ..subprocess_worker import Worker, claim_stdout, limit_memory, serve
from .schema_rewrites import rewrite_schema

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .tokenizers import MLXTokenizer

#: Seconds to compile a schema and to find its first tokens.
COMPILE_LIMIT_S = 1.0
#: Bytes of memory that a worker may use for it, in addition to the tokenizer.
_WORKER_MEMORY = 512 * 2**20
T = TypeVar("T")
_MAX_COMPILED = 32
#: States of a grammar's lexer, of about 2 kB. A generation that needs more of them fails.
_MAX_LEXER_STATES = 50_000
#: White space between two parts of an answer: a space, or a line break and an indent. Weak models would not end it.
_WHITE_SPACE = r"[ ]?|\n[ \t]{0,16}"
#: They are also those that a schema could set by `x-guidance`.
_OPTIONS: dict[str, Any] = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITE_SPACE,
    "coerce_one_of": False,
    "lenient": False,
}


class GrammarCompiler:
    """The grammars of one tokenizer. Thread-safe. Close it to end its worker process."""

    def __init__(self, tokenizer: MLXTokenizer) -> None:
        self._source = tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._worker: Worker | None = None
        self._usable_calls: OrderedDict[str, dict[str, Any] | None] = OrderedDict()
        self._lock = threading.RLock()

    def matcher(self, schema: Mapping[str, Any]) -> LLMatcher:
        """Return a new matcher for the schema, within seconds. Raise `SchemaError` if it cannot be used."""
        if find_spec("llguidance") is None:
            raise SchemaError("response_schema needs llguidance. Install the package with its extra serve.")
        text = json.dumps(schema)
        with self._lock:
            if text not in self._compiled:
                self._check(text)
                if self._tokenizer is None:
                    self._tokenizer = _tokenizer(_definition(self._source))
                try:
                    self._compiled[text] = _compile(self._tokenizer, text)
                except ValueError as error:
                    raise _unusable(str(error)) from error
            return _latest(self._compiled, text).deep_copy()

    def call_matcher(self, schemas: Sequence[Mapping[str, Any]]) -> LLMatcher | None:
        """Return a new matcher for the calls that `CallGrammar.schemas` allow, None if none of them can be used."""
        key = json.dumps(schemas)
        with self._lock:
            if key not in self._usable_calls:
                forms = list(zip(*(schema.get("anyOf", [schema]) for schema in schemas), strict=True))
                choices = (self._usable_forms(forms), [each[-1] for each in forms])  # the first may be too large
                self._usable_calls[key] = next(({"anyOf": c} for c in choices if self._is_usable({"anyOf": c})), None)
            schema = _latest(self._usable_calls, key)
        return None if schema is None else self.matcher(schema)

    def _usable_forms(self, alternatives: Sequence[tuple[Mapping[str, Any], ...]]) -> list[Mapping[str, Any]]:
        """Return the first form of each alternative that can be used. Those that have none are left out."""
        first = [forms[0] for forms in alternatives if forms]
        if not first or self._is_usable({"anyOf": first}):
            return first
        if len(alternatives) == 1:
            return self._usable_forms([alternatives[0][1:]])
        half = len(alternatives) // 2
        return [*self._usable_forms(alternatives[:half]), *self._usable_forms(alternatives[half:])]

    def _is_usable(self, schema: Mapping[str, Any]) -> bool:
        try:
            self.matcher(schema)
        except SchemaError:
            return False
        return True

    def close(self) -> None:
        """End the worker process."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()

    def _check(self, text: str) -> None:
        """Compile the schema in the worker process. Raise `SchemaError` for what it reports, and if it fails."""
        definition = _definition(self._source)
        try:
            if self._worker is None or not self._worker.is_open:
                self._worker = Worker(__name__)
                self._worker.ask(definition.encode(), limit_s=60.0)
            reason = json.loads(self._worker.ask(json.dumps(text).encode(), COMPILE_LIMIT_S))
        except BaseException as error:
            if self._worker is not None:
                self._worker.close()
            if not isinstance(error, OSError):
                raise
            slow = isinstance(error, TimeoutError)
            reason = f"it takes more than {COMPILE_LIMIT_S:g} s to compile" if slow else "it is too large to compile"
        if reason:
            raise _unusable(reason)


def _latest(recent: OrderedDict[str, T], key: str) -> T:
    """Return a value, which becomes the latest of its cache. The oldest one leaves a full cache."""
    recent.move_to_end(key)
    if len(recent) > _MAX_COMPILED:
        recent.popitem(last=False)
    return recent[key]


def _unusable(reason: str) -> SchemaError:
    reason = shortened(" ".join(reason.split()), 300).rstrip(".")
    return SchemaError(f"response_schema cannot be used: {reason}. Simplify the schema.")


def _definition(tokenizer: MLXTokenizer) -> str:
    """Return the tokenizer as one line of JSON."""
    model = tokenizer.fast_tokenizer_json()
    if model is None:
        raise SchemaError(
            "response_schema needs a tokenizer that has a tokenizer.json, and this model's has none. Leave it out."
        )
    model = _without_texts(model, tokenizer.eos_ids.union(tokenizer.control_ids, tokenizer.reserved.values()))
    return json.dumps([model, tokenizer.vocabulary_size, sorted(tokenizer.eos_ids)])


def _without_texts(model: str, ids: Collection[int]) -> str:
    """Return a `tokenizer.json` in which the added tokens of these ids have texts that no schema has.

    llguidance would write a text that a schema prescribes (`"const": "</think>"`) with the token that means it.
    """
    definition = json.loads(model)
    hidden = {
        added["content"]: f"\U0010ffff{added['id']}" for added in definition["added_tokens"] if added["id"] in ids
    }
    for added in definition["added_tokens"]:
        added["content"] = hidden.get(added["content"], added["content"])
    vocabulary = definition["model"].get("vocab")
    if isinstance(vocabulary, dict):
        definition["model"]["vocab"] = {hidden.get(text, text): token for text, token in vocabulary.items()}
    elif isinstance(vocabulary, list):
        definition["model"]["vocab"] = [[hidden.get(text, text), score] for text, score in vocabulary]
    return json.dumps(definition)


def _tokenizer(definition: str) -> LLTokenizer:
    from llguidance import LLTokenizer

    model, size, eos_ids = json.loads(definition)
    return LLTokenizer(model, n_vocab=size, eos_token=eos_ids)


def _compile(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """Raise ValueError with the reason if it cannot be compiled."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    schema = json.dumps(rewrite_schema(json.loads(text)))
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)  # type: ignore[arg-type]
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    first = matcher.deep_copy()
    first.compute_bitmask()
    if first.is_error():
        raise ValueError(first.get_error())
    return matcher


class _Checker:
    """The worker process: reads the tokenizer first, then schemas. Replies with the reason against each, or ""."""

    def __init__(self) -> None:
        self._tokenizer: LLTokenizer | None = None

    def __call__(self, line: bytes) -> bytes:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(line.decode())
            limit_memory(_WORKER_MEMORY)
            return b""
        try:
            _compile(self._tokenizer, json.loads(line))
        except ValueError as error:
            return json.dumps(str(error)).encode()
        return b'""'


if __name__ == "__main__":
    with claim_stdout() as _replies:
        serve(_Checker(), sys.stdin.buffer, _replies)

"""Answers that a JSON Schema binds: the rows of the embedded model, alone and alongside others."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import choose_model
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import AnswerSchema, CallGrammar, GenerationRequest, ThinkingLimit
from markovian_rsa_mlx.backends.mlx import MLXEngine
from markovian_rsa_mlx.backends.mlx.answer_grammar import AnswerGrammar
from markovian_rsa_mlx.config import RSAConfig, Sampling
from markovian_rsa_mlx.errors import BackendError, SchemaError
from markovian_rsa_mlx.marks import ThinkingMarks
from markovian_rsa_mlx.method.tails import AnswerStart
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.tools import GENERIC, Chat, Tools
from tests.backends.traces import run
from tests.support.json_schemas import UNUSABLE

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "minimum": 3, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
THINKING_TOKENS = 12


@pytest.fixture(scope="module")
def embedded() -> Iterator[MLXEngine]:
    engine = MLXEngine.from_pretrained(choose_model(None).source)
    yield engine
    engine.close()


def request(
    engine: MLXEngine,
    seed: int,
    *,
    bound: bool = True,
    thinking: bool = True,
    max_tokens: int = 120,
    schema: dict[str, Any] = SCHEMA,
    **values: Any,
) -> GenerationRequest:
    tokenizer = engine.tokenizer
    text = tokenizer.render_chat([{"role": "user", "content": "Tell me."}], thinking)
    marks, end = tokenizer.find_marks(), tokenizer.encode("</think>")[0]

    def watch() -> AnswerStart:
        return AnswerStart(marks, tokenizer.decode, suffix=text, thinking=thinking)

    limit = ThinkingLimit(THINKING_TOKENS, tokenizer.closing_ids, lambda ids: end not in ids) if thinking else None
    return GenerationRequest(
        f"r0-{seed:02d}",
        (),
        tuple(tokenizer.encode(text)),
        max_tokens,
        seed,
        values.pop("sampling", Sampling()),
        answer_schema=AnswerSchema(schema, watch) if bound else None,
        thinking_limit=limit,
        **values,
    )


def answer(engine: MLXEngine, ids: tuple[int, ...]) -> str:
    return engine.tokenizer.decode(ids).rpartition("</think>")[2].strip()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.0), Sampling(0.7, 0.9, 20, 0.05)])
@pytest.mark.parametrize("thinking", [True, False])
def test_finished_answer_fits_the_schema(embedded: MLXEngine, thinking: bool, sampling: Sampling) -> None:
    requests = [request(embedded, seed, thinking=thinking, sampling=sampling) for seed in range(1, 5)]
    rows = run(embedded, requests)
    finished = [ids for ids in rows if ids[-1] in embedded.tokenizer.eos_ids]
    assert len(finished) >= 3
    for ids in finished:
        value = json.loads(answer(embedded, ids))
        assert set(value) == {"name", "n"}
        assert 3 <= value["n"] <= 99
        assert len(value["name"]) <= 6


def test_other_rows_of_the_batch_keep_their_tokens(embedded: MLXEngine) -> None:
    plain = run(embedded, [request(embedded, seed, bound=False) for seed in range(1, 7)])
    mixed = run(embedded, [request(embedded, seed, bound=seed % 2 == 0) for seed in range(1, 7)])
    assert [mixed[i] for i in (0, 2, 4)] == [plain[i] for i in (0, 2, 4)]
    assert all(mixed[i] != plain[i] for i in (1, 3, 5))


def test_a_bound_row_is_the_same_alone(embedded: MLXEngine) -> None:
    alongside = run(embedded, [request(embedded, 1), request(embedded, 2, bound=False), request(embedded, 3)])
    assert run(embedded, [request(embedded, 3)]) == [alongside[2]]


def test_the_thinking_is_free(embedded: MLXEngine) -> None:
    (plain,) = run(embedded, [request(embedded, 1, bound=False)])
    (bound,) = run(embedded, [request(embedded, 1)])
    assert bound[:THINKING_TOKENS] == plain[:THINKING_TOKENS]


@pytest.mark.parametrize("done", [1, THINKING_TOKENS, THINKING_TOKENS + 2, 25, 30])
def test_a_resumed_row_goes_on_within_its_answer(embedded: MLXEngine, done: int) -> None:
    (whole,) = run(embedded, [request(embedded, 4)])
    assert len(whole) > done
    assert run(embedded, [request(embedded, 4, generated_ids=whole[:done])]) == [whole]


def test_answer_that_does_not_fit_the_budget_is_cut_off(embedded: MLXEngine) -> None:
    (ids,) = run(embedded, [request(embedded, 5, max_tokens=THINKING_TOKENS + 6)])
    assert len(ids) == THINKING_TOKENS + 6
    assert answer(embedded, ids).startswith("{")


def test_marks_are_no_part_of_an_answer(embedded: MLXEngine) -> None:
    schema = {"type": "string", "pattern": "^(<think>|<)x$"}
    for seed in range(1, 4):
        (ids,) = run(embedded, [request(embedded, seed, thinking=False, schema=schema)])
        assert not {*embedded.tokenizer.encode("<think>")} & {*ids}


@pytest.mark.parametrize(
    ("schema", "refused", "accepted"),
    [
        ({"type": "number", "exclusiveMinimum": 7, "maximum": 7.5}, ["7", "7.0", "6"], ["7.5", "7.25"]),
        ({"type": "number", "minimum": -7.5, "exclusiveMaximum": -7}, ["-7", "-7.00"], ["-7.5", "-7.1"]),
        ({"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.5}]}, ["0", "0.0"], ["0.5"]),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9}, ["0", "9"], ["1", "8"]),
        ({"type": "string", "pattern": '^[^"]*$'}, [r'"\""', r'"a\"b"'], [r'"a\\b"', r'"a\nb"']),
        ({"type": "string", "pattern": r"^[^\\]+$"}, [r'"\\"'], [r'"\""']),
        ({"type": "string", "pattern": r"^\P{P}$"}, [r'"\""'], ['"a"']),
        (
            {"type": "object", "patternProperties": {'^[^"]$': {}}, "additionalProperties": False},
            [r'{"\"":1}'],
            ['{"a":1}'],
        ),
    ],
)
def test_grammar_accepts_only_what_the_schema_allows(
    embedded: MLXEngine, schema: dict[str, Any], refused: list[str], accepted: list[str]
) -> None:
    def accepts(text: str) -> bool:
        matcher = embedded._grammars.matcher(schema)
        return bool(matcher.consume_tokens(embedded.tokenizer.encode(text)) and matcher.is_accepting())

    assert [text for text in refused if accepts(text)] == []
    assert [text for text in accepted if not accepts(text)] == []


@pytest.mark.parametrize("text", ["</think>", "<think>", "<|end|>", "<|user|>"])
def test_prescribed_text_of_a_mark_is_ordinary_text(embedded: MLXEngine, text: str) -> None:
    schema = {"type": "object", "properties": {text: {"const": f"a{text}"}}, "required": [text]}
    schema |= {"additionalProperties": False}
    (ids,) = run(embedded, [request(embedded, 1, thinking=False, schema=schema, max_tokens=200)])
    assert ids[-1] in embedded.tokenizer.eos_ids
    assert not {*ids[:-1]} & {*embedded.tokenizer.reserved.values()}
    assert json.loads(embedded.tokenizer.decode(ids)) == {text: f"a{text}"}


def test_a_row_whose_answer_left_the_schema_fails_alone(embedded: MLXEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = AnswerGrammar.accept

    def failing(self: AnswerGrammar, token: int) -> None:
        accept(self, token)
        if self.count == 20:
            self.error = "It became too complex."

    plain = run(embedded, [request(embedded, 2, bound=False)])
    monkeypatch.setattr(AnswerGrammar, "accept", failing)
    with pytest.raises(BackendError, match="too complex"):
        run(embedded, [request(embedded, 1)])
    assert run(embedded, [request(embedded, 2, bound=False)]) == plain


def test_unusable_schema_is_refused_with_its_reason(embedded: MLXEngine) -> None:
    with pytest.raises(SchemaError, match="Unimplemented"):
        embedded.check_schema(UNUSABLE[0])
    with pytest.raises(SchemaError):
        run(embedded, [request(embedded, 1, schema=UNUSABLE[0])])


HARMONY = ThinkingMarks("<|channel|>analysis<|message|>", "<|end|>", channels=True, tokens={
    "<|channel|>": 1, "<|message|>": 2, "<|end|>": 3, "<|start|>": 4,
})  # fmt: skip
OPTIONAL = ThinkingMarks("<think>", "</think>", tokens={"<think>": 1, "</think>": 2}, expected=False)
PLAIN = ThinkingMarks("<thought>", "</thought>")


def decode(ids: Any) -> str:
    return "".join(chr(token) for token in ids)


def begun(marks: ThinkingMarks | None, pieces: list[int | str], *, thinking: bool = True) -> list[int]:
    """The numbers of ids after which the answer begins with the next one."""
    watch = AnswerStart(marks, decode, suffix="", thinking=thinking)
    found, ids = [0] if watch.begun else [], list[int]()
    for piece in pieces:
        for token in [piece] if isinstance(piece, int) else map(ord, piece):
            ids.append(token)
            watch.add(token)
            if watch.begun:
                found.append(len(ids))
    return found


def test_answer_begins_after_the_thinking() -> None:
    assert begun(None, ["ab"]) == [0, 1, 2]
    assert begun(PLAIN, ["x</thought>"]) == [11]
    assert begun(dataclasses.replace(OPTIONAL, expected=True), ["ab", 2, "c"]) == [3, 4]
    assert begun(OPTIONAL, [1, "ab", 2]) == [0, 4]
    assert begun(OPTIONAL, [], thinking=False) == [0]
    assert begun(HARMONY, [1, "analysis", 2, "ab", 3, 4, "assistant", 1, "final", 2]) == [0, 30]


def test_a_thinking_may_begin_in_the_place_of_the_answer() -> None:
    def alternatives(marks: ThinkingMarks, thinking: bool) -> frozenset[int]:
        return AnswerStart(marks, decode, suffix="", thinking=thinking).alternatives

    assert alternatives(OPTIONAL, True) == alternatives(HARMONY, True) == {1}
    assert alternatives(OPTIONAL, False) == alternatives(PLAIN, True) == frozenset()


def calling(engine: MLXEngine, seed: int, call: CallGrammar, schema: dict[str, Any] | None = None) -> GenerationRequest:
    made = request(engine, seed, max_tokens=160)
    assert made.answer_schema is not None
    return dataclasses.replace(made, answer_schema=AnswerSchema(schema, made.answer_schema.watch, call))


def call_schema(name: str) -> dict[str, Any]:
    properties = {"name": {"const": name}, "arguments": SCHEMA}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.mark.parametrize("schema", [None, SCHEMA], ids=["alone", "with a schema"])
def test_required_call_is_a_call_with_valid_arguments(embedded: MLXEngine, schema: dict[str, Any] | None) -> None:
    begin = tuple(embedded.tokenizer.encode("<tool_call>"))
    # The first schema cannot be used.
    call = CallGrammar(begin, ({"type": "object", "$ref": "#/$defs/x"}, call_schema("weather")), required=True)
    rows = run(embedded, [calling(embedded, seed, call, schema) for seed in range(1, 5)])
    finished = [ids for ids in rows if ids[-1] in embedded.tokenizer.eos_ids]
    assert len(finished) >= 3
    tools = Tools(({"type": "function", "function": {"name": "weather"}},), GENERIC)
    for ids in finished:
        text, (found,) = tools.split(answer(embedded, ids), finished=True)
        assert (text, found.name) == ("", "weather")
        assert 3 <= json.loads(found.arguments)["n"] <= 99


def test_calls_are_bound_to_parameters_with_references(embedded: MLXEngine) -> None:
    number = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"], "additionalProperties": False}
    by_name = {"type": "object", "properties": {"a": {"$ref": "#/$defs/N"}}, "required": ["a"], "$defs": {"N": number}}
    of_itself = number | {"properties": {"n": {"const": 2}, "next": {"$ref": "#"}}}
    parameters = {"save": by_name, "walk": of_itself}
    tools = Tools(
        tuple({"type": "function", "function": {"name": name, "parameters": p}} for name, p in parameters.items()),
        GENERIC,
    )
    matcher = embedded._grammars.matcher(tools.call_schemas()[0])
    for name, arguments, is_valid in (
        ("save", {"a": {"n": 1}}, True),
        ("save", {"a": {"n": 2}}, False),
        ("walk", {"n": 2, "next": {"n": 2}}, True),
        ("walk", {"n": 2, "next": {"n": 1}}, False),
    ):
        text = json.dumps({"name": name, "arguments": arguments})
        ids = embedded.tokenizer.encode(text)
        assert (matcher.deep_copy().try_consume_tokens(ids) == len(ids)) is is_valid, text


def test_a_tool_that_cannot_be_bound_leaves_the_others_bound(embedded: MLXEngine) -> None:
    one = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"], "additionalProperties": False}
    parameters = {"a": one, "b": one, "free": {"not": {}}, "c": one, "d": one}
    tools = Tools(
        tuple({"type": "function", "function": {"name": name, "parameters": p}} for name, p in parameters.items()),
        GENERIC,
    )
    matcher = embedded._grammars.call_matcher(tools.call_schemas())
    assert matcher is not None
    for name in parameters:
        for n in (1, 2):
            text = json.dumps({"name": name, "arguments": {"n": n}})
            ids = embedded.tokenizer.encode(text)
            assert (matcher.deep_copy().try_consume_tokens(ids) == len(ids)) is (n == 1 or name == "free"), text
    assert embedded._grammars.call_matcher([{"not": {}}]) is None


def test_answer_with_a_schema_may_be_a_call_instead(embedded: MLXEngine) -> None:
    tokenizer, begin = embedded.tokenizer, tuple(embedded.tokenizer.encode("<tool_call>"))
    call = CallGrammar(begin, (call_schema("weather"),))
    bound = calling(embedded, 1, call, SCHEMA)
    grammar = asyncio.run(embedded._grammar(bound))
    assert grammar is not None
    size = tokenizer.vocabulary_size
    for text in ('{"name": "a", "n": 3}', '<tool_call>{"name": "weather", "arguments": {"name": "a", "n": 3}}'):
        grammar.restart(tokenizer.encode("so</think>"))
        for token in tokenizer.encode(text):
            assert grammar.allowed(size)[token], text
            assert not grammar.allowed(size)[[*tokenizer.eos_ids]].any()
            grammar.accept(token)
        assert grammar.allowed(size)[[*tokenizer.eos_ids]].any()
    grammar.restart(tokenizer.encode("so</think>"))
    assert not grammar.allowed(size)[tokenizer.encode("t")].any()


def test_run_with_a_required_tool_calls_it(embedded: MLXEngine, tmp_path: Path) -> None:
    tools = ({"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},)
    chat = Chat(({"role": "user", "content": "Tell me."},), tools, tool_choice="required")
    orchestrator = MarkovianRSAOrchestrator(embedded, shared=True)
    config = RSAConfig(
        rounds=1, population=2, thinking_tokens=8, tail_tokens=4, final_tokens=160, answer_tokens=140, seed=3
    )
    result = orchestrator.run(chat, config, audit_path=tmp_path / "run.jsonl")
    assert [call.name for call in result.tool_calls] == ["weather"]
    assert set(json.loads(result.tool_calls[0].arguments)) == {"name", "n"}
    verify_file(tmp_path / "run.jsonl", codec=embedded.tokenizer)

"""`response_format` over the embedded model: answers fit the schema, and unusable schemas are refused in time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import jsonschema
import pytest

from tests.serve.conftest import Running, Serve
from tests.support.fakes import FakeEngine
from tests.support.json_schemas import UNUSABLE, random_schema

CHAT = [{"role": "user", "content": "Tell me."}]
#: Seconds until an unusable schema is refused, on a busy machine.
LIMIT_S = 5.0
RUN = {"rsa_t": 1, "rsa_n": 2, "rsa_k": 2, "rsa_final_n": 2, "rsa_selection": "majority"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def check_schemas(server: Running, seeds: range, **keys: Any) -> float:
    """Ask for an answer to each schema. Return the share of the answers that finished, all of which must fit."""

    def ask(seed: int) -> httpx2.Response:
        body = {"messages": CHAT, "response_format": json_schema(random_schema(seed)), "seed": seed, **keys}
        return server.post(**body, max_tokens=120, answer_tokens=60)

    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(ask, seeds))
    finished = 0
    for seed, reply in zip(seeds, replies, strict=True):
        schema = random_schema(seed)
        assert reply.status_code == 200, (seed, schema, reply.text)
        for choice in reply.json()["choices"]:
            if choice["finish_reason"] == "stop":
                finished += 1
                value = json.loads(choice["message"]["content"])
                jsonschema.Draft202012Validator(schema).validate(value)
    return finished / len(seeds)


def test_finished_answers_fit_their_schema(embedded: Running) -> None:
    assert check_schemas(embedded, range(10), reasoning_effort="none") > 0.5
    assert check_schemas(embedded, range(10, 15)) > 0.5
    assert check_schemas(embedded, range(15, 20), **RUN) > 0.5


@pytest.mark.slow  # 400 answers
def test_many_answers_fit_their_schema(embedded: Running) -> None:
    assert check_schemas(embedded, range(100, 300)) > 0.7
    assert check_schemas(embedded, range(300, 500), **RUN) > 1.0  # several choices


def test_unusable_schemas_are_refused_in_time(embedded: Running) -> None:
    assert len(UNUSABLE) == 50
    for schema in UNUSABLE:
        start = time.monotonic()
        reply = embedded.post(messages=CHAT, response_format=json_schema(schema))
        assert time.monotonic() - start < LIMIT_S, schema
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["param"]) == (400, "invalid_schema", "response_format"), schema
        assert error["message"].startswith("response_format ")
    assert embedded.post(messages=CHAT, response_format=json_schema(SCHEMA), max_tokens=8).status_code == 200


def test_stream_is_the_same_answer(embedded: Running) -> None:
    keys = {"messages": CHAT, "response_format": {"type": "json_object"}, "seed": 3, "reasoning_effort": "none"}
    whole = embedded.post(**keys).json()["choices"][0]
    reply = embedded.post(**keys, stream=True)
    chunks = [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == whole["message"]["content"]
    if whole["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("form", [{"structured_outputs": {"json": SCHEMA}}, {"response_format": json_schema(SCHEMA)}])
def test_texts_are_bound_from_their_first_token(embedded: Running, form: dict[str, Any]) -> None:
    reply = embedded.post("/v1/completions", prompt="1 + 1 =", max_tokens=80, seed=1, **form)
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["text"]), SCHEMA)


def test_engine_without_grammars_is_named(serve: Serve) -> None:
    server = serve(FakeEngine())
    reply = server.post(messages=CHAT, response_format={"type": "json_object"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
    assert "fake cannot bind" in reply.json()["error"]["message"]
    for path, keys in (("/v1/chat/completions", {"messages": CHAT}), ("/v1/completions", {"prompt": "x"})):
        reply = server.post(path, **keys, structured_outputs={"json": SCHEMA})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "structured_outputs.json")
        assert "(structured_outputs.json)" in error["message"]
        assert "response_format" not in error["message"]
    assert server.post("/v1/completions", prompt="x", structured_outputs={"regex": "a"}).status_code == 400
    assert server.post(messages=CHAT, response_format={"type": "text"}).status_code == 200

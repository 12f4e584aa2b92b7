"""The tokenizer of vLLM's server, scripted over a real byte-level tokenizer."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from markovian_rsa_mlx.audit import RunSetupEvent, TraceCompleteEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import UpstreamEngine
from markovian_rsa_mlx.backends.upstream.config import TimeLimits, Upstream
from markovian_rsa_mlx.backends.upstream.tokenizers import choose_tokenizer
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.backends.upstream.vllm_tokenizer import VLLMTokenizer
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.tokenizer import ChatMessage, encode_text, reserve_marks

from ...support.runs import of
from ..raw_server import Answer, raw_server, stream
from ..upstreams import connect, solve, with_timeout

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|odd_name|>", "[|user|]", "[|end|]", "]~b]"]
ADDED = ["<think>", "</think>"]
NAMED = ["«hm»", "«/hm»"]
NOT_FOUND = Answer(404, {"error": {"message": "no such route"}})
_calls = itertools.count()


def byte_level() -> Tokenizer:
    """Return a byte-level tokenizer with a few merges, and with special and other added tokens."""
    vocabulary = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [
        ("<", "|"),
        ("|", ">"),
        ("i", "m"),
        ("e", "n"),
        ("en", "d"),
        ("Ġ", "t"),
        ("h", "i"),
        ("n", "k"),
        ("<", "/"),
    ]
    for one, other in merges:
        vocabulary[one + other] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.add_tokens([AddedToken(mark, normalized=False) for mark in [*ADDED, *NAMED]])
    return made


REAL = byte_level()


def ids_of(text: str) -> list[int]:
    return list(REAL.encode(text, add_special_tokens=False).ids)


def rendered(body: dict[str, Any]) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"])
    thinks = body["chat_template_kwargs"]["enable_thinking"]
    return f"{turns}<|im_start|>assistant\n" + ("<think>\n" if thinks else "")


def vllm(path: str, body: Any) -> Answer:
    """Answer as vLLM does, as far as the tokenizer and completions from token ids need it."""
    if path == "/version":
        return Answer(200, {"version": "0.32.0"})
    if path == "/tokenize":
        ids = ids_of(body["prompt"] if "prompt" in body else rendered(body))
        strings = [REAL.id_to_token(token) for token in ids]
        return Answer(200, {"count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": strings})
    if path == "/detokenize":
        return Answer(200, {"prompt": REAL.decode(body["tokens"], skip_special_tokens=False)})
    if "logit_bias" in (body or {}):
        ends = body["logit_bias"] == {str(REAL.token_to_id("<|im_end|>")): 100.0}
        return Answer(200, {"choices": [{"text": "", "finish_reason": "stop" if ends else "length"}]})
    if path == "/v1/completions" and isinstance(body["prompt"], list):
        text = f"hm {next(_calls)} four 你 <|im_end|> done</think>\\boxed{{4}}"
        ids = [*REAL.encode(text.replace("<|im_end|>", "<|im"), add_special_tokens=False).ids, ids_of("<|im_end|>")[0]]
        whole, ids = ids, ids[: body["max_tokens"]]
        choices = [{"index": 0, "text": "", "token_ids": [token], "finish_reason": None} for token in ids]
        choices[-1]["finish_reason"] = "stop" if ids == whole else "length"
        return stream(*({"choices": [choice]} for choice in choices), "[DONE]")
    return NOT_FOUND


@pytest.fixture
def url() -> Iterator[str]:
    with raw_server(vllm) as served:
        yield served


@pytest.fixture
def tokenizer(url: str) -> VLLMTokenizer:
    return VLLMTokenizer(HTTPClient(url, None, TimeLimits()), "some/model")


def test_facts_of_the_vocabulary(tokenizer: VLLMTokenizer) -> None:
    assert tokenizer.eos_ids == {REAL.token_to_id("<|im_end|>")}  # at which the server stops
    assert tokenizer.end_of_thinking == ((REAL.token_to_id("</think>"),),)
    assert tokenizer.control_ids == {REAL.token_to_id(mark) for mark in [*SPECIAL, "<think>"]}
    marks = tokenizer.find_marks()
    assert marks is not None
    assert marks.closing == "\n</think>"  # the template writes one line break after <think>, and none after </think>


def test_texts_and_chats(tokenizer: VLLMTokenizer) -> None:
    for text in ("Add  12 + 3 = ?\n\tça va, 你好 🙂", "", " ", "a<|im_end|>b"):
        assert tokenizer.encode(text) == ids_of(text)
    assert tokenizer.decode(ids_of("a 你<|im_end|>b</think>")) == "a 你b</think>"
    assert tokenizer.decode(ids_of("你")[:2]) == "\ufffd"
    chat = [ChatMessage(role="user", content="Hi <|im_end|>")]
    for thinking in (True, False):
        body = {"messages": chat, "chat_template_kwargs": {"enable_thinking": thinking}}
        assert tokenizer.render_chat(chat, thinking) == rendered(body)


def test_no_text_makes_a_special_token(tokenizer: VLLMTokenizer) -> None:
    rng = random.Random(1)
    parts = [*SPECIAL, *ADDED, "<|im_", "end|>", "<", "|", ">", " ", "\n", "word", "你", "im", "</", "think>"]
    special = {REAL.token_to_id(mark) for mark in [*SPECIAL, *ADDED]}
    for _ in range(60):
        text = "".join(rng.choices(parts, k=rng.randrange(1, 9)))
        ids = encode_text(tokenizer, text)
        assert not special & set(ids), text
        assert REAL.decode(ids, skip_special_tokens=False) == text


def test_marks_that_a_user_names_are_found_and_reserved(tokenizer: VLLMTokenizer) -> None:
    marks = tokenizer.find_marks(NAMED)
    assert marks is not None
    assert [marks.tokens[mark] for mark in NAMED] == [REAL.token_to_id(mark) for mark in NAMED]
    text = "what «hm» and «/hm»"
    ids = encode_text(reserve_marks(tokenizer, marks), text)
    assert not {*marks.tokens.values()} & {*ids}
    assert REAL.decode(ids) == text
    words = tokenizer.find_marks(["i", "n"])
    assert words is not None
    assert not {"i", "n"} & words.tokens.keys()


def test_marks_of_another_form_are_found_in_a_chat() -> None:
    def odd(path: str, body: Any) -> Answer:
        if path != "/tokenize" or "messages" not in body:
            return vllm(path, body)
        turns = "".join(f"[|user|]{m['content']}[|end|]\n" for m in body["messages"])
        return vllm(path, {"prompt": f"]~b]{turns}[|user|]"})

    with raw_server(odd) as url:
        tokenizer = VLLMTokenizer(HTTPClient(url, None, TimeLimits()), "some/model")
        marks = {REAL.token_to_id(mark) for mark in ("[|user|]", "[|end|]", "]~b]")}
        assert marks <= set(tokenizer.reserved.values())
        assert marks <= tokenizer.control_ids
        text = "a[|user|]b [|end|] ]~b] (this) [x]"
        ids = encode_text(tokenizer, text)
        assert not marks & set(ids)
        assert REAL.decode(ids) == text


def test_ordinary_text_keeps_its_usual_tokens(tokenizer: VLLMTokenizer) -> None:
    for text in ("the thing", "if a <b and c> d: [x] </", "你好 🙂", "a <| b |> c"):
        assert encode_text(tokenizer, text) == ids_of(text)


def test_run_without_a_named_tokenizer_has_the_ids_of_the_server(url: str, tmp_path: Path) -> None:
    async def run() -> Any:
        engine = await connect(url)
        assert isinstance(engine.tokenizer, VLLMTokenizer)
        return await solve(engine, tmp_path / "run.jsonl"), engine

    result, engine = asyncio.run(with_timeout(run()))
    assert result.answer == "4"
    setup = of(result.events, RunSetupEvent)[0]
    assert setup.prompt_token_ids == ids_of(setup.prompt_text)
    assert setup.engine == "upstream/vLLM"
    for trace in of(result.events, TraceCompleteEvent):
        assert "你 <|im done" in trace.text
    verify_file(tmp_path / "run.jsonl", codec=engine.tokenizer)


def test_local_tokenizer_must_be_the_servers(url: str, tmp_path: Path) -> None:
    from markovian_rsa_mlx import reasoner

    other = str(reasoner.model_path())
    client = HTTPClient(url, None, TimeLimits())
    with pytest.raises(ModelError, match="other tokens"):
        choose_tokenizer(Upstream((url,), tokenizer=other), "some model", client=client, props={})
    chosen = choose_tokenizer(Upstream((url,)), "some model", client=client, props={}, sources=[other, "/no/folder"])
    assert isinstance(chosen, VLLMTokenizer)


@pytest.mark.parametrize("change", [{"token_strs": None}, {"tokens": ["1"]}, {"tokens": None}])
def test_endpoint_of_another_kind_is_not_used(change: dict[str, Any]) -> None:
    def reply(path: str, body: Any) -> Answer:
        answer = vllm(path, body)
        return Answer(200, answer.body | change) if path == "/tokenize" else answer

    with raw_server(reply) as url, pytest.raises(ModelError, match="--tokenizer"):
        asyncio.run(UpstreamEngine.connect(Upstream((url,))))

"""The choice of a tokenizer, and the tokenizer of llama.cpp's server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.tokenizers import MLXTokenizer
from markovian_rsa_mlx.backends.upstream import tokenizers
from markovian_rsa_mlx.backends.upstream.config import TimeLimits, Upstream
from markovian_rsa_mlx.backends.upstream.errors import WrongTokenizer
from markovian_rsa_mlx.backends.upstream.tokenizers import (
    GGUFTokenizer,
    RemoteTokenizer,
    choose_tokenizer,
    local_tokenizer,
)
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.errors import ModelError, UpstreamError
from markovian_rsa_mlx.tokenizer import ChatMessage, TextPart, encode_parts, encode_text, reserve_marks

from ...support.fakes import (
    ASSISTANT,
    EOS,
    FIRST_CHARACTER,
    SYSTEM,
    THINK_END,
    USER,
    ByteTokenizer,
    WithEOS,
)
from ...support.smollm2 import write_vocabulary
from ..fake_upstream import FakeUpstream, Running, free_port
from ..upstreams import TIMES, TOKENIZER, RecordingListener, connect, solve, trace_request, until, with_timeout

#: The chat template. Like real tokenizers, the fake one accepts its EOS as text, too.
TEMPLATE = "<system> <user> <assistant> </think>"


#: A restart may take longer than the timeouts of the engine's tests.
TOKENIZER_TIMES = TimeLimits(unreachable_timeout_s=3.0)


@pytest.fixture
def server() -> Iterator[Running]:
    props = {"chat_template": TEMPLATE, "eos_token": "<eos>", "bos_token": ""}
    running = Running(FakeUpstream("llama.cpp", tokenizer=WithEOS(), extra_props=props))
    yield running
    running.stop()


#: A second server of the same kind.
second = server


def remote_tokenizer(server: Running) -> RemoteTokenizer:
    return RemoteTokenizer(HTTPClient(server.url, None, TOKENIZER_TIMES), server.fake.model, server.fake.extra_props)


def test_tokenizer_of_a_server_that_routes_between_models(
    server: Running, second: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call names the model."""
    server.fake.routes = True
    client = HTTPClient(server.url, None, TOKENIZER_TIMES)
    tokenizer, expected = remote_tokenizer(server), remote_tokenizer(second)
    chat = [ChatMessage(role="user", content="What is it?")]
    assert tokenizer.eos_ids == expected.eos_ids
    assert tokenizer.reserved == expected.reserved
    assert tokenizer.render_chat(chat, True) == expected.render_chat(chat, True)
    assert tokenizer.decode(tokenizer.encode("ça va?")) == "ça va?"
    asyncio.run(tokenizer.prefetch(client, [FIRST_CHARACTER + 5_000], {}))
    for local, fits in ((WithEOS(), True), (ByteTokenizer(), False)):
        monkeypatch.setattr(tokenizers, "local_tokenizer", lambda _, local=local: local)
        upstream = Upstream((server.url,), tokenizer="folder")
        with contextlib.nullcontext() if fits else pytest.raises(WrongTokenizer):
            choose_tokenizer(upstream, server.fake.model, client=client, props={"role": "router"})


def test_remote_tokenizer_agrees_with_the_server(server: Running) -> None:
    tokenizer = remote_tokenizer(server)
    assert tokenizer.eos_ids == {EOS}
    assert tokenizer.end_of_thinking == ((THINK_END,),)
    assert tokenizer.control_ids == {EOS, USER, ASSISTANT, SYSTEM}
    text = "<user>Add 12 + 3 = ?\n\tça va, 你好 🙂</think>"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == TOKENIZER.decode(TOKENIZER.encode(text))
    chat = [ChatMessage(role="user", content="Hi")]
    for thinking in (True, False):
        assert tokenizer.render_chat(chat, thinking) == TOKENIZER.render_chat(chat, thinking)


ODD_MARKS = {"[|user|]": 1_001, "[|assistant|]": 1_002, "[|end|]": 1_003, "]~b]": 1_004, "<|fim_middle|>": 1_005}
#: Tokens that llama.cpp makes of any text, since their model does not flag them as special.
ADDED = {"</think>": 1_010, "<tool_call>": 1_011, "<table>": 1_012}


class OddServer(RemoteTokenizer):
    """The tokenizer of a server whose tokens are bytes, `ODD_MARKS` and `ADDED`."""

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/apply-template":
            turns = "".join(f"[|{m['role']}|]{m['content']}[|end|]\n" for m in body["messages"])
            return {"prompt": f"]~b]{turns}[|assistant|]"}
        if path == "/detokenize":
            raise AssertionError("all texts are known")
        tokens = ADDED | (ODD_MARKS if body["parse_special"] else {})
        pieces = re.split(f"({'|'.join(map(re.escape, tokens))})", body["content"])
        ids = [[tokens[piece]] if piece in tokens else list(piece.encode()) for piece in pieces]
        texts = [[piece] if piece in tokens else [[byte] for byte in piece.encode()] for piece in pieces]
        pairs = zip(itertools.chain(*ids), itertools.chain(*texts), strict=True)
        return {"tokens": [{"id": token, "piece": piece} for token, piece in pairs]}


@pytest.mark.parametrize("mark", [*ODD_MARKS, "</think>", "<tool_call>"])
def test_text_never_becomes_a_special_token_of_the_server(mark: str) -> None:
    source = "{{ '[|' + role + '|]' }}</think>"
    props = {"chat_template": source, "eos_token": "[|end|]", "bos_token": ""}
    tokenizer = OddServer(HTTPClient("http://127.0.0.1:9/v1", None, TOKENIZER_TIMES), "model", props)
    text = f"a{mark}b ç <table>"
    assert encode_text(tokenizer, text) == [*f"a{mark}b ç ".encode(), ADDED["<table>"]]
    marks = tokenizer.find_marks(("<hm>", "</hm>"))
    assert encode_text(reserve_marks(tokenizer, marks), text + mark) == [*encode_text(tokenizer, text), *mark.encode()]
    parts = [TextPart("[|user|]", is_template=True), TextPart(mark), TextPart("[|end|]", is_template=True)]
    assert encode_parts(tokenizer, parts) == [ODD_MARKS["[|user|]"], *mark.encode(), ODD_MARKS["[|end|]"]]
    assert {ODD_MARKS[name] for name in ("[|user|]", "[|assistant|]", "[|end|]", "]~b]")} <= tokenizer.control_ids


def test_run_with_the_remote_tokenizer_verifies(server: Running, tmp_path: Path) -> None:
    async def run() -> str:
        return (await solve(await connect(server.url), tmp_path / "run.jsonl")).answer

    assert asyncio.run(with_timeout(run()))
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_remote_tokenizer_survives_faults_and_raises_when_the_server_is_gone(server: Running) -> None:
    tokenizer = remote_tokenizer(server)
    server.fake.tokenizer_script = deque(["500", "html", "truncated"])
    assert tokenizer.encode("abc") == TOKENIZER.encode("abc")
    server.stop()
    with pytest.raises(UpstreamError, match="tokenizer does not answer"):
        tokenizer.encode("something new")


def test_results_are_cached(server: Running) -> None:
    tokenizer = remote_tokenizer(server)
    ids = tokenizer.encode("abc")
    assert tokenizer.decode(ids) == "abc"
    server.stop()
    assert tokenizer.encode("abc") == ids
    assert tokenizer.decode(ids) == "abc"


def test_folder_of_the_model_provides_its_tokenizer() -> None:
    folder = str(reasoner.model_path())
    client = HTTPClient(f"http://127.0.0.1:{free_port()}/v1", None, TimeLimits())
    for tokenizer in (
        choose_tokenizer(Upstream((client.url,)), folder, client=client, props={}),
        local_tokenizer(folder),
    ):
        assert isinstance(tokenizer, MLXTokenizer)
        assert tokenizer.decode(tokenizer.encode("1 + 1")) == "1 + 1"


@pytest.mark.parametrize("name", ["some model", "", "x" * 5_000, "a\0b", "/" + "y" * 300, "a/b c", "a/" + "z" * 300])
def test_missing_tokenizer_is_an_error(name: str) -> None:
    client = HTTPClient(f"http://127.0.0.1:{free_port()}/v1", None, TimeLimits())
    with pytest.raises(ModelError, match="--tokenizer"):
        choose_tokenizer(Upstream((client.url,)), name, client=client, props={})


def test_gguf_file_needs_llama_cpp_python(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"llama-cpp-python|cannot be loaded"):
        local_tokenizer(str(tmp_path / "model.gguf"))


def test_gguf_marks_that_are_user_defined_tokens_are_never_made_of_text(tmp_path: Path) -> None:
    """llama.cpp makes such tokens of any text, as those of Qwen3: only what the template writes may be one."""
    pytest.importorskip("llama_cpp")
    write_vocabulary(tmp_path / "model.gguf", ["<think>", "</think>"], "{{ messages[0].content }}<think>\n")
    tokenizer = GGUFTokenizer(tmp_path / "model.gguf")
    begin, end = 49_152, 49_153
    marks = tokenizer.find_marks()
    assert marks is not None
    assert marks.tokens == {"<think>": begin, "</think>": end}
    assert tokenizer.closing_ids[-1] == end
    parts = [TextPart("Write <think> or </think>."), TextPart("<think>", is_template=True)]
    ids = encode_parts(tokenizer, parts)
    assert [token for token in ids if token in (begin, end)] == [begin] == ids[-1:]
    assert tokenizer.decode(ids) == "Write <think> or </think>."


def test_any_server_of_the_group_can_tokenize(server: Running, second: Running) -> None:
    tokenizer = remote_tokenizer(server)
    tokenizer.add_server(second.url.removesuffix("/v1"))
    server.stop()
    start = time.monotonic()
    assert tokenizer.encode("abc") == TOKENIZER.encode("abc")
    assert tokenizer.encode("abcd") == TOKENIZER.encode("abcd")
    assert time.monotonic() - start < 2


def test_restart_of_the_only_server_is_waited_for(server: Running) -> None:
    tokenizer = remote_tokenizer(server)
    server.stop()
    threading.Timer(1.0, server.start).start()
    assert tokenizer.encode("abc") == TOKENIZER.encode("abc")


def test_wait_on_an_event_loop_is_short(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_EVENT_LOOP_TIMEOUT_S", 0.3)
    tokenizer = remote_tokenizer(server)
    server.stop()

    async def encode() -> None:
        tokenizer.encode("something new")

    start = time.monotonic()
    with pytest.raises(UpstreamError):
        asyncio.run(encode())
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("sends_bytes", [True, False])
def test_texts_of_generated_ids_are_fetched_in_advance(server: Running, sends_bytes: bool) -> None:
    """They come from the reply or from asynchronous calls. `decode` never blocks the event loop."""
    server.fake.sends_bytes = sends_bytes

    async def run() -> None:
        engine = await connect(server.url)
        tokenizer = engine.tokenizer
        assert isinstance(tokenizer, RemoteTokenizer)
        result = await engine.generate(trace_request(), RecordingListener())
        before = len(server.fake.tokenizer_calls)
        for end in range(len(result.token_ids) + 1):
            assert tokenizer.decode(result.token_ids[:end]) == TOKENIZER.decode(result.token_ids[:end])
        assert len(server.fake.tokenizer_calls) == before

    asyncio.run(with_timeout(run()))


def test_incomplete_characters_are_decoded_from_their_bytes() -> None:
    props = {"chat_template": TEMPLATE, "eos_token": "", "bos_token": ""}
    running = Running(FakeUpstream("llama.cpp", tokenizer=ByteTokenizer(), extra_props=props))
    tokenizer = remote_tokenizer(running)
    ids = tokenizer.encode("ça 🙂")
    running.stop()
    assert tokenizer.decode(ids) == "ça 🙂"
    assert tokenizer.decode(ids[:-2]) == "ça \ufffd"
    assert tokenizer.decode(ids[1:]) == "\ufffda 🙂"


@pytest.mark.parametrize("dead", [0, 1])
def test_run_survives_the_death_of_the_server_with_the_tokenizer(
    server: Running, second: Running, tmp_path: Path, dead: int
) -> None:
    servers = (server, second)
    for each in servers:
        each.fake.pause = 0.005

    async def run() -> None:
        engine = await connect(*(each.url for each in servers))
        work = asyncio.create_task(solve(engine, tmp_path / "run.jsonl"))
        await until(lambda: servers[dead].fake.active > 0)
        servers[dead].stop()
        await work

    asyncio.run(with_timeout(run()))
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_run_survives_a_restart_of_the_only_server(server: Running, tmp_path: Path) -> None:
    server.fake.pause = 0.005

    async def run() -> None:
        engine = await connect(server.url, times=replace(TIMES, unreachable_timeout_s=10))
        work = asyncio.create_task(solve(engine, tmp_path / "run.jsonl"))
        await until(lambda: server.fake.active > 0)
        server.stop()
        await asyncio.sleep(3)
        server.start()
        await work

    asyncio.run(with_timeout(run(), 30))
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)

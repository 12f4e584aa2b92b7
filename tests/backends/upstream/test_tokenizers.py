"""Which tokenizer is used, and the one that llama.cpp's server lends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.tokenizers import MLXTokenizer
from markovian_rsa_mlx.backends.upstream import tokenizers as served_module
from markovian_rsa_mlx.backends.upstream.config import TimeLimits, Upstream
from markovian_rsa_mlx.backends.upstream.tokenizers import RemoteTokenizer, choose_tokenizer, local_tokenizer
from markovian_rsa_mlx.backends.upstream.transport import HTTPClient
from markovian_rsa_mlx.errors import ModelError, UpstreamError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.tokenizer import ChatMessage

from ...support.fakes import ASSISTANT, EOS, SYSTEM, THINK_END, USER, ByteTokenizer, CharacterTokenizer
from ...support.runs import QUESTION, small
from ..fake_upstream import FakeUpstream, Running, free_port
from ..upstreams import CODEC, TIMES, HeardRetries, asked, connected, in_time

#: The fake server's tokenizer writes its EOS as text too, as real ones do.
TEMPLATE = "<system> <user> <assistant> </think>"


#: A restart may take longer than the engine's tests have patience for.
TIMES_OF_CODEC = TimeLimits(unreachable_timeout_s=3.0)


class WithEOS(CharacterTokenizer):
    def encode(self, text: str) -> list[int]:
        first, *rest = (super(WithEOS, self).encode(part) for part in text.split("<eos>"))
        return [*first, *(token for part in rest for token in (EOS, *part))]


@pytest.fixture
def server() -> Iterator[Running]:
    props = {"chat_template": TEMPLATE, "eos_token": "<eos>", "bos_token": ""}
    running = Running(FakeUpstream("llama.cpp", tokenizer=WithEOS(), more=props))
    yield running
    running.stop()


#: Another one of the same.
second = server


def served(server: Running) -> RemoteTokenizer:
    return RemoteTokenizer(HTTPClient(server.url, None, TIMES_OF_CODEC), server.fake.more, None)


def test_the_served_tokenizer_is_the_servers_own(server: Running) -> None:
    tokenizer = served(server)
    assert tokenizer.eos_ids == {EOS}
    assert tokenizer.end_of_thinking == ((THINK_END,),)
    assert tokenizer.control_ids == {EOS, USER, ASSISTANT, SYSTEM}
    text = "<user>Say 12 + 3 = ?\n\tça va, 你好 🙂</think>"
    assert tokenizer.encode(text) == CODEC.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == CODEC.decode(CODEC.encode(text))
    chat = [ChatMessage(role="user", content="Hi")]
    for thinking in (True, False):
        assert tokenizer.render_chat(chat, thinking) == CODEC.render_chat(chat, thinking)


def test_a_run_with_the_served_tokenizer_is_verified(server: Running, tmp_path: Path) -> None:
    async def run() -> str:
        orchestrator = MarkovianRSAOrchestrator(await connected(server.url), equivalent=equal_text)
        return (await orchestrator.arun(QUESTION, small(), audit_path=tmp_path / "run.jsonl")).answer

    assert asyncio.run(in_time(run()))
    verify_file(tmp_path / "run.jsonl", codec=CODEC)


def test_the_served_tokenizer_outlives_faults_and_says_when_it_is_gone(server: Running) -> None:
    tokenizer = served(server)
    server.fake.helper_script = deque(["500", "html", "truncated"])
    assert tokenizer.encode("abc") == CODEC.encode("abc")
    server.stop()
    with pytest.raises(UpstreamError, match="tokenizer does not answer"):
        tokenizer.encode("something new")


def test_what_was_asked_once_is_remembered(server: Running) -> None:
    tokenizer = served(server)
    ids = tokenizer.encode("abc")
    assert tokenizer.decode(ids) == "abc"
    server.stop()
    assert tokenizer.encode("abc") == ids
    assert tokenizer.decode(ids) == "abc"


def test_a_models_own_folder_is_its_tokenizer() -> None:
    folder = str(reasoner.model_path())
    wire = HTTPClient(f"http://127.0.0.1:{free_port()}/v1", None, TimeLimits())
    for tokenizer in (choose_tokenizer(Upstream((wire.url,)), folder, wire, {}), local_tokenizer(folder)):
        assert isinstance(tokenizer, MLXTokenizer)
        assert tokenizer.decode(tokenizer.encode("1 + 1")) == "1 + 1"


def test_without_a_tokenizer_there_is_no_counting_of_words() -> None:
    wire = HTTPClient(f"http://127.0.0.1:{free_port()}/v1", None, TimeLimits())
    with pytest.raises(ModelError, match="--tokenizer"):
        choose_tokenizer(Upstream((wire.url,)), "some model", wire, {})


def test_a_gguf_file_needs_llama_cpp_python(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"llama-cpp-python|cannot be loaded"):
        local_tokenizer(str(tmp_path / "model.gguf"))


def test_the_tokenizer_of_any_server_of_the_fleet_will_do(server: Running, second: Running) -> None:
    tokenizer = served(server)
    tokenizer.add_server(second.url.removesuffix("/v1"))
    server.stop()
    start = time.monotonic()
    assert tokenizer.encode("abc") == CODEC.encode("abc")
    assert tokenizer.encode("abcd") == CODEC.encode("abcd")
    assert time.monotonic() - start < 2


def test_a_restart_of_the_only_server_is_waited_for(server: Running) -> None:
    tokenizer = served(server)
    server.stop()
    threading.Timer(1.0, server.start).start()
    assert tokenizer.encode("abc") == CODEC.encode("abc")


def test_on_an_event_loop_the_wait_is_short(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_module, "_EVENT_LOOP_TIMEOUT_S", 0.3)
    tokenizer = served(server)
    server.stop()

    async def encode() -> None:
        tokenizer.encode("something new")

    start = time.monotonic()
    with pytest.raises(UpstreamError):
        asyncio.run(encode())
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("spells", [True, False])
def test_the_texts_of_generated_ids_are_known_before_anyone_asks(server: Running, spells: bool) -> None:
    """From the reply, or asked beside the event loop; never while it stands still."""
    server.fake.spells = spells

    async def run() -> None:
        backend = await connected(server.url)
        tokenizer = backend.tokenizer
        assert isinstance(tokenizer, RemoteTokenizer)
        result = await backend.generate(asked(), HeardRetries())
        before = len(server.fake.helpers)
        for end in range(len(result.token_ids) + 1):
            assert tokenizer.decode(result.token_ids[:end]) == CODEC.decode(result.token_ids[:end])
        assert len(server.fake.helpers) == before

    asyncio.run(in_time(run()))


def test_torn_characters_are_known_by_their_bytes() -> None:
    props = {"chat_template": TEMPLATE, "eos_token": "", "bos_token": ""}
    running = Running(FakeUpstream("llama.cpp", tokenizer=ByteTokenizer(), more=props))
    tokenizer = served(running)
    ids = tokenizer.encode("ça 🙂")
    running.stop()
    assert tokenizer.decode(ids) == "ça 🙂"
    assert tokenizer.decode(ids[:-2]) == "ça \ufffd"
    assert tokenizer.decode(ids[1:]) == "\ufffda 🙂"


@pytest.mark.parametrize("dead", [0, 1])
def test_a_run_outlives_the_death_of_the_server_that_lent_the_tokenizer(
    server: Running, second: Running, tmp_path: Path, dead: int
) -> None:
    servers = (server, second)
    for each in servers:
        each.fake.pause = 0.005

    async def run() -> None:
        backend = await connected(*(each.url for each in servers))
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        work = asyncio.create_task(orchestrator.arun(QUESTION, small(), audit_path=tmp_path / "run.jsonl"))
        await asyncio.sleep(0.3)
        servers[dead].stop()
        await work

    asyncio.run(in_time(run()))
    verify_file(tmp_path / "run.jsonl", codec=CODEC)


def test_a_run_outlives_a_restart_of_the_only_server(server: Running, tmp_path: Path) -> None:
    server.fake.pause = 0.005

    async def run() -> None:
        backend = await connected(server.url, times=replace(TIMES, unreachable_timeout_s=10))
        orchestrator = MarkovianRSAOrchestrator(backend, equivalent=equal_text)
        work = asyncio.create_task(orchestrator.arun(QUESTION, small(), audit_path=tmp_path / "run.jsonl"))
        await asyncio.sleep(0.3)
        server.stop()
        await asyncio.sleep(3)
        server.start()
        await work

    asyncio.run(in_time(run(), 30))
    verify_file(tmp_path / "run.jsonl", codec=CODEC)

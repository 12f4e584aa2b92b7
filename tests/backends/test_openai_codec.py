"""Which tokenizer is used, and the one that llama.cpp's server lends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.mlx.codec import MLXCodec
from markovian_rsa_mlx.backends.openai.codec import choose_codec, local_codec
from markovian_rsa_mlx.backends.openai.served import ServedCodec
from markovian_rsa_mlx.backends.openai.settings import TimeLimits, Upstream
from markovian_rsa_mlx.backends.openai.wire import Wire
from markovian_rsa_mlx.errors import ModelError, UpstreamError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.method.codec import ChatMessage
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator

from ..fakes import ASSISTANT, EOS, SYSTEM, THINK_END, USER, CharacterCodec
from ..runs import QUESTION, small
from .fake_upstream import FakeUpstream, Running, free_port
from .upstreams import CODEC, connected, in_time

#: The fake server's tokenizer writes its EOS as text too, as real ones do.
TEMPLATE = "<system> <user> <assistant> </think>"


class WithEOS(CharacterCodec):
    def encode(self, text: str) -> list[int]:
        first, *rest = (super(WithEOS, self).encode(part) for part in text.split("<eos>"))
        return [*first, *(token for part in rest for token in (EOS, *part))]


@pytest.fixture
def server() -> Iterator[Running]:
    props = {"chat_template": TEMPLATE, "eos_token": "<eos>", "bos_token": ""}
    running = Running(FakeUpstream("llama.cpp", codec=WithEOS(), more=props))
    yield running
    running.stop()


def served(server: Running) -> ServedCodec:
    return ServedCodec(Wire(server.url, None, TimeLimits()), server.fake.more, None)


def test_the_served_tokenizer_is_the_servers_own(server: Running) -> None:
    codec = served(server)
    assert codec.eos_ids == {EOS}
    assert codec.end_of_thinking == ((THINK_END,),)
    assert codec.control_ids == {EOS, USER, ASSISTANT, SYSTEM}
    text = "<user>Say 12 + 3 = ?\n\tça va, 你好 🙂</think>"
    assert codec.encode(text) == CODEC.encode(text)
    assert codec.decode(codec.encode(text)) == CODEC.decode(CODEC.encode(text))
    chat = [ChatMessage(role="user", content="Hi")]
    for thinking in (True, False):
        assert codec.render_chat(chat, thinking) == CODEC.render_chat(chat, thinking)


def test_a_run_with_the_served_tokenizer_is_verified(server: Running, tmp_path: Path) -> None:
    async def run() -> str:
        orchestrator = MarkovianRSAOrchestrator(await connected(server.url), equivalent=equal_text)
        return (await orchestrator.arun(QUESTION, small(), audit_path=tmp_path / "run.jsonl")).answer

    assert asyncio.run(in_time(run()))
    verify_file(tmp_path / "run.jsonl", codec=CODEC)


def test_the_served_tokenizer_outlives_faults_and_says_when_it_is_gone(server: Running) -> None:
    codec = served(server)
    server.fake.helper_script = deque(["500", "html", "truncated"])
    assert codec.encode("abc") == CODEC.encode("abc")
    server.stop()
    with pytest.raises(UpstreamError, match="tokenizer cannot be asked"):
        codec.encode("something new")


def test_what_was_asked_once_is_remembered(server: Running) -> None:
    codec = served(server)
    ids = codec.encode("abc")
    assert codec.decode(ids) == "abc"
    server.stop()
    assert codec.encode("abc") == ids
    assert codec.decode(ids) == "abc"


def test_a_models_own_folder_is_its_tokenizer() -> None:
    folder = str(reasoner.model_path())
    wire = Wire(f"http://127.0.0.1:{free_port()}/v1", None, TimeLimits())
    for codec in (choose_codec(Upstream((wire.url,)), folder, wire, {}), local_codec(folder)):
        assert isinstance(codec, MLXCodec)
        assert codec.decode(codec.encode("1 + 1")) == "1 + 1"


def test_without_a_tokenizer_there_is_no_counting_of_words() -> None:
    wire = Wire(f"http://127.0.0.1:{free_port()}/v1", None, TimeLimits())
    with pytest.raises(ModelError, match="--tokenizer"):
        choose_codec(Upstream((wire.url,)), "some model", wire, {})


def test_a_gguf_file_needs_llama_cpp_python(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"llama-cpp-python|cannot be loaded"):
        local_codec(str(tmp_path / "model.gguf"))

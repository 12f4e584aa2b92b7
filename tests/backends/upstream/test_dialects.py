"""Every kind of server: whole runs over it, what it is asked, and that the trail holds the ids that it generated."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import (
    AggregationPromptEvent,
    GenerationStartEvent,
    RunSetupEvent,
    TraceCompleteEvent,
    read_events,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import probe
from markovian_rsa_mlx.backends.upstream.dialects import ChatDialect, CompletionReply, LlamaCppDialect
from markovian_rsa_mlx.backends.upstream.generation import UpstreamGeneration
from markovian_rsa_mlx.backends.upstream.probe import ServerInfo
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator, RunResult

from ...support.fakes import EOS, THINK_END, CharacterTokenizer
from ...support.runs import QUESTION, of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream
from ..traces import Heard
from ..upstreams import CODEC, asked, connected, in_time

KINDS = ("mlx", "vllm", "llama.cpp", "text", "chat", "split", "split_content")


def run_over(url: str, path: Path | None = None, config: RSAConfig | None = None, **settings: Any) -> RunResult:
    async def whole() -> RunResult:
        engine = await connected(url, **settings)
        orchestrator = MarkovianRSAOrchestrator(engine, equivalent=equal_text)
        return await orchestrator.arun(QUESTION, config or small(), audit_path=path)

    return asyncio.run(in_time(whole()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_over_any_kind_of_server_is_verified_and_holds_the_ids_that_were_generated(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    server = serve(FakeUpstream(kind))
    result = run_over(server.url, tmp_path / "run.jsonl")
    assert result.answer.isdigit()
    verify_file(tmp_path / "run.jsonl", codec=CODEC)
    traces = {tuple(e.token_ids) for e in of(result.events, TraceCompleteEvent)}
    assert traces == {tuple(ids) for ids in server.fake.ids}
    assert all(THINK_END in ids for ids in traces)


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
def test_servers_that_take_ids_read_the_spliced_prompts_exactly(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind))
    events = run_over(server.url).events
    recorded = [e.prompt_token_ids for e in of(events, AggregationPromptEvent)]
    recorded += [of(events, RunSetupEvent)[0].prompt_token_ids]
    assert {tuple(body["prompt"]) for body in server.fake.calls} == {tuple(ids) for ids in recorded}


@pytest.mark.parametrize("kind", ["mlx", "text"])
def test_servers_that_take_texts_read_the_recorded_prompts(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind))
    events = run_over(server.url).events
    recorded = [e.prompt_text for e in of(events, AggregationPromptEvent)]
    recorded += [of(events, RunSetupEvent)[0].prompt_text]
    assert {body["prompt"] for body in server.fake.calls} == set(recorded)


def test_chats_hold_the_recorded_prompts_without_the_chat_frame(serve: Serve) -> None:
    server = serve(FakeUpstream("chat"))
    events = run_over(server.url).events
    read = {CODEC.render_chat(body["messages"], True) for body in server.fake.calls}
    recorded = {e.prompt_text for e in of(events, AggregationPromptEvent)}
    assert read == recorded | {of(events, RunSetupEvent)[0].prompt_text}
    assert all(body["chat_template_kwargs"] == {"enable_thinking": True} for body in server.fake.calls)


def test_summaries_reach_a_chat_without_their_own_frame(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("chat"))
    run_over(server.url, tmp_path / "run.jsonl", small(carry="summary"))
    verify_file(tmp_path / "run.jsonl", codec=CODEC)
    summaries = [b for b in server.fake.calls if b["chat_template_kwargs"] == {"enable_thinking": False}]
    assert summaries
    assert not [b for b in summaries if "assistant" in b["messages"][-1]["content"]]


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp", "text", "chat"])
def test_each_trace_sends_its_own_seed(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind))
    events = run_over(server.url).events
    sent = [body["seed"] for body in server.fake.calls]
    assert sorted(sent) == sorted(e.seed for e in of(events, GenerationStartEvent))
    assert len(set(sent)) == len(sent)


@pytest.mark.parametrize(("seeds", "sends"), [("auto", False), ("never", False), ("always", True)])
def test_mlx_lm_server_gets_no_seed_unless_it_must(serve: Serve, seeds: str, sends: bool) -> None:
    server = serve(FakeUpstream("mlx"))
    events = run_over(server.url, seeds=seeds).events
    assert all(("seed" in body) == sends for body in server.fake.calls)
    assert of(events, RunSetupEvent)[0].engine_version.endswith("not seeded") != sends
    texts = [e.text for e in of(events, TraceCompleteEvent)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_all_sampling_settings_reach_the_server(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind))
    run_over(server.url, config=small(rounds=0, temperature=0.7, top_p=0.9, top_k=11, min_p=0.05))
    for body in server.fake.calls:
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.9, 11, 0.05)
        assert body.get("repeat_penalty", body.get("repetition_penalty", 1.0)) == 1.0


def test_a_cut_trace_has_exactly_its_budget(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm"))
    config = small(thinking_tokens=15, tail_tokens=10, final_tokens=15)
    events = run_over(server.url, tmp_path / "run.jsonl", config).events
    cut = [e for e in of(events, TraceCompleteEvent) if e.finish_reason == "max_tokens"]
    assert cut
    assert {e.generated_tokens for e in cut} == {15}
    verify_file(tmp_path / "run.jsonl", codec=CODEC)


def test_segments_go_on_where_the_last_one_ended_with_seeds_of_their_own(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LlamaCppDialect", lambda: LlamaCppDialect(chunk_tokens=16))
    letters = FakeUpstream("llama.cpp", answer=lambda prompt, rng: "".join(rng.choices("abcdefgh", k=100)))
    server = serve(letters)
    events = run_over(server.url, config=small(rounds=0, population=2, final_tokens=60)).events
    said: dict[tuple[int, ...], list[int]] = {}
    for body, ids in zip(server.fake.calls, server.fake.ids, strict=True):
        assert body["n_predict"] <= 16
        said[tuple(body["prompt"])] = ids
    prompt = of(events, RunSetupEvent)[0].prompt_token_ids
    for trace in of(events, TraceCompleteEvent):
        assert len(trace.token_ids) == 60
        for end in range(16, 60, 16):
            assert trace.token_ids[end : end + 16] == said[(*prompt, *trace.token_ids[:end])]
    seeds = [body["seed"] for body in server.fake.calls]
    assert len(set(seeds)) == len(seeds) == 8


def test_without_a_mark_for_the_end_of_thinking_a_split_reasoning_is_refused() -> None:
    identity = ServerInfo("m", "server", "", ChatDialect())
    trace = UpstreamGeneration(asked(), Heard(), CharacterTokenizer(thinking=False), EOS)
    ask = trace.next_request(identity)
    reply = CompletionReply(ask.sampling, reasoning="so it goes", pieces=["42"], finish="stop")
    with pytest.raises(ModelError, match="end-of-thinking"):
        trace.finish_call(reply, ask, identity)


def test_what_the_server_is_stands_in_the_trail(serve: Serve, tmp_path: Path) -> None:
    for kind, engine in (("vllm", "upstream/vLLM"), ("text", "upstream-text/OpenAI-compatible server")):
        server = serve(FakeUpstream(kind))
        run_over(server.url, tmp_path / f"{kind}.jsonl")
        setup = of(read_events(tmp_path / f"{kind}.jsonl"), RunSetupEvent)[0]
        assert setup.engine == engine
        assert setup.context_length == 100_000

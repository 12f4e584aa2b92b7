"""Every kind of server: whole runs, the requests it gets, and the ids in the audit file."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.responses import JSONResponse, Response

from markovian_rsa_mlx.audit import (
    AggregationPromptEvent,
    GenerationStartEvent,
    RunSetupEvent,
    TraceCompleteEvent,
    read_events,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.upstream import probe
from markovian_rsa_mlx.backends.upstream.dialects import (
    ChatDialect,
    CompletionReply,
    Dialect,
    LlamaCppDialect,
    TextDialect,
)
from markovian_rsa_mlx.backends.upstream.generation import UpstreamGeneration
from markovian_rsa_mlx.backends.upstream.probe import ServerInfo
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import ModelError
from markovian_rsa_mlx.method.mark_scanner import MarkScanner
from markovian_rsa_mlx.orchestrator import RunResult
from markovian_rsa_mlx.tokenizer import thinking_switches

from ...support.fakes import EOS, THINK_END, CharacterTokenizer, boxed
from ...support.runs import of, small
from ..conftest import Serve
from ..fake_upstream import FakeUpstream
from ..upstreams import TOKENIZER, RecordingListener, connect, solve, trace_request, with_timeout

KINDS = ("mlx", "vllm", "llama.cpp", "sglang", "ollama", "koboldcpp", "text", "chat", "split", "split_content")


def run_over(url: str, path: Path | None = None, config: RSAConfig | None = None, **settings: Any) -> RunResult:
    async def whole() -> RunResult:
        return await solve(await connect(url, **settings), path, config)

    return asyncio.run(with_timeout(whole()))


@pytest.mark.parametrize("kind", KINDS)
def test_run_over_any_kind_of_server_verifies_and_records_the_generated_ids(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    server = serve(FakeUpstream(kind))
    result = run_over(server.url, tmp_path / "run.jsonl")
    assert result.answer.isdigit()
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)
    traces = {tuple(e.token_ids) for e in of(result.events, TraceCompleteEvent)}
    assert traces == {tuple(ids) for ids in server.fake.ids}
    assert all(THINK_END in ids for ids in traces)


def test_run_over_a_llama_cpp_server_that_routes_between_models(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("llama.cpp", model="maker/a model?", routes=True))
    result = run_over(server.url, tmp_path / "run.jsonl", model="maker/a model?")
    assert result.answer.isdigit()
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)
    assert {body["model"] for body in server.fake.calls} == {"maker/a model?"}


@pytest.mark.parametrize("splits", ["unless_refused", "always"])
def test_ollama_keeps_the_thinking_of_a_model_that_thinks(
    serve: Serve, tmp_path: Path, splits: Literal["unless_refused", "always"]
) -> None:
    server = serve(FakeUpstream("ollama", splits_thinking=splits))
    result = run_over(server.url, tmp_path / "run.jsonl")
    assert result.answer.isdigit()
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)
    traces = {tuple(e.token_ids) for e in of(result.events, TraceCompleteEvent)}
    assert traces == {tuple(ids) for ids in server.fake.ids}


def test_ollama_that_refuses_a_field_for_thinking_is_used_without_it(serve: Serve) -> None:
    class Older(FakeUpstream):
        def unsupported(self, path: str, body: dict[str, Any]) -> Response | None:
            if "think" in body:
                return JSONResponse({"error": "unknown field: think"}, 400)
            return super().unsupported(path, body)

    server = serve(Older("ollama"))
    assert run_over(server.url).answer.isdigit()
    assert not any("think" in body for body in server.fake.calls)


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp", "sglang"])
def test_server_that_takes_ids_gets_the_exact_spliced_prompts(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind))
    events = run_over(server.url).events
    recorded = [e.prompt_token_ids for e in of(events, AggregationPromptEvent)]
    recorded += [of(events, RunSetupEvent)[0].prompt_token_ids]
    assert {tuple(body.get("prompt") or body["input_ids"]) for body in server.fake.calls} == {
        tuple(ids) for ids in recorded
    }


@pytest.mark.parametrize("kind", ["mlx", "ollama", "koboldcpp", "text"])
def test_server_that_takes_texts_gets_the_recorded_prompts(serve: Serve, kind: str) -> None:
    server = serve(FakeUpstream(kind))
    events = run_over(server.url).events
    recorded = [e.prompt_text for e in of(events, AggregationPromptEvent)]
    recorded += [of(events, RunSetupEvent)[0].prompt_text]
    assert {body["prompt"] for body in server.fake.calls} == set(recorded)


def test_chat_server_gets_the_recorded_prompts_without_the_chat_frame(serve: Serve) -> None:
    server = serve(FakeUpstream("chat"))
    events = run_over(server.url).events
    read = {TOKENIZER.render_chat(body["messages"], True) for body in server.fake.calls}
    recorded = {e.prompt_text for e in of(events, AggregationPromptEvent)}
    assert read == recorded | {of(events, RunSetupEvent)[0].prompt_text}
    assert all(body["chat_template_kwargs"] == thinking_switches(True) for body in server.fake.calls)


def test_chat_server_gets_summary_prompts_without_the_chat_frame(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("chat"))
    run_over(server.url, tmp_path / "run.jsonl", small(carry="summary"))
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)
    summaries = [b for b in server.fake.calls if b["chat_template_kwargs"] == thinking_switches(False)]
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
def test_mlx_lm_server_gets_seeds_only_if_required(serve: Serve, seeds: str, sends: bool) -> None:
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
        body = body.get("sampling_params") or body.get("options") or body
        assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.9, 11, 0.05)
        assert body.get("repeat_penalty", body.get("repetition_penalty", 1.0)) == 1.0


def test_truncated_trace_has_exactly_max_tokens(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("vllm"))
    config = small(thinking_tokens=15, tail_tokens=10, final_tokens=15, answer_tokens=0)
    events = run_over(server.url, tmp_path / "run.jsonl", config).events
    cut = [e for e in of(events, TraceCompleteEvent) if e.finish_reason == "max_tokens"]
    assert cut
    assert {e.generated_tokens for e in cut} == {15}
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_chunks_continue_each_other_with_seeds_of_their_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LlamaCppDialect", lambda: LlamaCppDialect(chunk_tokens=16))
    letters = FakeUpstream("llama.cpp", answer=lambda prompt, rng: "".join(rng.choices("abcdefgh", k=100)))
    server = serve(letters)
    events = run_over(server.url, config=small(rounds=0, population=2, final_tokens=60, answer_tokens=0)).events
    replies: dict[tuple[int, ...], list[int]] = {}
    for body, ids in zip(server.fake.calls, server.fake.ids, strict=True):
        assert body["n_predict"] <= 16
        replies[tuple(body["prompt"])] = ids
    prompt = of(events, RunSetupEvent)[0].prompt_token_ids
    for trace in of(events, TraceCompleteEvent):
        assert len(trace.token_ids) == 60
        for end in range(16, 60, 16):
            assert trace.token_ids[end : end + 16] == replies[(*prompt, *trace.token_ids[:end])]
    seeds = [body["seed"] for body in server.fake.calls]
    assert len(set(seeds)) == len(seeds) == 8


def test_separate_reasoning_needs_an_end_of_thinking_mark() -> None:
    info = ServerInfo("m", "server", "", ChatDialect())
    trace = UpstreamGeneration(
        trace_request(), RecordingListener(), tokenizer=CharacterTokenizer(thinking=False), eos=EOS
    )
    request = trace.next_request(info)
    reply = CompletionReply(request.sampling, reasoning="so it goes", pieces=["42"], finish="stop")
    with pytest.raises(ModelError, match="end-of-thinking"):
        trace.finish_call(reply, request, info)


@pytest.mark.parametrize(
    ("thinking", "begin"), [(True, ""), (False, "<hm>")], ids=["thinking is on", "thinks nevertheless"]
)
@pytest.mark.parametrize("content", ["42", "both </think> and </hm>"])
def test_separate_reasoning_gets_the_marks_that_the_run_names(thinking: bool, begin: str, content: str) -> None:
    info, named = ServerInfo("m", "server", "", ChatDialect()), ("<hm>", "</hm>")
    named_request = replace(trace_request(), thinking_marks=named, enable_thinking=thinking)
    trace = UpstreamGeneration(named_request, RecordingListener(), tokenizer=TOKENIZER, eos=EOS)
    request = trace.next_request(info)
    reasoning = "one more step. " * 8
    reply = CompletionReply(request.sampling, reasoning=reasoning, pieces=[content], finish="stop")
    trace.finish_call(reply, request, info)
    assert TOKENIZER.decode(trace.ids) == f"{begin}{reasoning}</hm>{content}"
    marks = TOKENIZER.find_marks(named)
    assert marks is not None
    spans = MarkScanner(marks, "", thinking=thinking).feed(TOKENIZER.decode(trace.ids) + " ")
    assert "".join(span.text for span in spans if span.section == "answer") == content + " "


ANSWER = "The answer is 4."
HI: Any = ({"role": "user", "content": "hi"},)
OPEN, CLOSED = "<user>hi<assistant><think>\n", "<user>hi<assistant><think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("content", "finish", "change", "written"),
    [
        (ANSWER, "stop", {}, f"</think>{ANSWER}"),
        (ANSWER, "length", {}, ANSWER),
        ("", "stop", {}, ""),
        (f"hm</think>{ANSWER}", "stop", {}, f"hm</think>{ANSWER}"),
        ("<think>hm", "stop", {}, "<think>hm"),
        (ANSWER, "stop", {"enable_thinking": False}, ANSWER),
        (ANSWER, "stop", {"enable_thinking": False, "prompt_text": "<user>?<assistant><think>\n"}, f"</think>{ANSWER}"),
        (ANSWER, "stop", {"prompt_text": "<user>?<assistant><think>\n\n</think>\n\n"}, ANSWER),
        (ANSWER, "stop", {"messages": HI, "enable_thinking": False, "prompt_text": OPEN}, f"</think>{ANSWER}"),
        (ANSWER, "stop", {"messages": HI, "prompt_text": CLOSED}, ANSWER),
        (ANSWER, "stop", {"thinking_marks": ("<hm>", "</hm>")}, f"</hm>{ANSWER}"),
        (ANSWER, "stop", {"thinking_marks": ("<|channel|>analysis<|message|>", "<|end|>")}, ANSWER),
    ],
)
def test_chat_reply_without_reasoning_is_an_answer_where_no_marks_say_otherwise(
    content: str, finish: Any, change: dict[str, Any], written: str
) -> None:
    ids = ids_of_reply(ChatDialect(), content, finish, **change)
    assert TOKENIZER.decode(ids) == written


def test_text_without_marks_stays_thinking_where_the_server_continues_the_prompt() -> None:
    assert TOKENIZER.decode(ids_of_reply(TextDialect(), ANSWER, "stop")) == ANSWER


def ids_of_reply(dialect: Dialect, content: str, finish: Any, **change: Any) -> tuple[int, ...]:
    info = ServerInfo("m", "server", "", dialect)
    trace = UpstreamGeneration(replace(trace_request(), **change), RecordingListener(), tokenizer=TOKENIZER, eos=EOS)
    request = trace.next_request(info)
    trace.finish_call(CompletionReply(request.sampling, pieces=[content] * bool(content), finish=finish), request, info)
    return tuple(trace.ids)


def test_run_over_a_server_that_returns_no_reasoning_has_the_answers(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("chat", answer=lambda prompt, rng: f"It is \\boxed{{{rng.randrange(10**6)}}}"))
    result = run_over(server.url, tmp_path / "run.jsonl")
    assert result.answer.isdigit()
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_separate_reasoning_of_a_model_that_was_not_asked_to_think_is_reasoning(serve: Serve, tmp_path: Path) -> None:
    server = serve(FakeUpstream("split", answer=lambda prompt, rng: boxed(42, "one more step. " * 8)))
    result = run_over(server.url, tmp_path / "run.jsonl", small(rounds=0, enable_thinking=False))
    assert result.text == "\\boxed{42}"
    verify_file(tmp_path / "run.jsonl", codec=TOKENIZER)


def test_kind_of_server_is_recorded(serve: Serve, tmp_path: Path) -> None:
    kinds = {
        "vllm": "upstream/vLLM",
        "sglang": "upstream/SGLang",
        "ollama": "upstream-text/Ollama",
        "koboldcpp": "upstream-text/KoboldCpp",
        "text": "upstream-text/OpenAI-compatible server",
    }
    for kind, engine in kinds.items():
        server = serve(FakeUpstream(kind))
        run_over(server.url, tmp_path / f"{kind}.jsonl")
        setup = of(read_events(tmp_path / f"{kind}.jsonl"), RunSetupEvent)[0]
        assert setup.engine == engine
        assert setup.context_length == 100_000


@pytest.mark.parametrize(
    ("name", "is_older", "context", "rows"),
    [(None, False, 100_000, 4), ("a name that it does not list", False, 100_000, 4), (None, True, None, 1)],
)
def test_koboldcpp_is_not_taken_for_the_servers_that_it_imitates(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str | None, is_older: bool, context: int | None, rows: int
) -> None:
    async def not_found(*_: Any) -> Response:
        return Response(status_code=404)

    def choose(*_: Any, props: Any, sources: Any, **__: Any) -> CharacterTokenizer:
        assert (props, sources) == ({}, [])
        return TOKENIZER

    if is_older:
        monkeypatch.setattr(FakeUpstream, "props", not_found)
    server = serve(FakeUpstream("koboldcpp"))
    monkeypatch.setattr(probe, "choose_tokenizer", choose)
    info = asyncio.run(connect(server.url, model=name)).info
    assert (info.engine, info.engine_version) == ("upstream-text/KoboldCpp", "9.9 prompts as text, seeded")
    assert (info.context_length, info.max_rows) == (context, rows)

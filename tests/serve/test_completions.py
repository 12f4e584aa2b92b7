"""Completions over HTTP with the openai client and with plain requests, whole and streamed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from markovian_rsa_mlx.audit.events import GenerationStartEvent, TraceCompleteEvent
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import EngineInfo
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.run_store import runs_folder
from markovian_rsa_mlx.tokenizer import ChatMessage

from ..support.fakes import ByteTokenizer, CharacterTokenizer, FakeBackend, boxed
from ..support.runs import of_file, small
from .conftest import CHAT, RSA, Running, Serve

#: Zyphra's published example, scaled down.
EXAMPLE = {
    "rsa_t": 2,
    "rsa_n": 4,
    "rsa_k": 2,
    "short_resp_len": 120,
    "rsa_tail_window": True,
    "tail_window_len": 24,
    "rsa_final_n": 1,
    "final_temperature": 0.6,
    "return_aggregation_prompt": True,
    "rsa_debug": True,
}


def chunks_of(response: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(chunks: list[dict[str, Any]], key: str, index: int = 0) -> str:
    deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(delta.get(key) or "" for delta in deltas)


class TestOpenAIClient:
    def test_published_example_returns_answer_metadata_and_trail(self, server: Running) -> None:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        answer: Any = client.chat.completions.create(model="fake", messages=CHAT, max_tokens=150, extra_body=EXAMPLE)
        message = answer.choices[0].message
        assert message.reasoning == message.reasoning_content
        assert message.reasoning.startswith("think")
        assert message.content.startswith("\\boxed{")
        assert answer.rsa_metadata["rsa_iterations"] == 2
        assert len(answer.rsa_metadata["rsa_token_count_history"]) == 3
        assert "[attempt 2]" in answer.aggregation_prompt
        assert "<user>" not in answer.aggregation_prompt
        path = runs_folder() / answer.rsa_metadata["trail"]
        verify_file(path, equivalent=equal_text)
        assert answer.usage.completion_tokens == sum(e.generated_tokens for e in of_file(path, TraceCompleteEvent))
        assert answer.usage.prompt_tokens == sum(e.prompt_token_count for e in of_file(path, GenerationStartEvent))
        assert of_file(path, GenerationStartEvent)[-1].max_tokens == 150

    def test_published_example_streams_progress_and_answer(self, server: Running) -> None:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        stream: Any = client.chat.completions.create(
            model="fake", messages=CHAT, stream=True, stream_options={"include_usage": True}, extra_body=EXAMPLE
        )
        chunks = list(stream)
        reasoning = "".join(getattr(c.delta, "reasoning", None) or "" for chunk in chunks for c in chunk.choices)
        content = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
        assert "Round 0 of 2" in reasoning
        assert reasoning.rstrip().splitlines()[-1].startswith("think")
        assert content.startswith("\\boxed{")
        assert chunks[-1].usage.total_tokens > 0
        assert not any(chunk.usage for chunk in chunks[:-1])
        (end,) = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
        assert end.choices[0].finish_reason == "stop"
        assert end.rsa_metadata["rsa_n"] == 4
        assert "[attempt 1]" in end.aggregation_prompt

    @pytest.mark.parametrize("stream", [False, True])
    def test_asynchronous_client_gets_the_answer(self, server: Running, stream: bool) -> None:
        import asyncio

        async def ask() -> str:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
                answer: Any = await client.chat.completions.create(
                    model="fake", messages=CHAT, stream=stream, extra_body=EXAMPLE
                )
                if not stream:
                    return str(answer.choices[0].message.content)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])

        assert asyncio.run(ask()).startswith("\\boxed{")

    def test_invalid_key_raises_the_clients_error(self, server: Running) -> None:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="rsa_t"):
            client.chat.completions.create(model="fake", messages=CHAT, extra_body={"rsa_t": -1})


class TestOrdinaryCompletions:
    def test_without_rsa_keys_there_are_no_rounds_and_no_trail(self, server: Running) -> None:
        answer = server.post(messages=CHAT, max_tokens=90, temperature=0.3, top_p=0.9, top_k=7, seed=5).json()
        assert len(answer["choices"]) == 1
        assert "rsa_metadata" not in answer
        (request,) = server.backend.requests
        assert request.max_tokens == 90
        assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.3, 0.9, 7)
        assert server.get("/v1/runs").json()["data"] == []

    @pytest.mark.parametrize("stream", [False, True])
    def test_n_returns_as_many_choices_in_order(self, server: Running, stream: bool) -> None:
        whole = server.post(messages=CHAT, n=3, seed=5).json()
        texts = [choice["message"]["content"] for choice in whole["choices"]]
        assert len(set(texts)) == 3
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        alone = server.post(messages=CHAT, seed=5).json()["usage"]
        assert whole["usage"]["prompt_tokens"] == alone["prompt_tokens"]
        assert whole["usage"]["completion_tokens"] > alone["completion_tokens"]
        if stream:
            chunks = chunks_of(server.post(messages=CHAT, n=3, seed=5, stream=True))
            assert [joined(chunks, "content", index) for index in range(3)] == texts

    def test_same_seed_repeats_the_answer(self, server: Running) -> None:
        texts = [server.post(messages=CHAT, seed=s).json()["choices"][0]["message"]["content"] for s in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    def test_rsa_t_0_is_an_ordinary_completion(self, server: Running) -> None:
        answer = server.post(messages=CHAT, rsa_t=0, rsa_n=4).json()
        assert len(answer["choices"]) == 1
        assert "rsa_metadata" not in answer

    def test_rsa_trail_keeps_a_trail(self, server: Running) -> None:
        server.post(messages=CHAT, rsa_trail=True)
        (item,) = server.get("/v1/runs").json()["data"]
        assert (item["state"], item["prompt"]) == ("finished", "What is it?")

    def test_truncated_answer_has_finish_reason_length(self, server: Running) -> None:
        (choice,) = server.post(messages=CHAT, max_tokens=3).json()["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == ""
        assert choice["message"]["reasoning"]

    def test_default_max_tokens_fits_the_context(self, serve: Serve) -> None:
        server = serve(FakeBackend(context_length=100))
        assert server.post(messages=CHAT).status_code == 200
        prompt = len(server.backend.requests[0].prompt_token_ids)
        assert server.backend.requests[0].max_tokens == 100 - prompt

    def test_default_max_tokens_fits_the_memory(self, serve: Serve) -> None:
        server = serve(SmallBackend())
        assert server.post(messages=CHAT).status_code == 200
        prompt = len(server.backend.requests[0].prompt_token_ids)
        assert server.backend.requests[0].max_tokens == 300 - prompt

    @pytest.mark.parametrize("stream", [False, True])
    def test_unrequested_thinking_is_reasoning(self, serve: Serve, stream: bool) -> None:
        server = serve(FakeBackend(lambda request, rng: boxed(7, "secret"), FlaglessTokenizer()))
        answer = server.post(messages=CHAT, reasoning_effort="none", stream=stream)
        if stream:
            chunks = chunks_of(answer)
            texts = joined(chunks, "reasoning"), joined(chunks, "content")
        else:
            message = answer.json()["choices"][0]["message"]
            texts = message["reasoning"], message["content"]
        assert texts == ("secret 7", "\\boxed{7}")

    def test_model_without_thinking_has_no_reasoning(self, serve: Serve) -> None:
        server = serve(FakeBackend(lambda request, rng: "plainly 7", CharacterTokenizer(thinking=False)))
        message = server.post(messages=CHAT).json()["choices"][0]["message"]
        assert message == {
            "role": "assistant", "content": "plainly 7", "reasoning": None, "reasoning_content": None,
        }  # fmt: skip

    def test_system_message_and_earlier_turns_reach_the_model(self, server: Running) -> None:
        chat = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Yes.", "reasoning": "hm", "tool_calls": None},
            {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "two?"}]},
        ]
        assert server.post(**RSA | {"messages": chat}).status_code == 200
        first = server.backend.requests[0].messages
        assert [m["role"] for m in first] == ["system", "user", "assistant", "user"]
        assert first[-1]["content"] == "And two?"
        assert "And two?" in server.backend.requests[-1].messages[-1]["content"]


class SmallBackend(FakeBackend):
    """An engine whose memory holds 300 tokens of one byte."""

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, memory_limit_bytes=300)


class FlaglessTokenizer(CharacterTokenizer):
    """A chat template that ignores the thinking flag."""

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        return super().render_chat(messages, True)


def test_token_budget_returns_the_best_answer_so_far(serve: Serve) -> None:
    """The budget ends in the final trace. A trace of round 0 is the answer, unless a part of another one was sent."""
    total = serve().post(**RSA).json()["usage"]["completion_tokens"]

    def stopped(short_by: int) -> Running:
        return serve(FakeBackend(chunk=1), base=small(rounds=1, seed=None, token_budget=total - short_by))

    in_its_reasoning, in_its_answer = stopped(25), stopped(5)
    answer = in_its_reasoning.post(**RSA).json()
    assert len(answer["rsa_metadata"]["warnings"]) == 1
    assert "stopped the run" in answer["rsa_metadata"]["warnings"][0]
    assert answer["rsa_metadata"]["final_trace_id"].startswith("r0")
    content = answer["choices"][0]["message"]["content"]
    assert content.startswith("\\boxed{")
    assert joined(chunks_of(in_its_reasoning.post(**RSA, stream=True)), "content") == content
    assert in_its_answer.post(**RSA).json()["choices"][0]["message"]["content"] == content
    last = in_its_answer.post(**RSA, stream=True).text.splitlines()[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopped"
    nothing = stopped(total - 5).post(**RSA)
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (503, "stopped")


class TestSelection:
    def test_chosen_candidate_is_the_first_choice(self, serve: Serve) -> None:
        """Candidates 0 to 3 answer 1, 2, 2, 3, so the vote selects the second."""
        answers = {0: 1, 1: 2, 2: 2, 3: 3}
        server = serve(FakeBackend(lambda request, rng: boxed(answers[int(request.trace_id.split("-")[1])])))
        keys = RSA | {"rsa_n": 4, "rsa_final_n": 0, "rsa_selection": "majority"}
        answer = server.post(**keys).json()
        contents = [choice["message"]["content"] for choice in answer["choices"]]
        assert contents == ["\\boxed{2}", "\\boxed{1}", "\\boxed{2}", "\\boxed{3}"]
        assert answer["rsa_metadata"]["final_trace_id"] == "r1-01"
        assert {"answer": "2", "votes": 2} in answer["rsa_metadata"]["tally"]
        chunks = chunks_of(server.post(**keys, stream=True, rsa_progress="none"))
        assert [joined(chunks, "content", index) for index in range(4)] == contents

    def test_final_aggregation_is_the_first_choice(self, server: Running) -> None:
        keys = RSA | {"rsa_selection": "final_aggregation", "rsa_final_n": 2}
        answer = server.post(**keys).json()
        assert answer["rsa_metadata"]["final_trace_id"] == "r2-00"
        assert len(answer["choices"]) == 3
        chunks = chunks_of(server.post(**keys, stream=True))
        assert joined(chunks, "content") == answer["choices"][0]["message"]["content"]

    def test_rsa_t_0_with_selection_votes(self, serve: Serve) -> None:
        server = serve(FakeBackend(lambda request, rng: boxed(7)))
        answer = server.post(messages=CHAT, rsa_t=0, rsa_n=5, rsa_selection="majority").json()
        assert answer["rsa_metadata"]["tally"] == [{"answer": "7", "votes": 5}]


class TestStreams:
    def test_stream_adds_up_to_the_whole_answer(self, server: Running) -> None:
        whole = server.post(**RSA).json()["choices"][0]["message"]
        for progress in ("none", "comments"):
            chunks = chunks_of(server.post(**RSA, stream=True, rsa_progress=progress))
            assert joined(chunks, "content") == whole["content"]
            assert joined(chunks, "reasoning") == joined(chunks, "reasoning_content") == whole["reasoning"]

    def test_progress_is_sent_as_comments_or_not_at_all(self, server: Running) -> None:
        text = server.post(**RSA, stream=True, rsa_progress="comments").text
        assert ": Round 0 of 1: 3 traces" in text or ": Round 0 of 1: 2 traces" in text
        assert "Round" not in "".join(line for line in text.splitlines() if line.startswith("data:"))
        assert "Round" not in server.post(**RSA, stream=True, rsa_progress="none").text

    def test_characters_and_markers_of_many_tokens_are_not_torn(self, serve: Serve) -> None:
        """With one token per byte, every delta has whole characters and no part of a marker."""
        text = "så det går <think 🧮 </thin…</think>  \\boxed{é🧮}  "
        server = serve(FakeBackend(lambda request, rng: text, ByteTokenizer(), chunk=1))
        chunks = chunks_of(server.post(messages=CHAT, stream=True))
        assert joined(chunks, "reasoning") == "så det går <think 🧮 </thin…"
        assert joined(chunks, "content") == "\\boxed{é🧮}"
        assert "\ufffd" not in json.dumps(chunks, ensure_ascii=False)
        assert len(chunks) > 20

    def test_an_answer_without_thinking_is_streamed_while_it_is_generated(self, serve: Serve) -> None:
        text = "Paris is the capital of France. " * 12
        server = serve(FakeBackend(lambda request, rng: text))
        chunks = chunks_of(server.post(messages=CHAT, reasoning_effort="none", max_tokens=1_000, stream=True))
        pieces = [piece for chunk in chunks for choice in chunk["choices"] if (piece := choice["delta"].get("content"))]
        assert "".join(pieces) == text.strip()
        assert len(pieces) > 10  # an engine's callback has 16 tokens

    def test_final_trace_is_streamed_while_it_is_generated(self, server: Running) -> None:
        keys = RSA | {"messages": [{"role": "user", "content": "Long?"}]}
        server.backend.model = lambda request, rng: boxed(1, "word " * 30)
        server.backend.chunk = 10
        chunks = chunks_of(server.post(**keys, stream=True, rsa_progress="none"))
        assert len([c for c in chunks if c["choices"] and c["choices"][0]["delta"].get("reasoning")]) > 10

    def test_an_inherited_final_answer_is_streamed_and_its_tokens_are_counted_once(self, serve: Serve) -> None:
        server = serve(FakeBackend(lambda request, rng: boxed(1, f"{rng.random()} ")))
        keys = RSA | {"rsa_early_stop": "agreement"}
        whole = server.post(**keys).json()
        assert whole["choices"][0]["message"]["content"] == r"\boxed{1}"
        assert all(not request.trace_id.startswith("r1") for request in server.backend.requests)
        chunks = chunks_of(server.post(**keys, stream=True, rsa_progress="none"))
        assert joined(chunks, "content") == r"\boxed{1}"
        usage = whole["usage"]
        answer = len(r"\boxed{1}") + 2  # with the mark before it and EOS
        assert usage["completion_tokens_details"]["reasoning_tokens"] == usage["completion_tokens"] - answer

    def test_line_breaks_in_a_models_text_are_escaped(self, serve: Serve) -> None:
        """`str.splitlines` splits at more characters than server-sent events do."""
        answer = "1\x85data: x\u2028data: y\u2029data: z\n\ndata: w"
        server = serve(FakeBackend(lambda request, rng: boxed(answer)))
        response = server.post(**RSA, stream=True, rsa_progress="comments")
        run_id = response.headers["X-MRSA-Run-Id"]
        assert "votes: 1 data: x data: y data: z data: w (" in response.text
        for text in (response.text, server.get(f"/v1/runs/{run_id}/events").text):
            data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
            assert all(isinstance(json.loads(line), dict) for line in data if line != "[DONE]")
        assert "1\x85data: x\u2028data: y" in joined(chunks_of(response), "content")

    def test_role_is_sent_once_per_choice(self, server: Running) -> None:
        chunks = chunks_of(server.post(messages=CHAT, n=2, stream=True))
        roles = [c["index"] for chunk in chunks for c in chunk["choices"] if "role" in c["delta"]]
        assert sorted(roles) == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_population_by_round_is_run_and_returned(server: Running, stream: bool) -> None:
    keys = {**EXAMPLE, "rsa_n": [6, 4, 3], "rsa_final_n": 0, "stream": stream}
    response = server.post(messages=CHAT, **keys)
    metadata = (chunks_of(response)[-1] if stream else response.json())["rsa_metadata"]
    assert (metadata["rsa_n"], metadata["rsa_final_n"], metadata["rsa_k"]) == ([6, 4, 3], 3, 2)
    path = runs_folder() / metadata["trail"]
    verify_file(path, equivalent=equal_text)
    stages = Counter(event.round for event in of_file(path, GenerationStartEvent))
    assert (stages[1] <= 4, stages[2]) == (True, 3)


def test_rsa_profile_replaces_the_servers_profile(server: Running) -> None:
    answer = server.post(messages=CHAT, rsa_profile="paper-light-8k", rsa_t=1, short_resp_len=300).json()
    metadata = answer["rsa_metadata"]
    assert metadata["rsa_n"] == RSAConfig.paper_light_8k().population
    assert metadata["rsa_k"] == 4
    assert any("whole traces" in warning for warning in metadata["warnings"])

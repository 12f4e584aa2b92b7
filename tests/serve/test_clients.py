"""Requests of ordinary clients: names of models that stand for runs, unknown keys, stop texts, pages of other sites."""

from __future__ import annotations

import logging
import time
from typing import Any

import httpx2
import pytest

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.serve.response import StopCutter

from ..support.fakes import ByteTokenizer, FakeBackend, boxed
from ..support.runs import small
from .conftest import CHAT, RSA, PausedBackend, Running, Serve
from .test_completions import chunks_of, joined
from .test_disconnect import wait_until
from .test_models import values

SITE = {"Origin": "https://chat.example.org", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}


class TestModelNames:
    def test_models_lists_names_that_stand_for_runs(self, serve: Serve) -> None:
        def names(**settings: Any) -> list[str]:
            return [model["id"] for model in serve(**settings).get("/v1/models").json()["data"]]

        assert names(rsa_models="none") == ["fake"]
        assert names(rsa_models="default") == ["fake", "fake-rsa"]
        assert {"fake", "fake-rsa", "fake-rsa-paper-16k", "fake-rsa-embedded"} <= set(names(rsa_models="all"))
        few = names(backend=FakeBackend(context_length=60_000), rsa_models="all")
        assert "fake-rsa-paper-16k" in few
        assert "fake-rsa-apex-xhigh" not in few

    @pytest.mark.parametrize("stream", [False, True])
    def test_request_for_such_a_name_is_a_run(self, serve: Serve, stream: bool) -> None:
        server = serve(rsa_models="all", base=small(rounds=1, population=4, final_candidates=2, seed=None))
        answer = server.post(messages=CHAT, model="fake-rsa", stream=stream)
        found = chunks_of(answer)[-1] if stream else answer.json()
        assert found["model"] == "fake-rsa"
        assert found["rsa_metadata"]["rsa_n"] == 4
        assert [choice["index"] for choice in found["choices"]] == [0]
        assert server.post(messages=CHAT, model="fake-rsa", n=2).json()["choices"][1]["index"] == 1
        assert "rsa_metadata" not in server.post(messages=CHAT, model="fake-rsa", reasoning_effort="low").json()
        assert "rsa_metadata" not in server.post(messages=CHAT, model="fake").json()
        assert server.post(messages=CHAT, model="fake-rsa-nothing").status_code == 404
        efforts = server.get("/v1/models/fake-rsa").json()["reasoning_effort"]
        assert (efforts["low"], efforts["medium"]["rsa_n"], efforts["xhigh"]["rsa_n"]) == (None, 2, 8)

    def test_served_name_wins_over_the_name_of_a_run(self, serve: Serve) -> None:
        server = serve(names=("m", "m-rsa"), rsa_models="default")
        assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["m", "m-rsa"]
        assert "rsa_metadata" not in server.post(messages=CHAT, model="m-rsa").json()

    def test_always_makes_every_chat_a_run(self, serve: Serve) -> None:
        server = serve(always_rsa=True)
        assert "rsa_metadata" in server.post(messages=CHAT).json()
        assert "rsa_metadata" not in server.post(messages=CHAT, rsa_t=0).json()


#: Keys that client libraries add to the messages that they keep.
MESSAGE_KEYS: list[dict[str, Any]] = [
    {"name": "me"}, {"provider_specific_fields": {"a": 1}}, {"reasoning_details": [{}]}, {"refusal": None}, {"id": "m"},
    {"annotations": []}, {"audio": None}, {"function_call": None}, {"reasoning_content": "x"}, {"tool_calls": []},
    {"reasoning": {"a": "b"}}, {"cache_control": {"type": "ephemeral"}},
]  # fmt: skip


class TestTolerance:
    @pytest.mark.parametrize("keys", MESSAGE_KEYS, ids=lambda keys: next(iter(keys)))
    def test_keys_of_clients_in_messages_change_nothing(self, server: Running, keys: dict[str, Any]) -> None:
        chat = [*CHAT, {"role": "assistant", "content": "Yes."}, *CHAT]
        plain = server.post(messages=chat, seed=1).json()["choices"]
        chat[1] = chat[1] | keys
        assert server.post(messages=chat, seed=1).json()["choices"] == plain

    def test_unknown_keys_are_counted_and_named_once(self, server: Running, caplog: pytest.LogCaptureFixture) -> None:
        part = {"type": "text", "text": "x", "cache_control": {}}
        body = {"messages": [{"role": "user", "content": [part, part]}], "no_such_key": {"a": [1]}, "seed": 1}
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert server.post(**body).status_code == 200
        assert caplog.text.count("no_such_key") == 1
        assert caplog.text.count("messages.content.cache_control") == 1
        assert values(server)["mrsa_ignored_keys_total"] == 6

    def test_ignored_keys_are_compared_with_no_known_ones(
        self, server: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """300 comparisons took a fifth of a second, in which no stream went on."""
        monkeypatch.setattr("difflib.get_close_matches", lambda *_, **__: pytest.fail("compared"))
        keys = {f"no_such_key_with_a_long_name_{number}": 1 for number in range(300)}
        assert server.post(messages=[CHAT[0] | keys], **keys).status_code == 200
        assert values(server)["mrsa_ignored_keys_total"] == 600

    def test_both_names_of_the_thinking_switch_are_known(self, serve: Serve) -> None:
        server = serve(strict=True)
        requests = [{"enable_thinking": False}, {"thinking": False}, {"enable_thinking": False, "thinking": True}, {}]
        for options in requests:
            assert server.post(messages=CHAT, seed=1, chat_template_kwargs=options).status_code == 200
        off, same, first, on = [request.prompt_token_ids for request in server.backend.requests]
        assert off == same == first != on

    @pytest.mark.parametrize(
        ("body", "key"),
        [
            ({"rsa_temperature": 1}, "rsa_temperature"),
            ({"messages": [{"role": "user", "content": "x", "id": 1}]}, "messages.id"),
            ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ],
    )
    def test_strict_server_refuses_unknown_keys(self, serve: Serve, body: dict[str, Any], key: str) -> None:
        server = serve(strict=True)
        error = server.post(**{"messages": CHAT} | body).json()["error"]
        assert (error["code"], error["param"]) == ("unknown_key", key)
        schemas = server.get("/openapi.json").json()["components"]["schemas"]
        assert schemas["ChatRequest"]["additionalProperties"] is False
        assert server.post(messages=CHAT).status_code == 200

    def test_minus_one_is_unset(self, server: Running) -> None:
        assert server.post(messages=CHAT, max_tokens=-1, seed=-1).status_code == 200
        assert server.post(messages=CHAT, max_completion_tokens=-1.0).status_code == 200
        unset = server.backend.requests[0].max_tokens
        server.post(messages=CHAT)
        assert server.backend.requests[-1].max_tokens == unset


def answering(text: str, **options: Any) -> FakeBackend:
    def model(request: GenerationRequest, rng: object) -> str:
        return text

    return FakeBackend(model, **options)


class TestStop:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("chunk", [1, 3, 100])
    @pytest.mark.parametrize("keys", [{"messages": CHAT}, RSA | {"rsa_progress": "none"}], ids=["plain", "rsa"])
    def test_answer_ends_before_the_first_stop_text(
        self, serve: Serve, stream: bool, chunk: int, keys: dict[str, Any]
    ) -> None:
        server = serve(answering("a STOP in thought</think>one two\n\nSTO three STOP four", chunk=chunk))
        for stop, expected in (("STOP", "one two\n\nSTO three "), (["x", "\n\n", "three"], "one two"), ([], None)):
            answer = server.post(**keys, stop=stop, stream=stream)
            if stream:
                chunks = chunks_of(answer)
                texts = joined(chunks, "reasoning"), joined(chunks, "content")
            else:
                message = answer.json()["choices"][0]["message"]
                texts = message["reasoning"], message["content"]
            assert texts == ("a STOP in thought", expected or "one two\n\nSTO three STOP four")

    @pytest.mark.parametrize("stream", [False, True])
    def test_response_names_the_stop_text_that_ended_the_answer(self, serve: Serve, stream: bool) -> None:
        server = serve(answering("x</think>one two"))
        for stop, expected in ((["two", "tw", "x"], "tw"), (["three"], None)):
            answer = server.post(messages=CHAT, stop=stop, stream=stream)
            choices = (
                [c for chunk in chunks_of(answer) for c in chunk["choices"]] if stream else answer.json()["choices"]
            )
            assert choices[-1].get("stop_reason") == expected
            assert choices[-1]["finish_reason"] == "stop"

    def test_stop_changes_no_trace(self, server: Running) -> None:
        answers = [server.post(**RSA, stop=stop).json() for stop in (None, ["}"])]
        assert answers[0]["usage"] == answers[1]["usage"]
        assert answers[0]["rsa_metadata"]["answer"] == answers[1]["rsa_metadata"]["answer"]
        assert answers[1]["choices"][0]["message"]["content"].startswith("\\boxed{")
        assert "}" not in answers[1]["choices"][0]["message"]["content"]

    def test_stop_text_of_several_characters_is_found_in_any_division(self) -> None:
        text, stops = "abcabdabe", ("abd", "be")
        for first in range(len(text)):
            for second in range(first, len(text)):
                cutter = StopCutter(stops)
                pieces = [cutter.add(piece) for piece in (text[:first], text[first:second], text[second:])]
                assert "".join(pieces) + cutter.end() == "abc"
                assert cutter.found

    def test_stop_text_within_a_character_of_many_tokens(self, serve: Serve) -> None:
        server = serve(FakeBackend(lambda request, rng: boxed("é🧮 end"), ByteTokenizer(), chunk=1))
        chunks = chunks_of(server.post(messages=CHAT, stop="🧮", stream=True))
        assert joined(chunks, "content") == "\\boxed{é"


class TestPagesOfOtherSites:
    def test_allowed_site_reads_answers(self, serve: Serve) -> None:
        server = serve(origins=frozenset({"https://chat.example.org"}))
        for path in ("/v1/models", "/v1/nothing"):
            headers = server.get(path, headers=SITE).headers
            assert headers["access-control-allow-origin"] == SITE["Origin"]
            assert headers["vary"] == "Origin"
        other = server.get("/v1/models", headers=SITE | {"Origin": "https://evil.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers

    def test_allowed_app_reads_answers(self, serve: Serve) -> None:
        """Apps and browser extensions have origins of their own schemes."""
        server = serve(origins=frozenset({"app://obsidian.md"}))
        for path in ("/v1/models", "/v1/nothing"):
            headers = server.get(path, headers={"Origin": "app://obsidian.md"}).headers
            assert headers["access-control-allow-origin"] == "app://obsidian.md"
        for other in ("app://obsidian.md.evil", "tauri://localhost", "https://obsidian.md", "null"):
            assert server.get("/v1/models", headers={"Origin": other}).status_code == 403

    def test_preflight_needs_no_key(self, serve: Serve) -> None:
        server = serve(origins=frozenset({"https://chat.example.org"}), api_key="k")
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-a"}
        answer = server.client.options("/v1/chat/completions", headers=SITE | asks)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-headers"] == "authorization,x-a"
        assert "POST" in answer.headers["access-control-allow-methods"]
        denied = server.client.post("/v1/chat/completions", headers=SITE, json={"messages": CHAT})
        assert denied.status_code == 401
        assert server.client.options("/v1/chat/completions", headers=asks).status_code in (401, 405)

    def test_any_site(self, serve: Serve) -> None:
        server = serve(origins=frozenset({"*"}))
        assert server.get("/v1/models", headers=SITE).headers["access-control-allow-origin"] == SITE["Origin"]
        rebound = server.get("/v1/models", headers=SITE | {"Host": "evil.example"})
        assert rebound.status_code == 403


class TestHeartbeat:
    def test_long_response_begins_with_spaces(self, serve: Serve) -> None:
        def slow(request: GenerationRequest, start: int) -> None:
            time.sleep(0.15)

        server = serve(FakeBackend(lambda request, rng: boxed(7), on_step=slow, chunk=10), heartbeat_s=0.1)
        answer = server.post(messages=CHAT)
        assert answer.text.startswith(" ")
        assert answer.json()["choices"][0]["message"]["content"] == "\\boxed{7}"
        assert answer.headers["content-type"] == "application/json"
        assert "x-mrsa-run-id" in answer.headers

    def test_late_error_is_an_error_object(self, serve: Serve) -> None:
        def stop(request: GenerationRequest, start: int) -> None:
            time.sleep(0.2)

        server = serve(
            FakeBackend(lambda request, rng: "x" * 90, on_step=stop, chunk=30),
            heartbeat_s=0.1,
            base=small(rounds=1, seed=None, token_budget=60),
        )
        answer = server.post(**RSA)
        assert answer.status_code == 200
        assert answer.json()["error"]["code"] == "stopped"

    def test_quick_response_has_its_own_status(self, serve: Serve) -> None:
        server = serve(FakeBackend(context_length=500), heartbeat_s=5)
        assert server.post(messages=CHAT).text.startswith("{")
        assert server.post(messages=CHAT, max_tokens=600).status_code == 400

    def test_disconnect_during_heartbeats_ends_the_run(self, serve: Serve) -> None:
        server = serve(PausedBackend(), heartbeat_s=0.05)
        with (
            httpx2.Client(base_url=server.url, timeout=5) as client,
            client.stream("POST", "/v1/chat/completions", json={"messages": CHAT}) as answer,
        ):
            next(answer.iter_raw())
        assert wait_until(lambda: server.backend.running == 0) < 1

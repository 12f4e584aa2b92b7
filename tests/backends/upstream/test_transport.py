"""Replies over the wire: redirects, refused fields, limits of time and size, changed models, and repeated keys."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from markovian_rsa_mlx import redact
from markovian_rsa_mlx.backends.upstream import TimeLimits, Upstream, UpstreamEngine, probe, transport
from markovian_rsa_mlx.backends.upstream.engine import RetryPolicy
from markovian_rsa_mlx.backends.upstream.errors import (
    Throttled,
    TransientError,
    Unreachable,
    UnsupportedRequest,
    error_from_response,
)
from markovian_rsa_mlx.backends.upstream.generation import UpstreamGeneration
from markovian_rsa_mlx.backends.upstream.probe import ServerInfo
from markovian_rsa_mlx.backends.upstream.servers import Server, ServerPool
from markovian_rsa_mlx.errors import (
    BackendError,
    ConfigError,
    ContextLengthError,
    MarkovianRSAError,
    RefusedError,
    UpstreamError,
)

from ...support.fakes import CharacterTokenizer
from ..raw_server import EVENTS, Answer, chat, raw_server, stream
from ..upstreams import TIMES, RecordingListener, connect, trace_request, with_timeout

NOT_FOUND = Answer(404, {"error": {"message": "no such route"}})
KEY = "sk-test-0123456789abcdef"
_calls = itertools.count()


@pytest.fixture(autouse=True)
def _tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "choose_tokenizer", lambda *_, **__: CharacterTokenizer())


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(redact, "_secrets", set())
    redact._forms.cache_clear()
    yield KEY
    redact._forms.cache_clear()


def thought(**more: Any) -> list[Any]:
    """Return the events of an answer whose thinking differs from call to call."""
    return chat(f"hm {next(_calls)} four</think>", "4", **more)


def chats(answer: Callable[[Any], Answer]) -> Callable[[str, Any], Answer]:
    return lambda path, body: answer(body) if path == "/v1/chat/completions" else NOT_FOUND


def is_trial(body: Any) -> bool:
    return "12345" in body["messages"][-1]["content"]


async def one(engine: UpstreamEngine, listener: RecordingListener | None = None, max_tokens: int = 40) -> str:
    request = trace_request(max_tokens=max_tokens)
    ids = (await engine.generate(request, listener or RecordingListener())).token_ids
    return CharacterTokenizer().decode(ids)


def answer_of(url: str, listener: RecordingListener | None = None, **settings: Any) -> str:
    async def whole() -> str:
        return await one(await connect(url, **settings), listener)

    return asyncio.run(with_timeout(whole(), 60))


def detail(field: str) -> Any:
    return {"detail": [{"loc": ["body", field], "msg": "Extra inputs are not permitted", "input": 1}]}


def message(field: str) -> Any:
    return {"error": {"message": f"Unsupported parameter: '{field}'.", "type": "invalid_request_error"}}


@pytest.mark.parametrize(("status", "refusal"), [(422, detail), (400, message), (400, lambda field: {"error": "no"})])
def test_refused_fields_are_left_out_one_at_a_time(status: int, refusal: Callable[[str], Any]) -> None:
    refused, bodies = ("min_p", "stream_options", "chat_template_kwargs"), []

    def reply(body: Any) -> Answer:
        bodies.append(body)
        found = next((field for field in refused if field in body), None)
        return Answer(status, refusal(found)) if found else stream(*thought())

    with raw_server(chats(reply)) as url:
        assert answer_of(url).endswith("4")
    assert set(bodies[-1]) >= {"seed", "top_k", "top_p", "temperature", "max_tokens", "stream"}
    assert not set(bodies[-1]) & set(refused)


def test_field_refused_during_a_run_is_left_out_and_reported() -> None:
    def reply(body: Any) -> Answer:
        refuses = not is_trial(body) and "seed" in body
        return Answer(422, detail("seed")) if refuses else stream(*thought())

    listener = RecordingListener()
    with raw_server(chats(reply)) as url:
        assert answer_of(url, listener).endswith("4")
    assert len(listener.warnings) == 1
    assert "'seed'" in listener.warnings[0]


@pytest.mark.parametrize(
    "cause",
    ["The prompt was flagged; the stream is closed, the seed ignored.", "The 'seed' and `min_p` of a flagged prompt."],
)
def test_field_of_a_request_that_is_refused_without_it_is_sent_again(cause: str) -> None:
    bodies: list[Any] = []

    def reply(body: Any) -> Answer:
        bodies.append(body)
        return Answer(400, {"error": {"message": cause}}) if body["max_tokens"] == 39 else stream(*thought())

    async def two(url: str) -> None:
        engine, listener = await connect(url), RecordingListener()
        with pytest.raises(RefusedError, match="flagged"):
            await one(engine, max_tokens=39)
        await one(engine, listener)
        assert not listener.warnings

    with raw_server(chats(reply)) as url:
        asyncio.run(with_timeout(two(url)))
    assert set(bodies[-1]) == set(bodies[0])


def test_field_that_is_refused_to_several_traces_at_once_is_left_out_of_each() -> None:
    both = threading.Barrier(2, timeout=10)

    def reply(body: Any) -> Answer:
        if is_trial(body) or "seed" not in body:
            return stream(*thought())
        both.wait()
        return Answer(422, detail("seed"))

    async def two(url: str) -> list[str]:
        engine = await connect(url)
        return await asyncio.gather(one(engine), one(engine))

    with raw_server(chats(reply)) as url:
        assert all(text.endswith("4") for text in asyncio.run(with_timeout(two(url))))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"error": {"message": "seed is ignored, the stream is closed"}}, []),
        ("stream closed", []),
        ({"error": {"message": "Unsupported parameter: 'seed'."}}, ["seed"]),
        ({"error": "unknown field `sampling_params.seed`"}, ["sampling_params", "seed"]),
        ({"error": 'unexpected keyword argument "stream"'}, ["stream"]),
        ({"error": "top_k is not supported, and \u201cseed\u201d is not"}, ["top_k", "seed"]),
        ({"error": {"message": "bad", "param": "seed"}}, ["seed"]),
        ({"detail": [{"loc": ["body", "stream"], "msg": "Extra inputs"}]}, ["body", "stream"]),
        ({"errors": {"$.seed": ["is unknown"]}}, ["seed"]),
    ],
)
def test_names_of_refused_fields_in_an_error(body: Any, named: list[str]) -> None:
    error = error_from_response("u", 400, body=body, headers={})
    assert isinstance(error, UnsupportedRequest)
    keys = {"error", "message", "detail", "msg", "loc", "param", "errors"}
    assert [name for name in error.named_fields if name not in keys] == named


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Loading model", Throttled),
        ("server busy, please try again. maximum pending requests exceeded", Throttled),
        ("Model is overloaded", Throttled),
        ("injected", TransientError),
    ],
)
def test_a_server_without_capacity_for_a_request_is_throttling(message: str, kind: type[TransientError]) -> None:
    error = error_from_response("u", 503, body={"error": {"message": message}}, headers={})
    assert type(error) is kind


def test_a_prompt_that_is_too_long_is_no_refused_field() -> None:
    body = {"error": {"message": "Prompt length 5000 is greater than max_seq_len 4096"}}
    assert isinstance(error_from_response("u", 400, body=body, headers={}), ContextLengthError)


def test_refused_seeds_are_an_error_if_they_are_required() -> None:
    def reply(body: Any) -> Answer:
        return Answer(422, detail("seed")) if "seed" in body else stream(*thought())

    with raw_server(chats(reply)) as url:
        assert answer_of(url).endswith("4")
        with pytest.raises(UpstreamError, match="--upstream-seeds never"):
            answer_of(url, seeds="always")


def test_newer_name_of_max_tokens() -> None:
    def reply(body: Any) -> Answer:
        refuses = "max_tokens" in body
        return Answer(400, {"error": {"message": "?", "param": "max_tokens"}}) if refuses else stream(*thought())

    with raw_server(chats(reply)) as url:
        assert answer_of(url).endswith("4")


def test_server_that_does_not_stream_sends_one_document() -> None:
    def reply(body: Any) -> Answer:
        if "stream" in body:
            return Answer(422, detail("stream"))
        message = {"content": f"hm {next(_calls)}</think>4", "role": "assistant"}
        return Answer(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    with raw_server(chats(reply)) as url:
        assert answer_of(url).endswith("</think>4")


@pytest.mark.parametrize("data", ["ping", "", "keep-alive", "null", "[]", '"text"', ": comment"])
def test_heartbeats_as_data(data: str) -> None:
    with raw_server(chats(lambda body: stream(data, *thought(middle="")[:1], data, *thought()))) as url:
        assert answer_of(url).endswith("4")


def test_pages_for_unknown_routes_do_not_hide_the_chat_route() -> None:
    page = Answer(200, b"<!doctype html>", {"Content-Type": "text/html"})

    def reply(path: str, body: Any) -> Answer:
        return stream(*thought()) if path == "/v1/chat/completions" else page

    with raw_server(reply) as url:
        assert answer_of(url).endswith("4")


def test_end_without_a_reason() -> None:
    with raw_server(chats(lambda body: stream(*thought(finish=None)))) as url:
        assert answer_of(url).endswith("4")


def test_error_event_keeps_its_message() -> None:
    event = {"object": "error", "message": "maximum context length is 10", "code": 400}

    def reply(body: Any) -> Answer:
        return stream(*(thought() if is_trial(body) else [event]))

    with raw_server(chats(reply)) as url, pytest.raises(ContextLengthError, match="is 10"):
        answer_of(url)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_within_the_server_is_followed(status: int) -> None:
    def reply(path: str, body: Any) -> Answer:
        if path == "/v1/chat/completions/":
            return stream(*thought())
        return Answer(status, {}, {"Location": path + "/"}) if path == "/v1/chat/completions" else NOT_FOUND

    with raw_server(reply) as url:
        assert answer_of(url).endswith("4")


@pytest.mark.parametrize(
    "location", ["http://elsewhere.invalid/v1/", "//user:pw@{host}/v1/", "http://{other}/v1", "/loop"]
)
def test_key_follows_no_redirect_to_another_server(key: str, location: str) -> None:
    came: list[str] = []

    def other(path: str, body: Any) -> Answer:
        came.append(path)
        return NOT_FOUND

    with raw_server(other) as other_url:

        def reply(path: str, body: Any) -> Answer:
            to = location.format(host="127.0.0.1:1", other=other_url.removeprefix("http://").removesuffix("/v1"))
            return Answer(307, {}, {"Location": to}) if body or path == "/loop" else NOT_FOUND

        with raw_server(reply) as url, pytest.raises(UpstreamError, match=r"redirects") as caught:
            answer_of(url, api_key=key)
    assert not came
    assert "pw" not in str(caught.value)


def dribble(part: bytes, pause: float = 0.05) -> Iterator[bytes]:
    while True:
        time.sleep(pause)
        yield part


@pytest.mark.parametrize(
    "part",
    [b": comment\n\n", b"data: {}\n\n", b'data: {"choices": [{"delta": {"content": ""}}]}\n\n', b"a",
     b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n', b"data: ping\n\n"],
)  # fmt: skip
def test_events_without_tokens_do_not_keep_a_trace_alive(monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.backends.upstream.engine._MAX_FAILURES", 1)
    first = f"data: {json.dumps(thought()[0])}\n\n".encode()

    def reply(body: Any) -> Answer:
        return stream(*thought()) if is_trial(body) else Answer(200, itertools.chain([first], dribble(part)), EVENTS)

    with raw_server(chats(reply)) as url, pytest.raises(BackendError, match="no token"):
        answer_of(url)


def test_heartbeats_after_the_end_do_not_delay_the_answer_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_MAX_TRAILER_S", 0.2)

    def reply(body: Any) -> Answer:
        events = thought()[:-1]
        sent = (f"data: {json.dumps(event)}\n\n".encode() for event in events)
        return Answer(200, itertools.chain(sent, dribble(b": comment\n\n")), EVENTS)

    with raw_server(chats(reply)) as url:
        assert answer_of(url).endswith("4")


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_compressed_reply_is_bounded_after_decompression(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(transport, "_MAX_DOCUMENT_BYTES", 2**20)
    monkeypatch.setattr("markovian_rsa_mlx.backends.upstream.engine._MAX_FAILURES", 1)
    bomb = gzip.compress(b"data: [" + b"1," * 2**24)  # 32 MiB in 32 kB

    def reply(body: Any) -> Answer:
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        return stream(*thought()) if is_trial(body) else Answer(200, bomb, headers)

    with raw_server(chats(reply)) as url, pytest.raises(BackendError, match=r"bytes|byte limit"):
        answer_of(url)


@pytest.mark.parametrize("path", ["/props", "/version", "/v1/models", "/v1/chat/completions"])
def test_deeply_nested_json_is_a_malformed_reply(path: str) -> None:
    deep = b"[" * 200_000

    async def fetch(url: str) -> Any:
        client = transport.HTTPClient(url, None, TIMES)
        return await client.fetch(client.root + path, {})

    with raw_server(lambda *_: Answer(200, deep)) as url, pytest.raises(transport.TransientError, match="invalid JSON"):
        asyncio.run(fetch(url))


def test_model_that_changes_at_the_url_is_an_error_that_names_both() -> None:
    names = iter([*["one/model"] * 3, "Model", "ONE/model", "other/model"])
    with raw_server(chats(lambda body: stream(*thought(model=next(names))))) as url:

        async def two() -> None:
            engine = await connect(url)
            assert (await one(engine)).endswith("4")
            assert (await one(engine)).endswith("4")
            with pytest.raises(UpstreamError, match=r"'other/model'.*'one/model'"):
                await one(engine)

        asyncio.run(with_timeout(two()))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": f"Incorrect API key provided: {KEY}"}},
        {"error": f"Bearer {KEY[:14]}\n{KEY[14:]}"},
        {"detail": [{"loc": ["header", KEY], "msg": f"bad {KEY[:18]}"}]},
        f"plain {KEY}",
    ],
)
@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_key_that_an_error_repeats_is_struck_out(
    key: str, monkeypatch: pytest.MonkeyPatch, body: Any, status: int
) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.backends.upstream.engine._MAX_FAILURES", 1)
    monkeypatch.setattr(probe, "_MAX_TRIES", 1)
    listener = RecordingListener()

    def reply(request: Any) -> Answer:
        return stream(*thought()) if is_trial(request) else Answer(status, body, {})

    with raw_server(chats(reply)) as url, pytest.raises(MarkovianRSAError) as caught:
        answer_of(url, listener, api_key=key)
    texts = [str(caught.value), *listener.warnings]
    assert not [text for text in texts if KEY[:14] in text]
    assert any(redact.MASK in text for text in texts)


def test_key_that_an_answer_repeats_is_not_recorded(key: str) -> None:
    listener = RecordingListener()

    def reply(body: Any) -> Answer:
        return stream(*(thought() if is_trial(body) else chat("hm", KEY)))

    with raw_server(chats(reply)) as url, pytest.raises(BackendError, match="repeats"):
        answer_of(url, listener, api_key=key)
    assert not listener.ids


def test_probe_reports_its_result_on_one_line(key: str) -> None:
    lines: list[str] = []

    def reply(body: Any) -> Answer:
        return Answer(422, detail("min_p")) if "min_p" in body else stream(*thought())

    async def ask(url: str) -> None:
        await UpstreamEngine.connect(probe.Upstream((url,), api_key=key, times=TIMES), lines.append)

    with raw_server(chats(reply)) as url:
        asyncio.run(ask(url))
    found = lines[-1]
    assert all(fact in found for fact in (url, "some/model", "min_p", "chat")), found
    assert "\n" not in found


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://h:99999", "http://h:port", "user:secret@host", "http://user:secret@[::1",
     "http://a\u2100b:secret@x", "ftp://h", "http://\ud800", "http://x\x00y"],
)  # fmt: skip
def test_url_that_cannot_be_used_is_an_error_of_the_settings(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Upstream((url,))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("seeded", "crashes"), [(True, 1), (False, 0)])
def test_only_crashes_after_calls_with_seeds_count(seeded: bool, crashes: int) -> None:
    server = Server(transport.HTTPClient("http://127.0.0.1:1/v1", None, TIMES), limit=4)
    server.info = ServerInfo("m", "vLLM", seeded=seeded)
    server.on_error(Unreachable("stopped by its owner"))
    assert server.seeded_crashes == 0
    server.info = ServerInfo("m", "vLLM", seeded=seeded)
    server.on_error(TransientError("the connection broke"))
    server.on_error(Unreachable("refused"))
    server.on_error(Unreachable("refused again"))
    assert server.seeded_crashes == crashes
    server.on_success(None)
    assert server.seeded_crashes == 0


@pytest.mark.parametrize(("crashes", "retries", "named"), [(0, True, False), (1, True, True), (2, False, True)])
def test_two_crashes_in_a_row_end_with_the_remedy(crashes: int, retries: bool, named: bool) -> None:
    server = Server(transport.HTTPClient("http://127.0.0.1:1/v1", None, TIMES), limit=4, seeded_crashes=crashes)
    trace = UpstreamGeneration(trace_request(), RecordingListener(), tokenizer=CharacterTokenizer(), eos=0)
    policy = RetryPolicy(trace, ServerPool([server]), TIMES)
    error = Unreachable("refused")
    assert (policy.delay(error) is not False) == retries
    final = policy.final_error(error)
    assert isinstance(final, UpstreamError)
    assert ("--upstream-seeds never" in str(final)) == named


def native(kind: str, answer: Callable[[Any], Answer | None]) -> Callable[[str, Any], Answer]:
    """Return the replies of SGLang or Ollama. `answer` may refuse a request."""
    documents = {"sglang": {"/get_model_info": {"model_path": "/no"}}, "ollama": {"/api/version": {"version": "9"}}}

    def reply(path: str, body: Any) -> Answer:
        if path in documents[kind]:
            return Answer(200, documents[kind][path])
        if path == "/v1/models":
            return Answer(200, {"data": [{"id": "some/model", "owned_by": kind}]})
        if path not in ("/generate", "/api/generate"):
            return NOT_FOUND
        if refusal := answer(body):
            return refusal
        ids = CharacterTokenizer().encode(f"hm {next(_calls)}</think>4")
        if kind == "ollama":
            parts = {"response": CharacterTokenizer().decode(ids), "done": True, "done_reason": "stop"}
            return Answer(200, parts, {"Content-Type": "application/x-ndjson"})
        facts = {"completion_tokens": len(ids) + 1, "finish_reason": {"type": "stop"}}
        return Answer(200, {"output_ids": ids, "meta_info": facts})

    return reply


def test_error_in_a_whole_reply_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(body: Any) -> Answer | None:
        return Answer(200, {"error": {"message": "engine is on fire", "code": "400"}})

    with raw_server(native("sglang", answer), lists_models=False) as url, pytest.raises(UpstreamError, match="on fire"):
        answer_of(url)


@pytest.mark.parametrize("kind", ["sglang", "ollama"])
@pytest.mark.parametrize("form", ["named", "dotted", "keys", "unnamed"])
def test_refused_settings_within_a_field_are_left_out_one_at_a_time(kind: str, form: str) -> None:
    outer = {"sglang": "sampling_params", "ollama": "options"}[kind]
    refused, bodies = ("min_p", "frequency_penalty"), []
    refusals: dict[str, Callable[[str], Any]] = {
        "named": lambda field: {"error": f"unexpected keyword argument '{field}'"},
        "dotted": lambda field: {"detail": [{"loc": [f"body.{outer}.{field}"], "msg": "Extra inputs"}]},
        "keys": lambda field: {"errors": {field: ["is not known"]}},
        "unnamed": lambda field: {"error": "no"},
    }

    def answer(body: Any) -> Answer | None:
        bodies.append(body[outer])
        found = next((field for field in refused if field in body[outer]), None)
        return Answer(500 if form == "named" else 400, refusals[form](found)) if found else None

    with raw_server(native(kind, answer), lists_models=False) as url:
        assert "4" in answer_of(url)
    assert set(bodies[-1]) >= {"top_k", "top_p", "temperature", "presence_penalty"}
    assert not set(bodies[-1]) & set(refused)


@pytest.mark.parametrize(
    "listed",
    [{"data": 5}, {"data": True}, {"data": "some/model"}, {"data": [{"id": "x", "parent": {}}, {"id": "y"}]}, 7, None],
)
def test_strange_list_of_models_asks_for_a_name(listed: Any) -> None:
    with (
        raw_server(lambda *_: Answer(200, listed), lists_models=False) as url,
        pytest.raises(UpstreamError, match="--upstream-model"),
    ):
        answer_of(url)


def test_list_of_models_may_be_the_whole_document() -> None:
    def reply(path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return Answer(200, [{"id": "some/model"}])
        return stream(*thought()) if path == "/v1/chat/completions" else NOT_FOUND

    with raw_server(reply, lists_models=False) as url:
        assert answer_of(url).endswith("4")


def test_name_of_the_model_that_repeats_the_key_is_not_recorded(key: str) -> None:
    def reply(path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return Answer(200, {"data": [{"id": f"x/{KEY}", "root": KEY}]})
        return stream(*thought()) if path == "/v1/chat/completions" else NOT_FOUND

    with raw_server(reply, lists_models=False) as url:
        info = asyncio.run(with_timeout(connect(url, api_key=key))).info
    assert KEY not in repr(info)


@pytest.mark.parametrize("down_s", [0.0, 0.6])
def test_server_that_dies_after_calls_with_seeds_ends_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, down_s: float
) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.backends.upstream.engine._MAX_WAIT_S", 0.1)
    monkeypatch.setattr("markovian_rsa_mlx.backends.upstream.engine._JITTER_S", 0.01)
    monkeypatch.setattr("markovian_rsa_mlx.backends.upstream.servers._MAX_PAUSE_S", 0.1)
    deaths = 0

    def reply(body: Any) -> Answer:
        nonlocal deaths
        if is_trial(body):
            return stream(*thought())
        deaths += 1
        old = servers.pop_all()

        def restart() -> None:
            old.close()
            time.sleep(down_s)
            servers.enter_context(raw_server(chats(reply), port))

        threading.Thread(target=restart).start()
        return Answer(500, {"error": "EngineCore encountered an issue."})

    with contextlib.ExitStack() as servers:
        url = servers.enter_context(raw_server(chats(reply)))
        port = int(url.removesuffix("/v1").rpartition(":")[2])
        times = TimeLimits(connect_s=2.0, first_token_s=5.0, stall_s=2.0, unreachable_timeout_s=10.0)
        with pytest.raises(MarkovianRSAError, match="--upstream-seeds never"):
            answer_of(url, times=times)
    assert deaths >= 2

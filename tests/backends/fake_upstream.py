"""A scripted OpenAI-compatible server in this process: any dialect, any fault, and a log of its requests.

Its model is a Python function over a `CharacterTokenizer`, with one token per character. Each generation request takes
one fault from `script`, and succeeds if there is none left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..support.fakes import EOS, FIRST_CHARACTER, THINK_END, CharacterTokenizer, boxed

Answer = Callable[[str, random.Random], str]


def guess(prompt: str, rng: random.Random) -> str:
    """Return any of a million answers, after some thinking."""
    return boxed(rng.randrange(10**6), "think " * rng.randrange(1, 6))


def letters(prompt: str, rng: random.Random) -> str:
    """Return a text that is random from its first token on."""
    return "".join(rng.choices("abcdefgh", k=40))


@dataclass
class FakeUpstream:
    """A server of a `kind`: mlx, vllm, llama.cpp, sglang, ollama, koboldcpp, text, chat, split or split_content.

    The last two are chats with separate reasoning.

    `calls` has the bodies of generation requests, without the trial requests of a probe, and `ids` their generated ids.
    `tokenizer_calls` has the paths of calls to the tokenizer, which take faults from `tokenizer_script`. `pause` is the
    seconds before each token, and `abandoned` counts clients that closed the connection meanwhile. Beyond `capacity`
    concurrent calls the server answers 429. While `hung` it answers nothing. With `sends_bytes`, replies of llama.cpp
    have the bytes of their tokens. With `routes`, llama.cpp serves several models, and each request must name one. With
    `splits_thinking`, Ollama sends the thinking in a field of its own: unless a request says otherwise, or always.
    """

    kind: str
    answer: Answer = guess
    tokenizer: CharacterTokenizer = field(default_factory=CharacterTokenizer)
    model: str = "fake/model"
    script: deque[str] = field(default_factory=deque)
    tokenizer_script: deque[str] = field(default_factory=deque)
    extra_props: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    pause: float = 0.0
    context: int = 100_000
    capacity: int | None = None
    hung: bool = False
    sends_bytes: bool = True
    routes: bool = False
    splits_thinking: Literal["never", "unless_refused", "always"] = "never"
    tokenizer_calls: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    active: int = 0
    max_active: int = 0
    abandoned: int = 0
    sent: int = 0
    throttled: int = 0
    entropy: random.Random = field(default_factory=lambda: random.Random(5))

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]
        if self.kind == "llama.cpp":
            routes += [
                Route("/props", self.props),
                Route("/completion", self.complete, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/detokenize", self.detokenize, methods=["POST"]),
                Route("/apply-template", self.apply_template, methods=["POST"]),
            ]
        if self.kind == "koboldcpp":
            routes += [
                Route("/props", self.props),
                Route("/api/version", lambda _: JSONResponse({"version": "0.7.0"})),
                Route("/api/extra/version", lambda _: JSONResponse({"result": "KoboldCpp", "version": "9.9"})),
            ]
        if self.kind == "vllm":
            routes.append(Route("/version", lambda _: JSONResponse({"version": "9.9"})))
        if self.kind == "sglang":
            routes.append(Route("/get_model_info", lambda _: JSONResponse({"model_path": "/no/folder"})))
            routes.append(Route("/generate", self.complete, methods=["POST"]))
        if self.kind == "ollama":
            routes.append(Route("/api/version", lambda _: JSONResponse({"version": "9.9"})))
            loaded = {"models": [{"name": self.model, "context_length": self.context}]}
            routes.append(Route("/api/ps", lambda _: JSONResponse(loaded)))
            routes.append(Route("/api/generate", self.complete, methods=["POST"]))
        return Starlette(routes=routes)

    async def models(self, request: Request) -> Response:
        if refusal := self.refusal(request):
            return refusal
        entry = {"id": self.model, "max_model_len": self.context, "owned_by": self.kind}
        return JSONResponse({"data": [entry]})

    async def health(self, request: Request) -> Response:
        while self.hung:  # noqa: ASYNC110  set by another thread
            await asyncio.sleep(0.02)
        return JSONResponse({"status": "ok"})

    async def props(self, request: Request) -> Response:
        if self.routes and request.query_params.get("model") != self.model:
            return JSONResponse({"role": "router", "default_generation_settings": {"n_ctx": 0}, "build_info": "b1"})
        props = {"default_generation_settings": {"n_ctx": self.context}, "total_slots": 4, "build_info": "b1"}
        return JSONResponse(props | self.extra_props)

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        self.tokenizer_calls.append("/tokenize")
        if refusal := self.unnamed(body):
            return refusal
        if self.tokenizer_script:
            return self.broken(self.tokenizer_script.popleft()) or Response(status_code=500)
        if body.get("parse_special", True):
            ids = self.tokenizer.encode(body["content"])
        else:
            ids = [token for c in body["content"] for token in self.tokenizer.encode(c)]
        if not body.get("with_pieces"):
            return JSONResponse({"tokens": ids})
        pieces: list[dict[str, Any]] = []
        for token in ids:
            text = self.tokenizer.decode([token])
            # A piece that is not valid UTF-8 is sent as bytes.
            pieces.append({"id": token, "piece": [token - FIRST_CHARACTER] if "\ufffd" in text else text})
        return JSONResponse({"tokens": pieces})

    async def detokenize(self, request: Request) -> Response:
        body = await request.json()
        self.tokenizer_calls.append("/detokenize")
        return self.unnamed(body) or JSONResponse({"content": self.tokenizer.decode(body["tokens"])})

    async def apply_template(self, request: Request) -> Response:
        body = await request.json()
        thinking = body["chat_template_kwargs"]["enable_thinking"]
        return self.unnamed(body) or JSONResponse({"prompt": self.tokenizer.render_chat(body["messages"], thinking)})

    async def complete(self, request: Request) -> Response:
        if refusal := self.refusal(request):
            return refusal
        body = await request.json()
        if unsupported := self.unsupported(request.url.path, body):
            return unsupported
        fault, is_trial = "", "12345" in self.prompt_of(body)
        if not is_trial:
            if self.capacity is not None and self.active >= self.capacity:
                self.throttled += 1
                return self.broken("429:0.2") or Response(status_code=500)
            fault = self.script.popleft() if self.script else ""
            self.calls.append(body)
            self.times.append(time.monotonic())
            if broken := self.broken(fault):
                return broken
        ids = self.generate(body, letters if is_trial else self.answer)
        if not is_trial:
            self.ids.append(ids)
        if self.kind == "ollama":
            return StreamingResponse(self.lines(body, ids), media_type="application/x-ndjson")
        if body.get("stream"):
            return StreamingResponse(self.stream(body, ids, fault), media_type="text/event-stream")
        return await self.whole_reply(request, body, ids, fault)

    def refusal(self, request: Request) -> Response | None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        return None

    def unnamed(self, body: dict[str, Any]) -> Response | None:
        """Return the response of a server of several models to a request that names none of them."""
        if self.routes and body.get("model") != self.model:
            return JSONResponse({"error": {"code": 400, "message": "model name is missing from the request"}}, 400)
        return None

    def unsupported(self, path: str, body: dict[str, Any]) -> Response | None:
        """Return the response to a request that this kind of server does not support."""
        if refusal := self.unnamed(body):
            return refusal
        chats = self.kind in ("chat", "split", "split_content")
        if path.endswith("/chat/completions") != chats:
            return JSONResponse({"detail": "Not Found"}, 404)
        if self.kind in ("sglang", "ollama") and path.startswith("/v1"):
            return JSONResponse({"error": "not the native route"}, 400)
        if isinstance(body.get("prompt"), list) and self.kind not in ("vllm", "llama.cpp"):
            return JSONResponse({"error": "prompt must be a string"}, 400)
        return None

    def broken(self, fault: str) -> Response | None:
        """Return the response that a fault of `script` means, if it concerns a whole response."""
        if fault in ("500", "503"):
            return JSONResponse({"error": {"message": "injected"}}, int(fault))
        if fault.startswith("429"):
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": fault[4:] or "1"})
        if fault == "stalled error":
            return StreamingResponse(self.stall(), 500, media_type="application/json")
        if fault == "html":
            return Response("<html>It works!</html>", media_type="text/html")
        if fault == "truncated":
            return Response('{"choices": [{"te', media_type="application/json")
        if fault == "400":
            return JSONResponse({"error": {"message": "bad request"}}, 400)
        if fault == "context":
            return JSONResponse({"error": {"message": "This model's maximum context length is 10 tokens"}}, 400)
        if fault == "huge":
            return Response(b"[" + b"1," * 2_000_000, media_type="application/json")
        return None

    async def stall(self) -> AsyncIterator[bytes]:
        yield b'{"error": '
        await asyncio.sleep(30)

    def prompt_of(self, body: dict[str, Any]) -> str:
        if "messages" in body:
            return str(body["messages"][-1]["content"])
        prompt = body["input_ids"] if self.kind == "sglang" else body["prompt"]
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def generate(self, body: dict[str, Any], answer: Answer) -> list[int]:
        """Return the ids that the model generates: a function of the seed, if there is one."""
        options = body.get("sampling_params") or body.get("options") or body
        seed, prompt = options.get("seed"), body.get("prompt", body.get("input_ids"))
        rng = random.Random(self.entropy.random() if seed is None else seed)
        ids = [*self.tokenizer.encode(answer(self.prompt_of(body), rng)), EOS]
        if isinstance(prompt, list):
            # A prompt that continues a trace has generated ids after the chat.
            end_of_chat = self.tokenizer.encode("<assistant>")[0]
            known = prompt[len(prompt) - prompt[::-1].index(end_of_chat) :]
            ids = ids[len(known) :] if ids[: len(known)] == known else ids
        names = ("n_predict", "max_new_tokens", "num_predict", "max_tokens")
        return ids[: next(options[name] for name in names if name in options)]

    async def whole_reply(self, request: Request, body: dict[str, Any], ids: list[int], fault: str) -> Response:
        with self.serving():
            if fault == "stall":
                await asyncio.sleep(30)
            while self.hung:  # noqa: ASYNC110  set by another thread
                await asyncio.sleep(0.02)
            end = time.monotonic() + self.pause * len(ids)
            while time.monotonic() < end:
                await asyncio.sleep(0.02)
                if await request.is_disconnected():
                    self.abandoned += 1
                    break
        if self.kind == "llama.cpp":
            chances: list[dict[str, Any]] = [{"prob": 0.5} for _ in ids]
            for entry, token in zip(chances, ids, strict=True):
                if self.sends_bytes:
                    entry |= {"id": token, "bytes": list(self.tokenizer.decode([token]).encode())}
            stop_type = "eos" if ids[-1] == EOS else "limit"
            reply = {"tokens": ids, "tokens_predicted": len(ids), "stop_type": stop_type}
            return JSONResponse(reply | {"completion_probabilities": chances})
        if self.kind == "sglang":
            kept = ids[:-1] if ids[-1] == EOS else ids
            reason = {"type": "stop", "matched": EOS} if ids[-1] == EOS else {"type": "length", "length": len(ids)}
            facts = {"finish_reason": reason, "prompt_tokens": 1, "completion_tokens": len(ids)}
            return JSONResponse({"text": self.tokenizer.decode(kept), "output_ids": kept, "meta_info": facts})
        choice: dict[str, Any] = {"text": self.tokenizer.decode(ids)}
        if self.kind == "mlx":
            choice["logprobs"] = {"content": [{"id": token, "logprob": -5.0} for token in ids]}
        return JSONResponse(self.finished(body, ids, choice))

    async def lines(self, body: dict[str, Any], ids: list[int]) -> AsyncIterator[str]:
        refused = self.splits_thinking == "unless_refused" and body.get("think") is False
        is_split = self.splits_thinking != "never" and not refused and THINK_END in ids
        for index, token in enumerate(ids):
            text = {"response": self.tokenizer.decode([token])}
            if is_split and index <= ids.index(THINK_END):
                text = {"response": "", "thinking": "" if token == THINK_END else text["response"]}
            yield json.dumps({"model": self.model, "done": False, **text}) + "\n"
        reason = "stop" if ids[-1] == EOS else "length"
        counts = {"prompt_eval_count": len(self.tokenizer.encode(body["prompt"])), "eval_count": len(ids)}
        yield json.dumps({"model": self.model, "response": "", "done": True, "done_reason": reason, **counts}) + "\n"

    async def stream(self, body: dict[str, Any], ids: list[int], fault: str) -> AsyncIterator[str]:
        done = False
        try:
            with self.serving():
                for index in range(len(ids)):
                    if index == len(ids) // 2:
                        if fault == "cut":
                            raise ConnectionResetError("cut on purpose")
                        if fault == "end":
                            done = True
                            return
                        if fault == "stall":
                            await asyncio.sleep(30)
                        if fault == "garbage":
                            yield "data: {not json\n\n"
                    await asyncio.sleep(self.pause)
                    yield f"data: {json.dumps({'choices': [self.piece(ids, index)]})}\n\n"
                    self.sent += 1
                yield f"data: {json.dumps(self.finished(body, ids, {'text': '', 'delta': {}}))}\n\n"
                yield "data: [DONE]\n\n"
                done = True
        finally:
            self.abandoned += not done and fault != "cut"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        try:
            yield
        finally:
            self.active -= 1

    def piece(self, ids: list[int], index: int) -> dict[str, Any]:
        """Return the choice of one event of a stream."""
        token = ids[index]
        text = self.tokenizer.decode([token])
        if self.kind == "vllm":
            return {"text": text, "token_ids": [token], "finish_reason": None}
        if self.kind in ("text", "koboldcpp"):
            return {"text": text, "finish_reason": None}
        delta = {"content": text}
        if self.kind.startswith("split"):
            mark = self.tokenizer.end_of_thinking[0][0]
            thinking = mark not in ids or index < ids.index(mark)
            name = "reasoning" if self.kind == "split" else "reasoning_content"
            delta = {} if token == mark else {name: text} if thinking else {"content": text}
        return {"delta": delta, "finish_reason": None}

    def finished(self, body: dict[str, Any], ids: list[int], choice: dict[str, Any]) -> dict[str, Any]:
        """Return a whole reply, or the last event of a stream, with its usage."""
        choice["finish_reason"] = "stop" if ids[-1] == EOS else "length"
        return {"choices": [choice], "usage": self.usage(body, ids)}

    def usage(self, body: dict[str, Any], ids: list[int]) -> dict[str, int]:
        if "messages" in body:
            prompt = self.tokenizer.encode(self.tokenizer.render_chat(body["messages"], True))
        else:
            prompt = body["prompt"] if isinstance(body["prompt"], list) else self.tokenizer.encode(body["prompt"])
        return {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}


class CallingUpstream(FakeUpstream):
    """A chat server whose replies have the calls of its model as such, with arguments in pieces."""

    def prompt_of(self, body: dict[str, Any]) -> str:
        return json.dumps(body["messages"]) if "messages" in body else super().prompt_of(body)

    async def stream(self, body: dict[str, Any], ids: list[int], fault: str) -> AsyncIterator[str]:
        end = self.tokenizer.end_of_thinking[0][0]
        text = self.tokenizer.decode(ids[ids.index(end) + 1 :]) if body.get("tools") and end in ids else ""
        if "<tool_call>" not in text:
            async for event in super().stream(body, ids, fault):
                yield event
            return
        content, _, rest = text.partition("<tool_call>")
        call = json.loads(rest.partition("</tool_call>")[0])
        arguments = json.dumps(call["arguments"])
        functions = [
            {"name": call["name"], "arguments": ""},
            {"arguments": arguments[:5]},
            {"arguments": arguments[5:]},
        ]
        thought = self.tokenizer.decode(ids[: ids.index(end) + 1])
        deltas: list[dict[str, Any]] = [{"content": thought}, {"content": content}]
        deltas += [{"tool_calls": [{"index": 0, "id": "x", "function": function}]} for function in functions]
        for delta in deltas:
            yield f"data: {json.dumps({'choices': [{'delta': delta, 'finish_reason': None}]})}\n\n"
        last = {"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": self.usage(body, ids)}
        yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"


class Running:
    """A server in a thread. `url` is the root of its API. `stop` closes the port, and `start` opens it again."""

    def __init__(self, fake: FakeUpstream, port: int | None = None) -> None:
        self.fake = fake
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(
            self.fake.app(), host="127.0.0.1", port=self.port, log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

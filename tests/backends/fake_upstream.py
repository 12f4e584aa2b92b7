"""A scripted OpenAI-compatible server in this process: any dialect, any fault, and a log of what it was asked.

Its model is a Python function; one token a character (`CharacterTokenizer`). Each generation request
takes one fault from `script`; an empty script means no fault.
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
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ..support.fakes import EOS, FIRST_CHARACTER, CharacterTokenizer, boxed

Answer = Callable[[str, random.Random], str]


def guess(prompt: str, rng: random.Random) -> str:
    """Any of a million answers, after some thinking."""
    return boxed(rng.randrange(10**6), "think " * rng.randrange(1, 6))


def letters(prompt: str, rng: random.Random) -> str:
    """Random from the first token on."""
    return "".join(rng.choices("abcdefgh", k=40))


@dataclass
class FakeUpstream:
    """`kind`: mlx, vllm, llama.cpp, text, chat, split (chat with `reasoning`), split_content (`reasoning_content`).

    `calls` are the bodies of generations after the trial at the start (`trial` of them); `ids` what was generated
    for them. `left` counts clients that went away while they were served, `pause` is waited before each token. Beyond
    `room` calls at once it answers 429; `hung` it answers nothing; `helpers` are the paths asked for tokens and texts.
    `spells`: llama.cpp's replies tell the bytes of their tokens.
    """

    kind: str
    answer: Answer = guess
    tokenizer: CharacterTokenizer = field(default_factory=CharacterTokenizer)
    model: str = "fake/model"
    script: deque[str] = field(default_factory=deque)
    helper_script: deque[str] = field(default_factory=deque)
    more: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    pause: float = 0.0
    context: int = 100_000
    room: int | None = None
    hung: bool = False
    spells: bool = True
    helpers: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    left: int = 0
    put_off: int = 0
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
        if self.kind == "vllm":
            routes.append(Route("/version", lambda _: JSONResponse({"version": "9.9"})))
        return Starlette(routes=routes)

    async def models(self, request: Request) -> Response:
        if refused := self.unlocked(request):
            return refused
        return JSONResponse({"data": [{"id": self.model, "max_model_len": self.context}]})

    async def health(self, request: Request) -> Response:
        while self.hung:  # noqa: ASYNC110  set by another thread
            await asyncio.sleep(0.02)
        return JSONResponse({"status": "ok"})

    async def props(self, request: Request) -> Response:
        settings = {"n_ctx": self.context}
        return JSONResponse({"default_generation_settings": settings, "total_slots": 4, "build_info": "b1"} | self.more)

    async def tokenize(self, request: Request) -> Response:
        body = await request.json()
        self.helpers.append("/tokenize")
        if self.helper_script:
            return self.broken(self.helper_script.popleft()) or Response(status_code=500)
        if body.get("parse_special", True):
            ids = self.tokenizer.encode(body["content"])
        else:
            ids = [token for c in body["content"] for token in self.tokenizer.encode(c)]
        if not body.get("with_pieces"):
            return JSONResponse({"tokens": ids})
        return JSONResponse({"tokens": [{"id": token, "piece": self.spelling(token)} for token in ids]})

    def spelling(self, token: int) -> str | list[int]:
        """A token's text; its bytes where they are none."""
        text = self.tokenizer.decode([token])
        return [token - FIRST_CHARACTER] if "\ufffd" in text else text

    async def detokenize(self, request: Request) -> Response:
        self.helpers.append("/detokenize")
        return JSONResponse({"content": self.tokenizer.decode((await request.json())["tokens"])})

    async def apply_template(self, request: Request) -> Response:
        body = await request.json()
        thinking = body["chat_template_kwargs"]["enable_thinking"]
        return JSONResponse({"prompt": self.tokenizer.render_chat(body["messages"], thinking)})

    async def complete(self, request: Request) -> Response:
        if refused := self.unlocked(request):
            return refused
        body = await request.json()
        if (problem := self.problem(request.url.path, body)) is not None:
            return problem
        if self.room is not None and self.active >= self.room and not self.is_trial(body):
            self.put_off += 1
            return self.broken("429:0.2") or Response(status_code=500)
        fault = self.script.popleft() if self.script and not self.is_trial(body) else ""
        if not self.is_trial(body):
            self.calls.append(body)
            self.times.append(time.monotonic())
        if (broken := self.broken(fault)) is not None:
            return broken
        ids = self.generate(body)
        if not self.is_trial(body):
            self.ids.append(ids)
        return await self.reply(request, body, ids, fault)

    def unlocked(self, request: Request) -> Response | None:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        return None

    def problem(self, path: str, body: dict[str, Any]) -> Response | None:
        """What this kind of server does not take."""
        chats = self.kind in ("chat", "split", "split_content")
        if path.endswith("/chat/completions") != chats:
            return JSONResponse({"detail": "Not Found"}, 404)
        if isinstance(body.get("prompt"), list) and self.kind not in ("vllm", "llama.cpp"):
            return JSONResponse({"error": "prompt must be a string"}, 400)
        return None

    def is_trial(self, body: dict[str, Any]) -> bool:
        return "12345" in self.prompt_of(body)

    def broken(self, fault: str) -> Response | None:
        if fault in ("500", "503"):
            return JSONResponse({"error": {"message": "out of luck"}}, int(fault))
        if fault.startswith("429"):
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": fault[4:] or "1"})
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

    def prompt_of(self, body: dict[str, Any]) -> str:
        if "messages" in body:
            return str(body["messages"][-1]["content"])
        prompt = body["prompt"]
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def generate(self, body: dict[str, Any]) -> list[int]:
        """The ids that the model says; a function of the seed where one was sent."""
        seed = body.get("seed")
        rng = random.Random(self.entropy.random() if seed is None else seed)
        most = body.get("n_predict") or body["max_tokens"]
        answer = letters if self.is_trial(body) else self.answer
        ids = [*self.tokenizer.encode(answer(self.prompt_of(body), rng)), EOS]
        if isinstance(body.get("prompt"), list):
            said = self.said(body["prompt"])
            ids = ids[len(said) :] if ids[: len(said)] == said else ids
        return ids[:most]

    def said(self, prompt: list[int]) -> list[int]:
        """What stands behind the chat in a prompt that goes on."""
        end = self.tokenizer.encode("<assistant>")[0]
        return prompt[len(prompt) - prompt[::-1].index(end) :]

    async def reply(self, request: Request, body: dict[str, Any], ids: list[int], fault: str) -> Response:
        if body.get("stream"):
            return StreamingResponse(self.stream(body, ids, fault), media_type="text/event-stream")
        with self.serving():
            if fault == "stall":
                await asyncio.sleep(30)
            while self.hung:  # noqa: ASYNC110  set by another thread
                await asyncio.sleep(0.02)
            await self.wait_or_leave(request, self.pause * len(ids))
        if self.kind == "llama.cpp":
            kind = "eos" if ids[-1] == EOS else "limit"
            chances: list[dict[str, Any]] = [{"prob": 0.5} for _ in ids]
            for entry, token in zip(chances, ids, strict=True):
                if self.spells:
                    entry |= {"id": token, "bytes": list(self.tokenizer.decode([token]).encode())}
            return JSONResponse(
                {"tokens": ids, "tokens_predicted": len(ids), "stop_type": kind, "completion_probabilities": chances}
            )
        content = [{"id": token, "logprob": -5.0} for token in ids]
        choice: dict[str, Any] = {"text": self.tokenizer.decode(ids), "finish_reason": self.finish(ids)}
        if self.kind == "mlx":
            choice["logprobs"] = {"content": content}
        return JSONResponse({"choices": [choice], "usage": self.usage(body, ids)})

    async def wait_or_leave(self, request: Request, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.left += 1
                return

    async def stream(self, body: dict[str, Any], ids: list[int], fault: str) -> AsyncIterator[str]:
        done = False
        try:
            with self.serving():
                for place, token in enumerate(ids):
                    if place == len(ids) // 2:
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
                    yield self.event(self.piece(ids, place, token))
                yield self.event(self.last(body, ids))
                yield "data: [DONE]\n\n"
                done = True
        finally:
            self.left += not done and fault != "cut"

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            yield
        finally:
            self.active -= 1

    def event(self, payload: dict[str, Any]) -> str:
        return f"data: {json.dumps(payload)}\n\n"

    def piece(self, ids: list[int], place: int, token: int) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        if self.kind in ("vllm", "text"):
            choice: dict[str, Any] = {"text": text, "finish_reason": None}
            return {"choices": [choice | ({"token_ids": [token]} if self.kind == "vllm" else {})]}
        delta = {"content": text}
        if self.kind.startswith("split"):
            mark = self.tokenizer.end_of_thinking[0][0]
            thinking = mark not in ids or place < ids.index(mark)
            name = "reasoning" if self.kind == "split" else "reasoning_content"
            delta = {} if token == mark else {name: text} if thinking else {"content": text}
        return {"choices": [{"delta": delta, "finish_reason": None}]}

    def last(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        """The end of a stream with its usage."""
        choice = {"finish_reason": self.finish(ids), "text": "", "delta": {}}
        return {"choices": [choice], "usage": self.usage(body, ids)}

    def finish(self, ids: list[int]) -> str:
        return "stop" if ids[-1] == EOS else "length"

    def usage(self, body: dict[str, Any], ids: list[int]) -> dict[str, int]:
        if "messages" in body:
            prompt = self.tokenizer.encode(self.tokenizer.render_chat(body["messages"], True))
        else:
            prompt = body["prompt"] if isinstance(body["prompt"], list) else self.tokenizer.encode(body["prompt"])
        return {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}


class Running:
    """A server thread; `url` is its API's root. `stop` closes the port, `start` opens it again."""

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

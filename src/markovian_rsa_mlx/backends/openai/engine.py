"""`UpstreamBackend`: the engine that is one server, or several that serve the same model."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import stamina

from ...config import Sampling
from ...errors import ContextLengthError, RefusedError, UpstreamError
from ..base import EngineInfo, TraceListener, TraceRequest, TraceResult
from .again import Again
from .dialects import Reply
from .exchange import exchange
from .faults import Busy, Fault, Unreachable, Unsupported
from .fleet import Fleet
from .identity import Identity
from .pool import Pool
from .served import ServedCodec
from .server import Server
from .settings import Upstream
from .trace import Trace, end_of_turn

# stamina announces each retry as a warning; ours are told to the listener.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_KNOWN_CHANCES = 10_000
#: More tokens than a character is made of.
_TORN_OVER = 8
_FIRST_WAIT_S, _LONGEST_BACKOFF_S, _JITTER_S = 0.2, 5.0, 0.3


class UpstreamBackend:
    """An engine over HTTP; see `Backend`. Make it with `connect`. Usable from one event loop after another."""

    def __init__(self, upstream: Upstream, fleet: Fleet) -> None:
        self.upstream, self.codec, self._eos = upstream, fleet.codec, end_of_turn(fleet.codec)
        self._fleet, self._pool = fleet, Pool(fleet.servers)
        self._chances: OrderedDict[int, float] = OrderedDict()

    @classmethod
    async def connect(cls, upstream: Upstream, progress: Callable[[str], None] | None = None) -> UpstreamBackend:
        """Ask every server what it is; see `Fleet.assemble` for what it raises."""
        fleet = Fleet(upstream)
        await fleet.assemble(progress or (lambda _: None))
        return cls(upstream, fleet)

    @property
    def info(self) -> EngineInfo:
        """What a run records: `engine` names the server's kind, `engine_version` how prompts go over."""
        identity, dialect = self._fleet.identity, self._fleet.identity.dialect
        version = " ".join(filter(None, [identity.version, f"prompts as {dialect.prompt_as},"]))
        seeds = "seeded" if self._fleet.sends_seeds(identity) else "not seeded"
        return EngineInfo(
            model_id=identity.model,
            quantization="unknown",
            engine=f"{'upstream' if dialect.gives_ids else 'upstream-text'}/{identity.name}",
            engine_version=f"{version} {seeds}",
            dtype="unknown",
            context_length=identity.context_length,
            max_rows=self._pool.seats,
            memory_limit_bytes=None,
        )

    async def generate(self, request: TraceRequest, listener: TraceListener) -> TraceResult:
        """Generate one trace; see `Backend.generate`.

        Calls that fail with what may pass are made again, by a schedule and while they get the trace any further,
        and a `NoteListener` hears of each. Raises `RefusedError` where this request is refused, and `UpstreamError`
        where no server takes a call for too long.
        """
        self._check(request)
        trace = Trace(request, listener, self.codec, self._eos)
        again = Again(trace, self._pool, self.upstream)
        schedule = stamina.retry_context(
            again.wait_for,
            attempts=None,
            timeout=None,
            wait_initial=_FIRST_WAIT_S,
            wait_max=_LONGEST_BACKOFF_S,
            wait_jitter=_JITTER_S,
        )
        try:
            async for attempt in schedule:
                with attempt:
                    await self._fill(trace)
        except Fault as fault:
            raise again.given_up(fault) from fault
        except Unsupported as error:
            kind = RefusedError if error.of_request else UpstreamError
            raise kind(f"{error}; the request cannot succeed there.") from error
        self._remember(trace)
        return trace.result()

    async def log_probability(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
    ) -> float | None:
        """What the server told when it generated just this, or a bound above it; None where it told nothing."""
        del sampling  # that of the run whose trace it was
        return self._chances.get(hash((tuple(prompt_token_ids), tuple(token_ids))))

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Bound the requests in flight at all servers together; their memory is their own."""
        del memory_limit_bytes
        self._pool.most = max_rows

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """0: nothing is held here."""
        del rows, longest
        return 0

    def peak_memory_bytes(self) -> int:
        """0: the memory is the servers'."""
        return 0

    async def model_stats(self) -> dict[str, Any] | None:
        return None

    def reset_peak_memory(self) -> None:
        pass

    async def aclose(self) -> None:
        """Nothing stays open between calls."""

    async def _fill(self, trace: Trace) -> None:
        """Carry the trace to its end at one server, in as many calls as its dialect needs."""
        async with self._pool.seat(trace.request.run_id) as server:
            try:
                identity = await self._fleet.identity_of(server)
                trace.started()
                over = False
                while not over and trace.finish_reason is None:
                    over = await self._call(server, identity, trace)
                    server.answered()
            except Unreachable:
                server.lost()
                raise
            except Busy as busy:
                server.put_off(busy.retry_after_s)
                raise
            except Fault as fault:
                server.failed(fault.retry_after_s)
                raise

    async def _call(self, server: Server, identity: Identity, trace: Trace) -> bool:
        """One call; whether the trace is over although its ids do not say so."""
        ask = trace.ask(identity, self._fleet.sends_seeds(identity))
        start, seen = time.monotonic(), 0
        async with aclosing(exchange(server.wire, identity.dialect, ask, server.token_s)) as replies:
            async for reply in replies:
                server.heard()
                await self._learn(server, trace, reply, seen)
                trace.take(reply.ids[seen:])
                seen = len(reply.ids)
        trace.end(reply, ask, identity)
        if seen and not identity.dialect.streams:
            server.replied((time.monotonic() - start) / seen)
        return not identity.dialect.gives_ids

    async def _learn(self, server: Server, trace: Trace, reply: Reply, seen: int) -> None:
        """Let a tokenizer that a server lends know the new ids before others want their text."""
        if isinstance(self.codec, ServedCodec):
            self.codec.learn(reply.spelled)
            await self.codec.prepare(server.wire, [*trace.ids[-_TORN_OVER:], *reply.ids[seen:]])

    def _check(self, request: TraceRequest) -> None:
        length, most = len(request.prompt_token_ids) + request.max_tokens, self._fleet.identity.context_length
        if most is not None and length > most:
            raise ContextLengthError(
                f"Trace {request.trace_id} may grow to {length:,} tokens, and the server's context holds {most:,}; "
                "lower thinking_tokens, final_tokens or tail_tokens, or start the server with a longer one."
            )

    def _remember(self, trace: Trace) -> None:
        if trace.log_chance is None:
            return
        self._chances[hash((trace.request.prompt_token_ids, tuple(trace.ids)))] = trace.log_chance
        if len(self._chances) > _KNOWN_CHANCES:
            self._chances.popitem(last=False)

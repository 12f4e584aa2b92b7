"""`UpstreamEngine`: the engine that is one server, or several that serve the same model.

Whether a call that failed is made again, and when; and what becomes of a trace whose calls all fail.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import stamina

from ...config import Sampling
from ...errors import BackendError, ContextLengthError, RefusedError, UpstreamError
from ..base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult
from .config import Upstream
from .dialects import CompletionReply
from .errors import Throttled, TransientError, Unreachable, UnsupportedRequest
from .generation import UpstreamGeneration, end_of_turn
from .probe import ServerInfo
from .servers import Server, ServerGroup, ServerPool
from .tokenizers import RemoteTokenizer
from .transport import request_completion

# stamina announces each retry as a warning; ours are told to the listener.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_KNOWN_CHANCES = 10_000
#: More tokens than a character is made of.
_TORN_OVER = 8
_FIRST_WAIT_S, _LONGEST_BACKOFF_S, _JITTER_S = 0.2, 5.0, 0.3


class UpstreamEngine:
    """An engine over HTTP; see `Backend`. Make it with `connect`. Usable from one event loop after another."""

    def __init__(self, upstream: Upstream, fleet: ServerGroup) -> None:
        self.upstream, self.tokenizer, self._eos = upstream, fleet.tokenizer, end_of_turn(fleet.tokenizer)
        self._fleet, self._pool = fleet, ServerPool(fleet.servers)
        self._chances: OrderedDict[int, float] = OrderedDict()

    @classmethod
    async def connect(cls, upstream: Upstream, progress: Callable[[str], None] | None = None) -> UpstreamEngine:
        """Ask every server what it is; see `ServerGroup.assemble` for what it raises."""
        fleet = ServerGroup(upstream)
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

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace; see `Backend.generate`.

        Calls that fail with what may pass are made again, by a schedule and while they get the trace any further,
        and each is a warning to the listener. Raises `RefusedError` where this request is refused, and `UpstreamError`
        where no server takes a call for too long.
        """
        self._check(request)
        trace = UpstreamGeneration(request, listener, self.tokenizer, self._eos)
        again = RetryPolicy(trace, self._pool, self.upstream)
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
        except TransientError as fault:
            raise again.given_up(fault) from fault
        except UnsupportedRequest as error:
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

    async def _fill(self, trace: UpstreamGeneration) -> None:
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
            except Throttled as busy:
                server.put_off(busy.retry_after_s)
                raise
            except TransientError as fault:
                server.failed(fault.retry_after_s)
                raise

    async def _call(self, server: Server, identity: ServerInfo, trace: UpstreamGeneration) -> bool:
        """One call; whether the trace is over although its ids do not say so."""
        ask = trace.ask(identity, self._fleet.sends_seeds(identity))
        start, seen = time.monotonic(), 0
        async with aclosing(request_completion(server.wire, identity.dialect, ask, server.token_s)) as replies:
            async for reply in replies:
                server.heard()
                await self._learn(server, trace, reply, seen)
                trace.take(reply.ids[seen:])
                seen = len(reply.ids)
        trace.end(reply, ask, identity)
        if seen and not identity.dialect.streams:
            server.replied((time.monotonic() - start) / seen)
        return not identity.dialect.gives_ids

    async def _learn(self, server: Server, trace: UpstreamGeneration, reply: CompletionReply, seen: int) -> None:
        """Let a tokenizer that a server lends know the new ids before others want their text."""
        if isinstance(self.tokenizer, RemoteTokenizer):
            self.tokenizer.learn(reply.spelled)
            await self.tokenizer.prepare(server.wire, [*trace.ids[-_TORN_OVER:], *reply.ids[seen:]])

    def _check(self, request: GenerationRequest) -> None:
        length, most = len(request.prompt_token_ids) + request.max_tokens, self._fleet.identity.context_length
        if most is not None and length > most:
            raise ContextLengthError(
                f"Trace {request.trace_id} may grow to {length:,} tokens, and the server's context holds {most:,}; "
                "lower thinking_tokens, final_tokens or tail_tokens, or start the server with a longer one."
            )

    def _remember(self, trace: UpstreamGeneration) -> None:
        if trace.log_chance is None:
            return
        self._chances[hash((trace.request.prompt_token_ids, tuple(trace.ids)))] = trace.log_chance
        if len(self._chances) > _KNOWN_CHANCES:
            self._chances.popitem(last=False)


#: Calls in a row that bring nothing before the attempt at a trace is given up.
_TRIES = 6


class RetryPolicy:
    """The rule for one trace; its listener hears of each call that is made again."""

    def __init__(self, trace: UpstreamGeneration, pool: ServerPool, upstream: Upstream) -> None:
        self._trace, self._pool, self._times = trace, pool, upstream.times
        self._tries, self._progress = 0, len(trace.ids)
        self._stuck_since: float | None = None

    def wait_for(self, error: Exception) -> bool | float:
        """stamina's question: False, or after how many seconds (True: by the schedule)."""
        if not isinstance(error, TransientError) or not self._may_try_again(error):
            return False
        self._trace.note(f"{error}; the call is made again")
        if isinstance(error, Throttled) or error.retry_after_s is not None:
            return 0.0  # the server rests, not the trace
        return 0.0 if isinstance(error, Unreachable) and self._pool.awake else True

    def _may_try_again(self, fault: TransientError) -> bool:
        if len(self._trace.ids) > self._progress:
            self._tries, self._progress = 0, len(self._trace.ids)
            self._stuck_since = None
        if isinstance(fault, Unreachable | Throttled):
            self._stuck_since = self._stuck_since or time.monotonic()
            return not self._none_for_too_long(self._stuck_since)
        self._tries += 1
        return self._tries < _TRIES

    def _none_for_too_long(self, since: float) -> bool:
        """Whether no server took a call in all that time. Waiting for a seat at one that does costs no patience."""
        return time.monotonic() - max(since, self._pool.lost_since) >= self._patience_s

    @property
    def _patience_s(self) -> float:
        return self._times.first_token_s if self._pool.alive else self._times.patience_s

    def given_up(self, fault: TransientError) -> UpstreamError | BackendError:
        """The error that ends the attempt, or, where no server takes a call any more, the run."""
        if not isinstance(fault, Unreachable | Throttled):
            return BackendError(f"{fault}, {self._tries} times in a row.")
        many = len(self._pool.servers) > 1
        state = f"{'no server has taken a call' if many else 'so it has been'} for {self._patience_s:g} s"
        cure = "go on later" if self._pool.alive else "start the server again and go on"
        return UpstreamError(f"{fault}, and {state}; {cure} with the same command and --audit FILE.")

"""The engine over the servers of one model: generate traces, retry failed calls, and give up when they keep failing."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import stamina

from ...config import Sampling
from ...errors import BackendError, ContextLengthError, RefusedError, UpstreamError
from ...redact import redact
from ..base import EngineInfo, GenerationListener, GenerationRequest, GenerationResult
from ..tokenizers import MLXTokenizer
from .config import TimeLimits, Upstream
from .errors import Crashed, Throttled, TransientError, Unreachable, UnsupportedRequest
from .generation import UpstreamGeneration, end_of_turn
from .probe import ServerInfo
from .servers import Server, ServerGroup, ServerPool
from .tokenizers import RemoteTokenizer
from .transport import request_completion

# stamina logs each retry as a warning. The listener records ours.
logging.getLogger("stamina").addHandler(logging.NullHandler())

_FIRST_WAIT_S, _MAX_WAIT_S, _JITTER_S = 0.2, 5.0, 0.3
#: Failed calls in a row without a new token until the attempt at a trace fails.
_MAX_FAILURES = 6
#: Crashes of a server in a row, each right after calls with seeds, until the run ends.
_MAX_SEEDED_CRASHES = 2
_MAX_KNOWN_CHANCES = 10_000
#: More tokens than an incomplete character can have.
_MAX_TOKENS_PER_CHARACTER = 8


class UpstreamEngine:
    """An `Engine` over HTTP. Create it with `connect`. Usable from one event loop after another."""

    def __init__(self, upstream: Upstream, group: ServerGroup) -> None:
        self.upstream, self.tokenizer = upstream, group.tokenizer
        self._group, self._pool = group, ServerPool(group.servers)
        self._eos = end_of_turn(group.tokenizer)
        self._chances: OrderedDict[int, float] = OrderedDict()

    @classmethod
    async def connect(cls, upstream: Upstream, progress: Callable[[str], None] | None = None) -> UpstreamEngine:
        """Probe every server. Raises the errors of `ServerGroup.connect`."""
        return cls(upstream, await ServerGroup.connect(upstream, progress or (lambda _: None)))

    @property
    def info(self) -> EngineInfo:
        """The description that a run records: the kind of server, the prompt format and whether it gets seeds."""
        server = self._group.info
        prompts = f"prompts as {server.dialect.prompt_format}, {'seeded' if server.seeded else 'not seeded'}"
        return EngineInfo(
            model_id=redact(server.model),
            quantization="unknown",
            engine=f"{'upstream' if server.dialect.returns_token_ids else 'upstream-text'}/{server.name}",
            engine_version=f"{server.version} {prompts}".strip(),
            dtype="unknown",
            context_length=server.context_length,
            max_rows=self._pool.capacity,
            memory_limit_bytes=None,
            tokenizer=self.upstream.tokenizer or redact(server.model),
            tokenizer_digest=self.tokenizer.digest if isinstance(self.tokenizer, MLXTokenizer) else "",
            closes_thinking=server.dialect.prompt_format == "ids",
            binds_answers=server.dialect.binds_answers,
            writes_calls=server.dialect.prompt_format == "chat",
        )

    async def generate(self, request: GenerationRequest, listener: GenerationListener) -> GenerationResult:
        """Generate one trace.

        Retries calls that fail with transient errors, and warns the listener of each. Raises `RefusedError` if the
        server refuses this request, and `UpstreamError` if no server accepts requests for too long.
        """
        length, context_length = len(request.prompt_token_ids) + request.max_tokens, self._group.info.context_length
        if context_length is not None and length > context_length:
            raise ContextLengthError(
                f"Trace {request.trace_id} may grow to {length:,} tokens, and the server's context holds "
                f"{context_length:,}; lower thinking_tokens, final_tokens or tail_tokens, or start the server with a "
                "longer one."
            )
        trace = UpstreamGeneration(request, listener, tokenizer=self.tokenizer, eos=self._eos)
        policy = RetryPolicy(trace, self._pool, self.upstream.times)
        schedule = stamina.retry_context(
            policy.delay,
            attempts=None,
            timeout=None,
            wait_initial=_FIRST_WAIT_S,
            wait_max=_MAX_WAIT_S,
            wait_jitter=_JITTER_S,
        )
        try:
            async for attempt in schedule:
                with attempt:
                    await self._complete_at_one_server(trace)
        except TransientError as error:
            raise policy.final_error(error) from error
        except UnsupportedRequest as error:
            kind = RefusedError if error.of_request else UpstreamError
            raise kind(f"{error}; the server would refuse the same request again.") from error
        trace.note_chance()
        for drawn, chance in trace.chances.items():
            if chance is not None:
                self._chances[hash(drawn)] = chance
                if len(self._chances) > _MAX_KNOWN_CHANCES:
                    self._chances.popitem(last=False)
        return GenerationResult(tuple(trace.ids), trace.finish_reason or "max_tokens", confidence=trace.confidence)

    def check_schema(self, schema: Mapping[str, Any]) -> None:
        """Accept every schema: the servers check them."""

    async def log_probability(
        self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
    ) -> float | None:
        """Return the log of the probability that the server reported with this trace, or an upper bound of it.

        Return None for a trace that it did not generate or without a report. `sampling` must be that of the trace. The
        ids before and after closing ids are known by themselves.
        """
        return self._chances.get(hash((tuple(prompt_token_ids), tuple(token_ids))))

    def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
        """Limit the requests in flight at all servers together. The servers' memory is not limited."""
        self._pool.limit = max_rows

    def memory_estimate_bytes(self, rows: int, longest: int) -> int:
        """Return 0: the memory is the servers'."""
        return 0

    def peak_memory_bytes(self) -> int:
        """Return 0: the memory is the servers'."""
        return 0

    async def model_stats(self) -> dict[str, Any] | None:
        return None

    def reset_peak_memory(self) -> None:
        pass

    async def aclose(self) -> None:
        """Do nothing: no connection stays open between calls."""

    async def _complete_at_one_server(self, trace: UpstreamGeneration) -> None:
        """Generate the rest of a trace at one server, in as many calls as its dialect needs."""
        request = trace.request
        async with self._pool.acquire(request.run_id, interactive=request.interactive) as server:
            try:
                info = await self._group.info_of(server)
                if not trace.started:
                    trace.started = True
                    trace.listener.started()
                while trace.finish_reason is None:
                    await self._call(server, info, trace)
                    if not info.dialect.returns_token_ids:
                        break  # the server ended the trace, even if its text makes fewer tokens than `max_tokens`
            except TransientError as error:
                server.on_error(error)
                raise

    async def _call(self, server: Server, info: ServerInfo, trace: UpstreamGeneration) -> None:
        request = trace.next_request(info)
        start, seen, refused = time.monotonic(), 0, set(server.client.refused_fields)
        replies = request_completion(server.client, info.dialect, request, token_s=server.token_s)
        async with aclosing(replies):
            async for reply in replies:
                server.on_alive()
                info.check_model(reply.model)
                new = reply.ids[seen:]
                if isinstance(self.tokenizer, RemoteTokenizer):
                    ids = [*trace.ids[-_MAX_TOKENS_PER_CHARACTER:], *new]
                    await self.tokenizer.prefetch(server.client, ids, known=reply.token_texts)
                trace.append(new)
                seen = len(reply.ids)
                if trace.must_interrupt and info.dialect.streams:
                    break
        for field in sorted(server.client.refused_fields - refused):
            trace.listener.warning(f"{server.client.url} refuses the field {field!r}, which is left out from now on")
        if (trace.must_close_thinking and info.dialect.streams) or trace.must_bind_answer:
            trace.leave_reply()
        else:
            trace.finish_call(reply, request, info)
        server.on_success((time.monotonic() - start) / seen if seen and not info.dialect.streams else None)


class RetryPolicy:
    """Decide for one trace whether a failed call is retried, and warn the trace's listener."""

    def __init__(self, trace: UpstreamGeneration, pool: ServerPool, times: TimeLimits) -> None:
        self._trace, self._pool, self._times = trace, pool, times
        self._failures, self._known_ids = 0, len(trace.ids)
        self._waiting_since: float | None = None
        self._timeout_s = times.unreachable_timeout_s

    def delay(self, error: Exception) -> bool | float:
        """Return the seconds to wait before the next call, True to follow the schedule, or False to give up.

        An unavailable server costs time only, up to a limit. Any other failure costs one of the tries.
        """
        if not isinstance(error, TransientError):
            return False
        if len(self._trace.ids) > self._known_ids:
            self._failures, self._known_ids, self._waiting_since = 0, len(self._trace.ids), None
        if max(server.seeded_crashes for server in self._pool.servers) >= _MAX_SEEDED_CRASHES:
            return False
        if isinstance(error, Unreachable | Throttled):
            self._waiting_since = self._waiting_since or time.monotonic()
            times, reachable = self._times, self._pool.any_reachable
            self._timeout_s = times.first_token_s if reachable else times.unreachable_timeout_s
            # Queueing for a server that accepts requests does not count.
            if time.monotonic() - max(self._waiting_since, self._pool.down_since) >= self._timeout_s:
                return False
        else:
            self._failures += 1
            if self._failures >= _MAX_FAILURES:
                return False
        self._trace.listener.warning(f"{error}; the call is retried")
        if isinstance(error, Throttled) or error.retry_after_s is not None:
            return 0.0  # The pool pauses the server. The trace may use another one.
        other_is_ready = any(server.ready_at <= time.monotonic() for server in self._pool.servers)
        return 0.0 if isinstance(error, Unreachable) and other_is_ready else True

    def final_error(self, error: TransientError) -> UpstreamError | BackendError:
        """Return the error that ends the attempt, or the run if no server accepts requests."""
        server = max(self._pool.servers, key=lambda server: server.seeded_crashes)
        advice = ""
        if server.seeded_crashes:
            times = "once" if server.seeded_crashes == 1 else f"{server.seeded_crashes} times in a row"
            advice = (
                f" It went down {times} right after calls with seeds, as some versions of vLLM do on a CPU; "
                "--upstream-seeds never sends none."
            )
        if server.seeded_crashes >= _MAX_SEEDED_CRASHES:
            return UpstreamError(
                f"{server.client.url} cannot be used (last error: {error}).{advice} Restart it, then resume with that "
                "option, the same command and --audit FILE."
            )
        if not isinstance(error, Unreachable | Throttled):
            if isinstance(error, Crashed) and not advice and server.info is not None and server.info.seeded:
                advice = (
                    " If calls with seeds end the server, as in some versions of vLLM on a CPU, use "
                    "--upstream-seeds never."
                )
            return BackendError(f"{error}, {self._failures} times in a row.{advice}")
        cure = "Wait until it is less busy" if self._pool.any_reachable else "Restart it"
        return UpstreamError(
            f"No upstream server has accepted a request for {self._timeout_s:g} s (last error: {error}).{advice} "
            f"{cure}, then resume with the same command and --audit FILE."
        )

"""One call to a server in its dialect, streamed or not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from .alive import while_alive
from .dialects import Ask, Dialect, Reply
from .faults import Fault
from .wire import Wire

#: Before a server has shown how fast it is, a token of a reply that is not streamed may take this many seconds.
SLOWEST_TOKEN_S = 1.0
#: Texts without ids are bounded by this many characters a token.
_LONGEST_TOKEN = 1_000


async def exchange(wire: Wire, dialect: Dialect, ask: Ask, token_s: float = SLOWEST_TOKEN_S) -> AsyncGenerator[Reply]:
    """The reply, yielded whenever it has grown; finished after the last. Raises `Fault` where it breaks off.

    `token_s`: seconds that a token may take where the reply comes all at once.
    """
    url = wire.root + dialect.path[1:] if dialect.path.startswith("//") else wire.url + dialect.path
    reply = Reply(ask.sampling)
    if dialect.streams:
        async with aclosing(wire.events(url, dialect.body(ask))) as events:
            async for event in events:
                dialect.read(event, reply)
                _check_size(url, ask, reply)
                yield reply
    else:
        limit_s = wire.times.first_token_s + ask.max_tokens * token_s
        dialect.read(await while_alive(wire, wire.post(url, dialect.body(ask), limit_s)), reply)
        _check_size(url, ask, reply)
        yield reply
    if reply.finish is None:
        raise Fault(f"{url}: the reply broke off")


def _check_size(url: str, ask: Ask, reply: Reply) -> None:
    longest = _LONGEST_TOKEN * (ask.max_tokens + 16)
    texts = max(len(reply.reasoning), len(reply.pieces), len(reply.pieces[-1]) if reply.pieces else 0)
    if len(reply.ids) > 2 * ask.max_tokens + 16 or texts > longest:
        raise Fault(f"{url} sends far more than the {ask.max_tokens} tokens that were asked for")

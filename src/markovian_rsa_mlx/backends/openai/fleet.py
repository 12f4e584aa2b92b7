"""Which servers make up a fleet: all are asked at the start, and who was away is asked when it is back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import ModelError, UpstreamError
from ...method.codec import Codec
from .faults import Fault, Unreachable, Unsupported
from .identity import Identity
from .probe import check_independence, identify
from .served import ServedCodec
from .server import Server
from .settings import Upstream
from .wire import Wire

_DEFAULT_ROWS = 32
#: Seconds after which a server that serves something else is asked again.
_LEFT_OUT_S = 60.0


class Fleet:
    """Servers of one model. `identity` is what they have in common; its context is that of the shortest."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self.servers = [
            Server(Wire(url, upstream.api_key, upstream.times), upstream.limit or _DEFAULT_ROWS)
            for url in upstream.urls
        ]
        self._identity: Identity | None = None
        self._codec: Codec | None = None

    @property
    def identity(self) -> Identity:
        assert self._identity is not None
        return self._identity

    @property
    def codec(self) -> Codec:
        assert self._codec is not None
        return self._codec

    async def assemble(self, say: Callable[[str], None]) -> None:
        """Ask every server what it is; those that do not answer are asked later, as long as one does.

        Raises `UpstreamError` (none answers, a key is refused, no or another model) and `ModelError` (no tokenizer).
        """
        silent = []
        for server in self.servers:
            say(f"Asking {server.wire.url} what it serves ...")
            try:
                await self._ask(server)
            except (Fault, Unsupported) as error:
                silent.append(str(error))
                server.lost()
        if self._identity is None:
            raise UpstreamError(f"No upstream server answers as it should: {'; '.join(silent)}; check --upstream.")
        for cause in silent:
            say(f"warning: {cause}; it is tried again later")

    async def identity_of(self, server: Server) -> Identity:
        """What the server is, asked where that is not known.

        One that serves something else, or holds less than the fleet's context, is left out as long as others are
        there (`Unreachable`). Raises `UpstreamError` where they are not.
        """
        if server.identity is None:
            others = any(other.lost_since is None for other in self.servers if other is not server)
            try:
                identity, _ = await identify(server.wire, self._upstream, self.codec)
                self._check(server, identity, check_context=others)
            except (ModelError, Unsupported) as error:
                if not others:
                    raise
                server.rest(_LEFT_OUT_S)
                raise Unreachable(f"{str(error).rstrip('.')}; it is left out for now") from error
            self._adopt(server, identity)
        assert server.identity is not None
        return server.identity

    def sends_seeds(self, identity: Identity) -> bool:
        seeds = self._upstream.seeds
        return seeds == "always" or (seeds == "auto" and not identity.dialect.costly_seeds)

    async def _ask(self, server: Server) -> None:
        identity, self._codec = await identify(server.wire, self._upstream, self._codec)
        token_s = await check_independence(server.wire, identity, self.codec, self.sends_seeds(identity))
        server.tried(token_s)
        self._check(server, identity, check_context=False)
        self._adopt(server, identity)

    def _check(self, server: Server, identity: Identity, check_context: bool) -> None:
        fleet = self._identity or identity
        if identity.service != fleet.service:
            raise UpstreamError(
                f"{server.wire.url} serves {identity.model!r} through {identity.name}, and the others {fleet.model!r} "
                f"through {fleet.name}; all URLs must serve the same model in the same way."
            )
        least, held = fleet.context_length, identity.context_length
        if check_context and least is not None and held is not None and held < least:
            raise UpstreamError(
                f"The context of {server.wire.url} holds {held:,} tokens, and the run may need {least:,}; start it "
                "with a longer one."
            )

    def _adopt(self, server: Server, identity: Identity) -> None:
        """The server joins the fleet."""
        server.identity = identity
        server.limit = self._upstream.limit or identity.rows or _DEFAULT_ROWS
        if identity.dialect.costly_seeds and self.sends_seeds(identity):
            server.limit = 1  # it would serve them one after another, and time runs for those that wait
        server.heard()
        if isinstance(self._codec, ServedCodec):
            self._codec.join(server.wire.root)
        fleet = self._identity or identity
        known = [length for length in (fleet.context_length, identity.context_length) if length is not None]
        self._identity = replace(fleet, context_length=min(known, default=None))

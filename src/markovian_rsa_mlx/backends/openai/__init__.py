"""The former name of `backends.upstream`, kept for programs that import it."""

from ..upstream import TimeLimits, Upstream, UpstreamEngine

UpstreamBackend = UpstreamEngine

__all__ = ["TimeLimits", "Upstream", "UpstreamBackend"]

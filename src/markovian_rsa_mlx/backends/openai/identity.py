"""What a server is: asked once, from the routes that it has and from a short trial, not from its name alone."""

from __future__ import annotations

from dataclasses import dataclass

from .dialects import Dialect


@dataclass(frozen=True)
class Identity:
    """A server that was asked. `rows`: requests that it decodes at once.

    `own_bos`: the text that it puts before every text prompt by itself, so that prompts are sent without it.
    """

    model: str
    name: str
    version: str
    dialect: Dialect
    context_length: int | None = None
    rows: int | None = None
    own_bos: str = ""

    @property
    def service(self) -> tuple[str, str, Dialect]:
        """What all servers of a fleet must have in common."""
        return self.model, self.name, self.dialect

"""Where pages for people are mounted; the endpoints for programs are in `endpoints`."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from .login import login


def pages_routes() -> list[BaseRoute]:
    """The routes of pages. They stand behind the same door as the endpoints; only the login is open."""
    return [Route("/login", login, methods=["GET", "POST"])]

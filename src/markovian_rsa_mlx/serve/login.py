"""How a browser shows that its user knows the key: a form, or `?key=` on any page, for a cookie."""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .bare import HEADERS, bare_page
from .body import read_bytes
from .security import cookie_of, equal, session_of
from .settings import ServerSettings

_MOST_BYTES = 10_000
# The form's own policy: with "no-referrer" the browser would send it with the Origin "null", as a foreign page's.
_FORM_HEADERS = HEADERS | {"Referrer-Policy": "same-origin"}
# Without an action it goes to the page's own address: `next` and the fragment behind it come along.
_FORM = """<form method="post"><label for="key">The server's key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button><p role="alert">{message}</p></form>"""


class KeyInAddress:
    """`GET /...?key=...` with the right key becomes a cookie and the same address without it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._key = app, settings.api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and scope["type"] == "http" and scope["method"] == "GET":
            params = QueryParams(scope["query_string"])
            if equal(params.get("key", ""), self._key):
                rest = urlencode([(name, value) for name, value in params.multi_items() if name != "key"])
                target = _local(scope["path"]) + (f"?{rest}" if rest else "")
                await _logged_in(self._key, target, scope["scheme"] == "https")(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def login(request: Request) -> Response:
    """The form, and what it sends."""
    key: str | None = request.app.state.service.settings.api_key
    if key is None:
        return RedirectResponse("/", 303)
    if request.method != "POST":
        return _form()
    form = parse_qs((await read_bytes(request, _MOST_BYTES)).decode(errors="replace"))
    if not equal(form.get("key", [""])[0], key):
        return _form("That is not the key.", 401)
    return _logged_in(key, _local(request.query_params.get("next", "")), request.url.scheme == "https")


def _local(path: str) -> str:
    """The path with one slash: an address that begins with two (or backslashes) would lead to another site."""
    return "/" + path.lstrip("/\\")


def _form(message: str = "", status: int = 200) -> Response:
    return HTMLResponse(bare_page("Log in", _FORM.format(message=message)), status, _FORM_HEADERS)


def _logged_in(key: str, target: str, secure: bool) -> Response:
    response = RedirectResponse(target, 303, HEADERS)
    response.set_cookie(cookie_of(key), session_of(key), httponly=True, samesite="strict", secure=secure, path="/")
    return response

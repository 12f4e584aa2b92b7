"""Who may ask: Host and Origin (against DNS rebinding and foreign pages), then the key.

A browser cannot send a bearer key by itself. Whoever knows the key logs in once and gets a cookie that holds a
proof of it, not the key; it is sent by pages of this server only (SameSite=Strict).

How a browser shows that its user knows the key: a form, or `?key=` on any page, for a cookie.

Small pages without scripts: a form, a refusal.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from html import escape
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .config import ServerSettings, is_address, is_loopback
from .errors import RequestError
from .request import read_bytes

#: Open to everybody who may reach the server at all.
OPEN_PATHS = frozenset({"/health", "/login"})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class HostOriginMiddleware:
    """Which names this server answers to, and from whose pages it may be used; a plain ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in settings.hosts) | own_names(settings.host)
        self._any_address = not is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self.check_host(headers)
                self.check_origin(headers)
            except RequestError as error:
                await _refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def check_host(self, headers: Headers) -> None:
        """A page of another site that had its name resolve to this machine still says its own name."""
        name = host_name(headers.get("host", ""))
        if not (name in self._names or (self._any_address and is_address(name))):
            raise RequestError(
                403,
                f"The host {name[:100]!r} is not this server; --allow-host names further ones.",
                "host_not_allowed",
            )

    def check_origin(self, headers: Headers) -> None:
        """Pages of other sites must not ask in a user's name."""
        origin = headers.get("origin")
        if origin is not None and urlsplit_host(origin) != headers.get("host", "").lower():
            raise RequestError(403, "Pages of other sites may not use this server.", "origin_not_allowed")
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            raise RequestError(403, "Pages of other sites may not use this server.", "origin_not_allowed")


class APIKeyMiddleware:
    """Lets in who brings the key, as a bearer token or as the cookie of a login; a plain ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._key = app, settings.api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._lets_in(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif _is_page_visit(scope, Headers(scope=scope)):
            wanted = urlencode({"next": scope["path"]}) if scope["path"] != "/" else ""
            await RedirectResponse(f"/login?{wanted}".rstrip("?"), 303)(scope, receive, send)
        else:
            await _refuse(_NO_KEY)(scope, receive, send)

    def _lets_in(self, headers: Headers) -> bool:
        key = self._key
        if key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        bearer = given.strip() if scheme.lower() == "bearer" else ""
        return equal(bearer, key) or equal(_cookie(headers, cookie_of(key)), session_of(key))


_NO_KEY: Final = RequestError(
    401,
    "The key is missing or wrong; send it as a bearer token.",
    "invalid_api_key",
    headers={"WWW-Authenticate": "Bearer"},
)


def cookie_of(key: str) -> str:
    """The cookie's name: browsers share cookies between ports, and servers with keys of their own must not clash."""
    return f"mrsa_session_{hmac.new(key.encode(), b'mrsa cookie name', hashlib.sha256).hexdigest()[:8]}"


def session_of(key: str) -> str:
    """What a browser that knows the key carries: a proof, from which the key cannot be had."""
    return hmac.new(key.encode(), b"mrsa browser session", hashlib.sha256).hexdigest()


def equal(given: str, wanted: str) -> bool:
    """Compares in a time that says nothing of where the texts differ."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), wanted.encode())


def own_names(host: str) -> frozenset[str]:
    """Names that a server bound to `host` goes by."""
    if is_loopback(host):
        return _LOCAL | {host.lower()}
    machine = socket.gethostname().lower()
    return _LOCAL | {host.lower(), machine, f"{machine}.local"}


def host_name(value: str) -> str:
    """The name in a Host header, its port and brackets aside."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0] if value.count(":") == 1 else value


def urlsplit_host(origin: str) -> str:
    """Host and port of an origin as a Host header says them; "" for none ("null")."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _cookie(headers: Headers, name: str) -> str:
    """The value of one cookie; those of other programs on this machine come along, well-formed or not."""
    return cookie_parser(headers.get("cookie", "")).get(name, "")


def _refuse(error: RequestError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


def _is_page_visit(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "GET" and "text/html" in headers.get("accept", "")


_MOST_BYTES = 10_000
# The form's own policy: with "no-referrer" the browser would send it with the Origin "null", as a foreign page's.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FORM_HEADERS = HEADERS | {"Referrer-Policy": "same-origin"}
# Without an action it goes to the page's own address: `next` and the fragment behind it come along.
_FORM = """<form method="post"><label for="key">The server's key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button><p role="alert">{message}</p></form>"""


class QueryKeyMiddleware:
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
    return HTMLResponse(plain_page("Log in", _FORM.format(message=message)), status, _FORM_HEADERS)


def _logged_in(key: str, target: str, secure: bool) -> Response:
    response = RedirectResponse(target, 303, HEADERS)
    response.set_cookie(cookie_of(key), session_of(key), httponly=True, samesite="strict", secure=secure, path="/")
    return response


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 22rem; margin: 20vh auto; padding: 0 1rem;
overflow-wrap: anywhere }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin-top: .5rem }}</style></head>
<body><main>{body}</main></body></html>
"""


def plain_page(title: str, body: str) -> str:
    """A whole page; `title` is text, `body` is markup."""
    return _PAGE.format(title=escape(title), body=body)

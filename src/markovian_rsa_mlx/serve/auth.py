"""Access to the server: the Host and Origin rules, the key, and the login of browsers.

The Host rule stops DNS rebinding. The Origin and Sec-Fetch rules refuse requests from pages of other sites. Programs
send the key as a bearer token or in `x-api-key`. A browser logs in once, with the form or with `?key=` in any address,
and gets a cookie that proves knowledge of the key without containing it. Only pages of this server send the cookie
(SameSite=Strict).
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from html import escape
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServerSettings, is_address, is_loopback
from .errors import RequestError
from .request import read_bytes

#: Paths that need no key.
OPEN_PATHS = frozenset({"/health", "/login"})
_MAX_FORM_BYTES = 10_000
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# With "no-referrer" the browser would send the form with the Origin "null", like a page of another site.
_FORM_HEADERS = HEADERS | {"Referrer-Policy": "same-origin"}
# A form without an action is sent to the page's own address, which keeps `next` and the fragment.
_FORM = """<form method="post"><label for="key">The server's key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button><p role="alert">{message}</p></form>"""
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 22rem; margin: 20vh auto; padding: 0 1rem;
overflow-wrap: anywhere }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .5rem; margin-top: .5rem }}</style></head>
<body><main>{body}</main></body></html>
"""
_NO_KEY: Final = RequestError(
    401,
    "The key is missing or wrong. Send it as a bearer token or in x-api-key.",
    "invalid_api_key",
    headers={"WWW-Authenticate": "Bearer"},
)


#: The answer to a browser that asks whether a page of an allowed site may send a request.
_PREFLIGHT: Final = {"Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600"}


class HostOriginMiddleware:
    """Refuse requests that name another host, or that a page of another site sends, unless the site is allowed."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._origins = app, settings.origins
        self._names = {"localhost", "127.0.0.1", "::1", settings.host.lower(), *map(str.lower, settings.hosts)}
        self._any_address = not is_loopback(settings.host)
        if self._any_address:
            machine = socket.gethostname().lower()
            self._names |= {machine, f"{machine}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed = self._cross_origin(headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowed)
            await send(message)

        try:
            self.check(headers)
        except RequestError as error:
            await error.response(scope["path"])(scope, receive, send_with_headers)
            return
        if allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            requested = headers.get("access-control-request-headers", "")
            preflight = {"Access-Control-Allow-Headers": requested} if requested else {}
            if "access-control-request-private-network" in headers:
                preflight["Access-Control-Allow-Private-Network"] = "true"
            await Response(status_code=204, headers=_PREFLIGHT | preflight)(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _cross_origin(self, headers: Headers) -> dict[str, str]:
        """Return the headers by which a browser lets the page of an allowed site read the response."""
        origin = headers.get("origin", "")
        if not origin or not self._origins & {origin.lower(), "*"}:
            return {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "*", "Vary": "Origin"}

    def check(self, headers: Headers) -> None:
        """Raise `RequestError` if the request breaks one of the rules."""
        host = headers.get("host", "").lower()
        name = host.strip()
        if name.startswith("["):  # an IPv6 address
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        # A page of another site whose name was rebound to this machine still sends its own name.
        if name not in self._names and not (self._any_address and is_address(name)):
            message = f"The host {name[:100]!r} is not a name of this server. Add it with --allow-host."
            raise RequestError(403, message, "host_not_allowed")
        if self._cross_origin(headers):
            return
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        foreign = foreign and headers.get("sec-fetch-mode") != "navigate"
        if (origin := headers.get("origin")) is not None:
            try:
                foreign = foreign or urlsplit(origin).netloc.lower() != host
            except ValueError:
                foreign = True
        if foreign:
            raise RequestError(403, "Pages of other sites may not use this server.", "origin_not_allowed")


class APIKeyMiddleware:
    """Require the key: as a bearer token, in `x-api-key`, as the cookie of a login, or once as `?key=` in the address.

    `GET /...?key=...` is a login: it sets the cookie and redirects to the same address without the key.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._key = app, settings.api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = self._key
        if scope["type"] != "http" or key is None:
            await self._app(scope, receive, send)
            return
        headers, params = Headers(scope=scope), QueryParams(scope["query_string"])
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        api_key = headers.get("x-api-key", "")  # as Anthropic's clients send it
        cookie, session = session_cookie(key)
        # Cookies of other programs on this machine, well formed or not, are in the header too.
        given = cookie_parser(headers.get("cookie", "")).get(cookie, "")
        # In a query "+" means a space, and base64 has it: many write such a key into the address as it is.
        if scope["method"] == "GET" and equal(params.get("key", "").replace("+", " "), key.replace("+", " ")):
            rest = urlencode([(name, value) for name, value in params.multi_items() if name != "key"])
            target = scope["path"] + (f"?{rest}" if rest else "")
            await _logged_in(key, target, secure=scope["scheme"] == "https")(scope, receive, send)
        elif scope["path"] in OPEN_PATHS or equal(bearer, key) or equal(api_key, key) or equal(given, session):
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            query = "?" + urlencode({"next": scope["path"]}) if scope["path"] != "/" else ""
            await RedirectResponse(f"/login{query}", 303)(scope, receive, send)
        else:
            await _NO_KEY.response(scope["path"])(scope, receive, send)


async def login(request: Request) -> Response:
    """Show the login form, or check the key that it sent."""
    key: str | None = request.app.state.manager.settings.api_key
    if key is None:
        return RedirectResponse("/", 303)
    message, status = "", 200
    if request.method == "POST":
        form = parse_qs((await read_bytes(request, _MAX_FORM_BYTES)).decode(errors="replace"))
        if equal(form.get("key", [""])[0], key):
            return _logged_in(key, request.query_params.get("next", ""), secure=request.url.scheme == "https")
        message, status = "That is not the key.", 401
    return HTMLResponse(plain_page("Log in", _FORM.format(message=message)), status, _FORM_HEADERS)


def _logged_in(key: str, target: str, *, secure: bool) -> Response:
    """Set the session cookie and redirect to a path of this server."""
    # An address that begins with two slashes or backslashes would lead to another site.
    response = RedirectResponse("/" + target.lstrip("/\\"), 303, HEADERS)
    name, session = session_cookie(key)
    response.set_cookie(name, session, httponly=True, samesite="strict", secure=secure, path="/")
    return response


def session_cookie(key: str) -> tuple[str, str]:
    """Return the name and the value of the session cookie.

    The value proves knowledge of the key without revealing it. The name differs per key, because browsers share cookies
    between ports.
    """
    name, value = (
        hmac.new(key.encode(), purpose, hashlib.sha256).hexdigest()
        for purpose in (b"mrsa cookie name", b"mrsa browser session")
    )
    return f"mrsa_session_{name[:8]}", value


def equal(given: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())


def plain_page(title: str, body: str) -> str:
    """Return a page without scripts. `title` is text, `body` is markup."""
    return _PAGE.format(title=escape(title), body=body)

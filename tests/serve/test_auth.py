"""The door: names, origins, the key, the browser's cookie."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.serve import auth as security
from markovian_rsa_mlx.serve.auth import HostOriginMiddleware, cookie_of, session_of
from markovian_rsa_mlx.serve.config import ServerSettings, is_loopback
from markovian_rsa_mlx.serve.errors import RequestError

from .conftest import CHAT, Running, Serve

KEY = "a-long-key"
BEARER = {"Authorization": f"Bearer {KEY}"}


def guard(**settings: Any) -> HostOriginMiddleware:
    async def app(*_: object) -> None:
        raise AssertionError("not reached")

    return HostOriginMiddleware(app, ServerSettings(RSAConfig.embedded(), **settings))


def passes(door: HostOriginMiddleware, **headers: str) -> bool:
    given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    try:
        door.check_host(given)
        door.check_origin(given)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]"])
def test_this_machine_by_its_names(host: str) -> None:
    assert passes(guard(), host=host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.7", "a b"]
)
def test_a_name_that_was_rebound_is_refused(host: str) -> None:
    assert not passes(guard(), host=host)


def test_not_even_health_answers_to_another_name(server: Running) -> None:
    answer = server.get("/health", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_further_names() -> None:
    assert passes(guard(hosts=frozenset({"LLM.example"})), host="llm.example:443")
    assert passes(guard(host="0.0.0.0"), host="192.168.0.7:8000")
    assert not passes(guard(host="0.0.0.0"), host="evil.example")


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({"origin": "http://localhost:8000"}, True),
        ({"origin": "https://localhost:8000"}, True),
        ({"origin": "http://localhost:9000"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://[bad"}, False),
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, False),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"}, False),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, True),
    ],
)
def test_pages_of_other_sites_are_refused(headers: dict[str, str], good: bool) -> None:
    assert passes(guard(), host="localhost:8000", **headers) == good


def test_nobody_is_told_that_other_origins_may_read(server: Running) -> None:
    answer = server.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert server.client.options("/v1/models").status_code == 405


@pytest.mark.parametrize("path", ["/v1/models", "/v1/runs", "/metrics", "/openapi.json", "/v1/nothing"])
def test_without_the_key_only_health_answers(serve: Serve, path: str) -> None:
    server = serve(api_key=KEY)
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Cookie": f"{cookie_of(KEY)}={KEY}"},
    ):
        answer = server.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert server.get("/health").status_code == 200
    assert server.get(path, headers=BEARER).status_code == (404 if "nothing" in path else 200)


def test_a_body_is_not_read_before_the_key_is_seen(serve: Serve) -> None:
    server = serve(api_key=KEY)
    assert server.post(messages=CHAT).status_code == 401
    assert server.client.post("/v1/chat/completions", json={"messages": CHAT}, headers=BEARER).status_code == 200
    assert len(server.backend.requests) == 1


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    compared: list[bytes] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    server = serve(api_key=KEY)
    monkeypatch.setattr(security.hmac, "compare_digest", watched)
    assert server.get("/v1/models", headers={"Authorization": "Bearer guess"}).status_code == 401
    assert b"guess" in compared


class TestBrowser:
    def test_a_page_leads_to_the_login_and_the_key_to_a_cookie(self, serve: Serve) -> None:
        server = serve(api_key=KEY)
        visit = server.get("/", headers={"Accept": "text/html"})
        assert (visit.status_code, visit.headers["location"]) == (303, "/login")
        assert 'name="key"' in server.get("/login").text
        wrong = server.client.post("/login", data={"key": "guess"})
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        right = server.client.post("/login", data={"key": KEY})
        cookie = right.headers["set-cookie"]
        assert right.status_code == 303
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert KEY not in cookie
        assert server.get("/v1/models").status_code == 200  # the client keeps the cookie

    @pytest.mark.parametrize(
        ("wanted", "target"),
        [("/runs/abc", "/runs/abc"), ("//evil.example", "/evil.example"), ("/\\evil.example", "/evil.example"),
         ("https://evil.example", "/https://evil.example"), ("", "/")],
    )  # fmt: skip
    def test_the_login_leads_to_where_its_user_was_going(self, serve: Serve, wanted: str, target: str) -> None:
        server = serve(api_key=KEY)
        visit = server.get("/runs/abc", headers={"Accept": "text/html"})
        assert visit.headers["location"] == "/login?next=%2Fruns%2Fabc"
        right = server.client.post("/login", params={"next": wanted}, data={"key": KEY})
        assert (right.status_code, right.headers["location"]) == (303, target)

    def test_the_form_lets_the_browser_say_where_it_stands(self, serve: Serve) -> None:
        """With "no-referrer" a form's Origin is "null", which is no page of this server."""
        server = serve(api_key=KEY)
        assert server.get("/login").headers["referrer-policy"] == "same-origin"
        assert server.client.post("/login", data={"key": "guess"}).headers["referrer-policy"] == "same-origin"
        for origin, status in ((server.url, 303), ("null", 403)):
            assert server.client.post("/login", data={"key": KEY}, headers={"Origin": origin}).status_code == status

    def test_a_key_in_the_address_is_taken_out_of_it(self, serve: Serve) -> None:
        server = serve(api_key=KEY)
        visit = server.get("/v1/runs", params={"key": KEY, "limit": "3"})
        assert (visit.status_code, visit.headers["location"]) == (303, "/v1/runs?limit=3")
        assert visit.headers["referrer-policy"] == "no-referrer"
        assert server.get("/v1/runs").status_code == 200
        assert server.get(f"{server.url}//evil.example/x", params={"key": KEY}).headers["location"] == "/evil.example/x"
        assert serve(api_key=KEY).get("/v1/runs", params={"key": "guess"}).status_code == 401

    def test_a_cookie_is_worth_nothing_to_another_key(self, serve: Serve) -> None:
        server = serve(api_key=KEY)
        cookie = {"Cookie": f"{cookie_of(KEY)}={session_of('another')}"}
        assert server.get("/v1/models", headers=cookie).status_code == 401
        foreign = {"Cookie": f"{cookie_of(KEY)}={session_of(KEY)}", "Origin": "http://evil.example"}
        assert server.get("/v1/models", headers=foreign).status_code == 403

    @pytest.mark.parametrize("other", ['prefs={"theme":"dark","x":1}', "arr[0]=1", "foo", "a=b"])
    def test_cookies_of_other_programs_do_no_harm(self, serve: Serve, other: str) -> None:
        cookie = {"Cookie": f"{other}; {cookie_of(KEY)}={session_of(KEY)}"}
        assert serve(api_key=KEY).get("/v1/models", headers=cookie).status_code == 200

    def test_servers_with_keys_of_their_own_have_cookies_of_their_own(self) -> None:
        assert cookie_of(KEY) != cookie_of("another")


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.com", ""))

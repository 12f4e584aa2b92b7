"""Access to the server: host names, origins, the key, and the login of browsers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.serve import auth
from markovian_rsa_mlx.serve.auth import HostOriginMiddleware, session_cookie
from markovian_rsa_mlx.serve.config import ServerSettings, is_loopback
from markovian_rsa_mlx.serve.errors import RequestError

from ..e2e.viewer_browser import browser
from .conftest import CHAT, RSA, Running, Serve

KEY = "a-long-key"
BEARER = {"Authorization": f"Bearer {KEY}"}
COOKIE, SESSION = session_cookie(KEY)


def middleware(**settings: Any) -> HostOriginMiddleware:
    async def app(*_: object) -> None:
        raise AssertionError("not reached")

    return HostOriginMiddleware(app, ServerSettings(RSAConfig.embedded(), **settings))


def passes(check: HostOriginMiddleware, **headers: str) -> bool:
    given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    try:
        check.check(given)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_accepted(host: str) -> None:
    assert passes(middleware(), host=host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.7", "a b"]
)
def test_other_host_is_refused(host: str) -> None:
    assert not passes(middleware(), host=host)


def test_health_refuses_another_host(server: Running) -> None:
    answer = server.get("/health", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")


def test_allowed_hosts_and_addresses_are_accepted() -> None:
    assert passes(middleware(hosts=frozenset({"LLM.example"})), host="llm.example:443")
    assert passes(middleware(host="0.0.0.0"), host="192.168.0.7:8000")
    assert not passes(middleware(host="0.0.0.0"), host="evil.example")


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
def test_requests_from_other_sites_are_refused(headers: dict[str, str], good: bool) -> None:
    assert passes(middleware(), host="localhost:8000", **headers) == good


def test_no_cross_origin_headers_are_sent(server: Running) -> None:
    answer = server.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert server.client.options("/v1/models").status_code == 405


@pytest.mark.parametrize("path", ["/v1/models", "/v1/runs", "/metrics", "/openapi.json", "/v1/nothing"])
def test_without_the_key_only_health_responds(serve: Serve, path: str) -> None:
    server = serve(api_key=KEY)
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Cookie": f"{COOKIE}={KEY}"},
        {"X-Api-Key": "wrong"},
        {"X-Api-Key": ""},
    ):
        answer = server.get(path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert server.get("/health").status_code == 200
    for good in (BEARER, {"X-Api-Key": KEY}):
        assert server.get(path, headers=good).status_code == (404 if "nothing" in path else 200)


def test_run_needs_the_key(serve: Serve) -> None:
    server = serve(api_key=KEY)
    assert server.post(messages=CHAT).status_code == 401
    assert server.client.post("/v1/chat/completions", json={"messages": CHAT}, headers=BEARER).status_code == 200
    assert len(server.backend.requests) == 1


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    compared: list[bytes] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    server = serve(api_key=KEY)
    monkeypatch.setattr(auth.hmac, "compare_digest", compare_digest)
    assert server.get("/v1/models", headers={"Authorization": "Bearer guess"}).status_code == 401
    assert b"guess" in compared
    assert server.get("/v1/models", headers={"X-Api-Key": "another"}).status_code == 401
    assert b"another" in compared


def test_errors_of_the_messages_path_have_the_form_of_its_protocol(serve: Serve) -> None:
    server = serve(api_key=KEY)
    for headers, status, kind in (
        ({}, 401, "authentication_error"),
        (BEARER | {"Host": "evil.example"}, 403, "permission_error"),
        (BEARER, 404, "not_found_error"),
    ):
        answer = server.client.post("/v1/messages/nothing", json={}, headers=headers)
        assert answer.status_code == status
        assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", kind)
    assert server.client.post("/v1/messagesX", json={}).json()["error"]["code"] == "invalid_api_key"


class TestBrowser:
    def test_page_redirects_to_the_login_and_the_key_sets_a_cookie(self, serve: Serve) -> None:
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
        ("requested", "target"),
        [("/runs/abc", "/runs/abc"), ("//evil.example", "/evil.example"), ("/\\evil.example", "/evil.example"),
         ("https://evil.example", "/https://evil.example"), ("", "/")],
    )  # fmt: skip
    def test_login_redirects_to_the_requested_page(self, serve: Serve, requested: str, target: str) -> None:
        server = serve(api_key=KEY)
        visit = server.get("/runs/abc", headers={"Accept": "text/html"})
        assert visit.headers["location"] == "/login?next=%2Fruns%2Fabc"
        right = server.client.post("/login", params={"next": requested}, data={"key": KEY})
        assert (right.status_code, right.headers["location"]) == (303, target)

    def test_form_is_sent_with_its_origin(self, serve: Serve) -> None:
        """With "no-referrer" the browser would send the Origin "null", which is refused."""
        server = serve(api_key=KEY)
        assert server.get("/login").headers["referrer-policy"] == "same-origin"
        assert server.client.post("/login", data={"key": "guess"}).headers["referrer-policy"] == "same-origin"
        for origin, status in ((server.url, 303), ("null", 403)):
            assert server.client.post("/login", data={"key": KEY}, headers={"Origin": origin}).status_code == status

    def test_key_in_the_address_is_removed_from_it(self, serve: Serve) -> None:
        server = serve(api_key=KEY)
        visit = server.get("/v1/runs", params={"key": KEY, "limit": "3"})
        assert (visit.status_code, visit.headers["location"]) == (303, "/v1/runs?limit=3")
        assert visit.headers["referrer-policy"] == "no-referrer"
        assert server.get("/v1/runs").status_code == 200
        assert server.get(f"{server.url}//evil.example/x", params={"key": KEY}).headers["location"] == "/evil.example/x"
        assert serve(api_key=KEY).get("/v1/runs", params={"key": "guess"}).status_code == 401

    @pytest.mark.parametrize("written", ["ab+c/d==", "ab%2Bc/d==", "ab+c%2Fd%3D%3D"])
    def test_key_of_base64_is_accepted_in_the_address(self, serve: Serve, written: str) -> None:
        server = serve(api_key="ab+c/d==")
        assert server.get(f"{server.url}/v1/runs?key={written}").status_code == 303

    def test_cookie_of_another_key_is_refused(self, serve: Serve) -> None:
        server = serve(api_key=KEY)
        cookie = {"Cookie": f"{COOKIE}={session_cookie('another')[1]}"}
        assert server.get("/v1/models", headers=cookie).status_code == 401
        foreign = {"Cookie": f"{COOKIE}={SESSION}", "Origin": "http://evil.example"}
        assert server.get("/v1/models", headers=foreign).status_code == 403

    @pytest.mark.parametrize("other", ['prefs={"theme":"dark","x":1}', "arr[0]=1", "foo", "a=b"])
    def test_cookies_of_other_programs_are_ignored(self, serve: Serve, other: str) -> None:
        cookie = {"Cookie": f"{other}; {COOKIE}={SESSION}"}
        assert serve(api_key=KEY).get("/v1/models", headers=cookie).status_code == 200

    def test_name_of_the_cookie_differs_per_key(self) -> None:
        assert session_cookie("another")[0] != COOKIE


def test_loopback_addresses_are_recognized() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.com", ""))


@pytest.mark.slow
def test_login_in_a_browser_leads_to_the_requested_page(serve: Serve) -> None:
    server = serve(api_key="a-long-key")
    bearer = {"Authorization": "Bearer a-long-key"}
    run_id = server.client.post("/v1/chat/completions", json=RSA, headers=bearer).headers["X-MRSA-Run-Id"]
    with browser() as chrome:
        page = chrome.new_page()
        page.goto(server.url)
        assert page.url == f"{server.url}/login"
        page.fill("#key", "a-wrong-key")
        page.click("button")
        page.get_by_text("That is not the key.").wait_for()
        page.fill("#key", "a-long-key")
        page.click("button")
        page.locator(f'a[href*="{run_id}"]').first.wait_for()
        assert page.url == f"{server.url}/"
        page.context.clear_cookies()
        page.goto("about:blank")
        page.goto(f"{server.url}/runs/{run_id}#/trace/r1-00")
        page.fill("#key", "a-long-key")
        page.click("button")
        page.get_by_role("heading", name="r1-00").first.wait_for()
        assert page.url == f"{server.url}/runs/{run_id}#/trace/r1-00"

"""The demo page: what it serves, and whom it lets in."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Router

from gateway.app import Gateway
from gateway.auth.loading import signed_cookie
from gateway.demo.page import FILES, NEWS, page
from tests.support import client, served, settings

SESSIONS = signed_cookie(settings())
WATCHING = {"Accept": "text/event-stream"}


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    """A browser at a page that has a gateway in its process."""
    gateway = Gateway(settings())
    app = gateway.with_routes(page(SESSIONS, gateway))
    async with served(app, gateway) as url, client(url) as http:
        yield http


async def test_the_page_gives_a_browser_one_session(browser: httpx.AsyncClient) -> None:
    first, second = await browser.get("/"), await browser.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["set-cookie"].startswith("session=")
    assert "set-cookie" not in second.headers


async def test_a_page_whose_cookie_is_refused_gets_another(browser: httpx.AsyncClient) -> None:
    first, second = await browser.get("/"), await browser.post("/")
    assert second.headers["set-cookie"] != first.headers["set-cookie"]


async def test_a_session_that_began_on_https_stays_on_https(browser: httpx.AsyncClient) -> None:
    plain = await browser.post("/")
    behind_tls = await browser.post("/", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" not in plain.headers["set-cookie"]
    assert behind_tls.headers["set-cookie"].endswith("; Secure")


async def test_only_the_pages_own_files_are_served(browser: httpx.AsyncClient) -> None:
    for name in FILES[1:]:
        response = await browser.get(f"/static/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] in ("text/css", "text/javascript")
        assert response.headers["cache-control"] == "no-cache"
    for path in (
        "/static/",
        "/static/nothing.js",
        "/static/..%2fdemo.py",
        "/static/%2e%2e/page.py",
    ):
        assert (await browser.get(path)).status_code == 404


async def test_the_page_pushes_to_its_own_user_and_cuts_that_users_connection(
    browser: httpx.AsyncClient,
) -> None:
    await browser.get("/")
    async with browser.stream("GET", "/events", headers=WATCHING) as watched:
        lines = watched.aiter_lines()
        assert (await anext(lines)).startswith("retry")
        pushed = await browser.post("/demo/push")
        news = json.loads(await _data(lines))
        assert pushed.status_code == 202
        assert news["id"] == pushed.json()["message_id"]
        assert news["text"] in NEWS
        assert (await browser.post("/demo/cut")).json() == {"closed": 1}
        assert [line async for line in lines if line.startswith("data")] == []


async def _data(lines: AsyncIterator[str]) -> str:
    """Return the next event's data, of one line."""
    async for line in lines:
        if line.startswith("data: "):
            return line.removeprefix("data: ")
    raise AssertionError("the stream has ended")


async def test_nobody_is_cut_by_a_forged_ticket_or_pushed_to_without_a_session(
    browser: httpx.AsyncClient,
) -> None:
    assert (await browser.post("/demo/cut", params={"ticket": "forged"})).json() == {"closed": 0}
    assert (await browser.post("/demo/cut")).json() == {"closed": 0}
    refused = await browser.post("/demo/push")
    assert (refused.status_code, refused.json()["code"]) == (401, "not_authenticated")
    assert (await browser.get("/demo/cut")).status_code == 405


async def test_the_page_knows_the_path_that_the_gateway_has_beside_it() -> None:
    async with served(Router(page(SESSIONS, prefix="/llm"))) as url, client(url) as http:
        answer = await http.get("/")
        assert 'data-gateway="/llm"' in answer.text
        assert answer.headers["set-cookie"].startswith("session=")
    async with served(Router(page(SESSIONS))) as url, client(url) as http:
        assert 'data-gateway=""' in (await http.get("/")).text


async def test_a_page_beside_one_gateway_has_none_to_kill(browser: httpx.AsyncClient) -> None:
    await browser.get("/")
    assert (await browser.post("/demo/kill")).status_code == 404
    assert (await browser.get("/demo/replicas")).status_code == 404
    shown = (await browser.get("/")).text
    assert 'data-preset="" data-kill=""' in shown


async def test_a_page_without_a_gateway_of_its_own_names_its_user_to_who_can_push() -> None:
    async with served(Router(page(SESSIONS))) as url, client(url) as http:
        assert (await http.get("/")).status_code == 200
        assert (await http.post("/demo/cut", params={"ticket": "four"})).status_code == 404
        cannot = await http.post("/demo/push")
        assert cannot.status_code == 404
        assert cannot.json()["subject"].startswith("demo-")


def test_the_page_needs_nothing_from_elsewhere_and_writes_no_html() -> None:
    static = Path(__file__).parents[2] / "gateway" / "demo" / "static"
    for file in static.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        text = text.replace("https://app.example", "")  # Of a snippet.
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text

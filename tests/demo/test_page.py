"""The demo page: what it serves, and whom it lets in."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Router

from gateway.demo.page import page
from tests.support import client, served


def cookie(subject: str) -> str:
    """Return a Set-Cookie without a signature."""
    return f"session={subject}; Path=/; HttpOnly"


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    async with served(Router(page(cookie, cut=len))) as url, client(url) as http:
        yield http


async def test_the_page_gives_a_browser_one_session(browser: httpx.AsyncClient) -> None:
    first, second = await browser.get("/"), await browser.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["set-cookie"].startswith("session=demo-")
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
    for name in ("demo.css", "demo.js", "gateway.js"):
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


async def test_the_page_can_cut_a_ticket(browser: httpx.AsyncClient) -> None:
    response = await browser.post("/demo/cut", params={"ticket": "four"})
    assert response.json() == {"closed": 4}
    assert (await browser.get("/demo/cut")).status_code == 405


async def test_the_page_knows_the_path_that_the_gateway_has_beside_it() -> None:
    async with served(Router(page(cookie, prefix="/llm"))) as url, client(url) as http:
        answer = await http.get("/")
        assert '<html lang="en" data-gateway="/llm">' in answer.text
        assert answer.headers["set-cookie"].startswith("session=demo-")
    async with served(Router(page(cookie))) as url, client(url) as http:
        assert '<html lang="en" data-gateway="">' in (await http.get("/")).text


async def test_a_page_without_a_gateway_of_its_own_cuts_nothing() -> None:
    async with served(Router(page(cookie))) as url, client(url) as http:
        assert (await http.get("/")).status_code == 200
        assert (await http.post("/demo/cut", params={"ticket": "four"})).status_code == 404


def test_the_page_needs_nothing_from_elsewhere_and_writes_no_html() -> None:
    static = Path(__file__).parents[2] / "gateway" / "demo" / "static"
    for file in static.iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text

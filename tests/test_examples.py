"""Examples: each as it ships, logged in to and watched with a real browser through one nginx."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
from playwright.async_api import Browser, Page

from examples import processes
from examples.composition import NAMES
from examples.processes import Example
from gateway.streams import listed
from tests.support import ScriptedUpstream, ask, missing, read, scripted, settings
from tests.test_browser import chromium, in_halves

PASSWORDS = {"alice": "wonderland", "bob": "builder"}
FOREIGN = {"Origin": "http://localhost.example"}
# As a caller might send them who wants to be taken for alice.
NAMING_ALICE = {
    "X-Auth-Request-User": "alice",
    "X-Auth-Request-Email": "alice",
    "X-Forwarded-User": "alice",
    "Remote-User": "alice",
    "X-User": "alice",
}
HALF = "".join(f"{number} " for number in range(20))
WHOLE = "".join(f"{number} " for number in range(40)) + "Hello"


class Site:
    """A running example, and the upstream that its gateway asks."""

    def __init__(
        self, name: str, example: Example, upstream: ScriptedUpstream, go_on: Callable[[], None]
    ) -> None:
        self.name = name
        self.go_on = go_on
        self.example = example
        self.upstream = upstream

    @asynccontextmanager
    async def visitor(self, name: str = "") -> AsyncIterator[httpx.AsyncClient]:
        """Yield a client that came in as somebody, or as nobody."""
        async with httpx.AsyncClient(
            base_url=self.example.url, timeout=20, trust_env=False
        ) as http:
            if name and self.name == "guest":
                assert (await self.ask(http, Origin=self.example.url)).status_code == 201
            elif name:
                answer = await self.log_in(http, name, PASSWORDS[name])
                assert answer.status_code == 200
                assert 'id="ask"' in answer.text
            yield http

    async def log_in(
        self, http: httpx.AsyncClient, name: str, password: str, **more: str
    ) -> httpx.Response:
        """Fill in the form that a newcomer is led to."""
        form = await http.get("/", follow_redirects=True)
        hidden = re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', form.text)
        action = re.search(r'<form method="post" action="(.+?)"', form.text)
        where = str(form.url.join(action[1])) if action else str(form.url)
        fields = {**dict(hidden), "username": name, "password": password}
        headers = {"Content-Type": "application/x-www-form-urlencoded", **more}
        sent = urlencode(fields, errors="surrogateescape").encode()
        return await http.post(where, content=sent, headers=headers, follow_redirects=True)

    async def ask(self, http: httpx.AsyncClient, **headers: str) -> httpx.Response:
        """Ask as the page does."""
        if self.name == "on_behalf":
            return await http.post("/ask", json={"question": "Hello?"}, headers=headers)
        return await http.post("/tickets", json=ask(), headers=headers)


async def answers(http: httpx.AsyncClient, url: str, **headers: str) -> list[int]:
    """Return the statuses of who would read, ask for the text of, or stop a stream."""
    opened = await http.get(url, headers={"Accept": "text/event-stream", **headers})
    read = await http.get(url.replace("/stream", "/completion"), headers=headers)
    stopped = await http.delete(url, headers=headers)
    return [each.status_code for each in (opened, read, stopped)]


def tampered(value: str) -> str:
    """Return a cookie's value with other last letters."""
    return value[:-10] + "".join("B" if each == "A" else "A" for each in value[-10:])


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for all, so that they share a browser."""
    return "asyncio"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """The browser; each test has a profile of its own."""
    async with chromium() as running:
        yield running


@pytest.fixture(scope="module", params=NAMES)
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """An example of those there are."""
    if lacking := processes.missing():
        missing(lacking)
    script, go_on = in_halves()
    async with scripted(script) as upstream:
        port = urlsplit(upstream.url).port
        assert port is not None
        variables = {"SECRET": "0123456789abcdef" * 2, "PORT": "0"}
        with processes.running(request.param, variables, upstream=port) as example:
            yield Site(request.param, example, upstream, go_on)


async def test_what_it_runs_is_seen_by_gateway_streams(site: Site) -> None:
    report = await listed(settings(redis_url=site.example.redis_url), None, as_json=True)
    assert (report.code, report.remarks) == (0, [])


async def come_in(page: Page, site: Site) -> None:
    """Open the example and log in where it asks for that."""
    await page.goto(site.example.url)
    if await page.locator("[name=username]").count():
        await page.fill("[name=username]", "alice")
        await page.fill("[name=password]", PASSWORDS["alice"])
        await page.click("button")
    await page.wait_for_selector("#ask")


async def test_an_example_streams_in_a_browser_and_goes_on_after_a_cut(
    site: Site, browser: Browser
) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    asked: set[str] = set()
    page.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3])))
    await come_in(page, site)
    await page.click("#ask button")
    await page.wait_for_function("(half) => answer.textContent === half", arg=HALF)
    site.example.stop("nginx")
    site.example.begin("nginx")
    site.go_on()
    await page.wait_for_function("state.textContent === 'done'")
    assert await page.text_content("#answer") == WHOLE
    assert len(site.upstream.calls) == 1
    assert {each for each in asked if each.startswith("http")} == {site.example.url}
    await context.close()


async def test_who_is_somebody_else_or_nobody_starts_nothing(site: Site) -> None:
    before = len(site.upstream.calls)
    async with (
        site.visitor("alice") as alice,
        site.visitor("bob") as bob,
        site.visitor() as nobody,
        site.visitor() as forger,
    ):
        for name, value in alice.cookies.items():
            forger.cookies.set(name, tampered(value))
        made = await site.ask(alice)
        assert made.status_code == 201
        url = made.json()["stream_url"]
        assert await answers(bob, url) == [404, 404, 404]
        assert await answers(bob, url, **NAMING_ALICE) == [404, 404, 404]
        for stranger in (nobody, forger):
            assert await answers(stranger, url) == [401, 401, 401]
            assert await answers(stranger, url, **NAMING_ALICE) == [401, 401, 401]
            assert (await site.ask(stranger)).status_code == 401
            assert (await site.ask(stranger, **NAMING_ALICE)).status_code == 401
        refused = await nobody.get(url, headers={"Accept": "text/event-stream"})
        assert refused.json()["code"] == "not_authenticated"
        assert await answers(alice, url, **FOREIGN) == [403, 403, 403]
        assert (await site.ask(alice, **FOREIGN)).status_code == 403
        assert len(site.upstream.calls) == before
        site.go_on()
        assert (await read(alice, url)).end["state"] == "done"
        assert len(site.upstream.calls) == before + 1


@pytest.mark.parametrize("site", [each for each in NAMES if each != "guest"], indirect=True)
async def test_a_wrong_password_lets_nobody_in(site: Site) -> None:
    async with site.visitor() as http:
        for name, password in (("alice", "builder"), ("nobody", ""), ("", ""), ("\udcff", "\0")):
            answer = await site.log_in(http, name, password)
            assert 'id="ask"' not in answer.text
            assert (await site.ask(http)).status_code == 401


@pytest.mark.parametrize("site", [each for each in NAMES if each != "guest"], indirect=True)
async def test_no_form_of_another_site_logs_anybody_in_or_out(site: Site) -> None:
    """Who is logged in as the attacker tells the attacker what they ask."""
    async with site.visitor() as http:
        for origin in ("http://localhost.example", "null", "http://["):
            answer = await site.log_in(http, "alice", PASSWORDS["alice"], Origin=origin)
            assert answer.status_code == 403
            assert (await site.ask(http)).status_code == 401
    async with site.visitor("alice") as http:
        page = await http.get("/")
        (where,) = re.findall(r'method="post" action="(.+?)"', page.text)
        assert (await http.post(where, headers=FOREIGN)).status_code == 403
        assert (await http.get("/")).text == page.text or site.name == "django"
        assert (await site.ask(http, Origin=site.example.url)).status_code == 201


@pytest.mark.parametrize("site", ["on_behalf"], indirect=True)
async def test_while_the_gateway_is_away_a_log_out_works_and_nothing_is_taken_for_said(
    site: Site,
) -> None:
    site.go_on()
    async with site.visitor("alice") as alice, site.visitor("bob") as bob:
        alice.headers["Cookie"] = f"other=\xe9; session={alice.cookies['session']}"
        site.example.stop("gateway")
        refused = await alice.post("/ask", json={"question": "Is nobody there?"})
        assert (refused.status_code, [*refused.json()]) == (503, ["detail"])
        assert (await bob.post("/logout")).status_code == 303
        site.example.begin("gateway")
        site.example.wait("gateway")
        assert (await site.ask(bob)).status_code == 401
        for _ in range(2):
            url = (await site.ask(alice)).json()["stream_url"]
            assert (await read(alice, url)).end["state"] == "done"
        messages = site.upstream.calls[-1].json["messages"]
        assert [each["role"] for each in messages][-3:] == ["user", "assistant", "user"]
        assert "nobody" not in str(messages)


@pytest.mark.parametrize("site", ["on_behalf"], indirect=True)
async def test_what_the_server_adds_reaches_the_model_and_passes_no_page(site: Site) -> None:
    site.go_on()
    async with site.visitor("bob") as bob:
        for question in ("How long is the warranty?", "And shipping?"):
            made = await bob.post("/ask", json={"question": question})
            assert made.json().keys() == {"stream_url"}
            assert (await read(bob, made.json()["stream_url"])).end["state"] == "done"
        messages = site.upstream.calls[-1].json["messages"]
        assert [each["role"] for each in messages] == ["system", "user", "assistant", "user"]
        assert "Shipping takes three days" in messages[0]["content"]
        assert messages[2]["content"] == WHOLE
        before = len(site.upstream.calls)
        for path in ("/tickets", "/tickets/support", "/users/bob/tickets/support"):
            assert (await bob.post(path, json=ask())).status_code in {401, 404}
        assert (await bob.post("/ask", json={"question": ["?"]})).status_code == 422
        assert len(site.upstream.calls) == before


@pytest.mark.parametrize("site", ["on_behalf"], indirect=True)
async def test_a_log_out_takes_the_tickets_along(site: Site) -> None:
    before = len(site.upstream.calls)
    async with site.visitor("bob") as bob:
        url = (await site.ask(bob)).json()["stream_url"]
        await bob.post("/logout")
        assert await answers(bob, url) == [401, 401, 401]
        await site.log_in(bob, "bob", PASSWORDS["bob"])
        assert (await read(bob, url)).end["state"] == "cancelled"
    assert len(site.upstream.calls) == before

"""A real browser: a bare EventSource, the demo page, other origins, a gateway that is killed."""

import asyncio
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import Gateway
from gateway.auth.loading import signed_cookie
from gateway.demo.page import page as routes_of_page
from gateway.demo.upstream import answer
from gateway.eventlog.viewer import Viewer
from tests.clients import node_modules
from tests.runs.test_takeover import RESTART, owner, via
from tests.support import (
    OK,
    SECRET,
    WHOLE,
    Call,
    Process,
    RedisServer,
    Script,
    Served,
    ask,
    chunk,
    client,
    cookie,
    free_port,
    missing,
    process,
    scripted,
    served,
    settings,
    sse,
    until,
    whole,
)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")
PROMPT = "What happens when my wifi drops in the middle of an answer?"

# A page with nothing but `onmessage`. `got` is what it has seen, `states` what onerror found.
BARE = """<!doctype html><link rel="icon" href="data:,"><script>
const got = [], states = [], ends = [];
let es;
function watch(url, options) {
  es = new EventSource(url, options);
  es.onmessage = (event) => got.push([event.lastEventId, event.data]);
  es.onerror = () => states.push(es.readyState);
}
function listen() { es.addEventListener("end", (event) => ends.push(JSON.parse(event.data))); }
</script>"""


# A page with the library that many have: it sends its POST again when the connection broke.
FETCHING = """<!doctype html><link rel="icon" href="data:,"><script type="module">
import { fetchEventSource } from "/library/index";
Object.assign(window, { got: [], ended: "", url: "" });
window.post = (body) => {
  fetchEventSource("/tickets", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body,
    async onopen(response) { url = response.headers.get("content-location"); },
    onmessage(event) {
      if (event.event === "end") ended = event.data;
      else got.push([event.id, event.data]);
    },
  });
};
</script>"""


# All that the demo page says, as some of it is soon said over.
NOTICES = """window.notices = [];
addEventListener("DOMContentLoaded", () => {
  for (const notice of document.querySelectorAll(".notice")) {
    const said = () => notices.push(notice.textContent);
    said();
    new MutationObserver(said).observe(notice, { childList: true });
  }
});"""


async def fetching(request: Request) -> Response:
    """Serve that page, and the modules of the library as they come from npm."""
    name = request.path_params.get("name")
    if name is None:
        return HTMLResponse(FETCHING)
    folder = node_modules() / "@microsoft" / "fetch-event-source" / "lib" / "esm"
    return FileResponse(folder / f"{name}.js", media_type="text/javascript")


async def bare(_: Request) -> Response:
    """Serve the bare page."""
    return HTMLResponse(BARE)


BARE_ROUTE = Route("/bare", bare)
FETCHING_ROUTES = [Route("/fetching", fetching), Route("/library/{name}", fetching)]


@pytest.fixture
async def context() -> AsyncIterator[BrowserContext]:
    """A new profile of a browser of its own."""
    async with chromium() as browser:
        context = await browser.new_context(viewport={"width": 1280, "height": 900})
        await context.add_init_script(NOTICES)
        yield context


def browser_path() -> str | None:
    """Return where the machine has a browser."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run the browser that the machine has."""
    path = browser_path()
    if path is None:
        missing("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Seen:
    """One request that reached the gateway, and the status it got."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0


class Watch:
    """The gateway's application, and what browsers asked of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.seen: list[Seen] = []
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        seen = Seen(scope["method"], scope["path"], headers)
        self.seen.append(seen)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            await send(message)

        await self._app(scope, receive, noting)

    def statuses(self, path: str, method: str = "GET") -> list[int]:
        """Return the statuses of all requests of a path, in order."""
        return [each.status for each in self.seen if (each.path, each.method) == (path, method)]


@asynccontextmanager
async def watched(**changes: Any) -> AsyncIterator[tuple[Served, Watch]]:
    """Run a gateway in this process with the bare page beside it."""
    gateway = Gateway(settings(**changes))
    watch = Watch(gateway.with_routes([BARE_ROUTE, *FETCHING_ROUTES]))
    async with served(watch, gateway) as url, client(url) as http:
        yield Served(gateway, url, http), watch


async def log_in(context: BrowserContext, gateway: Served, subject: str = "alice") -> None:
    """Give the browser a subject's cookie, as the web app would have set it."""
    await add_cookie(context, gateway.url, gateway.cookie(subject))


async def add_cookie(context: BrowserContext, url: str, header: dict[str, str]) -> None:
    name, _, value = header["Cookie"].partition("=")
    await context.add_cookies(
        [{"name": name, "value": value, "url": url, "httpOnly": True, "sameSite": "Lax"}]
    )


async def said(page: Page) -> list[list[str]]:
    """Return the id and the data of each message that the bare page has seen."""
    seen: list[list[str]] = await page.evaluate("got")
    return seen


async def messages(gateway: Served, url: str) -> list[list[str]]:
    """Return what a bare page is to see of a whole stream."""
    events = (await gateway.read(url)).events
    return [[each.id.decode(), each.data.decode()] for each in events if not each.name]


async def closed(page: Page) -> None:
    """Wait until the browser has given the EventSource up."""
    await page.wait_for_function("es.readyState === EventSource.CLOSED")


def in_halves() -> tuple[Script, Callable[[], None]]:
    """Return the script of a completion that waits in its middle, and what lets it go on."""
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(*(chunk(f"{number} ") for number in range(20))))
        await go_on.wait()
        await call.send(sse(*(chunk(f"{number} ") for number in range(20, 40))), WHOLE)

    return script, go_on.set


# A bare EventSource


async def test_a_bare_eventsource_gets_one_answer_and_stops_by_itself(
    context: BrowserContext,
) -> None:
    async with scripted(whole) as upstream, watched(upstream_url=upstream.url) as (gateway, watch):
        await log_in(context, gateway)
        page = await context.new_page()
        await page.goto(f"{gateway.url}/bare")
        await page.evaluate(
            """async (body) => {
                const headers = {"Content-Type": "application/json"};
                const answer = await fetch("/tickets", {method: "POST", headers, body});
                watch((await answer.json()).stream_url);
            }""",
            json.dumps(ask()),
        )
        await closed(page)
        url = await page.evaluate("es.url")
        assert await said(page) == await messages(gateway, url.removeprefix(gateway.url))
        assert await page.evaluate("states") == [0, 2]  # The close after the end, then the 204.
        assert watch.statuses("/stream")[:2] == [200, 204]
        assert len(watch.statuses("/stream")) == 3  # The last one is our own.
        assert len(upstream.calls) == 1


async def test_a_bare_eventsource_that_is_sent_away_resumes_without_loss(
    context: BrowserContext,
) -> None:
    script, go_on = in_halves()
    async with (
        scripted(script) as upstream,
        watched(upstream_url=upstream.url, grace=9) as (gateway, watch),
    ):
        page, url = await started(context, gateway)
        await page.wait_for_function("got.length === 20")
        ticket = gateway.gateway.tickets.verify(url.partition("ticket=")[2])
        tail = gateway.gateway.fanout.get(ticket.stream_id)
        assert tail is not None
        assert tail.drop() == 1
        go_on()
        await closed(page)
        assert await said(page) == await messages(gateway, url)
        assert watch.statuses("/stream")[:3] == [200, 200, 204]
        assert len(upstream.calls) == 1


async def test_a_bare_eventsource_can_have_nothing_but_the_text(context: BrowserContext) -> None:
    lines = ["Hel", "lo\n\nwo", "rld: ", "два ", "\N{LINE SEPARATOR}", "👍🏽", "\n", " end"]

    async def script(call: Call) -> None:
        await call.send(OK, sse(*map(chunk, lines)), WHOLE)

    async with scripted(script) as upstream, watched(upstream_url=upstream.url) as (gateway, _):
        page, _url = await started(context, gateway, await gateway.ticket() + "&format=text")
        await closed(page)
        assert "".join(data for _, data in await said(page)) == "".join(lines) + "Hello"


async def test_two_tabs_see_the_same_answer_for_one_upstream_call(context: BrowserContext) -> None:
    script, go_on = in_halves()
    async with scripted(script) as upstream, watched(upstream_url=upstream.url) as (gateway, _):
        first, url = await started(context, gateway)
        await first.wait_for_function("got.length === 20")
        second = await context.new_page()
        await second.goto(f"{gateway.url}/bare")
        await second.evaluate("(url) => watch(url)", url)
        await second.wait_for_function("got.length === 20")
        go_on()
        await closed(first)
        await closed(second)
        assert await said(first) == await said(second) == await messages(gateway, url)
        assert len(upstream.calls) == 1


async def test_an_upstream_that_breaks_makes_no_bare_eventsource_loop(
    context: BrowserContext,
) -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        call.cut()

    async with scripted(script) as upstream, watched(upstream_url=upstream.url) as (gateway, watch):
        page, url = await started(context, gateway)
        await closed(page)
        assert await said(page) == await messages(gateway, url)
        assert watch.statuses("/stream")[:2] == [200, 204]
        assert len(upstream.calls) == 1


async def test_a_ticket_of_another_user_starts_nothing(context: BrowserContext) -> None:
    async with scripted(whole) as upstream, watched(upstream_url=upstream.url) as (gateway, watch):
        url = await gateway.ticket(subject="bob")
        page, _ = await started(context, gateway, url)
        await closed(page)
        assert await said(page) == []
        assert watch.statuses("/stream") == [404]
        assert not upstream.calls


async def test_a_page_that_posts_by_fetch_event_source_and_is_cut_in_mid_stream_pays_once(
    context: BrowserContext,
) -> None:
    script, go_on = in_halves()
    async with (
        scripted(script) as upstream,
        watched(upstream_url=upstream.url, grace=9) as (gateway, watch),
    ):
        await log_in(context, gateway)
        page = await context.new_page()
        await page.goto(f"{gateway.url}/fetching")
        await page.evaluate("(body) => post(body)", json.dumps(ask()))
        await page.wait_for_function("got.length === 20")
        cut(gateway)
        go_on()
        await page.wait_for_function("ended")
        seen = await said(page)
        posts = [each for each in watch.seen if each.path == "/tickets"]
        assert [each.status for each in posts] == [200, 200]
        assert posts[1].headers["last-event-id"] == seen[19][0]
        url = await page.evaluate("url")
        assert seen == await messages(gateway, url)
        assert len(upstream.calls) == 1


def cut(gateway: Served) -> None:
    """Break the connections of all viewers, as a network does."""
    for tail in gateway.gateway.fanout._tails.values():
        for viewer in tail.viewers:
            assert isinstance(viewer, Viewer)
            assert viewer.abort is not None
            viewer.abort()


async def test_a_page_that_closes_can_cancel_by_beacon(context: BrowserContext) -> None:
    script, _ = in_halves()
    async with scripted(script) as upstream, watched(upstream_url=upstream.url) as (gateway, watch):
        page, url = await started(context, gateway)
        await page.wait_for_function("got.length === 20")
        await page.evaluate(
            """(url) => addEventListener("pagehide", () => {
                es.close();
                navigator.sendBeacon(url);
            })""",
            url.replace("/stream", "/stream/cancel"),
        )
        await page.close(run_before_unload=True)
        await until(lambda: watch.statuses("/stream/cancel", "POST") == [200], "the beacon")
        assert (await gateway.read(url)).end["state"] == "cancelled"
        await until(upstream.calls[0].left.is_set, "the upstream is left")


async def started(context: BrowserContext, gateway: Served, url: str = "") -> tuple[Page, str]:
    """Open the bare page beside the gateway, on a stream; return both."""
    await log_in(context, gateway)
    url = url or await gateway.ticket()
    page = await context.new_page()
    await page.goto(f"{gateway.url}/bare")
    await page.evaluate("(url) => watch(url)", url)
    return page, url


# Other origins


@asynccontextmanager
async def another_site() -> AsyncIterator[str]:
    """Serve the bare page on an origin of its own, of the same site; `localhost` is another."""
    async with served(Starlette(routes=[BARE_ROUTE])) as url:
        yield url


async def test_a_listed_origin_may_watch_with_credentials(context: BrowserContext) -> None:
    async with (
        another_site() as origin,
        scripted(whole) as upstream,
        watched(upstream_url=upstream.url, allowed_origins=origin) as (gateway, watch),
    ):
        await log_in(context, gateway)
        page = await context.new_page()
        await page.goto(f"{origin}/bare")
        url = await page.evaluate(
            """async ([gateway, body]) => {
                const headers = {"Content-Type": "application/json", "Idempotency-Key": "one"};
                const options = {method: "POST", headers, body, credentials: "include"};
                const {stream_url} = await (await fetch(gateway + "/tickets", options)).json();
                watch(gateway + stream_url, {withCredentials: true});
                return stream_url;
            }""",
            [gateway.url, json.dumps(ask())],
        )
        await closed(page)
        assert await page.evaluate("states") == [0, 2]
        assert await said(page) == await messages(gateway, url)
        assert watch.statuses("/stream")[:2] == [200, 204]
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("form", ["", "&format=text"])
async def test_the_module_asks_and_follows_with_credentials_from_a_listed_origin(
    context: BrowserContext, form: str
) -> None:
    module = (
        Path(__file__).parent.parent / "gateway" / "demo" / "static" / "gateway.js"
    ).read_text("utf-8")
    async with (
        another_site() as origin,
        scripted(whole) as upstream,
        watched(upstream_url=upstream.url, allowed_origins=origin) as (gateway, _),
    ):
        await log_in(context, gateway)
        page = await context.new_page()
        await page.goto(f"{origin}/bare")
        ended = await page.evaluate(
            """async ([source, gateway, body, form]) => {
                const blob = new Blob([source], {type: "text/javascript"});
                const {ask, follow} = await import(URL.createObjectURL(blob));
                const {stream_url} = await ask(body, gateway + "/tickets");
                return await new Promise((done) => {
                    let said = "";
                    follow(gateway + stream_url + form, {
                        text: (piece) => { said += piece; },
                        end: ({state}) => done([said, state]),
                        closed: (refusal) => done([refusal.code]),
                    });
                });
            }""",
            [module, gateway.url, ask(), form],
        )
        assert ended == ["Hello", "done"]
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_foreign_origin_starts_nothing_although_its_get_arrives(
    context: BrowserContext, host: str
) -> None:
    async with (
        another_site() as origin,
        scripted(whole) as upstream,
        watched(upstream_url=upstream.url) as (gateway, watch),
    ):
        await log_in(context, gateway)
        url = await gateway.ticket()
        page = await context.new_page()
        await page.goto(f"{origin.replace('127.0.0.1', host)}/bare")
        await page.evaluate("(url) => watch(url, {withCredentials: true})", gateway.url + url)
        await closed(page)
        assert watch.statuses("/stream") == [403]
        assert await nothing_started(gateway, url, upstream.calls)


EMBEDDED = {
    "image": "document.body.append(Object.assign(new Image(), {src: url}))",
    "script": "document.head.append(Object.assign(document.createElement('script'), {src: url}))",
    "frame": "document.body.append(Object.assign(document.createElement('iframe'), {src: url}))",
    "prefetch": "document.head.append("
    "Object.assign(document.createElement('link'), {rel: 'prefetch', href: url}))",
    "fetch without CORS": "fetch(url, {mode: 'no-cors', credentials: 'include'}).catch(() => {})",
}


# On a page of ours a fetch is a fetch like any other.
ON_PAGES = [(element, "foreign") for element in EMBEDDED]
ON_PAGES += [(element, "ours") for element in EMBEDDED if element != "fetch without CORS"]


@pytest.mark.parametrize(("element", "whose"), ON_PAGES)
async def test_what_a_page_embeds_starts_nothing(
    context: BrowserContext, element: str, whose: str
) -> None:
    async with (
        another_site() as origin,
        scripted(whole) as upstream,
        watched(upstream_url=upstream.url) as (gateway, watch),
    ):
        await log_in(context, gateway)
        url = await gateway.ticket()
        page = await context.new_page()
        await page.goto(f"{origin if whose == 'foreign' else gateway.url}/bare")
        await page.evaluate(f"(url) => {{ {EMBEDDED[element]} }}", gateway.url + url)
        await until(lambda: watch.statuses("/stream"), "the request arrives")
        await until(lambda: all(watch.statuses("/stream")), "it is answered")
        assert set(watch.statuses("/stream")) == {403}
        assert await nothing_started(gateway, url, upstream.calls)


async def test_a_typed_in_link_starts_nothing(context: BrowserContext) -> None:
    async with scripted(whole) as upstream, watched(upstream_url=upstream.url) as (gateway, _):
        await log_in(context, gateway)
        url = await gateway.ticket()
        page = await context.new_page()
        answered = await page.goto(gateway.url + url)
        assert answered is not None
        assert answered.status == 403
        assert await nothing_started(gateway, url, upstream.calls)


async def nothing_started(gateway: Served, url: str, calls: list[Call]) -> bool:
    """Tell whether the ticket is as it was, and nobody asked the upstream."""
    return (await gateway.completion(url))["state"] == "cached" and not calls


# A gateway that is killed


@dataclass
class Deployed:
    """What stays while gateways come and go: their address, and a page that watches a stream."""

    arguments: tuple[str, ...]
    variables: dict[str, str]
    page: Page
    url: str = ""

    def gateway(self) -> AbstractContextManager[Process]:
        """Run `gateway serve` there."""
        return process(*self.arguments, **self.variables)

    async def watch(self, gateway: Process) -> None:
        """Let the page ask, and wait for half of the answer."""
        header = cookie(settings())
        await add_cookie(self.page.context, gateway.url, header)
        async with client(gateway.url) as http:
            self.url = (await http.post("/tickets", json=ask(), headers=header)).json()[
                "stream_url"
            ]
        await self.page.goto(f"{self.variables['allowed_origins']}/bare")
        await self.page.evaluate(
            "(url) => { watch(url, {withCredentials: true}); listen(); }", gateway.url + self.url
        )
        await self.page.wait_for_function("got.length === 20")

    async def completion(self, gateway: Process) -> dict[str, Any]:
        """Return the answer as a gateway tells it."""
        async with client(gateway.url) as http:
            url = self.url.replace("/stream", "/completion")
            return dict((await http.get(url, headers=cookie(settings()))).json())

    async def text(self) -> str:
        """Return what the page would show."""
        whole = [json.loads(data) for _, data in await said(self.page) if data != "[DONE]"]
        return "".join(each["choices"][0]["delta"]["content"] for each in whole)


@asynccontextmanager
async def deployed(
    context: BrowserContext, redis: RedisServer, script: Script
) -> AsyncIterator[tuple[Deployed, list[Call]]]:
    """Prepare gateways on one port and one Redis; yields the calls of their upstream as well."""
    async with another_site() as origin, scripted(script) as upstream:
        variables = {
            "redis_url": redis.url,
            "secrets": SECRET,
            "upstream_url": upstream.url,
            "allowed_origins": origin,
            "lease": "1",
            "grace": "20",
        }
        arguments = ("serve", "--port", str(free_port()))
        yield Deployed(arguments, variables, await context.new_page()), upstream.calls


async def test_a_bare_eventsource_outlives_kill_9_and_hears_interrupted(
    context: BrowserContext, shared_redis: RedisServer
) -> None:
    script, _ = in_halves()
    async with deployed(context, shared_redis, script) as (there, calls):
        with there.gateway() as first:
            await there.watch(first)
            first.signal(signal.SIGKILL)
            first.wait()
        await there.page.wait_for_function("states.includes(EventSource.CONNECTING)")
        with there.gateway() as second:
            await closed(there.page)
            completion = await there.completion(second)
        (end,) = await there.page.evaluate("ends")
        assert end["state"] == completion["state"] == "interrupted"
        assert await there.text() == completion["text"] == "".join(f"{n} " for n in range(20))
        assert len(calls) == 1


async def test_a_bare_eventsource_does_not_notice_a_deploy(
    context: BrowserContext, shared_redis: RedisServer
) -> None:
    script, go_on = in_halves()
    async with deployed(context, shared_redis, script) as (there, calls):
        with there.gateway() as first:
            await there.watch(first)
            first.signal(signal.SIGTERM)
            await there.page.wait_for_function("es.readyState === EventSource.CONNECTING")
            with there.gateway() as second:
                await there.page.wait_for_function("es.readyState === EventSource.OPEN")
                go_on()
                await closed(there.page)
                completion = await there.completion(second)
            assert await asyncio.to_thread(first.wait) == 0
        (end,) = await there.page.evaluate("ends")
        assert end["state"] == completion["state"] == "done"
        assert await there.text() == completion["text"]
        assert completion["text"] == "".join(f"{n} " for n in range(40)) + "Hello"
        assert len(calls) == 1


# The demo page


@dataclass
class Demo:
    """A running `gateway demo`, and what the upstream in it was asked."""

    url: str

    async def calls(self) -> dict[str, Any]:
        """Return what the upstream tells."""
        async with client(self.url) as http:
            return dict((await http.get("/pretend/calls")).json())

    async def open_calls(self) -> int:
        """Return how many of its connections are open."""
        return int((await self.calls())["open"])

    async def asked(self) -> int:
        """Return how often the gateway asked it, with the loops around fetch left out."""
        return sum(not each["ask"].endswith("-plain") for each in (await self.calls())["calls"])


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """The demo as people start it, but with an upstream that is quicker than people read."""
    given = {"grace": "9", "lease": "9"}  # Nobody is to be missed on a busy machine.
    with process("demo", "--port", "0", "--interval", "0.02", **given) as demo:
        yield Demo(demo.url)


@pytest.fixture
async def page(context: BrowserContext, demo: Demo, tmp_path: Path) -> AsyncIterator[Page]:
    """The demo page; at the end there was no error on its console, and no request elsewhere."""
    page = await context.new_page()
    errors: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda each: errors.append(each.text) if each.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda each: elsewhere.append(each.url))
    await page.goto(demo.url)
    yield page
    await page.screenshot(path=tmp_path / "demo.png", full_page=True)
    own = urlsplit(demo.url).netloc
    assert not [url for url in elsewhere if urlsplit(url).netloc not in {own, ""}]
    # A line that is cut is an error, which is the point of it.
    assert not [each for each in errors if "ERR_INCOMPLETE_CHUNKED_ENCODING" not in each]


def expected(prompt: str = PROMPT) -> str:
    """Return the whole answer to a prompt."""
    return "".join(answer([{"role": "user", "content": prompt}], script="prompt"))


async def ask_for(page: Page, prompt: str = PROMPT, fault: str = "") -> None:
    """Fill the form in and send it."""
    await page.fill("#prompt", prompt)
    await page.select_option("#fault", fault)
    await page.click("#ask")


async def text(page: Page, where: str = "#answer") -> str:
    return await page.text_content(where) or ""


async def length(page: Page, least: int) -> int:
    """Wait until so much of the answer is there; return how much it is."""
    await page.wait_for_function(
        "(least) => document.getElementById('answer').textContent.length >= least", arg=least
    )
    return len(await text(page))


async def state(page: Page, wanted: str) -> None:
    """Wait until the stream is so."""
    await page.wait_for_selector(f"#state[data-state={wanted}]")


async def told(page: Page, wanted: str, where: str) -> None:
    """Wait until the page says this."""
    await page.wait_for_function(
        "([where, wanted]) => document.querySelector(where).textContent.startsWith(wanted)",
        arg=[where, wanted],
    )


async def noticed(page: Page, words: str) -> None:
    """Wait until the page has said this, however short it was to be read."""
    await page.wait_for_function(
        "(words) => notices.some((each) => each.includes(words))", arg=words
    )


async def test_the_demo_page_writes_the_answer_as_it_comes(page: Page, demo: Demo) -> None:
    await ask_for(page)
    first = await length(page, 10)
    second = await length(page, first + 50)
    assert expected().startswith(await text(page))
    assert first < second < len(expected())
    await state(page, "done")
    assert await text(page) == expected()
    assert await page.text_content("#finish") == "completed"
    assert await page.text_content("#reconnects") == "0"
    await noticed(page, "0 lost, 0 twice")
    await page.wait_for_function(
        "document.getElementById('account').textContent.startsWith('Streams today: 1,')"
    )
    told = await text(page, "#account")
    spent = sum(map(int, re.findall(r"\d+", await text(page, "#usage"))))
    assert f"tokens: {spent}. Left: {100_000 - spent:,} tokens, 29 requests" in told


async def test_the_demo_page_stops_the_answer_and_the_upstream(page: Page, demo: Demo) -> None:
    before = await demo.asked()
    await ask_for(page, "Stop me")
    await length(page, 30)
    await page.click("#stop")
    await state(page, "cancelled")
    seen = await text(page)
    assert expected("Stop me").startswith(seen)
    assert len(seen) < len(expected("Stop me"))
    await until(lambda: _none_open(demo), "the upstream's connection is closed")
    assert await demo.asked() == before + 1
    assert (await demo.calls())["calls"][-1]["closed"] == "client"
    assert await page.is_disabled("#stop")
    await noticed(page, "Stopped by you. ")
    assert await text(page, "#state") == "stopped by you"
    assert "about" in await text(page, "#usage")


async def _none_open(demo: Demo) -> bool:
    return await demo.open_calls() == 0


async def test_the_demo_page_reconnects_after_a_cut_and_has_the_exact_text(
    page: Page, demo: Demo
) -> None:
    before = await demo.asked()
    await ask_for(page, "Cut me")
    await length(page, 40)
    await page.click("#cut")
    await noticed(page, "Connection lost")
    await noticed(page, "0 lost, 0 twice")
    await state(page, "done")
    assert await text(page) == expected("Cut me")
    assert await page.text_content("#reconnects") == "1"
    assert await demo.asked() == before + 1


async def test_the_demo_page_shows_a_second_viewer_the_same_text(page: Page, demo: Demo) -> None:
    before = await demo.asked()
    await ask_for(page, "Twice")
    await length(page, 40)
    await page.click("#second")
    await page.wait_for_function("document.getElementById('answer2').textContent.length > 40")
    await state(page, "done")
    await told(page, "closed, same text", "#state2")
    assert await text(page) == await text(page, "#answer2") == expected("Twice")
    assert await demo.asked() == before + 1


async def test_the_demo_page_goes_on_after_a_reload(page: Page, demo: Demo) -> None:
    before = await demo.asked()
    await ask_for(page, "Reload me")
    await length(page, 40)
    await page.reload()
    await length(page, 41)
    await state(page, "done")
    assert await text(page) == expected("Reload me")
    assert await page.input_value("#prompt") == "Reload me"
    assert await demo.asked() == before + 1
    await page.reload()
    await state(page, "done")
    assert await text(page) == expected("Reload me")


@pytest.mark.parametrize(
    ("fault", "ends", "attempts", "words"),
    [
        ("cut:25", "truncated", "1", "before the completion was whole"),
        ("close:25", "truncated", "1", "before the completion was whole"),
        ("error:25", "failed", "1", "The server had an error."),
        ("status:503", "failed", "3", "its status was 503"),
        ("status:401", "failed", "1", "its status was 401"),
        ("html", "failed", "1", "text/html"),
        ("status:429:1", "done", "2", "0 lost, 0 twice"),
        ("named", "done", "1", "0 lost, 0 twice"),
        ("big:100000", "done", "1", "0 lost, 0 twice"),
    ],
)
async def test_the_demo_page_tells_in_words_what_went_wrong(
    page: Page, demo: Demo, fault: str, ends: str, attempts: str, words: str
) -> None:
    prompt = f"Fault {fault}"
    await ask_for(page, prompt, fault)
    await state(page, ends)
    await noticed(page, words)
    assert await text(page, "#attempts") == attempts
    if ends == "done" and not fault.startswith("big"):
        assert await text(page) == expected(prompt)
    elif ends == "truncated":
        pieces = answer([{"role": "user", "content": prompt}], script="prompt")
        assert await text(page) == "".join(pieces[:25])


async def test_the_demo_page_stops_an_answer_that_never_begins(page: Page, demo: Demo) -> None:
    await ask_for(page, "Hang", "hang")
    await state(page, "starting")
    await page.click("#stop")
    await state(page, "cancelled")
    assert await text(page) == ""
    await until(lambda: _none_open(demo), "the upstream's connection is closed")


async def test_the_demo_page_discards_the_words_of_a_replica_that_died(
    context: BrowserContext, own_redis: RedisServer, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        if len(upstream.calls) == 1:
            await call.send(OK, sse(chunk("lost words")))
            await call.left.wait()
        await call.send(OK, sse(chunk("Hel")))
        await go_on.wait()
        await call.send(sse(chunk("lo"), chunk("", finish="stop"), b"[DONE]"))

    async with (
        scripted(script) as upstream,
        owner(own_redis.url, upstream.url, tmp_path) as first,
        served_page(redis_url=own_redis.url, upstream_url=upstream.url, grace=9, lease=2) as second,
    ):
        await log_in(context, second)
        url = await second.ticket()
        await via(first, url)
        page = await context.new_page()
        await page.goto(second.url)
        asked = json.dumps({"stream_url": f"{url}&format=text"})
        await page.evaluate("(asked) => sessionStorage.setItem('asked', asked)", asked)
        await page.reload()  # As somebody who was there when it began.
        await length(page, 10)
        await page.click("#second")
        await page.wait_for_function("document.getElementById('answer2').textContent.length > 9")
        first.signal(signal.SIGKILL)
        for where in ("#answer", "#answer2"):
            await page.wait_for_function(
                "(where) => document.querySelector(where).textContent === 'Hel'", arg=where
            )
        go_on.set()
        await state(page, "done")
        await told(page, "closed, same text", "#state2")
        assert await text(page) == await text(page, "#answer2") == "Hello"
        assert await text(page, "#attempts") == "2"
        await noticed(page, "0 lost, 0 twice")
    assert len(upstream.calls) == 2


@asynccontextmanager
async def served_page(**changes: Any) -> AsyncIterator[Served]:
    """Run a replica that asks again after a death, with the demo page; who comes is logged in."""
    gateway = Gateway(settings(presets=RESTART, **changes))
    app = gateway.with_routes(routes_of_page(signed_cookie(gateway.settings), gateway))
    async with served(app, gateway) as url, client(url) as http:
        yield Served(gateway, url, http)


async def connected(page: Page) -> None:
    """Wait until the page has its messages' connection."""
    await page.wait_for_function(
        "document.getElementById('many-line').textContent.includes(' 1 connection,')"
    )


TILES = """(wanted) => JSON.stringify(wanted) === JSON.stringify(Array.from(
  document.querySelectorAll("#tiles li"), (tile) => [
    tile.querySelector(".badge").textContent, tile.querySelector(".text").textContent]))"""


async def rows(page: Page, number: int, away: int) -> None:
    """Wait until so many messages are shown, and so many of them came while the page was away."""
    await page.wait_for_function(
        """([number, away]) => document.querySelectorAll("#messages li").length === number
          && document.querySelectorAll("#messages .badge:not([hidden])").length === away""",
        arg=[number, away],
    )


async def test_the_demo_page_follows_twelve_streams_and_its_messages_over_one_connection(
    page: Page, demo: Demo
) -> None:
    asked: list[str] = []
    page.on("request", lambda each: asked.append(urlsplit(each.url)._replace(netloc="").geturl()))
    await connected(page)
    await page.click("#push")
    await rows(page, 1, 0)
    await page.click("#ask-all")
    await page.wait_for_function(
        """document.querySelectorAll("#tiles .text").length === 12
          && Array.from(document.querySelectorAll("#tiles .text")).every(
            (each) => each.textContent.length > 20)"""
    )
    assert sum("/events?" in url and "ticket=" in url for url in asked) == 1
    assert not any("/stream?" in url for url in asked)
    await page.click("#join")
    await page.wait_for_function(
        "document.getElementById('late').textContent.includes('in 12 snapshots')"
    )
    await page.click("#cut-all")
    await noticed(page, "Resumed from one position: your messages and 12 streams")
    await noticed(page, "All 12 are what the gateway logged")
    await page.wait_for_function(
        "document.getElementById('late').textContent.includes('same text in 12 of 12')"
    )
    titles = await page.evaluate(
        "Array.from(document.querySelectorAll('#tiles h3'), (each) => each.textContent)"
    )
    whole = [["whole", expected(title.partition(". ")[2])] for title in titles]
    await page.wait_for_function(TILES, arg=whole)
    await page.goto("about:blank")
    await page.context.request.post(f"{demo.url}/demo/push")
    await page.goto(demo.url)
    await rows(page, 2, 1)
    await page.wait_for_function(TILES, arg=whole)


async def test_the_demo_page_says_that_a_new_demo_knows_nothing_of_the_old(
    context: BrowserContext,
) -> None:
    arguments = ("demo", "--port", str(free_port()), "--interval", "0.01")
    page = await context.new_page()
    with process(*arguments) as old:
        await page.goto(old.url)
        await ask_for(page, "Old")
        await length(page, 30)
        old.signal(signal.SIGKILL)
        old.wait()
    await noticed(page, "are safe")
    with process(*arguments):
        await state(page, "closed")
        await noticed(page, "earlier session")
        await told(page, "That was an earlier session", "#many-notice")
        await ask_for(page, "New")
        await state(page, "done")
        await connected(page)
        assert await text(page) == expected("New")

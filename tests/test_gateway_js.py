"""gateway.js in a real browser: answers as loops, reloads, tabs, connections that die silently."""

import asyncio
import gzip
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route as Serving
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.app import Gateway
from gateway.demo.page import STATIC
from gateway.store.keys import new_id
from tests.clients import node_modules
from tests.roads import Road, road
from tests.support import (
    OK,
    Call,
    Served,
    ask,
    chunk,
    client,
    scripted,
    served,
    settings,
    sse,
    until,
)
from tests.test_browser import add_cookie, chromium

MODULE = STATIC / "gateway.js"
PACKAGE = Path(__file__).parent.parent / "clients" / "js"

# `tell` reads an answer into `told[name]`; `wait` is a step that the page is to wait at.
PAGE = """<!doctype html><link rel="icon" href="data:,"><script type="module">
import * as gw from "/gateway.js";
Object.assign(window, { gw, told: {}, heard: [] });
window.tell = async (name, answer) => {
  const one = (told[name] = { pieces: [], voids: 0, error: null, end: null });
  try {
    for await (const piece of answer) {
      one.pieces.push(piece);
      one.text = answer.text;
      if (one.enough?.()) break;
    }
  } catch (error) {
    const { code, state, status, message, name } = error;
    one.error = { code, state, status, message, name };
  }
  one.end = answer.end;
  one.over = true;
};
window.listening = () => gw.listen({
  message: (data, name) => heard.push([name, data]),
  missed: () => heard.push(["missed"]),
  closed: ({ code }) => heard.push(["closed", code]),
});
</script>"""


# React as npm has it, no ES module, under StrictMode; `one` is what the hook returned last.
REACT = """<!doctype html><link rel="icon" href="data:,"><div id="root"></div>
<script type="importmap">{"imports": {"react": "/shim.js"}}</script><script type="module">
const had = {};
for (const name of ["react", "scheduler", "react-dom", "react-dom-client"]) {
  const exports = {};
  const module = { exports };
  const text = await (await fetch(`/npm/${name}.js`)).text();
  const given = [(each) => had[each], module, exports, { env: {} }];
  new Function("require", "module", "exports", "process", text)(...given);
  had[name] = module.exports;
}
window.React = had.react;
const { useCompletion } = await import("/react.js");
const { createElement, StrictMode } = React;
function Shown() {
  const [key, rename] = React.useState("draft");
  Object.assign(window, { one: useCompletion({ key }), rename });
  return `${one.state}:${one.text}`;
}
const root = had["react-dom-client"].createRoot(document.getElementById("root"));
root.render(createElement(StrictMode, null, createElement(Shown)));
</script>"""
SHIM = "export const { useCallback, useEffect, useRef, useState } = window.React;"


async def page_of(request: Request) -> Response:
    """Serve the pages, and what is beside them."""
    match request.url.path:
        case "/gateway.js":
            return FileResponse(MODULE)
        case "/react.js":
            return FileResponse(PACKAGE / "react.js")
        case "/shim.js":
            return Response(SHIM, media_type="text/javascript")
        case "/react":
            return HTMLResponse(REACT)
    return HTMLResponse(PAGE)


async def npm(request: Request) -> Response:
    """Serve a module of React."""
    name = request.path_params["name"]
    package = "react-dom" if name.startswith("react-dom") else name
    return FileResponse(node_modules() / package / "cjs" / f"{name}.development.js")


class Halves:
    """An upstream's script: twenty words, and as many once the prompt's half is let go on."""

    def __init__(self) -> None:
        self.go: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)

    async def __call__(self, call: Call) -> None:
        """Answer one call."""
        prompt = call.json["messages"][0]["content"]
        self.calls[prompt].append(call)
        await call.send(OK, sse(*(chunk(f"{number} ") for number in range(20))))
        await self.go[prompt].wait()
        if prompt.startswith("break"):
            call.cut()
        else:
            words = (chunk(f"{number} ") for number in range(20, 40))
            await call.send(sse(*words, chunk("", finish="stop"), b"[DONE]"))


HALF = "".join(f"{number} " for number in range(20))
WHOLE = "".join(f"{number} " for number in range(40))


class Lines:
    """The gateway's application; `open` counts each cookie's connections for everything."""

    def __init__(self, app: ASGIApp) -> None:
        self.open: Counter[str] = Counter()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        cookie = dict(scope.get("headers", ())).get(b"cookie", b"").decode()
        counts = scope.get("path") == "/events"
        self.open[cookie] += counts
        try:
            await self._app(scope, receive, send)
        finally:
            self.open[cookie] -= counts


@dataclass
class Site:
    """A gateway with the page beside it, and a browser."""

    gateway: Served
    lines: Lines
    script: Halves
    browser: Browser

    @asynccontextmanager
    async def visit(self, user: str = "") -> AsyncIterator["Visit"]:
        """Open the page as somebody new."""
        context = await self.browser.new_context()
        async with road(self.gateway.url) as there:
            visit = Visit(self, context, there, user or new_id())
            try:
                visit.cookie = await visit.log_in(visit.user)
                yield visit
            finally:
                await context.close()


@dataclass
class Visit:
    """What one user has of the page: tabs, the road to the gateway, the calls that were paid."""

    site: Site
    context: BrowserContext
    road: Road
    user: str
    cookie: str = ""

    async def log_in(self, user: str) -> str:
        """Give the browser a user's cookie, and return it."""
        header = self.site.gateway.cookie(user)
        await add_cookie(self.context, self.road.url, header)
        return header["Cookie"]

    async def lines(self, number: int) -> None:
        """Wait until the user has so many connections for everything."""
        told = self.site.lines.open
        await until(lambda: told[self.cookie] == number, f"{number} connections", 20)

    async def tab(self) -> Page:
        """Open the page in one more tab."""
        tab = await self.context.new_page()
        await tab.goto(f"{self.road.url}/page")
        await tab.wait_for_function("() => window.listening")
        return tab

    def prompt(self, words: str = "") -> str:
        """Return a prompt of this user alone."""
        return f"{words} {self.user}"

    def go_on(self, prompt: str) -> None:
        """Let the upstream write the second half."""
        self.site.script.go[prompt].set()

    def paid(self, prompt: str) -> int:
        """How often the upstream was asked."""
        return len(self.site.script.calls[prompt])

    async def push(self, data: str) -> None:
        """Push a message to the user."""
        await self.site.gateway.gateway.push(self.user, None, data)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for all, so that they share a browser and a gateway."""
    return "asyncio"


@pytest.fixture(scope="module")
async def site() -> AsyncIterator[Site]:
    """What all of these tests share."""
    script = Halves()
    paths = ("/page", "/gateway.js", "/react", "/react.js", "/shim.js")
    routes = [Serving(path, page_of) for path in paths] + [Serving("/npm/{name}.js", npm)]
    async with scripted(script) as upstream, chromium() as browser:
        given = settings(upstream_url=upstream.url, heartbeat=0.3, grace=20, lease=10)
        gateway = Gateway(given)
        lines = Lines(gateway.with_routes(routes))
        async with served(lines, gateway) as url, client(url) as http:
            yield Site(Served(gateway, url, http), lines, script, browser)


async def begin(tab: Page, name: str, how: str, *values: Any) -> None:
    """Let a tab read an answer: what `how` makes of the values."""
    await tab.evaluate(
        f"([name, values]) => {{ tell(name, (({how}))(...values)); }}", [name, values]
    )


async def half(tab: Page, name: str = "one") -> None:
    """Wait until a tab has the first half of an answer."""
    await tab.wait_for_function(
        "([name, text]) => told[name]?.pieces.join('') === text", arg=[name, HALF]
    )


async def over(tab: Page, name: str = "one") -> dict[str, Any]:
    """Wait until a loop is over; return what it told."""
    await tab.wait_for_function("(name) => told[name]?.over", arg=name)
    told: dict[str, Any] = await tab.evaluate("(name) => told[name]", name)
    return told


async def listening(tab: Page) -> None:
    """Let a tab hear the channel, and wait until it has the connection for it."""
    async with tab.expect_response("**/events?*"):
        await tab.evaluate("window.channel = listening()")


COMPLETE = "(body, options) => gw.complete(body, options)"


# Answers


async def test_a_loop_has_each_piece_once_over_cuts_and_then_the_end(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt()
        await begin(tab, "one", COMPLETE, ask(prompt))
        await half(tab)
        visit.road.cut()
        visit.go_on(prompt)
        told = await over(tab)
        assert "".join(told["pieces"]) == told["text"] == WHOLE
        assert told["error"] is None
        assert told["end"]["state"] == "done"
        assert told["end"]["tokens"]["completion"] == 40
        assert visit.paid(prompt) == 1


async def test_a_loop_throws_what_is_refused_and_what_is_not_whole(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt("break")
        await begin(tab, "bad", COMPLETE, {**ask(prompt), "stream": False})
        refused = (await over(tab, "bad"))["error"]
        assert (refused["code"], refused["status"]) == ("stream_required", 400)
        visit.go_on(prompt)
        await begin(tab, "one", COMPLETE, ask(prompt))
        told = await over(tab)
        assert "".join(told["pieces"]) == HALF
        assert told["error"]["code"] == "upstream_cut"
        assert told["error"]["state"] == told["end"]["state"] == "truncated"


async def test_a_loop_that_is_left_or_aborted_stops_the_upstream(site: Site) -> None:
    async with site.visit() as visit:
        tab = await visit.tab()
        left, aborted = visit.prompt("left"), visit.prompt("aborted")
        aborting = (
            "(body) => gw.complete(body, { signal: (window.life = new AbortController()).signal })"
        )
        await begin(tab, "aborted", aborting, ask(aborted))
        await half(tab, "aborted")
        await tab.evaluate("life.abort()")
        assert (await over(tab, "aborted"))["error"]["name"] == "AbortError"
        await tab.evaluate(
            "async (body) => { for await (const piece of gw.complete(body)) if (piece) break; }",
            ask(left),
        )
        for prompt in (left, aborted):
            (call,) = site.script.calls[prompt]
            await until(call.left.is_set, "the upstream is left", 20)


async def test_answers_and_the_channel_share_one_connection(site: Site) -> None:
    async with site.visit() as visit:
        tab = await visit.tab()
        await listening(tab)
        prompts = [visit.prompt(f"number {number}") for number in range(3)]
        for prompt in prompts[:2]:
            await begin(tab, prompt, COMPLETE, ask(prompt))
        for prompt in prompts[:2]:
            await half(tab, prompt)
        await begin(tab, prompts[2], COMPLETE, ask(prompts[2]))
        await half(tab, prompts[2])
        await visit.push("hello")
        await tab.wait_for_function("heard.length === 1")
        await visit.lines(1)
        for prompt in prompts:
            visit.go_on(prompt)
        for prompt in prompts:
            told = await over(tab, prompt)
            assert ("".join(told["pieces"]), told["error"]) == (WHOLE, None)
            assert visit.paid(prompt) == 1
        await visit.push("again")
        await tab.wait_for_function("heard.length === 2")
        await tab.evaluate("channel.close()")
        await visit.lines(0)
        assert await tab.evaluate("heard") == [["message", "hello"], ["message", "again"]]


async def test_a_stream_that_is_read_twice_is_whole_in_both(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt()
        url = await site.gateway.ticket(ask(prompt), visit.user)
        for name in ("one", "two"):
            await begin(tab, name, "(url) => gw.read(url)", url)
            await half(tab, name)
        visit.go_on(prompt)
        for name in ("one", "two"):
            assert "".join((await over(tab, name))["pieces"]) == WHOLE
        assert visit.paid(prompt) == 1


# Reloads


async def test_a_reload_goes_on_with_what_its_key_names_and_pays_once(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt()
        await begin(tab, "one", COMPLETE, ask(prompt), {"key": "draft"})
        await half(tab)
        await tab.reload()
        await begin(tab, "one", "() => gw.resume('draft')")
        await half(tab)
        await tab.reload()
        await begin(tab, "one", COMPLETE, ask(prompt), {"key": "draft"})
        await half(tab)
        visit.go_on(prompt)
        assert "".join((await over(tab))["pieces"]) == WHOLE
        await tab.reload()
        await begin(tab, "one", "() => gw.resume('draft')")
        assert "".join((await over(tab))["pieces"]) == WHOLE
        assert visit.paid(prompt) == 1
        await begin(tab, "two", COMPLETE, ask(visit.prompt("other")), {"key": "draft"})
        await half(tab, "two")
        assert visit.paid(prompt) == 1


async def test_a_reload_before_the_ticket_came_asks_with_the_same_key(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt()
        keys: list[str] = []
        answered = asyncio.Event()

        async def lose(route: Route) -> None:
            keys.append(route.request.headers["idempotency-key"])
            await route.fetch()
            answered.set()  # And the page never hears of it.

        await tab.route("**/tickets", lose, times=1)
        await begin(tab, "one", COMPLETE, ask(prompt), {"key": "draft"})
        await asyncio.wait_for(answered.wait(), 20)
        await tab.reload()
        async with tab.expect_request("**/tickets") as asked:
            await begin(tab, "one", "() => gw.resume('draft')")
        keys.append((await asked.value).headers["idempotency-key"])
        visit.go_on(prompt)
        assert "".join((await over(tab))["pieces"]) == WHOLE
        assert keys[0] == keys[1]
        assert visit.paid(prompt) == 1


async def test_an_answer_that_fails_does_not_take_the_key_of_the_next_one(site: Site) -> None:
    async with site.visit() as visit:
        tab, bad, prompt = await visit.tab(), visit.prompt("break"), visit.prompt()
        await begin(tab, "bad", COMPLETE, ask(bad), {"key": "draft"})
        await half(tab, "bad")
        await begin(tab, "one", COMPLETE, ask(prompt), {"key": "draft"})
        await half(tab)
        visit.go_on(bad)
        assert (await over(tab, "bad"))["error"]["state"] == "truncated"
        await tab.reload()
        visit.go_on(prompt)
        await begin(tab, "one", "() => gw.resume('draft')")
        assert "".join((await over(tab))["pieces"]) == WHOLE
        assert visit.paid(prompt) == 1


async def test_what_was_another_users_is_refused_alone_and_forgotten(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt, mine = await visit.tab(), visit.prompt(), visit.prompt("mine")
        await begin(tab, "one", COMPLETE, ask(prompt), {"key": "draft"})
        await half(tab)
        await visit.log_in(new_id())
        await tab.reload()
        await begin(tab, "mine", COMPLETE, ask(mine))
        await begin(tab, "one", "() => gw.resume('draft')")
        assert (await over(tab))["error"]["code"] == "ticket_not_found"
        assert await tab.evaluate("gw.resume('draft')") is None
        visit.go_on(mine)
        assert "".join((await over(tab, "mine"))["pieces"]) == WHOLE


# Tabs


async def test_tabs_share_one_connection_and_another_takes_over_without_loss_or_doubling(
    site: Site,
) -> None:
    async with site.visit() as visit:
        leader = await visit.tab()
        await listening(leader)
        tabs = [await visit.tab() for _ in range(2)]
        for tab in tabs:
            await tab.evaluate("listening()")
        for number in range(3):
            await visit.push(f"m{number}")
        for tab in [leader, *tabs]:
            await tab.wait_for_function("heard.length === 3")
        await visit.lines(1)
        await leader.close()
        for number in range(3, 6):
            await visit.push(f"m{number}")
        for tab in tabs:
            await tab.wait_for_function("heard.length >= 6")
        await visit.lines(1)
        for tab in tabs:
            assert await tab.evaluate("heard") == [["message", f"m{n}"] for n in range(6)]


async def test_a_tab_takes_over_from_one_that_the_browser_has_frozen(site: Site) -> None:
    async with site.visit() as visit:
        leader, other = await visit.tab(), await visit.tab()
        for tab in (leader, other):
            await tab.evaluate("gw.settings.heartbeat = 0.3")
        await listening(leader)
        await other.evaluate("listening()")
        life = await visit.context.new_cdp_session(leader)
        await life.send("Page.setWebLifecycleState", {"state": "frozen"})
        await visit.push("m0")
        await other.wait_for_function("heard.length === 1")
        await life.send("Page.setWebLifecycleState", {"state": "active"})
        await visit.push("m1")
        for tab in (leader, other):
            await tab.wait_for_function("heard.length >= 2")
            assert await tab.evaluate("heard") == [["message", "m0"], ["message", "m1"]]


async def test_who_may_not_hear_the_channel_is_told_why(site: Site) -> None:
    async with site.visit() as visit:
        await visit.context.clear_cookies()
        tab = await visit.tab()
        await tab.evaluate("listening()")
        await tab.wait_for_function("heard.length === 1")
        assert await tab.evaluate("heard") == [["closed", "not_authenticated"]]


# Connections that die without a word


async def test_a_connection_that_is_silently_dead_is_noticed_and_the_answer_goes_on(
    site: Site,
) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt()
        await tab.evaluate("gw.settings.heartbeat = 0.3")
        await begin(tab, "one", COMPLETE, ask(prompt))
        await half(tab)
        visit.road.die()
        visit.go_on(prompt)
        told = await over(tab)
        assert ("".join(told["pieces"]), told["error"]) == (WHOLE, None)
        assert visit.paid(prompt) == 1


@pytest.mark.parametrize("event", ["online", "visibilitychange"])
async def test_who_comes_back_to_the_page_does_not_wait_for_the_watchdog(
    site: Site, event: str
) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.tab(), visit.prompt()
        await begin(tab, "one", COMPLETE, ask(prompt))
        await half(tab)
        visit.road.die()
        visit.go_on(prompt)
        await tab.evaluate(
            """(event) => {
                const later = Date.now() + 30_000;
                Date.now = () => later; // It has slept for longer than a heartbeat.
                const target = event === "online" ? window : document;
                target.dispatchEvent(new Event(event, { bubbles: true }));
            }""",
            event,
        )
        assert "".join((await over(tab))["pieces"]) == WHOLE


# React


async def test_the_hook_shows_an_answer_goes_on_after_a_reload_and_stops(site: Site) -> None:
    async with site.visit() as visit:
        tab = await visit.context.new_page()
        await tab.goto(f"{visit.road.url}/react")
        prompt, other, bad = visit.prompt(), visit.prompt("other"), visit.prompt("break")
        await shown(tab, "idle:")
        await tab.evaluate("(body) => { one.ask(body); }", ask(prompt))
        await shown(tab, f"streaming:{HALF}")
        await tab.reload()
        await shown(tab, f"streaming:{HALF}")
        visit.go_on(prompt)
        await shown(tab, f"done:{WHOLE}")
        await tab.evaluate("(body) => { one.ask(body); }", ask(other))
        await shown(tab, f"streaming:{HALF}")
        await tab.evaluate("one.stop()")
        await shown(tab, f"cancelled:{HALF}")
        visit.go_on(bad)
        await tab.evaluate("(body) => { one.ask(body); }", ask(bad))
        await shown(tab, f"truncated:{HALF}")
        assert await tab.evaluate("one.error.code") == "upstream_cut"
        assert [visit.paid(each) for each in (prompt, other, bad)] == [1, 1, 1]


async def test_the_hook_shows_under_another_key_what_that_key_names(site: Site) -> None:
    async with site.visit() as visit:
        tab, prompt = await visit.context.new_page(), visit.prompt()
        await tab.goto(f"{visit.road.url}/react")
        await shown(tab, "idle:")
        await tab.evaluate("(body) => { one.ask(body); }", ask(prompt))
        await shown(tab, f"streaming:{HALF}")
        await tab.evaluate("rename('other')")
        await shown(tab, "idle:")
        await tab.evaluate("rename('draft')")
        await shown(tab, f"streaming:{HALF}")
        visit.go_on(prompt)
        await shown(tab, f"done:{WHOLE}")
        assert visit.paid(prompt) == 1


async def shown(tab: Page, text: str) -> None:
    """Wait until the component shows this."""
    await tab.wait_for_function(
        "(text) => document.getElementById('root').textContent === text", arg=text
    )


# The module as a file


def test_the_module_has_at_most_4096_bytes_compressed() -> None:
    assert len(gzip.compress(MODULE.read_bytes(), 9)) <= 4096


def test_the_types_know_all_that_the_module_exports_and_nothing_else() -> None:
    pattern = r"^export (?:declare )?(?:async )?(?:function|const|class) (\w+)"
    told = [
        set(re.findall(pattern, MODULE.with_suffix(suffix).read_text("utf-8"), re.MULTILINE))
        for suffix in (".js", ".d.ts")
    ]
    assert told[0] == told[1] >= {"complete", "resume", "follow", "followAll", "listen"}

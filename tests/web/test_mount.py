"""Mount: where the gateway says it is."""

from contextlib import AsyncExitStack

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount as Mounted

from gateway.app import Gateway
from gateway.web.mount import Mount, placed
from tests.support import ask, client, cookie, process, running, scripted, served, settings, whole

PATH = "/stream?ticket=t"


@pytest.mark.parametrize(
    ("public", "prefix", "root", "url"),
    [
        ("", "", "", "/stream?ticket=t"),
        ("", "/llm", "", "/llm/stream?ticket=t"),
        ("", "", "/app", "/app/stream?ticket=t"),
        ("", "", "/app/", "/app/stream?ticket=t"),
        ("", "/llm", "/app", "/llm/app/stream?ticket=t"),
        ("", "/llm", "/llm", "/llm/stream?ticket=t"),
        ("", "/llm", "/llm/app", "/llm/app/stream?ticket=t"),
        ("", "/outer/llm", "/llm", "/outer/llm/stream?ticket=t"),
        ("", "/outer/llm", "/lm", "/outer/llm/lm/stream?ticket=t"),
        ("", "/llm", "/llmx", "/llm/llmx/stream?ticket=t"),
        ("", "", "/a b\r\nX: y", "/a%20b%0D%0AX%3A%20y/stream?ticket=t"),
        ("", "", "//else.example", "/else.example/stream?ticket=t"),
        ("", "/llm", "//llm", "/llm/stream?ticket=t"),
        ("https://a.example", "", "", "https://a.example/stream?ticket=t"),
        ("https://a.example", "/llm", "/app", "https://a.example/llm/app/stream?ticket=t"),
        (
            "https://a.example/all/of/it",
            "/all",
            "/it",
            "https://a.example/all/of/it/stream?ticket=t",
        ),
    ],
)
def test_a_url_carries_the_proxys_path_and_the_applications_once_each(
    public: str, prefix: str, root: str, url: str
) -> None:
    assert Mount(public, prefix).url(root, PATH) == url


def test_a_request_comes_with_the_proxys_path_or_without() -> None:
    assert Mount().paths("/tickets") == ["/tickets"]
    assert Mount(prefix="/llm").paths("/tickets") == ["/tickets", "/llm/tickets"]


ALICE = cookie(settings())
STREAM = {"Accept": "text/event-stream"}


@pytest.mark.parametrize("asked", ["", "/llm"], ids=["stripped", "passed on"])
@pytest.mark.parametrize("name", ["/tickets", "/tickets/default"])
async def test_behind_a_proxys_path_every_url_is_there_and_names_it(asked: str, name: str) -> None:
    async with (
        scripted(whole) as upstream,
        running(upstream_url=upstream.url, prefix="/llm") as gate,
    ):
        ticket = await gate.http.post(asked + name, json=ask(), headers=ALICE)
        at_once = await gate.http.post(asked + name, json=ask(), headers={**ALICE, **STREAM})
        urls = [ticket.json()["stream_url"], at_once.headers["content-location"]]
        assert ticket.headers["location"] == urls[0]
        for url in urls:
            assert url.startswith("/llm/stream?ticket=")
            there = asked + url.removeprefix("/llm")
            assert (await gate.read(there)).end["state"] == "done"
            assert (await gate.completion(there))["text"] == "Hello"
            assert (await gate.http.delete(there, headers=ALICE)).json() == {"state": "done"}
        for path in ("/healthz", "/readyz"):
            assert (await gate.http.get(asked + path)).status_code == 200
        for path in ("/llmx/tickets", "/llm/llm/tickets", "/llm"):
            assert (await gate.http.post(path, json=ask(), headers=ALICE)).status_code == 404


async def test_the_command_serves_under_a_path_too() -> None:
    given = {"secrets": settings().secrets[0].get_secret_value(), "upstream_url": "http://u/"}
    with process("serve", "--port", "0", prefix="/llm", **given) as gate:
        async with client(gate.url) as http:
            for path in ("/tickets", "/llm/tickets"):
                answer = await http.post(path, json=ask(), headers=ALICE)
                assert answer.json()["stream_url"].startswith("/llm/stream?ticket=")


@pytest.mark.parametrize("prefix", ["", "/outer"])
async def test_an_application_may_have_it_under_a_path_of_its_own(prefix: str) -> None:
    async with scripted(whole) as upstream, AsyncExitStack() as stack:
        gateway = Gateway(settings(upstream_url=upstream.url, prefix=prefix))
        await stack.enter_async_context(gateway.running())
        app = Starlette(routes=[Mounted("/llm", gateway.app)])
        http = await stack.enter_async_context(client(await stack.enter_async_context(served(app))))
        answer = await http.post("/llm/tickets", json=ask(), headers=ALICE)
        url = answer.json()["stream_url"]
        assert url.startswith(f"{prefix}/llm/stream?ticket=")
        got = await http.get(url.removeprefix(prefix), headers={**ALICE, **STREAM})
        assert b"event: end" in got.content


@pytest.mark.parametrize(
    ("raw", "path", "root", "is_path", "is_root"),
    [
        ("/tickets", "/tickets", "", "/tickets", ""),
        ("/llm/tickets", "/llm/tickets", "/llm", "/llm/tickets", "/llm"),
        ("/llm/tickets?a=/tickets", "/tickets/", "", "/llm/tickets", "/llm"),
        ("/llm/tickets", "/tickets/", "", "/llm/tickets", "/llm"),
        ("/llm/tickets/", "/tickets/", "", "/llm/tickets/", "/llm"),
        ("/proxy/llm/tickets", "/tickets/", "/proxy", "/proxy/llm/tickets", "/proxy/llm"),
        ("/llm/tickets", "/tickets/", "/proxy", "/proxy/llm/tickets", "/proxy/llm"),
        ("/tickets", "/tickets/", "", "/tickets", ""),
        ("/llm/users/a%2Fb/tickets", "/users/a/b/tickets/", "", "/llm/users/a/b/tickets", "/llm"),
        ("/other", "/tickets", "/x", "/tickets", "/x"),
        ("/llm", "/", "", "/", ""),
        ("", "/tickets", "", "/tickets", ""),
    ],
)
def test_a_path_that_an_application_took_away_is_found_again(
    raw: str, path: str, root: str, is_path: str, is_root: str
) -> None:
    scope = placed({"path": path, "raw_path": raw.encode(), "root_path": root})
    assert (scope["path"], scope["root_path"]) == (is_path, is_root)


@pytest.mark.parametrize(
    ("public", "prefix", "root", "path"),
    [
        ("", "", "", "/"),
        ("", "/llm", "", "/llm"),
        ("", "", "/app", "/app"),
        ("", "/llm", "/app", "/llm/app"),
        ("https://a.example", "", "", "/"),
        ("https://a.example/b", "", "/app", "/b"),
        ("https://a.example/用", "", "", "/%E7%94%A8"),
        ("https://a.example/%C3%BC~x", "", "", "/%C3%BC~x"),
        ("https://a.example/b;Domain=example", "", "", "/b%3BDomain=example"),
    ],
)
def test_a_cookie_is_for_where_the_gateway_is(
    public: str, prefix: str, root: str, path: str
) -> None:
    assert Mount(public, prefix).cookie_path(root) == path

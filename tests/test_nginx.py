"""The nginx template: each line's promise, with a real nginx in front of real replicas."""

import asyncio
import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.config.settings import Settings
from gateway.store.keys import new_id
from gateway.web.origins import Origins
from tests.nginx import (
    BY_HAND,
    BY_IMAGE,
    DEFAULTS,
    TEMPLATE,
    Nginx,
    front,
    nginx,
    rendered,
)
from tests.support import (
    OK,
    Call,
    RedisServer,
    ask,
    chunk,
    client,
    cookie,
    follow,
    read,
    running,
    scripted,
    served,
    settings,
    sse,
    until,
    whole,
)
from tests.test_promises import Paced, at_least, held

ALICE = cookie(settings())
OPERATIONS = (TEMPLATE.parents[1] / "docs" / "operations.md").read_text("utf-8")
STREAM = {"Accept": "text/event-stream"}
REFUSED = 9  # The port of a replica that is not there.

secure = pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])


# The file


def test_the_template_and_the_file_of_defaults_have_the_same_variables() -> None:
    used = set(re.findall(r"\$\{((?:NGINX|GATEWAY)_[A-Z_]+)\}", TEMPLATE.read_text("utf-8")))
    given = set(re.findall(r"^([A-Z_]+)=", DEFAULTS.read_text("utf-8"), re.MULTILINE))
    assert used == given


def test_the_defaults_suit_those_of_the_replicas(tmp_path: Path) -> None:
    text = rendered(BY_HAND, tmp_path)
    given = dict(re.findall(r"^\s*(\w+) ([^;$]+);$", text, re.MULTILINE))
    assert int(given["client_max_body_size"]) == Settings.model_fields["max_body"].default
    heartbeat = Settings.model_fields["heartbeat"].default
    assert int(given["proxy_read_timeout"].removesuffix("s")) >= 2 * heartbeat


def test_by_hand_and_in_the_official_image_the_template_becomes_the_same_file(
    tmp_path: Path,
) -> None:
    by_hand, by_image = (rendered(how, tmp_path) for how in (BY_HAND, BY_IMAGE))
    assert by_hand == by_image
    assert not re.search(r"\$\{?(?:NGINX|GATEWAY)_", by_hand)


def test_the_command_to_render_it_is_the_one_in_the_file_of_defaults() -> None:
    written = re.sub(r"^# *|\\$", "", DEFAULTS.read_text("utf-8"), flags=re.MULTILINE)
    command = "envsubst \"$(sed -n 's/^\\([A-Z_]*\\)=.*/${\\1}/p' "
    assert command in BY_HAND
    assert command in written


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"NGINX_TLS": "", "NGINX_LISTEN": "listen 127.0.0.1:9080;"},
        {"GATEWAY_ALLOWED_ORIGINS": "https://a.example, https://b.example:8443"},
        {"GATEWAY_PUBLIC_URL": "https://chat.example/gateway"},
        {"GATEWAY_PREFIX": "/v1.0/~llm_a-b"},
        {"NGINX_HEADERS": "proxy_set_header X-Tenant $http_x_tenant;"},
    ],
    ids=[
        *("as in the tests", "without TLS", "with origins", "with a public URL", "under a path"),
        "with a header",
    ],
)
def test_nginx_takes_it_without_a_warning(tmp_path: Path, changed: dict[str, Any]) -> None:
    server = Nginx(tmp_path, "server 127.0.0.1:8000;", **changed)
    server.configure()
    said = subprocess.run([*server.command, "-t"], capture_output=True, text=True).stderr
    assert "test is successful" in said
    assert "[" not in said.replace(str(tmp_path), "")


# Streams pass as they come


@secure
async def test_an_event_arrives_while_the_upstream_holds_the_next(
    shared_redis: RedisServer, tmp_path: Path, secure: bool
) -> None:
    script = held(3)
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url) as at,
        at.nginx.client(secure=secure) as http,
    ):
        url = await at.ticket()
        got = await read(http, url, headers=ALICE, enough=at_least(3))
        assert got.data == script.data
        assert not upstream.calls[0].left.is_set()
        assert "content-encoding" not in got.headers
        script.go.set()
        assert (await read(http, url, headers=ALICE)).end["state"] == "done"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_event_arrives_at_once_also_if_a_replica_does_not_ask_nginx_for_it(
    tmp_path: Path, method: str
) -> None:
    path = {"GET": "/stream?ticket=t", "POST": "/tickets"}[method]

    async def script(call: Call) -> None:
        await call.send(OK, sse(b"first"))
        await call.left.wait()

    async with scripted(script) as upstream:
        with nginx(tmp_path, httpx.URL(upstream.url).port or 0) as server:
            async with server.client() as http, http.stream(method, path, headers=STREAM) as answer:
                async for part in answer.aiter_raw():
                    assert part == sse(b"first")
                    break
            assert "content-encoding" not in answer.headers


async def test_a_silent_stream_is_kept_open_by_the_heartbeat(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held()
    proxy = {"NGINX_READ_TIMEOUT": "1s"}
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url, 1, proxy, heartbeat="0.3") as at,
    ):
        url = await at.ticket()
        silent = lambda got: got.raw.count(b"\n:\n") + got.raw.count(b":\n:") >= 4  # noqa: E731
        got = await read(at.http, url, headers=ALICE, enough=silent)
        assert len(got.events) == 1
        assert got.raw.count(b":\n") >= 4
        assert not upstream.calls[0].left.is_set()


async def test_a_stream_without_a_heartbeat_is_cut_after_the_read_timeout(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(b"first"))
        await call.left.wait()

    async with scripted(script) as upstream:
        port = httpx.URL(upstream.url).port or 0
        with nginx(tmp_path, port, NGINX_READ_TIMEOUT="1s") as server:
            async with server.client() as http:
                got = await asyncio.wait_for(read(http, "/stream?ticket=t"), 20)
        assert [event.data for event in got.events] == [b"first"]


@secure
async def test_a_viewer_who_leaves_leaves_the_replica_too(
    shared_redis: RedisServer, tmp_path: Path, secure: bool
) -> None:
    async with (
        scripted(held()) as upstream,
        # No heartbeat within this test, whose failed write would tell nginx as well.
        front(tmp_path, shared_redis, upstream.url, grace="1", heartbeat="15") as at,
        at.nginx.client(secure=secure) as http,
    ):
        url = await at.ticket()
        await read(http, url, headers=ALICE, enough=at_least(1))
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)
        assert (await read(http, url, headers=ALICE)).end["state"] == "cancelled"


async def test_a_viewer_who_reads_nothing_is_dropped_by_the_replica_through_nginx_too(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    async def script(call: Call) -> None:  # More than all the buffers on its way hold.
        await call.send(OK, *(sse(chunk("x" * (256 << 10))) for _ in range(96)))
        await call.left.wait()

    async with (
        scripted(script) as upstream,
        front(
            *(tmp_path, shared_redis, upstream.url, 1),
            max_log=str(64 << 20),
            write_timeout="1",
            grace="1",
        ) as at,
    ):
        url = await at.ticket()
        _, writer = await asyncio.open_connection(
            "127.0.0.1", httpx.URL(at.nginx.plain).port, limit=1024
        )
        head = f"GET {url} HTTP/1.1\r\nHost: localhost\r\nCookie: {ALICE['Cookie']}\r\n\r\n"
        writer.write(head.encode())
        await until(lambda: upstream.calls, "it is redeemed")
        await asyncio.wait_for(upstream.calls[0].left.wait(), 20)  # Nobody watches it any more.
        answer = await at.http.delete(url, headers=ALICE)
        assert answer.json() == {"state": "cancelled"}
        writer.close()


async def test_a_stream_can_be_cancelled_through_nginx(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(held()) as upstream,
        front(tmp_path, shared_redis, upstream.url) as at,
    ):
        for method, path in (("DELETE", "/stream?"), ("POST", "/stream/cancel?")):
            url = await at.ticket()
            reading = asyncio.create_task(read(at.http, url, headers=ALICE))
            await until(lambda: upstream.calls)
            answer = await at.http.request(method, url.replace("/stream?", path), headers=ALICE)
            assert answer.json() == {"state": "cancelled"}
            assert (await reading).end["state"] == "cancelled"


# One ticket, one replica


async def test_reconnects_of_a_ticket_go_to_the_same_replica(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 3) as at,
    ):
        for number, urls in enumerate(await at.spread(4)):
            for url in urls * 2:
                assert await at.replica_of(url) == number


async def test_when_its_replica_is_killed_a_stream_goes_on_exactly_at_the_next(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = Paced(40, 0.05)
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url) as at,
        client(f"http://127.0.0.1:{at.replicas.ports[0]}") as owner,
    ):
        _, (url,) = await at.spread(1)
        await read(owner, url, headers=ALICE, enough=at_least(1))
        viewer = asyncio.create_task(follow(at.http, lambda: url, ALICE))
        await until(lambda: len(upstream.calls))
        before = await read(at.http, url, headers=ALICE, enough=at_least(10))
        assert before.data == script.data[:10]
        at.replicas.signal(1, signal.SIGKILL)
        seen = await viewer
        assert seen.data == [*script.data, chunk("", finish="stop"), b"[DONE]"]
        assert seen.end["state"] == "done"
        assert len(set(seen.ids)) == len(seen.ids)
        assert await at.replica_of(url) == 0
        assert len(upstream.calls) == 1


# No replica


async def test_while_no_replica_answers_an_eventsource_is_told_to_come_back(
    tmp_path: Path,
) -> None:
    with nginx(tmp_path, REFUSED) as server:
        async with server.client() as http:
            for path in ("/stream?ticket=t", "/stream", "/events"):
                answers = [await http.get(path, headers=STREAM) for _ in range(40)]
                assert {each.status_code for each in answers} == {200}
                assert {each.headers["content-type"] for each in answers} == {
                    "text/event-stream; charset=utf-8"
                }
                assert {each.headers["cache-control"] for each in answers} == {"no-store"}
                bodies = [re.fullmatch(r"retry: (\d+)\n: no_replica\n", a.text) for a in answers]
                times = [int(body[1]) for body in bodies if body]
                assert len(times) == 40
                assert 1000 <= min(times) <= max(times) < 3000
                assert len(set(times)) > 20
                assert max(times) - min(times) > 500


async def test_while_no_replica_answers_everybody_else_hears_the_truth(tmp_path: Path) -> None:
    with nginx(tmp_path, REFUSED) as server:
        async with server.client() as http:
            for answer in (
                await http.post("/tickets", json=ask()),
                await http.post("/tickets", json=ask(), headers=STREAM),
                await http.post("/tickets/fast", json=ask()),
                await http.get("/stream?ticket=t", headers={"Accept": "*/*"}),
                await http.delete("/stream?ticket=t", headers=STREAM),
                await http.post("/stream/cancel?ticket=t", headers=STREAM),
                await http.get("/completion?ticket=t", headers=STREAM),
                await http.get("/healthz", headers=STREAM),
                await http.get("/readyz"),
            ):
                assert problem(answer) == (502, "no_replica")
                assert answer.headers["retry-after"] == "2"


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the code of an error in the gateway's form."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["status"] == answer.status_code
    return body["status"], body["code"]


LISTED = "https://app.example, http://localhost:3000/,https://b.example:8443"
PUBLIC = "https://Chat.example/gateway"
HOSTS = ["localhost:8443", "localhost", "chat.example", "localhost:443", "[::1]:8443"]
ORIGINS = [
    *("https://app.example", "https://APP.example", "http://app.example", "https://p.example"),
    *("https://app.example:443", "https://app.example:8443", "https://xapp.example"),
    *("http://localhost:3000", "http://localhost:3001", "http://localhost", "https://localhost"),
    *("https://localhost:8443", "http://localhost:8443", "https://b.example:8443", "null"),
    *("https://b.example", "https://chat.example", "http://chat.example", "http://[::1]:8443"),
    *("https://chat.example:8443", "https://chat.example.evil", "https://evil", "file://x", ""),
]
NAMES = ("access-control-allow-origin", "access-control-allow-credentials", "vary")


async def test_its_own_answers_may_be_read_by_the_pages_that_may_read_the_gateways(
    tmp_path: Path,
) -> None:
    origins = Origins([each.strip() for each in LISTED.split(",")], PUBLIC)
    given = {"GATEWAY_ALLOWED_ORIGINS": LISTED, "GATEWAY_PUBLIC_URL": PUBLIC}
    allowed = 0
    with nginx(tmp_path, REFUSED, **given) as server:
        async with server.client() as http:
            for host, origin in ((host, origin) for host in HOSTS for origin in ORIGINS):
                headers = {"host": host, "origin": origin}
                right = {k.decode(): v.decode() for k, v in origins.cors(headers)}
                waits = await http.get("/stream?ticket=t", headers={**STREAM, **headers})
                honest = await http.post("/tickets", json=ask(), headers=headers)
                assert (waits.status_code, honest.status_code) == (200, 502)
                for answer in (waits, honest):
                    said = {k: v for k, v in answer.headers.items() if k in right or k in NAMES}
                    assert said == right, (host, origin)
                allowed += len(right) > 1
    assert 20 < allowed < 60


async def test_a_replica_that_hangs_is_a_gateway_timeout(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    proxy = {"NGINX_READ_TIMEOUT": "1s"}
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 1, proxy) as at,
    ):
        url = await at.ticket()
        at.replicas.signal(0, signal.SIGSTOP)
        assert problem(await at.post()) == (504, "no_replica")
        paying = {**STREAM, "Idempotency-Key": new_id()}  # The store is shared with other tests.
        assert problem(await at.post("Once.", **paying)) == (504, "no_replica")
        waits = await at.http.get(url, headers={**ALICE, **STREAM})
        assert (waits.status_code, waits.text[:7]) == (200, "retry: ")
        at.replicas.signal(0, signal.SIGCONT)
        assert (await follow(at.http, lambda: url, ALICE)).end["state"] == "done"
        answer = await at.post("Once.", **paying)  # The caller may repeat it, nginx may not.
        assert (answer.status_code, answer.text.count("event: end")) == (200, 1)
        assert sorted(prompt_of(call) for call in upstream.calls) == ["Hello?", "Once."]


async def test_without_a_connection_left_nginx_tells_an_eventsource_to_come_back_too(
    tmp_path: Path,
) -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(b"first"))
        await call.left.wait()

    async with scripted(script) as upstream, AsyncExitStack() as stack:
        port = httpx.URL(upstream.url).port or 0
        server = stack.enter_context(nginx(tmp_path, port, workers=1, connections=16))
        http = await stack.enter_async_context(server.client())

        async def ask_for_one(accept: str) -> httpx.Response:
            request = http.build_request("GET", "/stream?ticket=t", headers={"Accept": accept})
            answer = await http.send(request, stream=True)
            stack.push_async_callback(answer.aclose)
            return answer

        for _ in range(16):
            answer = await ask_for_one("text/event-stream")
            if "content-length" in answer.headers:
                break
        assert (answer.status_code, (await answer.aread())[:7]) == (200, b"retry: ")
        answer = await ask_for_one("*/*")
        await answer.aread()
        assert problem(answer) == (500, "no_replica")
        assert 2 <= len(upstream.calls) < 8


async def test_the_errors_of_the_web_app_beside_are_not_ours(tmp_path: Path) -> None:
    rest = f"proxy_pass http://127.0.0.1:{REFUSED};"
    with nginx(tmp_path, REFUSED, NGINX_REST=rest) as server:
        async with server.client() as http:
            answer = await http.get("/", headers=STREAM)
            assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html")


# Nothing is paid twice


async def test_a_get_is_taken_to_the_next_replica_and_a_paying_post_never(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    proxy = {"NGINX_READ_TIMEOUT": "2s"}
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 2, proxy, lease="30") as at,
    ):
        urls = [url for group in await at.spread(4) for url in group]
        at.replicas.signal(1, signal.SIGSTOP)
        prompts = [f"Post {number}" for number in range(12)]
        posting = asyncio.gather(*(at.post(each, **STREAM) for each in prompts))
        streams = await asyncio.gather(*(read(at.http, url, headers=ALICE) for url in urls))
        assert {each.end["state"] for each in streams} == {"done"}
        posts = await posting
        assert {each.status_code for each in posts} == {200, 504}
        hung = [p for p, answer in zip(prompts, posts, strict=True) if answer.status_code == 504]
        assert not set(hung) & {prompt_of(call) for call in upstream.calls}
        tries = [line for line in at.nginx.accesses() if "said=504, 200" in line]
        assert tries
        assert {line.partition('"')[2].split()[0] for line in tries} == {"GET"}
        at.replicas.signal(1, signal.SIGCONT)
        # It serves who asks it now, and pays for nobody who has gone meanwhile.
        (own,) = [group[0] for group in (await at.spread(1))[1:]]
        assert (await read(at.http, own, headers=ALICE)).end["state"] == "done"
        assert not set(hung) & {prompt_of(call) for call in upstream.calls}
        asked = [prompt_of(call) for call in upstream.calls]
        assert len(set(asked)) == len(asked) == len(prompts) - len(hung) + len(urls) + 1


def prompt_of(call: Call) -> str:
    """Return what was asked."""
    return str(call.json["messages"][-1]["content"])


async def test_a_post_that_was_refused_a_connection_goes_to_the_next_replica(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 3) as at,
    ):
        for number in (0, 1):
            at.replicas.signal(number, signal.SIGKILL)
            at.replicas.processes[number].wait()
        prompts = [f"Post {number}" for number in range(9)]
        posts = [await at.post(each, **STREAM) for each in prompts]
        assert {each.status_code for each in posts} == {200}
        assert [prompt_of(call) for call in upstream.calls] == prompts


# Bodies


async def test_a_body_is_too_large_for_nginx_just_when_it_is_for_the_gateway(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    limit = 2 << 20  # Above nginx's own default, which is 1 MiB.
    proxy = {"GATEWAY_MAX_BODY": str(limit)}
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 1, proxy, max_body=str(limit)) as at,
        client(f"http://127.0.0.1:{at.replicas.ports[0]}") as direct,
    ):
        headers = {**ALICE, "Content-Type": "application/json"}
        empty = len(json.dumps(ask("")))

        async def in_parts(body: str) -> AsyncIterator[bytes]:
            yield body.encode()

        for size, status in ((limit, 201), (limit + 1, 413)):
            body = json.dumps(ask("x" * (size - empty)))
            assert len(body) == size
            for content in (body, in_parts(body)):
                answer = await at.http.post("/tickets", content=content, headers=headers)
                assert answer.status_code == status
            theirs = await direct.post("/tickets", content=body, headers=headers)
            assert theirs.status_code == status
        await until(lambda: len(at.nginx.accesses()) == 4)
        asked = ["replica=127.0.0.1:" in line for line in at.nginx.accesses()]
        assert asked == [True, True, False, False]
        assert problem(answer) == problem(theirs) == (413, "body_too_large")
        assert answer.json() == theirs.json()


# Logs


async def test_no_log_holds_a_ticket(shared_redis: RedisServer, tmp_path: Path) -> None:
    proxy = {"NGINX_READ_TIMEOUT": "1s"}
    async with (
        scripted(Paced(5)) as upstream,
        front(tmp_path, shared_redis, upstream.url, 1, proxy) as at,
    ):
        url = await at.ticket()
        completion = url.replace("/stream", "/completion")
        assert (await read(at.http, url, headers=ALICE)).end["state"] == "done"
        await at.http.get(completion, headers=ALICE)
        at.replicas.signal(0, signal.SIGSTOP)
        await at.http.get(url, headers={**ALICE, **STREAM})
        await at.http.get(completion, headers=ALICE)
        at.replicas.signal(0, signal.SIGKILL)
        for _ in range(3):  # Refused, and then not even asked.
            await at.http.get(url, headers={**ALICE, **STREAM})
            await at.http.get(url.replace("/stream", "/events"), headers={**ALICE, **STREAM})
            await at.http.delete(url, headers=ALICE)
            await at.http.post(url.replace("/stream", "/stream/cancel"), headers=ALICE)
            await at.post()
        at.nginx.stop()
        accesses, errors = at.nginx.accesses(), at.nginx.errors()
        assert len([line for line in accesses if "/stream " in line]) == 8
        assert "Connection refused" in errors  # The log is on: of POST /tickets it tells.
        ticket = url.partition("ticket=")[2]
        for part in (ticket, ticket[:20], ticket[-20:], "ticket="):
            assert part not in "\n".join(accesses) + errors


# Without TLS


async def test_without_tls_pages_are_redirected_and_calls_are_refused(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    proxy = {"NGINX_PLAIN": "redirect"}
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 1, proxy) as at,
        at.nginx.client(secure=True) as https,
    ):
        page = await at.http.get("/chat?room=1")
        assert (page.status_code, page.headers["location"]) == (
            308,
            "https://localhost/chat?room=1",
        )
        for call in (
            "/stream?ticket=t",
            "/tickets",
            "/tickets/fast",
            "/chat/c1/stream",
            "/completion?ticket=t",
            "/usage",
            "/v1/messages",
        ):
            for method in ("GET", "POST"):
                answer = await at.http.request(method, call, headers={**ALICE, **STREAM})
                assert problem(answer) == (426, "https_required")
        for call in ("/chat", "/chat/fast"):
            answer = await at.http.post(call, json={}, headers=ALICE)
            assert problem(answer) == (426, "https_required")
        answer = await https.post("/tickets", json=ask(), headers=ALICE)
        assert answer.status_code == 201


async def test_a_page_of_the_same_host_is_ours_whatever_the_port_and_where_tls_ends(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, 1) as at,
        at.nginx.client(secure=True) as https,
    ):
        for http, url in ((at.http, at.nginx.plain), (https, at.nginx.url)):
            for origin, status in ((url, 201), ("https://evil.example", 403)):
                headers = {**ALICE, "Origin": origin}
                answer = await http.post("/tickets", json=ask(), headers=headers)
                assert answer.status_code == status
                cors = answer.headers.get_list("access-control-allow-origin")
                assert cors == ([origin] if status == 201 else [])


# Which URLs are the gateway's


OURS = [
    "/tickets",
    "/tickets/fast",
    "/stream",
    "/stream/cancel",
    "/chat/c1/stream",
    "/chat/fast/c1/stream",
    "/completion",
    "/events",
    "/usage",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/resp_1",
    "/v1/responses/resp_1/cancel",
    "/v1/messages",
    "/v1/models",
    "/v1/models/a/b",
    "/healthz",
    "/readyz",
]
CHATS = ["/chat", "/chat/fast"]  # By POST; a page there is the app's.
THEIRS = [
    *(
        "/",
        "/metrics",
        "/events/",
        "/usage/",
        "/usages",
        "/users/bob",
        "/users/bob/events",
        "/streams",
    ),
    *(
        "/users/bob/tickets",
        "/users/bob/tickets/inner",
        "/users/bob/streams",
        "/users/bob/usage",
        "/users/a%2Fb/streams",
    ),
    *("/stream/", "/stream/other", "/tickets/", "/tickets/a/b", "/completion/", "/completions"),
    *("/v1", "/v1/", "/v1/chat", "/v1/embeddings", "/v1/responses/a/b", "/v1/messages/batches"),
    *("/chat", "/chat/", "/chat/fast", "/chat/c1/streams", "/chat/a/b/c/stream", "/chats"),
    *("/healthz/", "/chat/completions", "/ticketsx", "/Stream", "/llm", "/llmx/stream"),
    *("/tickets%0A", "/stream%0A", "/healthz%0A"),
]


@pytest.mark.parametrize("prefix", ["", "/llm", "/v1.0/~llm_a-b"])
async def test_only_the_gateways_own_urls_are_taken_from_the_app(
    tmp_path: Path, prefix: str
) -> None:
    taken: list[str] = []

    async def note(request: Request) -> Response:
        taken.append(request.url.path)
        return Response("of the gateway")

    names = ["GET", "POST", "DELETE"]
    gateway_ = Starlette(routes=[Route("/{path:path}", note, methods=names)])
    rest = 'default_type text/plain; return 200 "of the app";'
    async with served(gateway_) as url:
        port = httpx.URL(url).port or 0
        with nginx(tmp_path, port, NGINX_REST=rest, GATEWAY_PREFIX=prefix) as server:
            async with server.client() as http:
                for path in [prefix + each for each in OURS]:
                    assert (await http.get(f"{path}?ticket=t")).text == "of the gateway", path
                theirs = [prefix + each for each in THEIRS] + (OURS if prefix else [])
                for path in theirs:
                    assert (await http.get(f"{path}?ticket=t")).text == "of the app", path
                for path in [prefix + each for each in CHATS]:
                    assert (await http.post(path)).text == "of the gateway", path
                for path in ("/chat/", "/chat/a/b", "/a/chat"):
                    assert (await http.post(prefix + path)).text == "of the app", path
    assert taken == [prefix + each for each in OURS + CHATS]


async def test_a_channel_is_watched_through_nginx_and_written_to_from_inside_alone(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    token, user = "a-token-of-the-tests", new_id()
    pushed, headers = {"data": "from inside"}, {"Authorization": f"Bearer {token}"}
    async with running(redis_url=shared_redis.url, service_tokens=token) as gate:
        with nginx(tmp_path, httpx.URL(gate.url).port or 0) as server:
            async with server.client() as http:
                for path in ("/events", f"/users/{user}/events"):
                    answer = await http.post(path, json=pushed, headers=headers)
                    assert problem(answer) == (404, "not_found")
                answer = await gate.http.post(f"/users/{user}/events", json=pushed, headers=headers)
                own, enough = gate.cookie(user), at_least(1)
                got = await read(http, "/events?from=start", headers=own, enough=enough)
    assert (got.data, got.ids) == ([b"from inside"], [answer.json()["id"]])


async def test_no_spelling_of_a_path_reaches_what_is_kept_closed(tmp_path: Path) -> None:
    """The path that nginx judges is the one that a replica gets."""
    token = "a-token-of-the-tests"
    headers = {"Authorization": f"Bearer {token}"}
    async with running(service_tokens=token) as gate:
        with nginx(tmp_path, httpx.URL(gate.url).port or 0) as server:
            async with server.client() as http:
                for path in (
                    *("/users/../tickets", "/users/%2e%2e/tickets", "/users/a%2f..%2f../tickets"),
                    *("/users/../tickets/default", "/users/./../tickets"),
                ):
                    url = httpx.URL(server.plain).copy_with(raw_path=path.encode())
                    answer = await http.post(url, json=ask(), headers=headers)
                    assert answer.status_code == 401, path
                    assert "www-authenticate" not in answer.headers  # It was not asked for a token.
                    answer = await http.post(url, json=ask(), headers=ALICE)
                    assert answer.status_code == 201


async def test_a_replica_gets_a_path_and_its_query_as_they_were_asked(tmp_path: Path) -> None:
    paths = [
        *("/tickets/a%20b%25%3F%23%C3%A9", "/stream?ticket=a%2Fb&x=%C3%A9+1", "/tickets?x"),
        *("/stream/cancel?ticket=%00", "/completion?", "/completion?a?b"),
    ]
    async with noted(tmp_path) as (server, seen), server.client() as http:
        for path in paths:
            await http.get(path)
            await http.get(path, headers=STREAM)
    got = [request.scope["raw_path"] + b"?" + request.scope["query_string"] for request in seen]
    asked = [each if "?" in each else f"{each}?" for each in paths for _ in range(2)]
    assert [each.decode() for each in got] == asked


async def test_where_there_is_no_app_everything_else_is_nowhere(tmp_path: Path) -> None:
    with nginx(tmp_path, REFUSED) as server:
        async with server.client() as http:
            for path in THEIRS:
                assert problem(await http.get(path)) == (404, "not_found")


@pytest.mark.parametrize(("allowed", "status"), [("127.0.0.1", 200), ("10.1.2.3", 403)])
async def test_a_server_from_outside_is_let_in_by_its_address_alone(
    tmp_path: Path, allowed: str, status: int
) -> None:
    (rest,) = re.findall(r"^NGINX_REST='(location /users/ .*)'$", OPERATIONS, re.MULTILINE)
    rest = rest.replace("10.1.2.3", allowed)
    token = "a-token-of-the-tests"
    async with running(service_tokens=token) as gate:
        with nginx(tmp_path, httpx.URL(gate.url).port or 0, NGINX_REST=rest) as server:
            async with server.client() as http:
                for user in ("alice", "a%2Fb"):
                    url = f"/users/{user}/streams"
                    headers = {"Authorization": f"Bearer {token}"}
                    answer = await http.delete(url, headers=headers)
                    assert answer.status_code == status
                assert problem(await http.get("/elsewhere")) == (404, "not_found")


@pytest.mark.parametrize("strips", [False, True], ids=["passed on", "stripped before"])
async def test_under_a_path_a_stream_goes_all_its_ways(
    shared_redis: RedisServer, tmp_path: Path, strips: bool
) -> None:
    """By this nginx with the path, or without, as a proxy before it has stripped it."""
    proxy = {} if strips else {"GATEWAY_PREFIX": "/llm"}
    gone = "/llm" if strips else ""
    script = held(2)
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url, 2, proxy, prefix="/llm") as at,
    ):

        def through(url: str) -> str:
            return url.removeprefix(gone)

        there = through("/llm/tickets")
        answer = await at.http.post(there, json=ask(), headers=ALICE)
        url = answer.json()["stream_url"]
        assert url == answer.headers["location"]
        assert url.startswith("/llm/stream?ticket=")
        first = await read(at.http, through(url), headers=ALICE, enough=at_least(2))
        script.go.set()
        first.extend(await read(at.http, through(url), last_id=first.last_id, headers=ALICE))
        assert first.end["state"] == "done"
        last = await read(at.http, through(url), last_id=first.last_id, headers=ALICE)
        assert last.status == 204
        posted = await read(at.http, there, headers=ALICE, body=ask("At once."))
        assert posted.headers["content-location"].startswith("/llm/stream?ticket=")
        again = await read(
            at.http, there, headers=ALICE, body=ask("At once."), last_id=posted.ids[0]
        )
        assert again.events == posted.events[1:]
        for path in ("/llm/completion", "/llm/stream/cancel"):
            method = "GET" if path.endswith("completion") else "POST"
            where = through(url.replace("/llm/stream", path))
            told = await at.http.request(method, where, headers=ALICE)
            assert told.json()["state"] == "done"
        assert (await at.http.get(through("/llm/readyz"))).json() == {"status": "ready"}
        assert len(upstream.calls) == 2
        assert "ticket=" not in "".join(at.nginx.accesses()) + at.nginx.errors()


async def test_under_a_path_too_an_eventsource_is_told_to_come_back_and_calls_need_tls(
    tmp_path: Path,
) -> None:
    given = {"GATEWAY_PREFIX": "/llm", "NGINX_PLAIN": "redirect"}
    with nginx(tmp_path, REFUSED, **given) as server:
        async with server.client() as plain, server.client(secure=True) as http:
            answer = await http.get("/llm/stream?ticket=t", headers=STREAM)
            assert (answer.status_code, answer.text[:7]) == (200, "retry: ")
            assert problem(await http.post("/llm/tickets", json=ask())) == (502, "no_replica")
            for path in ("tickets", "tickets/fast", "stream", "completion", "usage"):
                assert problem(await plain.get(f"/llm/{path}")) == (426, "https_required")
            assert (await plain.get("/tickets")).status_code == 308
            large = await http.post("/llm/tickets", content=b"x" * ((4 << 20) + 1))
            assert problem(large) == (413, "body_too_large")


# What a replica gets


@asynccontextmanager
async def noted(folder: Path, **options: Any) -> AsyncIterator[tuple[Nginx, list[Request]]]:
    """Run nginx before a replica that keeps the requests it gets."""
    seen: list[Request] = []

    async def note(request: Request) -> Response:
        await request.body()
        seen.append(request)
        return Response("{}")

    app = Starlette(routes=[Route("/{path:path}", note, methods=["GET", "POST", "DELETE"])])
    async with served(app) as url:
        with nginx(folder, httpx.URL(url).port or 0, **options) as server:
            yield server, seen


async def test_a_replica_gets_the_host_as_it_was_asked_and_the_true_caller(tmp_path: Path) -> None:
    async with noted(tmp_path) as (server, seen):
        lies = {"X-Forwarded-For": "8.8.8.8", "X-Forwarded-Proto": "gopher"}
        async with server.client() as http, server.client(secure=True) as https:
            for each in (http, https):
                await each.get("/completion", headers={**lies, "X-Forwarded-Host": "evil"})
        for request, url in zip(seen, (server.plain, server.url), strict=True):
            scheme, _, host = url.partition("://")
            assert request.headers["host"] == request.headers["x-forwarded-host"] == host
            assert request.headers["x-forwarded-proto"] == scheme
            assert request.headers["x-forwarded-for"] == "127.0.0.1"
            assert request.scope["http_version"] == "1.1"
            assert "connection" not in request.headers


IDENTITIES = [
    *("X-Auth-Request-User", "X-Auth-Request-Email", "X-Auth-Request-Access-Token", "X-Email"),
    *("Remote-User", "Remote-Email", "Remote-Groups", "Remote-Name", "X-Remote-User", "X-User"),
    *("X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Access-Token"),
    *("X-Forwarded-Preferred-Username", "X-Forwarded-Prefix", "X-Forwarded-Server", "Forwarded"),
    *("X-WEBAUTH-USER", "X-Authenticated-User", "X-Authenticated-UserId", "X-Subject", "X-User-Id"),
    *("Tailscale-User-Login", "Cf-Access-Authenticated-User-Email", "Cf-Access-Jwt-Assertion"),
    *("X-Goog-Authenticated-User-Email", "X-Goog-IAP-JWT-Assertion", "X-Amzn-Oidc-Data"),
    *("X-Amzn-Oidc-Identity", "X-MS-CLIENT-PRINCIPAL", "X-MS-CLIENT-PRINCIPAL-NAME", "X-Token"),
    *("X-authentik-username", "X-Pomerium-Claim-Email", "X-Vouch-User", "X-SSL-Client-S-DN"),
    *("X-Real-IP", "X-Client-Cert", "Ssl-Client-Verify", "X-Nobody-Knows-This-Name", "Proxy"),
    *("X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "Trailer-User"),
]


def spellings(name: str) -> list[str]:
    """Return a header's name, and how it might come through as another."""
    return [name, name.lower(), name.upper(), name.replace("-", "_"), name.replace("-", "_", 1)]


@pytest.mark.parametrize(
    "path",
    ["/tickets", "/tickets/fast", "/stream", "/completion", "/usage", "/v1/messages", "/readyz"],
)
async def test_no_header_that_a_proxy_would_name_the_user_by_comes_from_a_caller(
    tmp_path: Path, path: str
) -> None:
    async with noted(tmp_path) as (server, seen):
        async with server.client() as http, server.client(secure=True) as https:
            for each in (http, https):
                for turn in range(5):
                    lies = {spellings(name)[turn]: "mallory" for name in IDENTITIES}
                    await each.post(path, json=ask(), headers=lies)
        assert len(seen) == 10
        for request in seen:
            assert [each for each in request.headers.items() if "mallory" in each[1]] == []


async def test_what_the_gateway_reads_comes_from_the_caller_as_it_was_sent(tmp_path: Path) -> None:
    sent = {
        "Cookie": "session=a.b.c; other=1",
        "Authorization": "Bearer x.y.z",
        "Accept": "text/event-stream, */*;q=0.1",
        "Content-Type": "application/json; charset=utf-8",
        "Last-Event-ID": "1764290000000-17",
        "Idempotency-Key": "4d2f",
        "Origin": "https://app.example",
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Dest": "empty",
        "Sec-Purpose": "prefetch",
        "Purpose": "prefetch",
        "User-Agent": "somebody",
        "X-Request-ID": "r1",
        "X-Api-Key": "k",
        "X-Stainless-Retry-Count": "1",
        "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    async with noted(tmp_path) as (server, seen):
        async with server.client(secure=True) as http:
            await http.post("/tickets", content=b'{"a": 1}', headers=sent)
            await http.delete("/stream?ticket=t", headers=sent)
        for request in seen:
            assert {name: request.headers.get(name) for name in sent} == sent
        assert await seen[0].body() == b'{"a": 1}'
        assert str(seen[1].query_params) == "ticket=t"


async def test_a_header_that_is_wanted_can_be_added_and_is_nginxs_own(tmp_path: Path) -> None:
    own = "proxy_set_header Remote-User alice; proxy_set_header X-Tenant $http_x_tenant;"
    async with noted(tmp_path, NGINX_HEADERS=own) as (server, seen):
        async with server.client() as http:
            lies = {"Remote-User": "mallory", "Remote_User": "mallory", "X-Tenant": "a"}
            await http.get("/completion", headers=lies)
        assert seen[0].headers.getlist("remote-user") == ["alice"]
        assert seen[0].headers["x-tenant"] == "a"


@pytest.mark.parametrize(
    ("own", "answers"), [("", [401, 401]), ("proxy_set_header X-User $arg_login;", [401, 201])]
)
async def test_who_a_proxy_names_is_believed_and_no_caller_is(
    shared_redis: RedisServer, tmp_path: Path, own: str, answers: list[int]
) -> None:
    given: dict[str, Any] = {"auth": "header", "auth_header": "X-User"}
    given["trusted_proxies"] = "127.0.0.1"
    proxy = {"NGINX_HEADERS": own}
    async with (
        scripted(whole) as upstream,
        front(tmp_path, shared_redis, upstream.url, proxy=proxy, **given) as at,
    ):
        lies = dict.fromkeys(spellings("X-User"), "mallory")
        paths = ["/tickets", "/tickets?login=alice"]
        said = [await at.http.post(each, json=ask(), headers=lies) for each in paths]
        assert [each.status_code for each in said] == answers


async def test_connections_to_a_replica_are_kept_but_not_until_it_closes_them(
    tmp_path: Path,
) -> None:
    spans: list[float] = []
    requests: list[bytes] = []

    async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered = 0.0
        with suppress(asyncio.IncompleteReadError):
            while True:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                answered = time.monotonic()
        spans.append(time.monotonic() - answered)
        writer.close()

    server = await asyncio.start_server(replica, "127.0.0.1", 0)
    async with server:
        with nginx(tmp_path, server.sockets[0].getsockname()[1]) as proxy:
            async with proxy.client() as http:
                for _ in range(10):
                    assert (await http.get("/completion")).status_code == 200
                assert spans == []
                await until(lambda: spans, "nginx closes it", 20)
    assert len(requests) == 10
    assert len(spans) == 1
    closes = uvicorn.Config(app="").timeout_keep_alive
    assert closes - 2 < spans[0] < closes  # A POST must never meet the close on its way.

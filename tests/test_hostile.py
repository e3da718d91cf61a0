"""What strangers, foreign pages and broken clients get: an answer, nothing started, no noise."""

import asyncio
import json
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from time import process_time, time
from typing import Any

import httpx
import pytest

from gateway.auth.loading import signed_cookie
from gateway.sse import Parser
from tests.support import (
    OK,
    SECRET,
    Call,
    ScriptedUpstream,
    Served,
    ask,
    chunk,
    running,
    scripted,
    settings,
    sse,
    until,
    whole,
)

ELSEWHERE = "https://evil.example"
LISTED = "https://app.example"
PAGES = {"Sec-Fetch-Site": "cross-site"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for the module: what is refused leaves nothing behind."""
    return "asyncio"


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with scripted(whole) as started:
        yield started


@pytest.fixture(scope="module")
async def shared(upstream: ScriptedUpstream) -> AsyncIterator[Served]:
    """A gateway for everything that it refuses."""
    changes: dict[str, Any] = {"max_body": 2048, "allowed_origins": [LISTED]}
    async with running(upstream_url=upstream.url, **changes) as started:
        yield started


@pytest.fixture
async def gate(shared: Served, upstream: ScriptedUpstream) -> AsyncIterator[Served]:
    """The gateway, for a test in which nothing may be started."""
    yield shared
    assert shared.gateway.supervisor.active == []
    assert upstream.calls == [], "something was started"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No request makes the gateway log an error."""
    yield
    assert [each for each in caplog.get_records("call") if each.levelname == "ERROR"] == []


def refused(answer: httpx.Response, status: int, code: str) -> None:
    """Assert a refusal with its stable code."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"


async def send(gate: Served, body: bytes, **headers: str) -> httpx.Response:
    """POST bytes to /tickets."""
    sent = {**JSON, **gate.cookie(), **headers}
    return await gate.http.post("/tickets", content=body, headers=sent)


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"a":1}{',
        b"\xff\xfe",
    ],
)
async def test_a_body_that_is_not_json_is_refused(gate: Served, body: bytes) -> None:
    refused(await send(gate, body), 400, "not_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", b"[{}]"])
async def test_a_body_that_is_no_object_is_refused(gate: Served, body: bytes) -> None:
    refused(await send(gate, body), 400, "not_an_object")


@pytest.mark.parametrize("stream", [False, "true", 1, None])
async def test_a_request_that_wants_no_stream_is_refused(gate: Served, stream: Any) -> None:
    refused(await gate.post(ask(stream=stream)), 400, "stream_required")


async def test_stream_options_that_are_no_object_are_refused(gate: Served) -> None:
    assert (await gate.post(ask(stream_options=["include_usage"]))).status_code == 400


@pytest.mark.parametrize("nest", [(b"[", b"]"), (b'{"a":', b"}")])
async def test_a_body_nested_5000_deep_is_refused(nest: tuple[bytes, bytes]) -> None:
    deep = b'{"a":' + nest[0] * 5000 + b"1" + nest[1] * 5000 + b"}"
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as gate:
        refused(await send(gate, deep), 400, "not_json")
        assert upstream.calls == []


async def test_every_depth_of_nesting_has_an_answer(gate: Served) -> None:
    for depth in range(880, 1020, 5):
        body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        assert (await send(gate, body)).status_code in {201, 400}


async def test_a_number_of_1500_digits_is_cached_and_one_of_more_than_4300_has_an_answer() -> None:
    async with running() as gate:
        assert (await send(gate, b'{"seed":' + b"1" * 1500 + b"}")).status_code == 201
        assert (await send(gate, b'{"seed":' + b"1" * 5000 + b"}")).status_code in {201, 400}


async def test_lone_surrogates_are_cached_as_they_came(gate: Served) -> None:
    assert (await send(gate, b'{"a":"\\ud800 \\udfff","\\ud800":1}')).status_code == 201


async def test_a_body_too_large_by_its_length_is_refused(gate: Served) -> None:
    refused(await send(gate, json.dumps({"a": "x" * 2048}).encode()), 413, "body_too_large")


async def test_a_body_too_large_is_refused_before_it_came(gate: Served) -> None:
    head = await first_bytes(gate, "Content-Length: 999999999\r\n", b"{")
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_grows_too_large_in_chunks_is_refused(gate: Served) -> None:
    piece = b"400\r\n" + b"x" * 1024 + b"\r\n"
    head = await first_bytes(gate, "Transfer-Encoding: chunked\r\n", piece * 3)
    assert head.startswith(b"HTTP/1.1 413 ")


async def first_bytes(gate: Served, length: str, body: bytes) -> bytes:
    """POST a body that never ends; return the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gate.url).port)
    cookie = gate.cookie()["Cookie"]
    head = f"POST /tickets HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n{length}"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    writer.close()
    return answer


async def test_a_body_of_exactly_the_limit_is_taken(gate: Served) -> None:
    body = b'{"a":"' + b"x" * (2048 - 8) + b'"}'
    assert len(body) == 2048
    assert (await send(gate, body)).status_code == 201


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json", ""]
)
async def test_a_form_or_text_that_any_page_may_post_is_refused(gate: Served, kind: str) -> None:
    answer = await send(gate, b"{}", **{"Content-Type": kind})
    refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "a/b+json"]
)
async def test_json_is_known_by_its_type_in_any_spelling(gate: Served, kind: str) -> None:
    assert (await send(gate, b"{}", **{"Content-Type": kind})).status_code == 201


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "zstd"])
async def test_a_compressed_body_is_refused(gate: Served, coding: str) -> None:
    answer = await send(gate, b"{}", **{"Content-Encoding": coding})
    refused(answer, 415, "unsupported_media_type")


async def test_a_client_that_leaves_in_mid_body_makes_no_noise(gate: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gate.url).port)
    cookie = gate.cookie()["Cookie"]
    head = f"POST /tickets HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\nContent-Length: 99\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()
    assert (await gate.post()).status_code == 201


@pytest.mark.parametrize("key", ["k" * 256, "a\tb", "\xa0"])
async def test_an_idempotency_key_that_is_not_usable_is_refused(gate: Served, key: str) -> None:
    sent = {**gate.cookie(), "Idempotency-Key": key}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    answer = await gate.http.post("/tickets", json=ask(), headers=encoded)
    refused(answer, 400, "bad_idempotency_key")


@pytest.mark.parametrize("name", ["nobody", "default%2f", "%00", "..", "é"])
async def test_an_unknown_preset_is_refused(gate: Served, name: str) -> None:
    url = f"{gate.url}/tickets/{name}"
    answer = await gate.http.post(url, json=ask(), headers=gate.cookie())
    assert answer.status_code == 404
    assert answer.json()["code"] in {"preset_not_found", "not_found"}


# Callers

CALLS = [
    ("POST", "/tickets"),
    ("GET", "/stream"),
    ("GET", "/completion"),
    ("DELETE", "/stream"),
    ("POST", "/stream/cancel"),
]
on_every_call = pytest.mark.parametrize(("method", "path"), CALLS)


async def call(gate: Served, method: str, path: str, **headers: str) -> httpx.Response:
    """Make a call that would be fine with these headers left out."""
    ticket = (await gate.ticket()).partition("ticket=")[2]
    url = path if path == "/tickets" else f"{path}?ticket={ticket}"
    sent = {"Accept": "*/*", **gate.cookie(), **headers}
    body = ask() if path == "/tickets" else None
    return await gate.http.request(method, url, json=body, headers=sent)


def signed(*, age: float = 0, subject: Any = "alice", secret: str = "") -> str:
    """Return a Cookie header like the gateway's own, of any age, subject and secret."""
    signer = signed_cookie(settings(cookie_secrets=secret))
    signer._signer.get_timestamp = lambda: int(time() - age)  # type: ignore[method-assign]
    return f"session={signer.sign(subject)}"


FORGED = [
    "",
    "session=",
    "session=alice",
    "session=e30=.x.y",
    "other=1",
    signed(secret="another secret"),
    signed(age=15 * 86400),
    signed(age=-3600),
    signed(subject=""),
    signed(subject=None),
    signed(subject=True),
    signed(subject=["alice"]),
    signed(subject="a" * 300),
    signed(subject="a\n"),
    signed()[:-1],
    "session=" + "A" * 4000,
]


@on_every_call
async def test_a_call_without_a_cookie_is_refused(gate: Served, method: str, path: str) -> None:
    refused(await call(gate, method, path, Cookie=""), 401, "not_authenticated")


@pytest.mark.parametrize("cookie", FORGED, ids=range(len(FORGED)))
async def test_a_forged_old_or_empty_cookie_is_refused(gate: Served, cookie: str) -> None:
    refused(await call(gate, "GET", "/stream", Cookie=cookie), 401, "not_authenticated")


async def test_the_forgery_would_pass_with_the_right_secret_and_age(gate: Served) -> None:
    answer = await call(gate, "GET", "/completion", Cookie=signed(age=86400))
    assert answer.status_code == 200


async def test_a_cookie_deep_enough_to_break_a_parser_is_refused(gate: Served) -> None:
    signer = signed_cookie(settings())
    value = signer._signer.sign(b64encode(b"[" * 5000)).decode()
    answer = await call(gate, "GET", "/stream", Cookie=f"session={value}")
    refused(answer, 401, "not_authenticated")


@on_every_call
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ELSEWHERE},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
        {"Origin": f"{LISTED}.evil.example"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_a_foreign_page_is_refused(
    gate: Served, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = await call(gate, method, path, **headers)
    refused(answer, 403, "foreign_origin")
    assert "access-control-allow-origin" not in answer.headers


async def test_a_foreign_page_learns_nothing_from_a_preflight(gate: Served) -> None:
    sent = {"Origin": ELSEWHERE, "Access-Control-Request-Method": "POST"}
    answer = await gate.http.options("/tickets", headers=sent)
    refused(answer, 403, "foreign_origin")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Sec-Fetch-Dest": "image"}, "not_a_stream_request"),
        ({"Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none"}, "not_a_stream_request"),
        ({"Sec-Fetch-Dest": "iframe"}, "not_a_stream_request"),
        ({"Sec-Fetch-Dest": "script"}, "not_a_stream_request"),
        ({"Sec-Fetch-Dest": "empty", "Sec-Purpose": "prefetch"}, "prefetch"),
        ({"Sec-Purpose": "prefetch;prerender"}, "prefetch"),
        ({"Purpose": "prefetch"}, "prefetch"),
    ],
)
async def test_what_is_no_scripts_request_starts_nothing(
    gate: Served, headers: dict[str, str], code: str
) -> None:
    refused(await call(gate, "GET", "/stream", **headers), 403, code)


@pytest.mark.parametrize("accept", ["text/html", "application/json", "text/event-stream;q=0", "a"])
async def test_who_does_not_accept_a_stream_starts_none(gate: Served, accept: str) -> None:
    refused(await call(gate, "GET", "/stream", Accept=accept), 406, "not_acceptable")


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "POST"])
async def test_a_stream_knows_no_other_method(gate: Served, method: str) -> None:
    answer = await call(gate, method, "/stream")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "DELETE"}


@pytest.mark.parametrize("path", ["/", "/tickets/", "/stream/", "/admin", "/tickets/a/b", "//"])
async def test_every_other_url_is_a_stated_404(gate: Served, path: str) -> None:
    refused(await gate.http.get(gate.url + path, headers=gate.cookie()), 404, "not_found")


# Tickets


STREAMS = [each for each in CALLS if each[1] != "/tickets"]


@pytest.mark.parametrize(("method", "path"), STREAMS)
@pytest.mark.parametrize(
    "ticket",
    ["", "x", "W10.x", "..", "%00", "%ff%fe", "%ed%a0%80", "é", "a" * 1500, "WyJhIiwiYiIsMV0.AAAA"],
)
async def test_a_forged_or_missing_ticket_is_not_found(
    gate: Served, method: str, path: str, ticket: str
) -> None:
    url = f"{path}?ticket={ticket}"
    refused(await gate.http.request(method, url, headers=gate.cookie()), 404, "ticket_not_found")


@pytest.mark.parametrize(("method", "path"), STREAMS)
async def test_another_users_ticket_is_not_found(gate: Served, method: str, path: str) -> None:
    url = (await gate.ticket()).replace("/stream", path)
    answer = await gate.http.request(method, url, headers=gate.cookie("mallory"))
    refused(answer, 404, "ticket_not_found")
    assert (await gate.completion(url.replace(path, "/stream")))["state"] == "cached"


async def test_a_forged_ticket_and_a_foreign_one_are_not_told_apart(gate: Served) -> None:
    foreign = await gate.http.get(await gate.ticket(), headers=gate.cookie("mallory"))
    forged = await gate.http.get("/stream?ticket=x", headers=gate.cookie("mallory"))
    assert foreign.content == forged.content


async def test_a_ticket_with_one_letter_changed_is_not_found(gate: Served) -> None:
    ticket = (await gate.ticket()).partition("=")[2]
    for at in range(0, len(ticket) - 1, 7):
        other = "A" if ticket[at] != "A" else "B"
        forged = f"/stream?ticket={ticket[:at]}{other}{ticket[at + 1 :]}"
        refused(await gate.http.get(forged, headers=gate.cookie()), 404, "ticket_not_found")


async def test_a_ticket_signed_with_another_secret_is_not_found(gate: Served) -> None:
    async with running(secrets="some other secret, long enough", cookie_secrets=SECRET) as other:
        url = await other.ticket()
        refused(await gate.http.get(url, headers=gate.cookie()), 404, "ticket_not_found")


async def test_a_stolen_cookie_name_is_not_a_cookie(gate: Served) -> None:
    answer = await call(gate, "GET", "/stream", Cookie=signed().title())
    refused(answer, 401, "not_authenticated")


# Faults of the app's own parts, and readers that do not read


def broken(headers: Any, cookies: Any) -> str:
    """An authenticator with a bug."""
    raise KeyError("sid")


async def test_an_authenticator_that_breaks_lets_nobody_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(auth="tests.test_hostile:broken", cookie_secrets=SECRET) as gate:
        refused(await gate.http.post("/tickets", json=ask()), 401, "not_authenticated")
    caplog.clear()  # That one is to be logged.


async def test_a_page_of_ours_can_read_why_it_was_refused(gate: Served) -> None:
    answer = await call(gate, "GET", "/stream", Cookie="", Origin=LISTED)
    refused(answer, 401, "not_authenticated")
    assert answer.headers["access-control-allow-origin"] == LISTED


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: 12345\n"])
def test_an_event_that_comes_in_small_pieces_does_not_stop_the_process(piece: bytes) -> None:
    """A MiB takes as long as its bytes, not as their square: all streams share one loop."""
    parser = Parser(limit=1 << 20)
    started = process_time()
    while not parser.overflow and process_time() - started < 2:
        parser.feed(piece)
    assert parser.overflow


async def test_a_completion_of_a_long_answer_does_not_stop_the_process() -> None:
    """Whoever asks for one again and again would else make the replica look dead."""

    async def script(call: Call) -> None:
        for part in [OK, *[sse(chunk("word ")) * 1000] * 80, sse(chunk("", finish="stop"))]:
            await call.send(part)

    async with scripted(script) as up, running(upstream_url=up.url, lease=10) as gate:
        url = await gate.ticket()
        await gate.read(url)
        asked = asyncio.create_task(gate.completion(url))
        worst = 0.0
        while not asked.done():
            before = process_time()
            await asyncio.sleep(0.001)
            worst = max(worst, process_time() - before)
    assert len((await asked)["text"]) == 5 * 80_000
    assert worst < 0.25  # One collection of the tests' own garbage takes over a tenth.


@pytest.mark.parametrize("after_the_end", [False, True])
async def test_a_reader_that_reads_nothing_is_dropped(after_the_end: bool) -> None:
    """Also of a stream that has ended, after its owner has dropped it from memory."""

    async def script(call: Call) -> None:
        await call.send(OK, *[sse(chunk("x" * 60_000))] * 200)
        if after_the_end:
            await call.send(sse(chunk("", finish="stop"), b"[DONE]"))
        else:
            await call.left.wait()

    limits = {"write_timeout": 4, "max_log": 64 << 20, "grace": 60}
    async with scripted(script) as up, running(upstream_url=up.url, **limits) as gate:
        url = await gate.ticket()
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", httpx.URL(gate.url).port))
            cookie = gate.cookie()["Cookie"]
            stuck.sendall(f"GET {url} HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n".encode())
            await until(lambda: gate.gateway.fanout.viewers == 1, "the viewer is there")
            await until(lambda: gate.gateway.fanout.viewers == 0, "it is dropped", 20)

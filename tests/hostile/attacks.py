"""The attacks: each plays on the scene, bounded in count and time, and returns what it was told."""

import asyncio
import gzip
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import httpx

from tests.hostile.scene import MEGABYTE, Scene
from tests.support import OK, Call, Process, chunk, sse

Attack = Callable[[Scene], Awaitable[str]]

SECONDS = 5.0  # For which an attack that could go on for ever goes on.
LOUD = {"Accept": "text/event-stream"}
_FINISHED = sse(chunk("", finish="stop"), b"[DONE]")


# One caller


async def quoted_cookies(scene: Scene) -> str:
    """Cookies full of quotes and backslashes, as large as a head may be and larger."""
    cookies = [b'session="' + b'\\"' * (size // 2) for size in (15_000, 30_000, 160_000)]
    requests = [_request(b"Cookie: " + each) for each in cookies]
    told: list[str] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        told += [await _told(scene, request) for request in requests]
        await asyncio.sleep(0.02)
    return _counted(told)


async def odd_headers(scene: Scene) -> str:
    """Other headers and a query as large as a head may be."""
    pair = b"a=1; " * 6000
    requests = [
        *(_request(name + b": " + b"a,;q=0 " * 4200) for name in (b"Accept", b"Origin", b"Range")),
        *(_request(b"Last-Event-ID: " + b"1" * 30_000), _request(b"Cookie: " + pair)),
        b"GET /stream?" + b"a=%41&" * 4500 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    told: list[str] = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        told += [await _told(scene, request) for request in requests]
        await asyncio.sleep(0.02)
    return _counted(told)


async def endless_heads(scene: Scene) -> str:
    """Heads that never end: in a header, in their number, in the URL, before the first line."""
    get = b"GET / HTTP/1.1\r\n"
    pieces = (
        (get + b"X: ", b"a" * 65536),
        (get, b"X: y\r\n" * 10_000),
        (b"GET /", b"a" * 65536),
        (b"", b"\r\n" * 32_000),
    )
    return _counted(await asyncio.gather(*(_told(scene, *each) for each in pieces)))


async def half_requests(scene: Scene) -> str:
    """Five hundred requests that stop half way in, and fifty whose body drips."""
    half = b"POST /tickets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writers: list[asyncio.StreamWriter] = []
    try:
        for number in range(550):
            _, writer = await asyncio.open_connection(*scene.address)
            writer.write(half if number < 500 else half + b"Content-Length: 100000\r\n\r\n{")
            writers.append(writer)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for writer in writers[500:]:
                writer.write(b" ")
            await asyncio.sleep(0.1)
    finally:
        for writer in writers:
            writer.close()
    return f"{len(writers)} connections"


async def crumbs(scene: Scene) -> str:
    """Bodies in chunks of one byte, on thirty connections; they go on after they were refused."""
    async with scene.client("mallory") as http:
        cookie = http.headers["cookie"].encode()
    head = b"POST /tickets/hostile HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\nCookie: %s\r\n\r\n" % cookie
    end = time.monotonic() + SECONDS

    async def pour() -> str:
        reader, writer = await asyncio.open_connection(*scene.address)
        with suppress(OSError):
            writer.write(head)
            while time.monotonic() < end:
                writer.write(b"1\r\n \r\n" * 10_000)
                await writer.drain()
        told = b""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                told = await reader.readline()
        writer.transport.abort()
        return told.split(b" ")[1].decode() if b" " in told else "reading"

    return _counted(await asyncio.gather(*(pour() for _ in range(30))))


async def replays(scene: Scene) -> str:
    """A hundred viewers of one stream of 15 MB that another replica has ended; half never read."""
    return await _watch(scene, [await _long_stream(scene, scene.other)] * 100)


async def many_replays(scene: Scene) -> str:
    """Eight streams of 15 MB, a dozen viewers each; half never read."""
    return await _watch(scene, [await _long_stream(scene, scene.other) for _ in range(8)] * 12)


async def completions(scene: Scene) -> str:
    """The answer so far of streams of 15 MB, here and elsewhere, asked for eight at a time."""
    urls = [await _long_stream(scene, at) for at in (scene.attacked, scene.other)]
    async with scene.client("mallory") as http:

        async def ask(url: str) -> list[str]:
            asked = url.replace("/stream", "/completion")
            return [_code(await http.get(asked, timeout=60)) for _ in range(5)]

        told = await asyncio.gather(*(ask(url) for url in urls * 4))
    return _counted(code for codes in told for code in codes)


async def full_of_requests(scene: Scene) -> str:
    """Requests of a megabyte of emoji by one user, as fast as they are taken."""
    plain = json.dumps(_request_of(250_000), ensure_ascii=False).encode()
    escaped = json.dumps(_request_of(80_000)).encode()
    told: list[str] = []
    end = time.monotonic() + SECONDS
    async with scene.client("mallory") as http:

        async def post(content: bytes) -> None:
            sent = {"Content-Type": "application/json"}
            while time.monotonic() < end:
                told.append(
                    _code(await http.post("/tickets/hostile", content=content, headers=sent))
                )

        await asyncio.gather(*(post(content) for content in (plain, escaped) * 2))
    return _counted(told)


async def all_streams(scene: Scene) -> str:
    """Two thousand streams of one user, each with a viewer."""

    async def silent(call: Call) -> None:
        await call.send(OK)
        await call.left.wait()

    scene.script = silent
    readers: list[asyncio.StreamWriter] = []
    told: list[str] = []
    async with scene.client("mallory") as http:
        cookie = http.headers["cookie"].encode()
        for _ in range(2000):
            answer = await http.post("/tickets/hostile", json={"model": "m", "messages": []})
            told.append(_code(answer))
            if answer.status_code == 201:
                _, writer = await asyncio.open_connection(*scene.address)
                writer.write(_get(answer.json()["stream_url"], cookie))
                readers.append(writer)
    for writer in readers:
        writer.close()
    return _counted(told)


# One upstream


async def zipped(scene: Scene) -> str:
    """Answers of 0.8 MB that unpack to 800 MB: events, one event, comments, a refusal."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n"
    refusal = head.replace(b"200 OK", b"500 Oh")
    small = await asyncio.to_thread(_bombs)
    answers = [[head, each] for each in small]
    return await _ask_each(scene, [*answers, [refusal, small[1]]])


async def endless_reply_heads(scene: Scene) -> str:
    """A response's head that never ends: in a header, in their number, in 1xx responses."""
    top = b"HTTP/1.1 200 OK\r\n"
    more = b"a" * 65536
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2000
    pieces = [
        *([top, b"X: ", *[more] * 1000], [top, *[b"X: y\r\n" * 10_000] * 1000]),
        *([b"HTTP/1.1 200 ", *[more] * 1000], [early] * 500),
    ]
    return await _ask_each(scene, pieces)


async def comments(scene: Scene) -> str:
    """200 MB of comments, of empty events and of fields that mean nothing."""
    count = 200 * MEGABYTE // 65536
    blocks = (b": " + b"a" * 62 + b"\n", b": x\n\n", b"data\n\n", b"x: y\n")
    return await _ask_each(scene, [[OK, *[each * (65536 // len(each))] * count] for each in blocks])


async def tiny_chunks(scene: Scene) -> str:
    """A hundred thousand chunks of one byte, and chunks with long extensions."""
    head = OK.replace(b"Connection: close", b"Transfer-Encoding: chunked")
    tiny = b"1\r\n:\r\n" * 10_000
    long = (b"1;" + b"a" * 8000 + b"\r\n:\r\n") * 8
    return await _ask_each(scene, [[head, *[tiny] * 10], [head, *[long] * 500]])


async def words(scene: Scene) -> str:
    """Refusals and errors whose words would forge a line of the log, or show our key."""
    said = (
        "no\n2026-01-01 ERROR gateway forged\x1b[2J sk-that-nobody-may-see\u2028x" + "y" * MEGABYTE
    )
    body = json.dumps({"error": {"message": said}}).encode()
    refusal = b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    told = await _ask_each(
        scene, [[refusal], [OK, sse(body)], [OK, body], [OK, sse(chunk("x")), body]]
    )
    lines = scene.logged.splitlines()
    assert not [each for each in lines if each.startswith("2026-01-01")], "a line was forged"
    assert "sk-that-nobody-may-see" not in scene.logged, "the key is in the log"
    assert "\x1b" not in scene.logged, "an escape is in the log"
    return told


CALLERS: tuple[Attack, ...] = (
    *(quoted_cookies, odd_headers, endless_heads, half_requests, crumbs, replays, many_replays),
    *(completions, full_of_requests, all_streams),
)
UPSTREAMS: tuple[Attack, ...] = (zipped, endless_reply_heads, comments, tiny_chunks, words)


def _request_of(emoji: int) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": "\U0001f600" * emoji}]}


def _request(header: bytes) -> bytes:
    top = b"GET /stream?ticket=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return top + header + b"\r\n\r\n"


def _get(path: str, cookie: bytes) -> bytes:
    top = b"GET %s HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n" % path.encode()
    return top + b"Cookie: %s\r\n\r\n" % cookie


async def _told(scene: Scene, begin: bytes, more: bytes = b"") -> str:
    """Send a request, then `more` again and again up to 64 MB; return the status."""
    reader, writer = await asyncio.open_connection(*scene.address)
    try:
        with suppress(OSError):
            writer.write(begin)
            for _ in range(64 * MEGABYTE // len(more) if more else 0):
                writer.write(more)
                await writer.drain()
                if reader.at_eof():
                    break
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(10):
                line = await reader.readline()
                return line.split(b" ")[1].decode() if b" " in line else "closed"
        return "closed"
    finally:
        writer.close()


async def _long_stream(scene: Scene, at: Process) -> str:
    """Return the URL of a stream of 15 MB that ended on a replica."""

    async def long(call: Call) -> None:
        piece = sse(chunk("x" * 1000)) * 60
        await call.send(OK, *[piece] * (15 * MEGABYTE // len(piece)), _FINISHED)

    scene.script = long
    async with scene.client("mallory", at) as http:
        url = await scene.ticket(http)
        got = await http.get(url, headers=LOUD, timeout=60)
        assert b"event: end" in got.content[-500:], got.content[-500:]
    return url


async def _watch(scene: Scene, urls: list[str]) -> str:
    """Open a viewer for each URL, of whom every other one never reads."""
    async with scene.client("mallory") as http:
        cookie = http.headers["cookie"].encode()
    writers: list[asyncio.StreamWriter] = []
    readings: list[asyncio.Task[str]] = []
    try:
        for number, url in enumerate(urls):
            reader, writer = await asyncio.open_connection(*scene.address, limit=65536)
            writer.write(_get(url, cookie))
            writers.append(writer)
            if number % 2:
                readings.append(asyncio.create_task(_read(reader)))
        await asyncio.wait(readings, timeout=3 * SECONDS)
        whole = [each.result() if each.done() else "reading" for each in readings]
    finally:
        for each in readings:
            each.cancel()
        for writer in writers:
            writer.transport.abort()
    return _counted(whole)


async def _read(reader: asyncio.StreamReader) -> str:
    last = b""
    with suppress(OSError):
        while got := await reader.read(MEGABYTE):
            last = (last + got)[-400:]
            if b"event: end" in last:
                return "whole"
            await asyncio.sleep(0)
    return "told to come back" if b"retry:" in last else "cut"


async def _ask_each(scene: Scene, answers: list[list[bytes]]) -> str:
    """Let the hostile upstream give each of these answers to a stream."""
    told: list[str] = []
    async with scene.client("mallory") as http:
        for answer in answers:

            async def script(call: Call, answer: list[bytes] = answer) -> None:
                with suppress(OSError):
                    await call.send(*answer)

            scene.script = script
            got = await http.get(await scene.ticket(http), headers=LOUD, timeout=90)
            end = got.text.rpartition("event: end\ndata: ")[2].partition("\n")[0]
            told.append(json.loads(end)["state"] if end.startswith("{") else f"{got.status_code}")
    return _counted(told)


def _bombs() -> list[bytes]:
    events = sse(chunk("x" * 60_000)) * 13_000
    one = b"data: " + b"x" * 800 * MEGABYTE
    return [
        gzip.compress(each, 9)
        for each in (events, one, b":" + b"x" * 800 * MEGABYTE, b":\n" * (400 * MEGABYTE))
    ]


def _code(answer: httpx.Response) -> str:
    code = answer.json().get("code", "") if "problem" in answer.headers["content-type"] else ""
    return f"{answer.status_code} {code}".strip()


def _counted(told: Iterable[str]) -> str:
    return ", ".join(f"{number} x {what}" for what, number in Counter(told).most_common())

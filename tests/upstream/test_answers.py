"""Answers: what is taken for a stream, what is not, and the words about it."""

import asyncio
import json
import zlib

import pytest

from tests.asking import KEY, answering, asking, body_of, failure_of, preset, streamed
from tests.support import OK, WHOLE, Call, Script, chunk, scripted, until


async def body_after(*head: str, body: bytes = WHOLE, status: str = "200 OK") -> bytes:
    """Return what is read of an answer with this head."""
    lines = [f"HTTP/1.1 {status}", *head, "Connection: close", "", ""]
    whole = "\r\n".join(lines).encode("latin-1") + body
    async with scripted(lambda call: call.send(whole)) as server, asking() as upstream:
        return await body_of(upstream, preset(server.url))


TYPES = {
    "as it is": ["Content-Type: text/event-stream"],
    "in capitals and with parameters": ["Content-Type: Text/Event-Stream;charset=utf-8"],
    "missing": [],
    "empty": ["Content-Type:"],
    "doubled": ["Content-Type: text/event-stream"] * 2,
    "doubled in one line": ["Content-Type: text/event-stream, text/event-stream"],
    "beside another": ["Content-Type: application/json, text/event-stream; charset=utf-8"],
    "text": ["Content-Type: text/plain; charset=utf-8"],
    "JSON": ["Content-Type: application/json"],
    "a page": ["Content-Type: text/html"],
    "anything": ["Content-Type: application/octet-stream"],
    "no type at all": ["Content-Type: \x01 \xff"],
}


@pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)
async def test_a_stream_is_read_whatever_its_type_says(types: list[str]) -> None:
    assert await body_after(*types) == WHOLE


BEGINNINGS = [b"data:", b"event: x\ndata:", b"id: 1\n", b": hi\n\n", b"retry: 5\n", b":\n"]


@pytest.mark.parametrize("before", [b"", b"\n\r\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("begins", BEGINNINGS)
async def test_a_stream_without_a_type_is_told_by_its_first_bytes(
    begins: bytes, before: bytes
) -> None:
    body = before + begins + b"a\n\n" + WHOLE
    assert await body_after(body=body) == body


async def test_a_stream_without_a_type_may_come_byte_by_byte() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for at in range(40):
            await call.send(WHOLE[at : at + 1])
            await asyncio.sleep(0)
        await call.send(WHOLE[40:])

    async with scripted(script) as server, asking() as upstream:
        assert await body_of(upstream, preset(server.url)) == WHOLE


async def stops_and_goes_on(script: Script, more: asyncio.Event) -> None:
    """Check that who stops after the first of two events, sent at `more`, gets both, each once."""
    got: list[bytes] = []

    def take(part: bytes) -> bool:
        got.append(part)
        return len(got) == 1  # As a run does while Redis does not take what it has.

    async with (
        scripted(script) as server,
        asking() as upstream,
        upstream.ask(preset(server.url), b"{}") as chunks,
    ):
        assert await chunks.each(take)
        more.set()
        assert not await chunks.each(take)
    assert b"".join(got) == b"data: a\n\ndata: b\n\n"


async def test_a_stream_without_a_type_goes_on_where_it_was_stopped() -> None:
    more = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: a\n\n")
        await more.wait()
        await call.send(b"data: b\n\n")

    await stops_and_goes_on(script, more)


WHOLE_ANSWER = json.dumps({"choices": [{"message": {"content": "Hi"}}]}).encode()
NO_STREAMS = {
    "a page": (b"<p>Hi", ["Content-Type: text/html"], "text/html instead of an event stream"),
    "a page without a type": (b"<p>Hi", [], "something without a type"),
    "a completion": (
        WHOLE_ANSWER,
        ["Content-Type: application/json"],
        "answered with application/json instead of an event stream",
    ),
    "an error": (b'{"error":"Not now."}', ["Content-Type: application/json"], "Not now."),
    "an error as text": (b'{"error":"Not now."}', ["Content-Type: text/plain"], "Not now."),
    "an error without a type": (b' [{"error":{"message":"Not now."}}]', [], "Not now."),
    "lines of JSON": (
        b'{"done":true}\n{"a":1}',
        ["Content-Type: application/x-ndjson"],
        "answered with application/x-ndjson instead of an event stream",
    ),
    "a list of answers": (
        b'[{"candidates":[]},{"candidates":[]}]',
        ["Content-Type: application/json"],
        "answered with application/json instead of an event stream",
    ),
    "an answer that is cut": (
        WHOLE_ANSWER[:-5],
        ["Content-Type: application/json"],
        "answered with application/json instead of an event stream",
    ),
    "some JSON": (b'{"status":"busy"}', ["Content-Type: application/json"], "busy"),
    "a word that begins alike": (b"dat", ["Content-Type: text/plain"], "text/plain"),
    "a text": (b"database is down", ["Content-Type: text/plain"], "text/plain"),
    "nothing said": (b"", [], "something without a type"),
    "nothing but white space": (b"\r\n" * 9, ["Content-Type: text/plain"], "text/plain"),
    "a longer type": (b"", ["Content-Type: text/event-stream2"], "text/event-stream2"),
    "a type with an escape": (b"", ["Content-Type: a\x1b[31mb"], "a\N{REPLACEMENT CHARACTER}[31mb"),
}


@pytest.mark.parametrize(("body", "headers", "says"), NO_STREAMS.values(), ids=NO_STREAMS)
async def test_what_is_no_stream_failed_and_may_have_been_paid_for(
    body: bytes, headers: list[str], says: str
) -> None:
    failed = await failure_of(answering("200 OK", body, *headers))
    assert (failed.code, failed.state, failed.sure) == ("upstream_not_a_stream", "failed", False)
    assert says in failed.message


async def test_who_streams_lines_is_told_to_have_sent_events_instead() -> None:
    events = answering("200 OK", b"data: {}\n\n", "Content-Type: text/event-stream")
    failed = await failure_of(events, protocol="ollama")
    assert failed.message == (
        "The upstream answered with text/event-stream instead of lines of JSON."
    )


async def test_white_space_without_an_end_is_no_stream() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while not call.left.is_set():
            await call.send(b"\r\n" * 4096)

    assert (await failure_of(script)).code == "upstream_not_a_stream"


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted", "203 Odd", "206 Part", "299 x"])
async def test_another_success_is_no_refusal(status: str) -> None:
    assert await body_after("Content-Type: text/event-stream", status=status) == WHOLE


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content"])
async def test_a_success_without_a_body_is_no_answer(status: str) -> None:
    failed = await failure_of(answering(status, b"", "Content-Type: text/event-stream"))
    assert (failed.code, failed.state, failed.sure) == ("upstream_refused", "failed", False)
    assert failed.status == int(status[:3])


@pytest.mark.parametrize("status", ["200 OK", "201 Created"])
async def test_what_is_no_stream_tells_its_status(status: str) -> None:
    assert (await failure_of(answering(status, b"<p>"))).status == int(status[:3])


# Compression


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "x-unknown", "gzip, br", "BR"])
@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_an_encoding_that_cannot_be_read_failed_and_is_named(coding: str, kind: str) -> None:
    packed = b"\x8b\x05\x80hello\n\x03" * 9
    headers = [f"Content-Type: {kind}", f"Content-Encoding: {coding}"]
    failed = await failure_of(answering("200 OK", packed, *headers))
    assert (failed.code, failed.state) == ("upstream_not_a_stream", "failed")
    assert coding.lower().split(", ")[-1] in failed.message


@pytest.mark.parametrize(
    "coding", ["", "identity", "Identity, identity", "none", "utf-8", ",", "gzip", "deflate, gzip"]
)
async def test_a_stream_that_is_not_compressed_is_read_whatever_its_head_says(coding: str) -> None:
    lines = ["Content-Type: text/event-stream", f"Content-Encoding: {coding}"]
    assert await body_after(*lines) == WHOLE


def gzipped(body: bytes, wbits: int = 31) -> bytes:
    """Return a body compressed."""
    packer = zlib.compressobj(9, wbits=wbits)
    return packer.compress(body) + packer.flush()


PACKED = {
    "gzip": ("gzip", gzipped(WHOLE)),
    "gzip by its old name": ("X-GZip", gzipped(WHOLE)),
    "deflate": ("deflate", gzipped(WHOLE, 15)),
    "deflate without a header": ("deflate", gzipped(WHOLE, -15)),
    "twice": ("gzip, gzip", gzipped(gzipped(WHOLE))),
    "two kinds": ("deflate, gzip", gzipped(gzipped(WHOLE, 15))),
    "in two members": ("gzip", gzipped(WHOLE[:30]) + gzipped(WHOLE[30:])),
    "padded": ("gzip", gzipped(WHOLE) + b"\0" * 9000),
}


@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain"])
@pytest.mark.parametrize(("coding", "packed"), PACKED.values(), ids=PACKED)
async def test_a_stream_that_is_compressed_all_the_same_is_unpacked(
    coding: str, packed: bytes, kind: str
) -> None:
    lines = [f"Content-Type: {kind}", f"Content-Encoding: {coding}"]
    assert await body_after(*lines, body=packed) == WHOLE


async def test_a_stream_may_be_compressed_by_its_transfer() -> None:
    packed = gzipped(WHOLE)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
    lines = ["Content-Type: text/event-stream", "Transfer-Encoding: gzip, chunked"]
    assert await body_after(*lines, body=body) == WHOLE
    lines[1] = "Transfer-Encoding: gzip"
    assert await body_after(*lines, body=packed) == WHOLE


async def test_a_compressed_stream_goes_on_where_it_was_stopped() -> None:
    packer, more = zlib.compressobj(wbits=31), asyncio.Event()

    async def script(call: Call) -> None:
        head = streamed("Content-Encoding: gzip")
        await call.send(head, packer.compress(b"data: a\n\n") + packer.flush(zlib.Z_SYNC_FLUSH))
        await more.wait()
        await call.send(packer.compress(b"data: b\n\n") + packer.flush())

    await stops_and_goes_on(script, more)


WHOLE_GZIP = gzipped(WHOLE * 50)
BROKEN = {
    "none at all": b"no gzip at all",
    "cut": WHOLE_GZIP[:-9],
    "cut at its head": WHOLE_GZIP[:5],
    "corrupt": WHOLE_GZIP[:20] + b"\xff\xff\xff\xff" + WHOLE_GZIP[24:],
    "of another sum": WHOLE_GZIP[:-8] + b"\0" * 8,
    "cut in its second member": WHOLE_GZIP + WHOLE_GZIP[:40],
}


@pytest.mark.parametrize("packed", BROKEN.values(), ids=BROKEN)
async def test_a_broken_compression_is_a_cut(packed: bytes) -> None:
    head = streamed("Content-Encoding: gzip")
    failed = await failure_of(lambda call: call.send(head, packed))
    assert (failed.code, failed.state, failed.sure) == ("upstream_cut", "truncated", False)


async def test_a_compressed_stream_is_handed_over_in_slices_that_let_others_run() -> None:
    bomb = gzipped(b": nothing\n" * 1_500_000)
    head, sizes, turns = streamed("Content-Encoding: gzip"), [], 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def take(part: bytes) -> bool:
        sizes.append(len(part))
        return False

    async with (
        scripted(lambda call: call.send(head, bomb)) as server,
        asking() as upstream,
        upstream.ask(preset(server.url), b"{}") as chunks,
    ):
        other = asyncio.create_task(count())
        await chunks.each(take)
        other.cancel()
    assert sum(sizes) == 15_000_000
    assert max(sizes) <= 8 * 1024
    assert turns > len(sizes) / 2


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_what_is_compressed_too_well_is_not_unpacked_for_ever(times: int) -> None:
    bomb = b"\n" * (200 << 20)
    for _ in range(times):
        bomb = gzipped(bomb)
    head = streamed("Content-Encoding: " + ", ".join(["gzip"] * times))
    taken = 0

    def take(part: bytes) -> bool:
        nonlocal taken
        taken += len(part)
        return False

    async with (
        scripted(lambda call: call.send(head, bomb)) as server,
        asking() as upstream,
        upstream.ask(preset(server.url), b"{}") as chunks,
    ):
        with pytest.raises(Exception, match="too large"):
            await chunks.each(take)
    assert taken <= 17 << 20


async def test_too_many_codings_are_not_taken_off() -> None:
    head = "Content-Encoding: gzip, gzip, gzip, gzip"
    assert "cannot be read" in (await failure_of(answering("200 OK", b"\x1f\x8b", head))).message


# Refusals


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
async def test_a_compressed_refusal_is_read_to_a_bound(coding: str) -> None:
    body = b'{"error": {"message": "Not now."}}'
    bomb = b'{"error": "' + b"x" * (50 << 20)
    for _ in coding.split():
        body, bomb = gzipped(body), gzipped(bomb)
    head = f"Content-Encoding: {coding}"
    assert (await failure_of(answering("400 Bad", body, head))).message == "Not now."
    failed = await failure_of(answering("400 Bad", bomb, head))
    assert failed.message.startswith('{"error": "xxx')
    assert len(failed.message) == 500


@pytest.mark.parametrize("coding", ["br", "gzip"])
async def test_a_refusal_that_cannot_be_unpacked_is_told_by_its_status(coding: str) -> None:
    failed = await failure_of(answering("503 Busy", b"\x0b\x05", f"Content-Encoding: {coding}"))
    assert (failed.message, failed.sure) == ("The upstream answered 503.", True)


async def test_no_key_is_shown_by_what_is_no_stream() -> None:
    failed = await failure_of(answering("200 OK", json.dumps({"error": KEY}).encode()))
    assert failed.message == "***"


async def test_an_answer_that_breaks_before_it_is_known_what_it_is_is_a_cut() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nda")
        await until(lambda: True)
        call.cut()

    failed = await failure_of(script)
    assert (failed.code, failed.state) == ("upstream_cut", "truncated")


async def test_a_stream_that_says_so_is_taken_at_its_word() -> None:
    odd = b"{}\n\n" + WHOLE + chunk("x")
    async with scripted(lambda call: call.send(OK, odd)) as server, asking() as upstream:
        assert await body_of(upstream, preset(server.url)) == odd

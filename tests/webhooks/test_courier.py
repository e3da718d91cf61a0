"""The end of a stream is told to its webhook, at least once, whatever becomes of who ran it."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.store.client import RedisClient
from gateway.store.keys import log_key, new_id, record_key, webhook_key
from gateway.upstream.lookup import Lookup, NoAnswer
from gateway.webhooks.outbox import Outbox
from gateway.webhooks.queues import AT_ONCE
from tests.receivers import Answer, Receiver, answers, hears, receiver
from tests.support import SECRET as TICKETS
from tests.support import (
    Call,
    RedisServer,
    Served,
    ask,
    client,
    cookie,
    process,
    running,
    scripted,
    settings,
    until,
    whole,
)

pytestmark = pytest.mark.timeout(150)

PATIENCE = 50.0  # Seconds; a try that was broken off is repeated after twenty.


async def ended(served: Served, user: str, preset: str = "default", ref: bytes = b"") -> str:
    """Redeem a ticket and read its stream to the end; return its URL."""
    sent: dict[str, Any] = {**served.cookie(user), "X-Stream-Ref": ref}
    answer = await served.http.post(f"/tickets/{preset}", json=ask(), headers=sent)
    url = str(answer.json()["stream_url"])
    got = await served.http.get(url, headers=served.cookie(user))
    assert b"event: end\n" in got.content
    return url


@asynccontextmanager
async def told_by(app: Receiver, url: str = "", **changes: Any) -> AsyncIterator[Served]:
    """Run a gateway whose streams' ends a receiver is told."""
    async with scripted(whole) as upstream:
        presets = {"default": {**app.preset, "url": upstream.url}}
        async with running(redis_url=url, presets=presets, **changes) as served:
            yield served


async def test_every_end_is_told_once_with_all_that_is_known_of_it(any_redis_url: str) -> None:
    user = new_id()
    async with receiver() as app, told_by(app, any_redis_url) as served:
        await ended(served, user, ref="order 66 ü".encode())
        await until(lambda: app.heard, "it is heard", PATIENCE)
        answer = await served.post(subject=user)
        await served.http.delete(answer.json()["stream_url"], headers=served.cookie(user))
        await until(lambda: len(app.heard) == 2, "the cancel is heard", PATIENCE)
        courier = served.gateway.supervisor._courier
        await until(lambda: not courier, "nothing is owed any more", PATIENCE)
    done, cancelled = (each.data for each in app.told)
    assert done.pop("stream_id") != cancelled["stream_id"]
    assert app.told[0].id != app.told[1].id
    assert done.pop("tokens")["estimated"]
    assert done == {
        "subject": user,
        "preset": "default",
        "ref": "order 66 ü",
        "state": "done",
        "text": "Hello",
        "finish_reason": "stop",
        "usage": None,
        "attempts": 1,
    }
    assert (cancelled["state"], cancelled["text"]) == ("cancelled", "")


async def test_where_nobody_is_to_be_told_nothing_is_kept_for_it(shared_redis: RedisServer) -> None:
    user = new_id()
    async with scripted(whole) as upstream:
        given = {"redis_url": shared_redis.url, "upstream_url": upstream.url}
        async with running(**given) as served:
            url = await ended(served, user)
            stream_id = served.gateway.tickets.verify(url.partition("ticket=")[2]).stream_id
            store = served.gateway.store
            assert await store.call("EXISTS", webhook_key(stream_id)) == 0
            assert await store.call("HEXISTS", record_key(stream_id), "owed") == 0


async def hangs_up(call: Call) -> None:
    """Close the connection without an answer."""
    call.cut()


async def speaks_for_ever(call: Call) -> None:
    """Refuse it, with far more words than anybody reads."""
    await call.send(b"HTTP/1.1 500 No\r\nContent-Length: 104857600\r\n\r\n")
    for _ in range(1600):
        await call.send(b"x" * 65536)


@pytest.mark.parametrize(
    "bad",
    [
        answers("500 Oops"),
        answers("302 Found", "Location: http://127.0.0.1:9/"),
        answers("429 Busy", "Retry-After: 1"),
        hangs_up,
        speaks_for_ever,
    ],
    ids=["500", "redirect", "429", "hangs up", "100 MB"],
)
async def test_what_is_not_heard_is_told_again_word_for_word(bad: Answer) -> None:
    async with receiver(bad, hears) as app, told_by(app) as served:
        await ended(served, new_id())
        await until(lambda: app.heard, "it is heard", PATIENCE)
    first, second = app.told
    assert first == second


async def test_a_receiver_that_speaks_100_mb_has_heard_all_the_same_and_is_not_read() -> None:
    sent = 0

    async def speaks(call: Call) -> None:
        nonlocal sent
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
        for _ in range(1600):
            await call.send(b"x" * 65536)
            sent += 65536

    async with receiver(speaks) as app, told_by(app) as served:
        await ended(served, new_id())
        courier = served.gateway.supervisor._courier
        await until(lambda: app.told and not courier, "it is heard", PATIENCE)
    assert len(app.told) == 1
    assert sent < 50 << 20


async def test_a_receiver_that_hangs_is_left_and_one_without_sound_tls_is_told_nothing() -> None:
    async def hangs(call: Call) -> None:
        await call.left.wait()

    lookup = Lookup()
    async with scripted(hangs) as server:
        with pytest.raises(NoAnswer, match="no answer in"):
            await lookup.tell(server.url, [], b"{}", seconds=2)
        await until(lambda: server.calls[0].left.is_set(), "it is hung up", PATIENCE)
    listener = await asyncio.start_server(speaks_no_tls, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with pytest.raises(NoAnswer, match="ConnectError"):
        await lookup.tell(f"https://127.0.0.1:{port}/", [], b"{}", seconds=PATIENCE)
    listener.close()
    await lookup.close()


async def speaks_no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say something at once that begins no handshake."""
    writer.write(b"HTTP/1.1 400 Speak plainly\r\n\r\n")
    writer.close()


async def test_one_that_answers_410_is_told_no_more_of_this_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with receiver(answers("410 Gone"), hears) as app, told_by(app) as served:
        await ended(served, new_id())
        courier = served.gateway.supervisor._courier
        await until(lambda: app.told and not courier, "it is given up", PATIENCE)
        await ended(served, new_id())
        await until(lambda: app.heard, "the next one is told", PATIENCE)
    assert len(app.told) == 2
    assert "told no more: the receiver answered 410" in caplog.text


async def test_a_receiver_that_is_down_holds_up_neither_streams_nor_what_others_are_told() -> None:
    async def hangs(call: Call) -> None:
        await call.left.wait()

    async with scripted(whole) as upstream, receiver(hangs) as dead, receiver() as app:
        presets = {
            "default": {**app.preset, "url": upstream.url},
            "dead": {**dead.preset, "url": upstream.url},
        }
        async with running(presets=presets, drain=0.2) as served:
            for _ in range(AT_ONCE + 4):
                await ended(served, "alice", "dead")
            await until(lambda: len(dead.told) >= AT_ONCE, "some are told", PATIENCE)
            await ended(served, "alice")
            await until(lambda: app.heard, "the other one hears", PATIENCE)


async def test_the_text_is_told_also_when_the_log_is_gone(own_redis: RedisServer) -> None:
    refuses = answers("503 Later")
    async with receiver(refuses) as app, told_by(app, own_redis.url) as served:
        url = await ended(served, "alice")
        stream_id = served.gateway.tickets.verify(url.partition("ticket=")[2]).stream_id
        store = served.gateway.store
        key = webhook_key(stream_id)
        await until(lambda: _has(store, key, "body"), "what is told is kept", PATIENCE)
        assert 24 * 3600_000 < await store.call("PTTL", key) <= 25 * 3600_000
        await store.call("DEL", record_key(stream_id), log_key(stream_id))
        courier = served.gateway.supervisor._courier
        courier._owed[stream_id].body = b""  # As of one that found no room here.
        app.turns[:] = [hears]
        await until(lambda: app.heard, "it is heard", PATIENCE)
    assert app.heard[0].data["text"] == "Hello"
    assert app.heard[0] == app.told[0]


async def put_off(url: str) -> bool:
    """Whether an end was told in vain, and is kept for another try."""
    store = RedisClient(url)
    try:
        keys = await store.call("KEYS", "gw:*:webhook")
        return bool(keys) and await _has(store, keys[0].decode(), "body")
    finally:
        await store.close()


async def _has(store: RedisClient, key: str, field: str) -> bool:
    return bool(await store.call("HEXISTS", key, field))


async def test_an_end_without_its_log_is_told_without_its_text(own_redis: RedisServer) -> None:
    stream_id = new_id()
    store = RedisClient(own_redis.url)
    end = {"to": "default URL", "at": 1, "state": "done", "subject": "alice", "preset": "default"}
    async with receiver() as app:
        end["to"] = f"default {app.preset['webhook']}"
        await store.call("HSET", webhook_key(stream_id), *(part for p in end.items() for part in p))
        async with told_by(app, own_redis.url) as served:
            assert await served.gateway.supervisor._courier.inherit(stream_id)
            await until(lambda: app.heard, "it is heard", PATIENCE)
    await store.close()
    assert app.heard[0].data["text"] is None


async def test_what_a_redis_forgot_is_told_all_the_same_and_written_again(
    own_redis: RedisServer,
) -> None:
    async with (
        receiver(answers("503 Later")) as app,
        told_by(app, own_redis.url, lease=1) as served,
    ):
        url = await ended(served, "alice")
        stream_id = served.gateway.tickets.verify(url.partition("ticket=")[2]).stream_id
        store, key = served.gateway.store, webhook_key(stream_id)
        await until(lambda: _has(store, key, "body"), "what is told is kept", PATIENCE)
        await store.call("FLUSHALL")
        await until(lambda: _has(store, key, "body"), "it is kept again", PATIENCE)
        app.turns[:] = [hears]
        await until(lambda: app.heard, "it is heard", PATIENCE)
    assert len({each.id for each in app.told}) == 1


async def test_one_that_leaves_hands_over_what_was_not_heard(own_redis: RedisServer) -> None:
    async with receiver(answers("503 Later")) as app:
        async with told_by(app, own_redis.url, drain=0.2) as served:
            await ended(served, "alice")
            await until(lambda: put_off(own_redis.url), "it is put off", PATIENCE)
        app.turns[:] = [hears]
        async with told_by(app, own_redis.url, lease=1):
            await until(lambda: app.heard, "another one tells it", PATIENCE)
    assert len({each.id for each in app.told}) == 1


async def test_an_end_is_told_by_others_if_its_owner_is_killed_before(
    tmp_path: Path, own_redis: RedisServer
) -> None:
    async with scripted(whole) as upstream, receiver(answers("503 Later")) as app:
        config = tmp_path / "gateway.toml"
        told = "".join(f'{name} = "{value}"\n' for name, value in app.preset.items())
        config.write_text(f'[presets.default]\nurl = "{upstream.url}"\n{told}', "utf-8")
        given = {"redis_url": own_redis.url, "config": str(config), "secrets": TICKETS}
        with process("serve", "--port", "0", **given, lease="1") as first:
            async with client(first.url) as http:
                sent = cookie(settings())
                made = await http.post("/tickets", json=ask(), headers=sent)
                got = await http.get(made.json()["stream_url"], headers=sent)
            assert b'"state":"done"' in got.content
            await until(lambda: put_off(own_redis.url), "it is put off", PATIENCE)
            first.signal(signal.SIGKILL)
            first.wait()
        app.turns[:] = [hears]
        async with told_by(app, own_redis.url, lease=1):
            await until(lambda: app.heard, "another one tells it", PATIENCE)
    assert len({each.id for each in app.told}) == 1
    assert app.heard[0].data["text"] == "Hello"


async def test_an_end_is_given_up_after_a_day(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiver(answers("503 Later")) as app, told_by(app, own_redis.url) as served:
        url = await ended(served, "alice")
        stream_id = served.gateway.tickets.verify(url.partition("ticket=")[2]).stream_id
        await served.gateway.store.call("HSET", webhook_key(stream_id), "at", 1)
        courier = served.gateway.supervisor._courier
        await until(lambda: not courier, "it is given up", PATIENCE)
    assert re.search(rf"{stream_id}: its webhook is given up after \d+ tries", caplog.text)


async def test_two_who_tell_the_same_end_take_turns(store: RedisClient) -> None:
    stream_id, outbox = new_id(), Outbox(store)
    await store.call("HSET", webhook_key(stream_id), "to", "default http://x", "at", 1)
    first = await outbox.begin(stream_id, known=False)
    second = await outbox.begin(stream_id, known=False)
    assert (first.verdict, first.tries, first.fields[b"to"]) == ("go", 1, b"default http://x")
    assert second.verdict == "wait"
    assert 0 < second.wait <= 20
    await outbox.put_off(stream_id, 0, 1, {b"body": b"{}"})
    third = await outbox.begin(stream_id, known=True)
    assert (third.verdict, third.tries, third.fields) == ("go", 2, {})
    await outbox.told(stream_id)
    await outbox.put_off(stream_id, 0, 2, {})
    assert (await outbox.begin(stream_id, known=True)).verdict == "heard"
    assert await outbox.receiver(stream_id) == ""
    assert 0 < await store.call("PTTL", webhook_key(stream_id)) <= 900_000
    assert (await outbox.begin(new_id(), known=True)).verdict == "missing"

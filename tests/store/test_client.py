"""The store: few connections, replies that go where they belong, errors that say "later"."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from gateway.errors import SettingsError, Unavailable
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import cancels_key, log_key, new_id, presence_key, record_key, runs_key
from tests.eventlog.test_writer import LOSE_REQUEST, proxied
from tests.support import RedisServer, free_port, running, scripted, until
from tests.test_promises import Paced, at_least, held


def test_all_keys_of_a_stream_share_a_slot_of_a_cluster() -> None:
    for key in (record_key("id"), log_key("id"), presence_key("id")):
        assert key.partition("{")[2].partition("}")[0] == "id"
    assert len({record_key("id"), log_key("id"), presence_key("id")}) == 3
    assert runs_key("replica") != cancels_key("replica")


NO_ADDRESS = [
    *("http://host", "host:6379", "redis://host:port/0", "redis://h:0x1/0", "redis://h:70000"),
    *("redis+sentinel://host:1", "redis+sentinel://host/master", "redis+cluster://host"),
    *("redis+sentinel://h:1/master/x", "redis+sentinel://[::1/m", "redis://h:1/abc"),
    *("redis+unix:///s", "unix://", "unix://s", "redis://h:1/-1", "redis://h:1/0?db=-1"),
    *("redis+cluster://h:1/1", "redis+cluster://h:1?db=1", "redis+cluster://h:1,h"),
    *("redis://h:1/0#x", "redis://h:1/0?ssl_ca_certs=x", "unix:///s?ssl_ca_certs=x"),
    *("redis://h:1/0?sentinel_password=x", "redis+cluster://h:1?sentinel_tls=true"),
    *("redis+sentinel://h:1/m?sentinel_db=1", "redis+sentinel://h:1/m?sentinel_tls=maybe"),
    *("redis+sentinel://h:1/m?ssl_ca_certs=x", "rediss://h:1?ssl_cert_reqs=perhaps"),
    *("rediss://h:1?ssl_ca_certs=/no/such/file", "rediss://h:1?ssl_certfile=/dev/null"),
    *("rediss://h:1?ssl_check_hostname=perhaps", "rediss://h:1?ssl_min_version=x"),
    "rediss+sentinel://h:1/m?sentinel_ssl_ca_certs=/no/such/file",
    "rediss+cluster://h:1?ssl_ca_certs=/no/such/file",
]


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_an_address_that_cannot_be_one_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^GATEWAY_REDIS_URL: .+") as caught:
        RedisClient(url)
    assert "\n" not in str(caught.value)


NO_OPTION = [
    *("protocol=3", "max_connections=1", "decode_responses=true", "nonsense=1", "x"),
    *("socket_timeout=0.001", "socket_connect_timeout=9", "socket_keepalive=false"),
    *("retry_on_timeout=true", "retry=3", "retry_on_error=x", "encoding=latin-1"),
    *("host=other", "port=1", "path=/s", "connection_class=x", "legacy_responses=true"),
    *("timeout=1", "socket_read_size=1", "credential_provider=x", "redis_connect_func=x"),
    *("client_name=", "client_name=a%20b", "client_name=a%0ab", "DB=1"),
]


@pytest.mark.parametrize("option", NO_OPTION)
@pytest.mark.parametrize(
    "url", ["redis://h:1/0", "unix:///s", "redis+sentinel://h:1/m", "redis+cluster://h:1"]
)
def test_an_option_that_the_gateway_does_not_leave_to_others_is_refused(
    url: str, option: str
) -> None:
    with pytest.raises(SettingsError, match=r"^GATEWAY_REDIS_URL: \?"):
        RedisClient(f"{url}?{option}")


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:se?cr=et@h:1/0", "redis://:se/cret@h:1/0", "redis://:se#cret@h:1/0"),
        *("redis://u:secret", "redis://h:secret/0", "redis://u:se cret@h:x", "redis://:secret@h:x"),
        *("redis://h/0?password=se&cret=1", "redis://h/0?secret@h", "unix://:se/cret@/s"),
        *("redis+sentinel://:secret@h/m", "redis+cluster://:secret@h", "ftp://:secret@h"),
        *("redis+sentinel://h:1/m?sentinel_password=secret&x=1", "redis://u:secret@[::1/0"),
        "redis://:p@ss?secret=1@h:1/0",
    ],
)
def test_a_password_is_not_in_what_is_wrong_with_its_address(url: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_REDIS_URL") as caught:
        RedisClient(url)
    assert not [part for part in ("secret", "cret") if part in str(caught.value)]
    assert "secret" not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "option",
    [
        *("db=3", "client_name=gateway", "health_check_interval=1", "username=u&password=p"),
        *("db=3&client_name=gateway&health_check_interval=30", ""),
    ],
)
async def test_an_option_that_does_no_harm_does_what_it_says(
    option: str, own_redis: RedisServer
) -> None:
    direct = RedisClient(own_redis.url)
    await direct.call("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all")
    store = RedisClient(f"{own_redis.url.removesuffix('/0')}?{option}")
    messages = store.messages("channel")
    assert await anext(messages) == b""
    for call in (store.call, lambda *words: store.urgent([words])):
        assert await call("PING") in (b"PONG", [b"PONG"])
    told = [each for each in bytes(await direct.call("CLIENT", "LIST")).split(b"\n") if each]
    others = [each for each in told if b"cmd=client" not in each]
    assert len(others) == 3
    for name, words in (("db=3", b"db=3"), ("client_name", b"name=gateway"), ("user", b"user=u")):
        assert (name in option) == all(words in each for each in others)
    await messages.aclose()
    for each in (store, direct):
        await each.close()


async def test_replies_come_back_in_the_order_of_the_commands(store: RedisClient) -> None:
    key = new_id()
    commands: list[list[Any]] = [["SET", key, 1, "PX", 9000], ["INCR", key], ["GET", key]]
    assert await store.calls(commands) == [b"OK", 2, b"2"]
    assert await store.calls([]) == []


async def test_every_caller_gets_its_own_replies(store: RedisClient) -> None:
    async def call(number: int) -> None:
        key = f"{new_id()}:{number}"
        commands: list[list[Any]] = [["SET", key, number, "PX", 9000], ["GET", key]]
        assert (await store.calls(commands))[1] == b"%d" % number

    await asyncio.gather(*(call(number) for number in range(300)))


async def test_a_caller_who_left_takes_nobody_elses_reply_along(store: RedisClient) -> None:
    calls = [asyncio.create_task(store.call("ECHO", str(number))) for number in range(100)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    replies = await asyncio.gather(*calls, return_exceptions=True)
    assert replies[1::2] == [b"%d" % number for number in range(1, 100, 2)]
    assert await store.call("ECHO", "after") == b"after"


async def test_whatever_is_cut_no_reply_goes_to_a_stranger(shared_redis: RedisServer) -> None:
    chance = random.Random(1)
    async with proxied(shared_redis) as proxy:
        store = RedisClient(proxy.url)
        proxy.judge = lambda _: (
            chance.choice([LOSE_REQUEST, 0, 3, 9]) if chance.random() < 0.2 else None
        )
        answered = 0
        for _ in range(40):
            words = [new_id() for _ in range(5)]
            calls = (store.call("ECHO", word) for word in words)
            for word, reply in zip(
                words, await asyncio.gather(*calls, return_exceptions=True), strict=True
            ):
                assert isinstance(reply, Unavailable) or reply == word.encode()
                answered += not isinstance(reply, Unavailable)
        assert answered > 100
        await store.close()


async def test_connections_do_not_grow_with_callers(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    await asyncio.gather(*(store.call("ECHO", "x") for _ in range(1000)))
    assert bytes(await store.call("CLIENT", "LIST")).count(b"addr=") <= 5
    await store.close()


async def test_a_command_is_sent_again_when_its_reply_was_lost(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy:
        store = RedisClient(proxy.url)
        verdicts = iter([0])
        proxy.judge = lambda data: next(verdicts, None) if b"ECHO" in data else None
        assert await store.call("ECHO", "x") == b"x"
        assert sum(b"ECHO" in each for each in proxy.requests) == 2
        await store.close()


async def test_an_append_is_never_sent_again(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy:
        store, key = RedisClient(proxy.url), new_id()
        proxy.judge = lambda data: 0 if b"XADD" in data else None
        await store.urgent([["PING"]])
        node = store.node_for(key)
        with pytest.raises(Unavailable):
            await node.append([["XADD", key, "1-1", "1", "x"]], node.generation)
        assert sum(b"XADD" in each for each in proxy.requests) == 1
        assert await store.call("XLEN", key) == 1
        await store.call("DEL", key)
        await store.close()


async def test_an_append_goes_over_no_connection_but_the_one_that_was_checked(
    shared_redis: RedisServer,
) -> None:
    async with proxied(shared_redis) as proxy:
        store, key = RedisClient(proxy.url), new_id()
        await store.urgent([["PING"]])
        node = store.node_for(key)
        checked = node.generation
        proxy.cut()
        with pytest.raises(Unavailable):
            await store.urgent([["PING"]])
        await store.urgent([["PING"]])
        with pytest.raises(Unavailable):
            await node.append([["XADD", key, "1-1", "1", "x"]], checked)
        assert await store.call("EXISTS", key) == 0
        await store.close()


async def test_what_redis_refuses_passes_later(store: RedisClient) -> None:
    key = new_id()
    await store.call("SET", key, "text", "PX", 9000)
    with pytest.raises(Unavailable):
        await store.call("SADD", key, "member")
    assert await store.call("GET", key) == b"text"


async def test_a_master_that_may_take_nothing_is_left_for_who_is_the_master_now(
    own_redis: RedisServer,
) -> None:
    """Cut off from its replicas, which have another by now, it would refuse for ever."""
    store = RedisClient(own_redis.url)
    await store.urgent([["SET", "key", "before", "PX", 9000]])
    before = store.node_for("x").generation
    await store.call("CONFIG", "SET", "min-replicas-to-write", 1)
    with pytest.raises(Unavailable):
        await store.urgent([["SET", "key", "after", "PX", 9000]])
    assert await store.urgent([["GET", "key"]]) == [b"before"]
    assert store.node_for("x").generation == before + 1
    await store.close()


async def test_what_redis_refuses_is_logged_once_however_often_it_is(
    store: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A full Redis refuses every stream's writes ten times a second."""
    stream_id = new_id()
    key = log_key(stream_id)
    await store.urgent([["SET", key, "text", "PX", 9000]])
    node = store.node_for(stream_id)
    for _ in range(50):
        with pytest.raises(Unavailable):
            await store.call("SADD", key, "member")
        await node.append([["SADD", key, "member"]], node.generation)
    assert len([each for each in caplog.records if "refuses commands" in each.message]) == 1


async def test_a_redis_that_is_away_is_logged_once_and_once_when_it_is_back(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not once a second by each loop: the heartbeat, the writer, the readers and the rest."""
    caplog.set_level("INFO", "gateway")

    def lines(level: str) -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelname == level]

    async with scripted(held()) as upstream, AsyncExitStack() as stack:
        given = {"redis_url": own_redis.url, "upstream_url": upstream.url}
        here, there = [await stack.enter_async_context(running(**given)) for _ in range(2)]
        url = await here.ticket()
        await here.read(url, enough=at_least(1))
        watching = asyncio.create_task(there.read(url))
        await until(lambda: there.gateway.fanout.viewers)
        own_redis.kill()
        await until(lambda: "does not answer" in "".join(lines("WARNING")), "it is said")
        for _ in range(20):
            assert (await here.http.get("/readyz")).status_code == 503
            await asyncio.sleep(0.1)
        own_redis.start()
        await until(lambda: sum("answers again" in each for each in lines("INFO")) == 2)
        away = [each for each in lines("WARNING") if "not" in each]
        assert len(away) == 2  # One of each replica.
        assert all(f":{own_redis.port}" in each for each in away)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_after_an_outage_no_line_is_said_for_each_stream(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        scripted(Paced(60, 0.05)) as upstream,
        running(redis_url=own_redis.url, upstream_url=upstream.url) as gate,
    ):
        urls = [await gate.ticket() for _ in range(8)]
        looks = [asyncio.create_task(gate.read(url)) for url in urls]
        await until(lambda: len(upstream.calls) == len(urls))
        caplog.set_level("INFO", "gateway")
        own_redis.kill()
        await until(lambda: "does not answer" in caplog.text)
        own_redis.start()
        assert {(await look).end["state"] for look in looks} == {"done"}

        def said() -> list[str]:
            return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

        await until(lambda: len(said()) > 1, "that it was away, and that it has forgotten all")
    assert len(said()) == 2, said()


async def test_a_redis_that_is_away_is_said_soon_and_found_when_it_is_back(
    own_redis: RedisServer,
) -> None:
    store = RedisClient(own_redis.url)
    assert await store.call("ECHO", "x") == b"x"
    own_redis.kill()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        await store.call("ECHO", "x")
    assert time.monotonic() - begun < 15
    own_redis.start()
    assert await store.call("ECHO", "x") == b"x"
    await store.close()


async def test_a_redis_that_hangs_is_said_within_the_patience_of_a_browser(
    own_redis: RedisServer,
) -> None:
    store = RedisClient(own_redis.url)
    await store.call("PING")
    own_redis.pause()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        await store.call("ECHO", "x")
    assert time.monotonic() - begun < 15
    own_redis.resume()
    assert await store.call("ECHO", "y") == b"y"
    await store.close()


async def test_nobody_listening_is_passing_too() -> None:
    store = RedisClient(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable) as caught:
        await store.call("PING")
    assert caught.value.code == "store_unavailable"
    await store.close()


async def test_scripts_are_known_to_a_redis_that_forgot_them(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    records = Records(store, "me", start_by=9, log_ttl=9, max_run=lambda: 9, lease=1)
    assert (await records.claim("id", "n")).verdict == "missing"
    await store.call("SCRIPT", "FLUSH")
    assert (await records.claim("id", "n")).verdict == "missing"
    assert await records.hold("id", 1, {"version": 1}) == "1-0"
    await store.close()


async def test_messages_come_from_the_channel_and_a_gap_between_them_is_said(
    shared_redis: RedisServer,
) -> None:
    async with proxied(shared_redis) as proxy:
        store, direct, channel = RedisClient(proxy.url), RedisClient(shared_redis.url), new_id()
        messages = store.messages(channel)
        assert await anext(messages) == b""
        for word in ("one", "two"):
            await direct.call("PUBLISH", channel, word)
            assert await anext(messages) == word.encode()
        proxy.cut()
        assert await asyncio.wait_for(anext(messages), 20) == b""
        await direct.call("PUBLISH", channel, "three")
        assert await anext(messages) == b"three"
        await messages.aclose()
        for each in (store, direct):
            await each.close()


async def test_an_inbox_whose_redis_went_without_a_word_is_opened_anew(
    shared_redis: RedisServer,
) -> None:
    """A machine that lost its power closes no connection: nobody would hear a wake-up for hours."""
    async with proxied(shared_redis) as proxy:
        store, channel = RedisClient(proxy.url), new_id()
        messages = store.messages(channel)
        assert await anext(messages) == b""
        before = len(proxy.requests)
        proxy.answering.clear()
        again = asyncio.ensure_future(anext(messages))
        await until(lambda: b"SETINFO" in b"".join(proxy.requests[before:]), "it tries again")
        proxy.answering.set()
        assert await asyncio.wait_for(again, 20) == b""
        await messages.aclose()
        await store.close()


async def test_a_rush_of_readers_does_not_hold_up_the_beat(shared_redis: RedisServer) -> None:
    async with proxied(shared_redis) as proxy:
        store = RedisClient(proxy.url)
        await store.urgent([["PING"]])
        rush = [asyncio.create_task(store.call("ECHO", "x" * 10_000)) for _ in range(500)]
        await asyncio.sleep(0)
        await store.urgent([["PING"]])
        assert not all(each.done() for each in rush)
        await asyncio.gather(*rush)
        await store.close()


async def test_closing_lets_nobody_wait_for_ever(own_redis: RedisServer) -> None:
    store = RedisClient(own_redis.url)
    await store.call("PING")
    own_redis.pause()
    waiting = asyncio.create_task(store.call("ECHO", "x"))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises((Unavailable, asyncio.CancelledError)):
        await asyncio.wait_for(waiting, 20)
    own_redis.resume()
    await until(lambda: waiting.done())

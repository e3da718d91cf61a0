"""`gateway check`: a verdict on everything the gateway depends on, before anybody depends on it."""

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.check import Verdict, _durability, verdicts
from tests.clusters import RedisCluster, redis_cluster
from tests.sentinels import ask, sentinels
from tests.support import (
    OK,
    SECRET,
    Process,
    RedisServer,
    Served,
    free_port,
    redis_server,
    running,
    scripted,
    settings,
    until,
    whole,
)


def levels(found: list[Verdict], subject: str) -> list[str]:
    """Return the levels of the verdicts on one subject."""
    return [verdict.level for verdict in found if verdict.subject == subject]


def words(found: list[Verdict], subject: str) -> str:
    """Return what is said of one subject."""
    return "\n".join(verdict.words for verdict in found if verdict.subject == subject)


async def found(**changes: Any) -> list[Verdict]:
    """Return the verdicts on settings whose upstream nobody listens to."""
    return await verdicts(
        settings(**{"upstream_url": f"http://127.0.0.1:{free_port()}/", **changes})
    )


async def test_good_settings_are_ok() -> None:
    assert levels(await found(secrets="x" * 32), "settings") == ["ok"]


async def test_missing_secrets_are_a_fault() -> None:
    said = await found(secrets="")
    assert set(levels(said, "settings")) == {"fault"}
    assert "GATEWAY_SECRETS: missing" in words(said, "settings")


@pytest.mark.parametrize("secrets", ["short", "x" * 32 + ",short"])
@pytest.mark.parametrize("name", ["secrets", "cookie_secrets"])
async def test_a_secret_that_can_be_guessed_is_a_fault(name: str, secrets: str) -> None:
    said = await found(**{"secrets": "x" * 32, name: secrets})
    assert levels(said, "settings") == ["fault"]
    assert f"GATEWAY_{name.upper()}: shorter than 16" in words(said, "settings")


async def test_an_authenticator_that_is_not_there_is_a_fault() -> None:
    said = await found(secrets="x" * 32, auth="no_such_module:x")
    assert levels(said, "settings") == ["fault"]
    assert "no_such_module" in words(said, "settings")


async def test_limits_are_told_in_words_and_a_cost_that_nobody_counts_is_a_warning() -> None:
    assert levels(await found(), "limits") == []
    price = {"prompt": 1.0, "completion": 2.0}
    presets = {
        "default": {"price": price},
        "dear": {"price": price, "limits": {"posts_per_minute": 5, "cost_per_day": 1.5}},
        "free": {},
    }
    limits = {"streams": 3, "tokens_per_day": 200_000}
    said = await found(presets=presets, limits=limits)
    assert words(said, "limits").splitlines() == [
        "each user at most 3 streams at once, 200000 tokens a day",
        "dear: each user at most 5 requests a minute, 1.5 a day of what it costs",
    ]
    assert levels(said, "limits") == ["ok", "ok"]
    said = await found(presets=presets, limits={"cost_per_day": 1})
    assert levels(said, "limits") == ["ok", "ok", "warning"]
    assert words(said, "limits").endswith(
        "free: it has no price, so cost_per_day counts nothing of it"
    )
    said = await found(presets={"own": {"limits": {"cost_per_day": 2.5}}})
    assert levels(said, "limits") == ["ok", "warning"]


async def test_the_embedded_store_is_a_warning() -> None:
    said = await found(redis_url="")
    assert levels(said, "redis") == ["warning"]
    assert "nothing survives" in words(said, "redis")


async def test_a_redis_that_answers_is_ok_and_says_its_version(shared_redis: RedisServer) -> None:
    said = await found(redis_url=shared_redis.url)
    assert levels(said, "redis")[0] == "ok"
    assert "answers, version" in words(said, "redis")


async def test_a_redis_without_a_file_is_a_warning(shared_redis: RedisServer) -> None:
    assert "appendonly is off" in words(await found(redis_url=shared_redis.url), "redis")


async def test_a_redis_that_is_not_there_is_a_fault() -> None:
    said = await found(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    assert levels(said, "redis") == ["fault"]


async def test_a_cluster_is_ok_and_every_server_of_it_has_a_verdict(
    shared_cluster: RedisCluster,
) -> None:
    said = await found(redis_url=shared_cluster.url)
    assert levels(said, "redis")[0] == "ok"
    assert "cluster of 3 masters, state ok" in words(said, "redis")
    for server in shared_cluster.servers:
        assert f"127.0.0.1:{server.port}: answers, version" in words(said, "redis")
        assert f"127.0.0.1:{server.port}: appendonly is off" in words(said, "redis")
        assert f"127.0.0.1:{server.port}: has no replica" in words(said, "redis")
    assert "fault" not in levels(said, "redis")
    assert "most copies" not in words(said, "redis")


async def test_a_cluster_that_misses_a_master_or_a_slot_is_a_fault(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "cluster", masters=2) as cluster:
        cluster.servers[1].run("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        said = words(await found(redis_url=cluster.url), "redis")
        assert "with cluster-require-full-coverage those of all others" in said
        assert f"127.0.0.1:{cluster.servers[1].port}: has most copies of the beats" in said
        cluster.servers[0].kill()
        said_then = await found(redis_url=cluster.url)
        assert f"127.0.0.1:{cluster.servers[0].port}: ConnectionError" in words(said_then, "redis")
        assert "fault" in levels(said_then, "redis")
        for server in cluster.servers[1:]:
            server.run("CLUSTER", "FORGET", cluster.servers[0].id)
        said_now = await found(redis_url=cluster.url)
        assert "8192 of 16384 slots have a master" in words(said_now, "redis")
        assert levels(said_now, "redis")[0] == "fault"


async def test_a_server_of_a_cluster_that_is_named_as_a_single_one_is_a_fault(
    shared_cluster: RedisCluster, shared_redis: RedisServer
) -> None:
    said = await found(redis_url=shared_cluster.masters[0].url)
    assert levels(said, "redis") == ["fault"]
    assert "redis+cluster://" in words(said, "redis")
    said = await found(redis_url=f"redis+cluster://127.0.0.1:{shared_redis.port}")
    assert levels(said, "redis") == ["fault"]
    assert "cluster support disabled" in words(said, "redis")


@pytest.mark.parametrize(
    "url",
    [
        *("http://h/", "redis://h:port/", "redis+sentinel://h", "redis+cluster://h"),
        *("redis://a:1,b:2/0", "redis://a,b:2", "rediss://u:p@a:1,b:2"),
    ],
)
async def test_a_wrong_redis_url_is_a_fault(url: str) -> None:
    said = await found(redis_url=url)
    assert levels(said, "redis") == ["fault"]
    assert "GATEWAY_REDIS_URL" in words(said, "redis")


async def test_the_password_of_a_redis_is_not_shown() -> None:
    said = await found(redis_url=f"redis://user:pass-word@127.0.0.1:{free_port()}/0")
    assert "pass-word" not in "".join(map(str, said))


GOOD = {"redis_version": "7.2.4", "aof_enabled": "1", "maxmemory": "100"}
INFOS: dict[str, tuple[dict[str, str], list[str]]] = {
    "durable": ({}, ["ok"]),
    "old": ({"redis_version": "6.2.14"}, ["fault"]),
    "the oldest": ({"redis_version": "7.0.0"}, ["ok"]),
    "two digits": ({"redis_version": "10.0"}, ["ok"]),
    "a Valkey": ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, ["ok"]),
    "throws away": ({"maxmemory_policy": "allkeys-lru"}, ["ok", "warning"]),
    "would if it had a bound": ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, ["ok"]),
    "forgets": ({"aof_enabled": "0"}, ["ok", "warning"]),
    "alone": ({"connected_slaves": "0"}, ["ok"]),
    "replicated": ({"connected_slaves": "1"}, ["ok", "warning"]),
    "replicated with care": ({"connected_slaves": "1", "min_slaves_good_slaves": "1"}, ["ok"]),
}


@pytest.mark.parametrize(("info", "expected"), INFOS.values(), ids=INFOS)
def test_what_can_cost_a_stream_or_a_second_call_is_said(
    info: dict[str, str], expected: list[str]
) -> None:
    assert [verdict.level for verdict in _durability(GOOD | info)] == expected


async def test_a_failover_that_would_not_work_is_said_before_it_is_needed(tmp_path: Path) -> None:
    async with sentinels(tmp_path, "--appendonly", "yes") as redis:
        said = await found(redis_url=redis.url)
        assert levels(said, "redis") == ["ok", "warning", "ok"]
        assert "min-replicas-to-write is 0" in words(said, "redis")
        assert "3 Sentinels can agree" in words(said, "redis")
        for each in redis.nodes:
            await ask(each.port, "CONFIG", "SET", "min-replicas-to-write", 1)
        assert levels(await found(redis_url=redis.url), "redis") == ["ok", "ok"]

        one = redis.url.replace(f",127.0.0.1:{redis.watchers[2].port}", "")
        assert "2 Sentinel(s) named" in words(await found(redis_url=one), "redis")
        other = redis.url.replace(f":{redis.watchers[2].port}", f":{free_port()}")
        said = await found(redis_url=other)
        assert levels(said, "redis") == ["ok", "warning"]
        assert "Sentinel 127.0.0.1:" in words(said, "redis")

        async def is_said(text: str) -> bool:
            return text in words(await found(redis_url=redis.url), "redis")

        for each in [*redis.watchers[:2], *redis.nodes[1:]]:
            each.kill()
        await until(lambda: is_said("no replica is connected"))
        await until(lambda: is_said("NOQUORUM"))


async def ends(at: Served, url: str) -> bool:
    """Whether a stream comes to its end there, soon."""
    try:
        got = await asyncio.wait_for(at.read(url), 20)
    except TimeoutError:
        return False
    return got.names[-1:] == ["end"] and got.end["state"] == "done"


NEEDED = ("time", "xadd", "hset", "sadd", "xrange", "zadd", "hincrby")
RIGHTS = {
    "all": "+@all ~* &*",
    "the gateway's keys and no admin's commands": "+@all -@dangerous ~gw:* &gw:*",
    "no more than is needed": "+@read +@write +@scripting +@pubsub +time +ping ~gw:* &gw:*",
    "no channels": "+@all ~* resetchannels",
    "other channels": "+@all ~* resetchannels &app:*",
    "no word to others": "+@all -publish ~* &*",
    "no word of others": "+@all -subscribe ~* &*",
    "no scripts": "+@all -@scripting ~* &*",
    "scripts known, none new": "+@all -eval ~* &*",
    "other keys": "+@all ~app:* &*",
    "keys to read": "+@all %R~gw:* &*",
    "keys of streams alone": "+@all ~gw:{* &*",
    **{
        f"no {each}": f"+@all -{each} ~* &*"
        for each in ("time", "xadd", "hset", "sadd", "xrange", "zadd", "hincrby")
    },
    "no password": "",
}
UNREADY = ("no scripts", "scripts known, none new", "other keys", "keys to read", "no password")


@pytest.mark.parametrize("rights", RIGHTS)
async def test_check_tells_whether_the_gateway_will_work_with_this_user(
    rights: str, own_redis: RedisServer
) -> None:
    if RIGHTS[rights]:
        await ask(own_redis.port, "ACL", "SETUSER", "gw", "on", ">pw", *RIGHTS[rights].split())
    url = own_redis.url.replace("//", "//gw:pw@")
    said = await found(redis_url=url)
    async with scripted(whole) as upstream, AsyncExitStack() as stack:
        given = {"redis_url": url, "upstream_url": upstream.url}
        here, there = [await stack.enter_async_context(running(**given)) for _ in range(2)]
        ready = (await here.http.get("/readyz")).status_code == 200
        works = (answer := await here.post()).status_code == 201
        for each in (here, there) if works else ():
            works &= await ends(each, answer.json()["stream_url"])
    assert ("fault" in levels(said, "redis")) is not works
    assert ready or not works
    assert not (ready and rights in UNREADY)
    assert "pw" not in words(said, "redis")
    assert await ask(own_redis.port, "KEYS", "*check*") == []


@pytest.mark.parametrize("command", ["xlen", "zrange", "zrevrange", "zscore", "zrem", "hdel"])
async def test_a_right_that_is_needed_only_at_times_is_a_fault_too(
    command: str, own_redis: RedisServer
) -> None:
    await ask(own_redis.port, "ACL", "SETUSER", "gw", "on", ">pw", "+@all", f"-{command}", "~*")
    said = await found(redis_url=own_redis.url.replace("//", "//gw:pw@"))
    assert "fault" in levels(said, "redis")
    assert re.search(r"cannot [a-z ]+: (NOPERM|ERR The user)", words(said, "redis"))


@pytest.mark.parametrize("rights", ["no channels", "no word to others", "no word of others"])
async def test_wake_ups_that_are_refused_are_a_warning(rights: str, own_redis: RedisServer) -> None:
    await ask(own_redis.port, "ACL", "SETUSER", "gw", "on", ">pw", *RIGHTS[rights].split())
    said = await found(redis_url=own_redis.url.replace("//", "//gw:pw@"))
    (told,) = [each for each in said if "channels gw:inbox:*" in each.words]
    assert told.level == "warning"
    assert "once a second" in told.words


async def test_a_user_who_lacks_a_right_on_one_master_of_a_cluster_is_a_fault_there(
    shared_cluster: RedisCluster,
) -> None:
    rights = ["on", ">pw", "+@all", "-@dangerous", "~gw:*", "&*"]
    try:
        for server in shared_cluster.servers:
            server.run("ACL", "SETUSER", "gw", *rights)
        url = shared_cluster.url.replace("//", "//gw:pw@")
        said = await found(redis_url=url)
        assert "fault" not in levels(said, "redis")
        assert "are not told (NOPERM" in words(said, "redis")
        shared_cluster.masters[1].run("ACL", "SETUSER", "gw", "-xadd")
        faults = [each for each in await found(redis_url=url) if each.level == "fault"]
        (told,) = [each.words for each in faults if each.subject == "redis"]
        assert told.startswith(f"127.0.0.1:{shared_cluster.masters[1].port}: cannot start a stream")
    finally:
        for server in shared_cluster.servers:
            server.run("ACL", "DELUSER", "gw")


@pytest.mark.parametrize("commands", [("INFO",), ("EVAL", "EVALSHA"), ("XADD",), ("SUBSCRIBE",)])
async def test_a_command_that_is_renamed_is_a_fault_if_it_is_needed(
    commands: tuple[str, ...], tmp_path: Path
) -> None:
    gone = [part for each in commands for part in ("--rename-command", each, "")]
    with redis_server(tmp_path, *gone) as server:
        said = await found(redis_url=server.url)
    needed = commands[0] in {"EVAL", "XADD"}
    assert ("fault" in levels(said, "redis")) == needed
    assert "unknown" in words(said, "redis").lower()


async def test_the_address_of_a_read_replica_is_a_fault(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    (folder := tmp_path / "replica").mkdir()
    with redis_server(folder, "--replicaof", f"127.0.0.1 {own_redis.port}") as replica:
        said = await found(redis_url=replica.url)
        assert levels(said, "redis") == ["fault"]
        assert "name its master" in words(said, "redis")
        await ask(replica.port, "ACL", "SETUSER", "gw", "on", ">pw", "+@all", "-info", "~*", "&*")
        unasked = await found(redis_url=replica.url.replace("//", "//gw:pw@"))
        assert "READONLY" in words(unasked, "redis")
        assert "fault" in levels(unasked, "redis")
        async with running(redis_url=replica.url) as gateway:
            assert (await gateway.http.get("/readyz")).status_code == 503


async def test_a_full_redis_takes_no_replica_out_of_service(own_redis: RedisServer) -> None:
    """Its pages would be turned away for good; they wait, or are told to come back."""
    async with running(redis_url=own_redis.url) as gateway:
        await ask(own_redis.port, "CONFIG", "SET", "maxmemory", 1)
        assert (await gateway.post()).status_code == 503
        assert (await gateway.http.get("/readyz")).status_code == 200


async def test_a_redis_that_is_full_for_tickets_takes_no_replica_out_of_service(
    own_redis: RedisServer,
) -> None:
    async with running(redis_url=own_redis.url, store_share=0.001) as gateway:
        await ask(own_redis.port, "CONFIG", "SET", "maxmemory", 100 << 20)

        async def is_full() -> bool:
            answer = await gateway.post()
            return answer.status_code == 503 and answer.json()["code"] == "store_full"

        await until(is_full)
        assert (await gateway.http.get("/readyz")).status_code == 200


async def test_who_looks_whether_a_replica_is_ready_fills_nothing(own_redis: RedisServer) -> None:
    async with running(redis_url=own_redis.url, subject_bytes=4096) as gateway:
        for _ in range(6):
            assert (await gateway.http.get("/readyz")).status_code == 200
        assert await ask(own_redis.port, "KEYS", "gw:*:bytes") == []


@pytest.mark.parametrize(
    ("status", "level"),
    [
        *((404, "fault"), (410, "fault"), (301, "fault"), (308, "fault"), (503, "warning")),
        *((200, "ok"), (204, "ok"), (401, "ok"), (403, "ok"), (405, "ok"), (500, "ok")),
    ],
)
async def test_an_upstream_that_has_nothing_there_is_a_fault(status: int, level: str) -> None:
    async def script(call: Any) -> None:
        await call.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)

    async with scripted(script) as server:
        said = await found(upstream_url=server.url)
    assert levels(said, "upstream") == [level]
    assert str(status) in words(said, "upstream")


@pytest.mark.parametrize("listens", [True, False])
async def test_no_login_and_no_key_in_an_upstreams_address_is_shown(listens: bool) -> None:
    async with scripted(lambda call: call.send(OK)) as server:
        where = server.url if listens else f"http://127.0.0.1:{free_port()}/v1"
        url = where.replace("//", "//me:pass-word@") + "?api-version=7&key=of-mine&code=of-mine"
        presets = {"default": {"url": url}, "other": {"url": url + "&of-mine"}}
        said = await found(upstream_url=url, presets=presets)
    shown = words(said, "upstream")
    assert not [each for each in ("pass-word", "of-mine") if each in shown]
    assert "api-version=7" in shown


async def test_an_upstream_that_answers_is_ok_and_is_asked_for_nothing() -> None:
    async def script(call: Any) -> None:
        await call.send(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")

    async with scripted(script) as server:
        said = await found(upstream_url=server.url)
        assert [call.head.split()[0] for call in server.calls] == [b"OPTIONS"]
    assert levels(said, "upstream") == ["ok"]
    assert "405" in words(said, "upstream")


ELSEWHERE: dict[str, dict[str, Any]] = {
    "responses": {},
    "anthropic": {},
    "ollama": {},
    "gemini": {"models": ["gemini-2.5-flash"]},
    "sse": {"end": {"event": "message-end"}},
}


@pytest.mark.parametrize("protocol", ELSEWHERE)
async def test_an_upstream_of_any_protocol_is_asked_for_nothing(protocol: str) -> None:
    async def script(call: Any) -> None:
        await call.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with scripted(script) as server:
        url = server.url.replace("/v1/chat/completions", "/v1/{model}:ask")
        preset = {"url": url, "protocol": protocol, **ELSEWHERE[protocol]}
        said = await found(upstream_url="", presets={"default": preset})
        (call,) = server.calls
    assert levels(said, "upstream") == ["ok"]
    method, target, _ = call.head.split(b" ", 2)
    assert (method, call.body) == (b"OPTIONS", b"")
    assert protocol != "gemini" or target == b"/v1/gemini-2.5-flash:ask"


@pytest.mark.parametrize(
    ("protocol", "path", "doubt"),
    [
        ("openai", "/v1/chat/completions", ""),
        ("openai", "/v1/completions/", ""),
        ("openai", "/api/of/our/own", ""),
        ("sse", "/api/chat", ""),  # As the AI SDK's.
        ("openai", "/v1/messages", 'protocol = "anthropic", and the preset\'s is openai'),
        ("openai", "/api/chat", 'protocol = "ollama"'),
        ("openai", "/v1/responses", 'protocol = "responses"'),
        ("openai", "/m/{model}:streamGenerateContent", 'protocol = "gemini"'),
        ("ollama", "/v1/chat/completions", 'protocol = "openai", and the preset\'s is ollama'),
        ("gemini", "/m/{model}:generateContent", "that is :streamGenerateContent"),
    ],
)
async def test_an_address_of_another_protocol_is_a_warning(
    protocol: str, path: str, doubt: str
) -> None:
    async with scripted(lambda call: call.send(OK)) as server:
        url = server.url.removesuffix("/v1/chat/completions") + path
        preset = {"url": url, "protocol": protocol, **ELSEWHERE.get(protocol, {})}
        said = await found(upstream_url="", presets={"default": preset})
    assert levels(said, "upstream") == ["ok", *(["warning"] if doubt else [])]
    assert doubt in words(said, "upstream")


async def test_an_upstream_that_is_not_there_is_a_fault() -> None:
    said = await found()
    assert levels(said, "upstream") == ["fault"]
    assert "could not be reached" in words(said, "upstream")


async def test_a_missing_upstream_is_a_fault() -> None:
    said = await found(upstream_url="")
    assert "GATEWAY_UPSTREAM_URL: missing" in words(said, "upstream")


async def test_every_preset_has_a_verdict_on_its_upstream() -> None:
    async with scripted(lambda call: call.send(OK)) as server:
        presets = {
            "good": {"url": server.url},
            "bad": {"url": f"http://127.0.0.1:{free_port()}/"},
        }
        said = await found(upstream_url="", presets=presets)
    assert levels(said, "upstream") == ["ok", "fault"]
    assert words(said, "upstream").startswith("good: ")


async def test_the_command_exits_0_where_nothing_is_at_fault(shared_redis: RedisServer) -> None:
    of_two = {"secrets": SECRET, "cookie_secrets": SECRET}
    async with scripted(whole) as server:
        process = Process("check", redis_url=shared_redis.url, upstream_url=server.url, **of_two)
        lines = (await _output(process)).splitlines()
    assert process.wait() == 0
    assert {line.split()[1] for line in lines} == {"settings", "redis", "upstream"}
    assert "fault" not in {line.split()[0] for line in lines}


async def test_the_command_exits_1_and_says_every_fault() -> None:
    process = Process("check", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    lines = (await _output(process)).splitlines()
    assert process.wait() == 1
    faults = {line.split()[1] for line in lines if line.startswith("fault")}
    assert faults == {"settings", "redis", "upstream"}


async def _output(process: Process) -> str:
    output, errors = await asyncio.to_thread(process.process.communicate, None, 20)
    assert "Traceback" not in errors
    return str(output)

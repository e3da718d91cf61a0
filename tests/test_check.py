"""`gateway check`: a verdict on everything the gateway depends on, before anybody depends on it."""

import asyncio
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
    free_port,
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
async def test_a_secret_that_can_be_guessed_is_a_warning(secrets: str) -> None:
    assert levels(await found(secrets=secrets), "settings") == ["warning"]


async def test_an_authenticator_that_is_not_there_is_a_fault() -> None:
    said = await found(secrets="x" * 32, auth="no_such_module:x")
    assert levels(said, "settings") == ["fault"]
    assert "no_such_module" in words(said, "settings")


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
    "url", ["http://h/", "redis://h:port/", "redis+sentinel://h", "redis+cluster://h"]
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


async def test_an_upstream_that_answers_is_ok_and_is_asked_for_nothing() -> None:
    async def script(call: Any) -> None:
        await call.send(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")

    async with scripted(script) as server:
        said = await found(upstream_url=server.url)
        assert [call.head.split()[0] for call in server.calls] == [b"OPTIONS"]
    assert levels(said, "upstream") == ["ok"]
    assert "405" in words(said, "upstream")


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
    async with scripted(whole) as server:
        process = Process(
            "check", redis_url=shared_redis.url, upstream_url=server.url, secrets=SECRET
        )
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

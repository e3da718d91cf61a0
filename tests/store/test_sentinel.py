"""A master that dies, hangs or is replaced costs no stream anything: real nodes, real Sentinels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from gateway.check import verdicts
from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.store.pools import SentinelManager
from tests.sentinels import NAME, Sentinels, Tls, Watcher, ask, sentinels
from tests.support import (
    RedisServer,
    ScriptedUpstream,
    free_port,
    missing,
    redis_binary,
    redis_server,
    settings,
    until,
)
from tests.test_promises import Paced
from tests.test_redis_faults import Watched, watched

STREAMS = 6


@asynccontextmanager
async def under_way(
    folder: Path, *options: str, down_after: float = 1, tls: bool = False
) -> AsyncIterator[tuple[Sentinels, ScriptedUpstream, Watched]]:
    """Run the nodes, two gateways, and streams of four seconds: a failover has its place there.

    Uneven ones: of those in step all would have something in flight when the connection breaks.
    """
    script = Paced(40, 0.1, uneven=True)
    async with (
        sentinels(folder, *options, down_after=down_after, tls=tls) as redis,
        watched(redis.nodes[0], script, STREAMS, redis_url=redis.url) as (
            upstream,
            streams,
        ),
    ):
        yield redis, upstream, streams


async def test_a_machine_that_is_lost_costs_no_stream_an_event_or_a_call(tmp_path: Path) -> None:
    """The master was on it, and the Sentinel that gateways ask first, which hangs from now on."""
    async with under_way(tmp_path) as (redis, upstream, streams):
        old = await redis.master()
        redis.watchers[0].pause()
        old.kill()
        await redis.moved_from(old)
        await streams.ready()
        await streams.all_whole()
        assert len(upstream.calls) == STREAMS
        fresh = await streams.at.ticket()
        old.start()  # It believes to be the master, until it is told.
        await redis.demoted(old)
        assert (await streams.at.read(1, fresh)).end["state"] == "done"


async def test_what_a_master_took_that_was_none_any_more_is_written_again(tmp_path: Path) -> None:
    """It hangs, is replaced, wakes up and goes on answering those who are still connected."""
    async with under_way(tmp_path, down_after=0.3) as (redis, upstream, streams):
        old = await redis.master()
        old.pause()
        new = await redis.moved_from(old)
        old.resume()
        await ask(old.port, "SET", "witness", "taken", "PX", 60_000)
        await redis.demoted(old)
        await until(lambda: _gone(old.port, "witness"), "what it took is lost")
        assert await ask(new.port, "GET", "witness") is None
        await streams.all_whole()
        await streams.ready()
        assert len(upstream.calls) == STREAMS


async def _gone(port: int, key: str) -> bool:
    return await ask(port, "GET", key) is None


async def test_a_planned_failover_costs_no_stream_anything(tmp_path: Path) -> None:
    async with under_way(tmp_path) as (redis, upstream, streams):
        old = await redis.master()
        new = await redis.fail_over()
        await redis.demoted(old)
        await streams.ready()
        url = await streams.at.ticket()
        assert await ask(new.port, "DBSIZE") > 0
        await streams.all_whole()
        assert (await streams.at.read(0, url)).end["state"] == "done"
        assert len(upstream.calls) == STREAMS + 1


async def test_a_failover_over_tls_with_logins_costs_no_stream_anything(tmp_path: Path) -> None:
    """To the Sentinels and, by what they tell, to the master: nothing listens without TLS."""
    async with under_way(tmp_path, tls=True) as (redis, upstream, streams):
        old = await redis.master()
        old.kill()
        new = await redis.moved_from(old)
        await streams.ready()
        url = await streams.at.ticket()
        assert await redis.ask(new, "DBSIZE") > 0
        await streams.all_whole()
        assert (await streams.at.read(0, url)).end["state"] == "done"
        assert len(upstream.calls) == STREAMS + 1


@pytest.mark.parametrize("who", ["the master", "the Sentinels"])
async def test_one_of_master_and_sentinels_alone_may_have_tls(who: str, tmp_path: Path) -> None:
    if redis_binary() is None:
        missing("a Redis server")
    tls, port, at = Tls(tmp_path), free_port(), free_port()
    secure = [part for name, value in tls.options(port).items() for part in (f"--{name}", value)]
    told = tls.options(at)
    if who == "the master":
        told |= {"port": str(at), "tls-port": "0"}
    else:
        told |= {"tls-replication": "no"}
        secure = []
    lines = [*map(" ".join, told.items()), f"sentinel monitor {NAME} 127.0.0.1 {port} 1"]
    (path := tmp_path / "sentinel.conf").write_text("\n".join(lines) + "\n")
    server, watcher = RedisServer(tmp_path, *secure, port=port), Watcher(tmp_path, path, at)
    try:
        server.start()
        watcher.start()
        url = f"redis+sentinel://127.0.0.1:{at}/{NAME}?ssl_ca_certs={tls.cert}&sentinel_tls=true"
        if who == "the master":
            url = url.replace("redis+", "rediss+").replace("=true", "=false")
        await until(partial(_answers, url), f"{who} with TLS")
    finally:
        watcher.kill()
        server.kill()


async def test_without_the_authoritys_certificate_nobody_is_trusted(tmp_path: Path) -> None:
    async with sentinels(tmp_path, tls=True) as redis:
        for name in ("ssl_ca_certs", "sentinel_password"):
            url, _, query = redis.url.partition("?")
            left = [each for each in query.split("&") if not each.startswith(name)]
            assert not await _answers(f"{url}?{'&'.join(left)}")
        assert await _answers(redis.url)
        found = await verdicts(settings(redis_url=redis.url))
        said = [str(each) for each in found if each.subject == "redis"]
        assert not [each for each in said if each.startswith("fault")]
        assert "3 Sentinels can agree on a failover" in said[-1]
        assert not [each for each in said if Tls.of_redis in each or "a&other" in each]


async def test_passwords_may_have_any_character_and_sentinels_one_of_their_own(
    tmp_path: Path,
) -> None:
    if redis_binary() is None:
        missing("a Redis server")
    of_the_server, of_the_sentinel = "p@ss:w/r#d?", "a&other=1"
    folder = tmp_path / "sentinel"
    folder.mkdir()
    with redis_server(tmp_path, "--requirepass", of_the_server) as server:
        path = folder / "sentinel.conf"
        path.write_text(
            f"sentinel monitor {NAME} 127.0.0.1 {server.port} 1\n"
            f'sentinel auth-pass {NAME} "{of_the_server}"\nrequirepass "{of_the_sentinel}"\n'
        )
        watcher = Watcher(folder, path)
        watcher.start()
        try:
            login = quote(of_the_server, "")
            address = f"redis+sentinel://:{login}@127.0.0.1:{watcher.port}/{NAME}"
            await until(partial(_answers, f"{address}?sentinel_password={quote(of_the_sentinel)}"))
            store = RedisClient(address)
            with pytest.raises(
                Unavailable, match=r"no Sentinel tells of the master: .*Auth"
            ) as caught:
                await store.call("PING")
            await store.close()
            assert caught.value.detail == ""  # A caller is told nothing of our servers.
        finally:
            watcher.kill()


async def _answers(url: str) -> bool:
    store = RedisClient(url)
    try:
        return bool(await store.call("PING") == b"PONG")
    except Unavailable:
        return False  # It has not seen the master yet.
    finally:
        await store.close()


class Asked:
    """A Sentinel of redis-py's, as far as a discovery asks it."""

    def __init__(self, knows: bool) -> None:
        self._knows = knows

    async def sentinel_masters(self) -> dict[str, Any]:
        """Tell of the masters, after others had their turn."""
        await asyncio.sleep(0)
        if not self._knows:
            raise RedisConnectionError("away")
        flags = {"is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 2}
        return {"main": {"ip": "10.0.0.1", "port": 6379, **flags}}


async def test_questions_at_once_lose_no_sentinel() -> None:
    manager: Any = SentinelManager([])  # type: ignore[no-untyped-call]
    all_of_them = [Asked(False), Asked(True), Asked(True)]
    manager.sentinels = list(all_of_them)
    found = await asyncio.gather(*(manager.discover_master("main") for _ in range(3)))
    assert found == [("10.0.0.1", 6379)] * 3
    assert manager.sentinels[0] is all_of_them[1]
    assert {*manager.sentinels} == {*all_of_them}

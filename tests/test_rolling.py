"""A rolling restart behind nginx: deploys are invisible (promise 10), as an operator does them."""

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from tests.nginx import Front, front
from tests.support import (
    RedisServer,
    Transcript,
    ask,
    chunk,
    cookie,
    read,
    scripted,
    settings,
    until,
)
from tests.test_promises import Paced, held

ALICE = cookie(settings())
STREAMS = 200


class Viewer:
    """A bare EventSource: it comes back after `retry:` with its last id, until told otherwise."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self.seen = Transcript()
        self.connections = 0
        self._http = http
        self._url = url
        self._delay = 3.0

    async def watch(self) -> Transcript:
        """Return all it saw; fails where an EventSource would give up."""
        while self.seen.status != 204:
            try:
                got = await read(self._http, self._url, last_id=self.seen.last_id, headers=ALICE)
            except httpx.TransportError:
                await asyncio.sleep(self._delay)
                continue
            self.connections += 1
            self.seen.extend(got)
            assert got.status in {200, 204}, (got.status, got.raw)
            for line in re.findall(rb"^retry: (\d+)\n", got.raw, re.MULTILINE):
                self._delay = int(line) / 1000
            if got.status == 200:
                await asyncio.sleep(self._delay)
        return self.seen


class Users:
    """So many users who ask, watch the answer to its end, and ask again, until they are to stop."""

    def __init__(self, at: Front, script: Paced) -> None:
        self.at = at
        self.prompts: list[str] = []
        self.reconnects = 0
        self.watching = 0
        self._whole = [*script.data, chunk("", finish="stop"), b"[DONE]"]
        self._stop = asyncio.Event()

    async def __call__(self, number: int) -> None:
        """Be one of them."""
        await asyncio.sleep(number * 0.01)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            await self._ask(f"User {number}, question {turn}.")

    async def _ask(self, prompt: str) -> None:
        answer = await self.at.http.post("/tickets", json=ask(prompt), headers=ALICE)
        assert answer.status_code == 201, answer.text
        self.prompts.append(prompt)
        viewer = Viewer(self.at.http, answer.json()["stream_url"])
        self.watching += 1
        seen = await viewer.watch()
        self.watching -= 1
        assert seen.data == self._whole, prompt
        assert seen.end["state"] == "done"
        assert len(set(seen.ids)) == len(seen.ids)
        self.reconnects += viewer.connections - 2  # The stream itself, and the 204.

    async def while_(self, deploy: Callable[[], Awaitable[None]]) -> None:
        """Run a deploy while all of them are watching."""
        async with asyncio.TaskGroup() as group:
            for number in range(STREAMS):
                group.create_task(self(number))
            await until(lambda: self.watching > STREAMS * 0.9, "all are watching", 20)
            await deploy()
            self._stop.set()


async def ended(at: Front, number: int) -> int:
    """Return a replica's exit code."""
    return await asyncio.to_thread(at.replicas.processes[number].wait, 30)


@pytest.mark.timeout(150)
async def test_a_rolling_restart_of_three_replicas_breaks_none_of_two_hundred_streams(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = Paced(20, 0.2)
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url, 3, drain="20", start_by="300") as at,
    ):
        users = Users(at, script)
        codes: list[int] = []

        async def deploy() -> None:
            for number in range(3):
                at.replicas.signal(number, signal.SIGTERM)
                codes.append(await ended(at, number))
                assert users.watching > STREAMS * 0.25
                await asyncio.to_thread(at.replicas.replace, number)

        await users.while_(deploy)
        assert codes == [0, 0, 0]
        assert users.reconnects > STREAMS / 3  # They were sent away, and nobody noticed.
        calls = Counter(call.json["messages"][-1]["content"] for call in upstream.calls)
        assert calls == Counter(users.prompts)
        assert set(calls.values()) == {1}


async def test_while_a_replica_drains_no_call_through_kept_connections_fails(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held()
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url, drain="10") as at,
    ):
        urls = [url for group in await at.spread(4) for url in group]
        viewers = [asyncio.create_task(Viewer(at.http, url).watch()) for url in urls]
        await until(lambda: len(upstream.calls) == len(urls))
        for _ in range(20):  # Connections of nginx that are kept, to both.
            await asyncio.gather(*(at.ticket() for _ in range(4)))
        at.replicas.signal(0, signal.SIGTERM)
        for _ in range(30):
            answers = await asyncio.gather(*(at.post() for _ in range(4)))
            assert {answer.status_code for answer in answers} == {201}
        viewers.append(asyncio.create_task(Viewer(at.http, await at.ticket()).watch()))
        await until(lambda: len(upstream.calls) == len(urls) + 1, "a new stream begins")
        script.go.set()
        for seen in await asyncio.gather(*viewers):
            assert seen.data == [*script.data, chunk("", finish="stop"), b"[DONE]"]
        assert await ended(at, 0) == 0
        assert len(upstream.calls) == len(urls) + 1


async def test_a_replica_of_another_address_comes_in_by_a_reload_that_cuts_no_stream(
    shared_redis: RedisServer, tmp_path: Path
) -> None:
    script = held(5)
    async with (
        scripted(script) as upstream,
        front(tmp_path, shared_redis, upstream.url, 3, drain="10") as at,
    ):
        first, second, third = at.replicas.ports
        at.nginx.reload(first, second)
        await until(lambda: goes_to(at, {0, 1}), "the new configuration is in use")
        (left,), (kept,), *_ = await at.spread(1, among=2)
        viewers = [Viewer(at.http, url) for url in (left, kept)]
        watching = [asyncio.create_task(each.watch()) for each in viewers]
        await until(lambda: len(upstream.calls) == 2)
        at.nginx.reload(second, third)
        await until(lambda: goes_to(at, {1, 2}), "the new configuration is in use")
        assert [each.connections for each in viewers] == [0, 0]  # Still their first ones.
        at.replicas.signal(0, signal.SIGTERM)
        await until(lambda: viewers[0].connections == 1, "it is sent away")
        script.go.set()
        for seen in await asyncio.gather(*watching):
            assert seen.data == [*script.data, chunk("", finish="stop"), b"[DONE]"]
        assert [each.connections for each in viewers] == [3, 2]  # The last one is the 204.
        assert await ended(at, 0) == 0
        assert len(upstream.calls) == 2


async def goes_to(at: Front, wanted: set[int]) -> bool:
    """Say whether new tickets are taken to these replicas and no others."""
    try:  # So many that the old configuration, with all three, would hardly look like it.
        return {await at.replica_of(await at.ticket()) for _ in range(40)} == wanted
    except httpx.TransportError:  # A call crossed with the close of its kept connection, and
        return False  # httpx, other than a browser, does not send it again (RFC 9112 §9.5).

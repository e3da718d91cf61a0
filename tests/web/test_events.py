"""Events: a user's channel, over real sockets and real Redises."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.sse import Event, Parser
from gateway.store.keys import channel_id, channel_key, log_key, new_id
from tests.support import RedisServer, Served, Transcript, running, until

TOKEN = "a-service-token-of-the-tests"
SERVICE = {"Authorization": f"Bearer {TOKEN}"}
STREAM = {"Accept": "text/event-stream"}


@asynccontextmanager
async def replica(url: str = "", **more: Any) -> AsyncIterator[Served]:
    """Run a gateway that takes a service token."""
    async with running(redis_url=url, service_tokens=TOKEN, **more) as gate:
        yield gate


async def push(gate: Served, subject: str, data: Any, **more: Any) -> str:
    """Push a message and return its id."""
    answer = await gate.http.post(
        f"/users/{subject}/events", json={"data": data, **more}, headers=SERVICE
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


class Watcher:
    """A page that watches a channel as an EventSource does: it keeps the last id it was told."""

    def __init__(self, subject: str, query: str = "") -> None:
        self.events: list[Event] = []
        self.last_id = ""
        self.connects = 0
        self._subject = subject
        self._url = f"/events{query}"
        self._closing: httpx.Response | None = None

    @property
    def data(self) -> list[str]:
        """The data of all messages that came."""
        return [each.data.decode() for each in self.events if each.name != b"gap"]

    @property
    def gaps(self) -> list[dict[str, str]]:
        """The gaps that were told."""
        return [json.loads(each.data) for each in self.events if each.name == b"gap"]

    async def look(self, gate: Served) -> None:
        """Watch until the connection ends."""
        headers = {**gate.cookie(self._subject), **STREAM}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        parser = Parser(limit=1 << 26)
        async with gate.http.stream("GET", self._url, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for chunk in answer.aiter_raw():
                for block in chunk.split(b"\n\n")[:-1]:
                    position = block.rpartition(b"\n")[2]
                    if position.startswith(b"id: ") and b"data:" not in block:
                        self.last_id = position[4:].decode()
                self.connects += chunk.startswith(b"retry:")
                for event in parser.feed(chunk):
                    self.events.append(event)
                    self.last_id = event.id.decode()

    @asynccontextmanager
    async def on(self, gate: Served) -> AsyncIterator["Watcher"]:
        """Watch for the length of the block, from when it is open."""
        before = self.connects
        task = asyncio.create_task(self.look(gate))
        try:
            await until(lambda: self.connects > before or task.done(), "it is open")
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_a_message_reaches_every_page_of_its_user_and_nobody_else(redis_url: str) -> None:
    user = new_id()
    async with replica(redis_url) as gate, AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(Watcher(user).on(gate)) for _ in range(3)]
        other = await stack.enter_async_context(Watcher(new_id()).on(gate))
        ids = [await push(gate, user, f"m{number}", event="news") for number in range(3)]
        ids.append(await push(gate, user, {"a": [1, "\n"]}))
        await until(lambda: all(len(page.events) == 4 for page in pages))
        for page in pages:
            assert [each.id.decode() for each in page.events] == ids
            assert [each.name for each in page.events] == [b"news"] * 3 + [b""]
            assert page.data == ["m0", "m1", "m2", '{"a": [1, "\\n"]}'] or page.data[
                3
            ] == '{"a":[1,"\\n"]}'
        assert other.events == []


async def test_two_replicas(shared_redis: RedisServer) -> None:
    user = new_id()
    async with replica(shared_redis.url) as a, replica(shared_redis.url) as b:
        async with Watcher(user).on(a) as page:
            import time
            t = time.monotonic()
            await push(b, user, "x")
            await until(lambda: page.events)
            print("lat", time.monotonic() - t)
            assert time.monotonic() - t < 0.3

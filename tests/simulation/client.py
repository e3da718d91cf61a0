"""The outside: HTTP exchanges with a replica over a network that may break, and EventSources."""

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from gateway.eventlog.entries import EventId
from gateway.serve.deadlines import Closed
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import LATER

if TYPE_CHECKING:
    from tests.simulation.world import Replica

_ROOM = 400  # Bytes that a reader who has stopped reading still takes.


class Broken(Exception):
    """The connection ended before the answer did."""


class Exchange:
    """One request to a replica and its answer; what is public is the client's side."""

    def __init__(
        self,
        replica: "Replica",
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        query: dict[str, str] | None = None,
        body: bytes = b"",
        lend: bool = False,
    ) -> None:
        self.status = 0
        self.reading = True
        self.left = False
        self._loop: VirtualLoop = replica.loop
        self._number = next(self._loop.numbers)
        self._replica = replica
        self._rng = replica.world.network.rng
        self._body = body
        self._came: list[bytes] = []
        self._over: bool | None = None  # True at the end of the answer, False if it was cut.
        self._waiter: asyncio.Future[None] | None = None
        self._arrives = self._reaches = 0.0
        self._outstanding = 0
        self._room: asyncio.Future[None] | None = None
        self._told = False
        self._gone: asyncio.Future[None] | None = None
        self._closed = Closed(self)
        self._scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(query or {}).encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("gateway", 80),
            "client": ("viewer", 1),
            "root_path": "",
            "extensions": {},
        }
        if lend:
            self._scope["extensions"] = {
                "gateway.abort": self._abort,
                "gateway.write": self._write,
                "gateway.closed": self._closed,
            }
        replica.exchanges.add(self)
        self._in_replica(self._begin)

    def __hash__(self) -> int:
        return self._number

    async def head(self) -> int:
        """Return the status; raises Broken."""
        while not self.status:
            if self._over is not None:
                raise Broken
            await self._wait()
        return self.status

    async def read(self) -> bytes:
        """Return what came, b"" at the end; raises Broken where it was cut."""
        while not self._came:
            if self._over is False:
                raise Broken
            if self._over:
                return b""
            await self._wait()
        data = b"".join(self._came)
        self._came.clear()
        self._in_replica(self._taken, len(data))
        return data

    async def whole(self) -> bytes:
        """Return the whole body; raises Broken."""
        await self.head()
        body = b""
        while data := await self.read():
            body += data
        return body

    def leave(self) -> None:
        """Hang up."""
        if not self.left:
            self.left = True
            self._over = False if self._over is None else self._over
            self._came.clear()
            self._in_replica(self._disconnected)
            self._wake()

    def cut(self) -> None:
        """Break the connection from the replica's side: its process is gone."""
        self._loop.world(self._loop.time() + self._rng.random() * 0.002, self._ended, False)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arrived(self, data: bytes, status: int) -> None:
        if self._over is None:
            self.status = status
            if data:
                self._came.append(data)
            if self.reading:
                self._wake()

    def _ended(self, whole: bool) -> None:
        if self._over is None:
            self._over = whole
            self._wake()

    def look(self) -> None:
        """Read on."""
        self.reading = True
        self._wake()

    # The replica's side

    def _in_replica(self, call: Callable[..., None], *args: Any) -> None:
        now = self._loop.time() + 0.001 * self._rng.random()
        self._reaches = max(self._reaches + LATER, now)
        self._loop.call_at(self._reaches, call, *args, context=self._replica.context)

    def _to_client(self, call: Callable[..., None], *args: Any) -> None:
        if not self._replica.host.dead:
            now = self._loop.time() + 0.001 * self._rng.random()
            self._arrives = max(self._arrives + LATER, now)
            self._loop.world(self._arrives, call, *args)

    def _begin(self) -> None:
        self._replica.spawn(self._serve())

    async def _serve(self) -> None:
        try:
            await self._replica.gateway.app(self._scope, self._receive, self._send)
        finally:
            self._replica.exchanges.discard(self)
            self._to_client(self._ended, False)

    async def _receive(self) -> dict[str, Any]:
        if not self._told:
            self._told = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        if not self._disconnect_came:
            self._gone = self._loop.create_future()
            await self._gone
        return {"type": "http.disconnect"}

    _disconnect_came = False

    def _disconnected(self) -> None:
        self._disconnect_came = True
        self._closed.tell()
        for each in (self._gone, self._room):
            if each is not None and not each.done():
                each.set_result(None)

    _status = 0
    passes = False  # Whether the answer is one to come back, and no stream: that has no length.

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self.passes = any(name == b"content-length" for name, _ in message["headers"])
            self._to_client(self._arrived, b"", self._status)
            return
        data = message.get("body", b"")
        if data:
            self._put(data)
            while self._outstanding > _ROOM and not self.reading and not self._disconnect_came:
                self._room = self._loop.create_future()
                await self._room
        if not message.get("more_body"):
            self._to_client(self._ended, True)

    def _write(self, data: bytes) -> bool:
        if self._disconnect_came or (not self.reading and self._outstanding > _ROOM):
            return False
        self._put(data)
        return True

    def _put(self, data: bytes) -> None:
        if not self._disconnect_came:
            self._outstanding += len(data)
            self._to_client(self._arrived, data, self._status)

    def _taken(self, count: int) -> None:
        self._outstanding -= count
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def drop(self) -> None:
        """Close it from the server's side."""
        self._abort()

    def _abort(self) -> None:
        self._to_client(self._ended, False)
        self._disconnected()


class EventSource:
    """A browser's: reconnects with its last id until it is told to stop."""

    def __init__(self, stream: Any, act: dict[str, Any], number: int) -> None:
        self.name = f"viewer {number}"
        self.stream = stream
        self.act = act
        self.late = bool(act.get("late"))  # It comes when all is over, and keeps nothing alive.
        self.seen: list[tuple[str, bytes]] = []  # Id and block of each event since the last gap.
        self.last_id = ""
        self.outcome = ""
        self.told_at = 0.0  # When it was.
        self.ended_at: float | None = None
        self.gaps: list[float] = []
        self.after_gap: EventId | None = None
        self.connected: list[list[Any]] = []  # From when to when to which replica.
        self._retry = 0.5
        self._rng = random.Random(act["seed"])
        self._exchange: Exchange | None = None
        self._buffer = b""
        self._away = False
        self._gone = False

    @property
    def stays(self) -> bool:
        """Whether it wants everything to the end."""
        return all(back for _, back in self.act["leaves"])

    async def run(self, world: Any) -> None:
        """Come, leave and come back as the schedule says, until there is nothing more."""
        loop: VirtualLoop = world.loop
        await world.until(self.act["at"])
        await self.stream.posted.wait()
        for leave, back in self.act["leaves"]:
            loop.world(max(leave, loop.time()), self._leave, back == 0.0)
            if back:
                loop.world(max(back, loop.time() + LATER), self._back)
        if self.act["sticks"]:
            loop.world(loop.time() + 0.5, self._stick, False)
            loop.world(loop.time() + 0.5 + 6 * self._rng.random(), self._stick, True)
        while not self._gone and not self.outcome:
            if not self._away:
                await self._connect(world)
            if not self.outcome:
                await asyncio.sleep(self._retry if self._rng.random() < 0.8 else 0.001)

    def _leave(self, for_good: bool) -> None:
        self._away, self._gone = True, for_good
        if self._exchange is not None:
            self._exchange.leave()

    def _back(self) -> None:
        self._away = False
        if self.act["reloads"] and not self.outcome:
            if self._exchange is not None:  # Of a page that left late, and was back before it.
                self._exchange.leave()
            self.last_id = ""
            self.seen.clear()

    def _stick(self, reads: bool) -> None:
        if self._exchange is not None:
            self._exchange.reading = reads
            if reads:
                self._exchange.look()

    async def _connect(self, world: Any) -> None:
        replica = world.replica(self._rng)
        if replica is None:
            return
        headers = {"Accept": "text/event-stream", "X-User": "alice"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        exchange = self._exchange = self._asked(replica, headers)
        self._buffer = b""
        span = [world.loop.time(), None, replica.host.name]
        with suppress(Broken):
            status = await exchange.head()
            if status == 200:
                if not exchange.passes:
                    self.connected.append(span)
                await self._read(exchange, world)
            elif not (self.act["post"] and (status == 503 or (status == 429 and world.limited))):
                body = await exchange.whole()
                self.outcome = f"{status} {_code(body)}".strip()
                self.told_at = world.loop.time()
                self.ended_at = world.loop.time()
                world.say(f"{self.name} was told {self.outcome}")
        span[1] = world.loop.time()
        exchange.leave()

    def _asked(self, replica: Any, headers: dict[str, str]) -> Exchange:
        if self.act["post"]:
            headers |= {"Idempotency-Key": self.stream.key, "Content-Type": "application/json"}
            return Exchange(
                replica, "POST", self.stream.path, headers=headers, body=self.stream.body
            )
        lend, query = self.act["lend"], {"ticket": self.stream.ticket}
        return Exchange(replica, "GET", "/stream", headers=headers, query=query, lend=lend)

    async def _read(self, exchange: Exchange, world: Any) -> None:
        while data := await exchange.read():
            if not exchange.reading:
                while not exchange.reading and not exchange.left:
                    await exchange._wait()
            breaks = self.act["flaky"] and self._rng.random() < 0.1
            if breaks:
                data = data[: self._rng.randrange(len(data))]
            self._buffer += data
            *blocks, self._buffer = self._buffer.split(b"\n\n")
            for block in blocks:
                self._event(block, world)
            if breaks:
                return

    def _event(self, block: bytes, world: Any) -> None:
        lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
        for line in lines:
            if line.startswith(b"retry: "):
                self._retry = int(line[7:]) / 1000
        lines = [line for line in lines if not line.startswith(b"retry: ")]
        if lines:
            event_id = lines[-1].removeprefix(b"id: ").decode()
            self._show(world, event_id, b"\n".join(lines))
            self.last_id = event_id

    def _show(self, world: Any, event_id: str, block: bytes) -> None:
        world.oracle.shown(self, event_id, block)


def _code(body: bytes) -> str:
    with suppress(ValueError):
        return str(json.loads(body).get("code", ""))
    return ""

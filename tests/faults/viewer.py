"""Viewer: a bare EventSource on a raw socket.

Nothing of the gateway's own code reads here: the parser is a second one, from the standard's text.
It reconnects after `retry` with its last id, stops on 204, and gives up for ever on anything else
but 200. What it does of its own accord (stop reading, cut, leave) is in its acts.
"""

import asyncio
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.plays import reset
from tests.faults.schedule import Act, Watch

_PATIENCE = 12.0  # Seconds without a byte, where heartbeats come every second.
_CONNECT = 5.0


class Got(NamedTuple):
    """One event as the page got it."""

    name: bytes
    data: bytes
    id: str


@dataclass
class Transcript:
    """All that a viewer got, over all its connections.

    `final` is 204, refused (anything an EventSource gives up on, in `why`), or unfinished.
    """

    events: list[Got] = field(default_factory=list)
    final: str = "unfinished"
    why: str = ""
    connections: int = 0
    silences: int = 0  # Connections that gave no byte for far longer than a heartbeat takes.
    began: float = 0.0
    ended: float = 0.0
    over: float = 0.0  # When its end came.


class Lines:
    """The parser of the standard (HTML §9.2.6): bytes in, events out."""

    def __init__(self, last_id: str) -> None:
        self.last_id = last_id
        self.retry: float | None = None
        self._rest = b""
        self._id = last_id
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Got]:
        """Return the events that are complete now. Lines end in LF here, as ours must."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines if (event := self._line(line))]

    def _line(self, line: bytes) -> Got | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = value
        elif name == b"id":
            self._id = value.decode()
        elif name == b"retry" and value.isdigit():
            self.retry = int(value) / 1000
        return None

    def _dispatch(self) -> Got | None:
        self.last_id = self._id
        name, data, self._name, self._data = self._name, self._data, b"", []
        return Got(name, b"\n".join(data), self._id) if data else None


class Head(NamedTuple):
    """The head of a response."""

    status: int
    headers: dict[str, str]


class Refused(Exception):
    """An answer on which an EventSource gives up."""


class Viewer:
    """One page's EventSource; `where` gives the port of each connection."""

    def __init__(self, path: str, cookie: str, watch: Watch, where: Callable[[], int]) -> None:
        self.transcript = Transcript()
        self.played: dict[str, int] = {}
        self._path = path
        self._cookie = cookie
        self._where = where
        self._acts = list(watch.acts)
        self._last_id = ""
        self._retry = 0.5
        self._away = 0.0
        self._small = any(act.kind == "pause" for act in watch.acts)

    async def run(self, seconds: float) -> Transcript:
        """Watch until the stream is over, `seconds` at most."""
        got = self.transcript
        got.began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._watch()
        got.ended = time.monotonic()
        return got

    async def _watch(self) -> None:
        got = self.transcript
        while got.final == "unfinished":
            if self._acts and self._acts[0].kind == "resend" and self._due(self._acts[0]) <= 0:
                self._played(self._acts.pop(0))
                await self._sent_in_vain()
            try:
                await self._connection()
            except Refused as error:
                got.final, got.why = "refused", str(error)
            except (OSError, EOFError, ValueError):
                pass  # An error of the network: come back.
            if got.final == "unfinished":
                await asyncio.sleep(self._away or self._retry * random.uniform(1, 1.2))
                self._away = 0.0

    def _due(self, act: Act) -> float:
        return self.transcript.began + act.at - time.monotonic()

    def _played(self, act: Act) -> None:
        self.played[act.kind] = self.played.get(act.kind, 0) + 1

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        sock.setblocking(False)
        if self._small:  # Else the kernel reads in place of one who does not.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        try:
            async with asyncio.timeout(_CONNECT):
                address = ("127.0.0.1", self._where())
                await asyncio.get_running_loop().sock_connect(sock, address)
            reader, writer = await asyncio.open_connection(sock=sock, limit=16 * 1024)
        except BaseException:
            sock.close()
            raise
        lines = [f"GET {self._path} HTTP/1.1", "Host: gateway", "Accept: text/event-stream"]
        lines += [f"Cookie: {self._cookie}", "Cache-Control: no-cache"]
        lines += [f"Last-Event-ID: {self._last_id}"] if self._last_id else []
        writer.write("\r\n".join([*lines, "", ""]).encode())
        return reader, writer

    async def _sent_in_vain(self) -> None:
        """Send a GET, and lose its connection before the answer: browsers then send it again."""
        with suppress(OSError):
            _, writer = await self._open()
            await writer.drain()
            await asyncio.sleep(random.uniform(0, 0.02))
            reset(writer)

    async def _connection(self) -> None:
        reader, writer = await self._open()
        self.transcript.connections += 1
        try:
            head = await asyncio.wait_for(read_head(reader), _PATIENCE)
            if head.status == 204:
                self.transcript.final = "204"
                return
            if head.status != 200 or head.headers.get("content-type", "")[:17] != (
                "text/event-stream"
            ):
                raise Refused(f"{head.status} {head.headers.get('content-type')}")
            await self._read(reader, writer, head)
        finally:
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: Head
    ) -> None:
        lines, body = Lines(self._last_id), Body(head)
        while not body.complete:
            act = self._acts[0] if self._acts else None
            wait = min(_PATIENCE, max(0.0, self._due(act))) if act else _PATIENCE
            try:
                chunk = await asyncio.wait_for(reader.read(64 * 1024), wait)
            except TimeoutError:
                if act is None or self._due(act) > 0:
                    self.transcript.silences += 1
                    raise
                if await self._act(self._acts.pop(0), writer):
                    return
                continue
            if not chunk:
                raise EOFError
            self._got(lines.feed(body.feed(chunk)))
            self._last_id = lines.last_id
            self._retry = self._retry if lines.retry is None else lines.retry

    def _got(self, events: list[Got]) -> None:
        if any(each.name == b"end" for each in events):
            self.transcript.over = time.monotonic()
        self.transcript.events += events

    async def _act(self, act: Act, writer: asyncio.StreamWriter) -> bool:
        """Do as planned; say whether that ended the connection."""
        self._played(act)
        if act.kind == "pause":
            await asyncio.sleep(act.length)
            return False
        if act.kind == "leave":
            self._away = act.length
            return True
        reset(writer)
        if act.kind == "resend":
            await self._sent_in_vain()
        return True


class Body:
    """The body of a response, out of its chunks if it has any."""

    def __init__(self, head: Head) -> None:
        self.complete = False
        self._chunked = "chunked" in head.headers.get("transfer-encoding", "")
        self._left = int(head.headers.get("content-length", 1 << 60))
        self._rest = b""
        self._in_chunk = 0  # Bytes of the chunk that are still to come, its CR LF included.

    def feed(self, chunk: bytes) -> bytes:
        """Return what belongs to the body; raises ValueError where that cannot be told."""
        if not self._chunked:
            self._left -= len(chunk)
            self.complete = self._left <= 0
            return chunk
        self._rest += chunk
        parts: list[bytes] = []
        while self._rest:
            if not self._in_chunk:
                size, newline, rest = self._rest.partition(b"\r\n")
                if not newline:
                    break
                self._in_chunk, self._rest = int(size, 16) + 2, rest
                self.complete = self._in_chunk == 2
            part = self._rest[: self._in_chunk]
            parts.append(part[: max(0, self._in_chunk - 2)])
            self._in_chunk -= len(part)
            self._rest = self._rest[len(part) :]
        return b"".join(parts)


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Read the head of a response; raises EOFError or ValueError where there is none."""
    try:
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError as error:
        raise ValueError(str(error)) from error
    pairs = (line.partition(":") for line in rest if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Head(int(first.split()[1]), headers)


async def request(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, bytes]:
    """Send one plain request on a connection of its own; return status and body."""
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            lines = [f"{method} {path} HTTP/1.1", "Host: gateway", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            lines += [f"Content-Length: {len(body)}", "", ""]
            writer.write("\r\n".join(lines).encode() + body)
            head = await read_head(reader)
            whole, kind = b"", Body(head)
            while not kind.complete and (chunk := await reader.read(64 * 1024)):
                whole += kind.feed(chunk)
            return head.status, whole
        finally:
            writer.close()

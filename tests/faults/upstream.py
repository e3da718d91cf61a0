"""Upstream: a completion endpoint that counts its calls and fails as the schedule says.

It runs on the harness's own loop, one raw socket a call. The ticket's number is in the prompt and
the replica's name is its API key, so every call is known by both; ticket and call are in every
event, so what a viewer got tells whose call it paid for.
"""

import asyncio
import fcntl
import json
import random
import socket
import struct
import sys
import termios
import time
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.upstream.protocols.refusals import SURE
from tests.faults.schedule import Answer
from tests.support import until

_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
_NASTY = ("", "\nid: 5-1", "\u2028", "é\u0301", "🏳️‍🌈", "data: x", ": no comment", " lead", "\\n\\n")

Sent = tuple[bytes, bytes]  # Name and data of an event as a viewer is to get it.


@dataclass
class Call:
    """One request for a completion, and how it was answered.

    `outcome` is "" while it goes on: then refused, not_a_stream, whole, cut, stalled, error or
    left (by the caller, before anything else).
    """

    ticket: int
    number: int  # Of the ticket's calls, from 0.
    replica: str
    at: float
    sent: list[Sent] = field(default_factory=list)
    finished: bool = False
    outcome: str = ""
    ended: float = 0.0
    unsure: bool = False  # Refused as by a gateway whose provider may have been paid.

    @property
    def paid(self) -> bool:
        """Whether it was anything but a sure refusal."""
        return self.outcome != "refused" or self.unsure or bool(self.sent)


class Upstream:
    """Answers what the answers say; `calls` has every call, `done` what faults it has played."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.calls: dict[int, list[Call]] = {}
        self.played: dict[str, int] = {}
        self.url = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"

    async def stop(self) -> None:
        """Close the listener and all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._one(reader, writer)
        self._tasks.discard(task)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: refusals leave it open for the next request, all else ends it."""
        while True:
            call, answer = await self._request(reader)
            play = _Play(self, call, answer, writer)
            if call.number >= len(answer.refusals):
                break
            await play.refuse(answer.refusals[call.number])
            call.ended = time.monotonic()
        playing = asyncio.ensure_future(play.play())
        leaving = asyncio.ensure_future(_gone(reader))
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            playing.cancel()
            leaving.cancel()
            with suppress(ConnectionError, asyncio.CancelledError):
                await playing
            call.outcome = call.outcome or "left"
            call.ended = time.monotonic()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[Call, Answer]:
        head = await reader.readuntil(b"\r\n\r\n")
        name = _header(head, b"authorization").removeprefix("Bearer ")
        body = json.loads(await reader.readexactly(int(_header(head, b"content-length"))))
        ticket = int(body["messages"][-1]["content"].split()[-1])
        earlier = self.calls.setdefault(ticket, [])
        call = Call(ticket, len(earlier), name, time.monotonic())
        earlier.append(call)
        return call, self.answers[ticket]


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(name + b": "):
            return line.split(b": ", 1)[1].decode()
    return ""


async def _gone(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        await reader.read()


class _Play:
    """The answer to one call."""

    def __init__(
        self, upstream: Upstream, call: Call, answer: Answer, writer: asyncio.StreamWriter
    ) -> None:
        self._upstream = upstream
        self._call = call
        self._answer = answer
        self._writer = writer
        self._chance = random.Random(f"answer {call.ticket} {call.number}")
        self._chunked = answer.fault == "garbage" and answer.variant == "bad_chunk"

    async def play(self) -> None:
        """Answer as the schedule says."""
        answer = self._answer
        if answer.fault == "garbage" and answer.variant in {"html", "no_http"}:
            await self._no_stream()
        else:
            await self._stream()

    def _fault(self, outcome: str = "") -> None:
        """Count the fault as played, once a ticket; note the call's outcome."""
        played = self._upstream.played
        if self._call.number == 0:
            played[self._answer.fault] = played.get(self._answer.fault, 0) + 1
        self._call.outcome = outcome

    async def refuse(self, status: int) -> None:
        """Refuse, and count it."""
        self._fault("refused")
        self._call.unsure = status >= 500 and status not in SURE
        body = b'{"error": {"message": "not now"}}'
        head = f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nRetry-After: 0.3\r\n"
        await self._write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def _no_stream(self) -> None:
        if self._answer.variant == "html":
            self._fault("not_a_stream")
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
            await self._write(head + b"<p>no</p>")
        else:
            self._fault("cut")
            await self._write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")

    async def _stream(self) -> None:
        answer = self._answer
        coding = b"Transfer-Encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        await self._write(_STREAM + coding)
        for number in range(answer.events):
            if answer.fault and number == answer.at and await self._fails():
                return
            await self._event(*self._text(number))
            await asyncio.sleep(answer.interval)
        self._call.finished = True
        await self._event(b"", self._chunk(answer.events, "", "stop"))
        if answer.fault and answer.at >= answer.events and await self._fails():
            return
        await self._event(b"", b'{"choices":[],"usage":{"completion_tokens":%d}}' % answer.events)
        await self._event(b"", b"[DONE]")
        if self._chunked:
            await self._write(b"0\r\n\r\n")
        self._call.outcome = "whole"

    async def _fails(self) -> bool:
        """Play the fault; say whether that was the end of the answer."""
        kind, variant = self._answer.fault, self._answer.variant
        if kind == "stall":
            self._fault("stalled")
            await asyncio.Event().wait()
        elif kind == "cut":
            await self._write(b'data: {"half an ev')
            await self._arrived()
            self._fault("cut")
            if variant == "rst":
                reset(self._writer)
            return True
        elif kind == "slow":
            self._fault()
            for _ in range(8):
                await self._write(self._framed(b":" + b"." * self._chance.randint(1, 9) + b"\n"))
                await asyncio.sleep(0.2)
        elif kind == "garbage":
            return await self._garbage(variant)
        return False

    async def _garbage(self, variant: str) -> bool:
        if variant == "bad_chunk":
            self._fault("cut")
            await self._write(b"xyz not a size\r\n")
            return True
        if variant == "error":
            data = b'{"error":{"message":"the model fell over"}}'
            self._fault("" if self._call.finished else "error")
            await self._event(b"", data)
            return True
        self._fault()
        junk = self._chance.randbytes(60).replace(b"\n", b"").replace(b"\r", b"")
        await self._write(b"junk" + junk + b"\nid: 77-7\nretry: 1\n\n:" + junk + b"\n\n")
        return False

    def _text(self, number: int) -> Sent:
        name = self._chance.choice([b"", b"", b"", b"", b"", b"chunk", b"end", b"open"])
        text = self._chance.choice(_NASTY) + "x" * self._answer.padding
        data = self._chunk(number, text)
        if self._chance.random() < 0.1:
            data = data.replace(b',"choices"', b',\n"choices"')
        return name, data

    def _chunk(self, number: int, text: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        known = {"ticket": self._call.ticket, "call": self._call.number, "n": number}
        chunk = {**known, "choices": [choice]}
        return json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode()

    async def _event(self, name: bytes, data: bytes) -> None:
        shown = b"upstream-" + name if name in {b"end", b"open"} else name
        lines = [b"event: " + name] if name else []
        lines += [b"data: " + line for line in data.split(b"\n")]
        block = b"\n".join(lines) + b"\n\n"
        self._call.sent.append((shown, data))  # Before it is: it may be shown before we go on.
        if self._answer.fault == "slow" and not self._answer.padding:
            half = self._chance.randrange(len(block))
            await self._write(self._framed(block[:half]))
            await asyncio.sleep(0.02)
            block = block[half:]
        await self._write(self._framed(block))

    async def _arrived(self) -> None:
        """Wait until all that was sent is acknowledged: an RST would overtake the rest of it."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        transport = self._writer.transport
        await until(lambda: not (transport.get_write_buffer_size() or _unacknowledged(sock)))

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _unacknowledged(sock: socket.socket) -> int:
    size = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(size, sys.byteorder)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with an RST."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

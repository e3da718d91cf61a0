"""Plays: the calls of an upstream, and how each is answered.

Ticket and call are in every event, so what a viewer got tells whose call it paid for.
"""

import asyncio
import fcntl
import json
import random
import socket
import struct
import sys
import termios
from dataclasses import dataclass, field
from typing import Any

from gateway.upstream.protocols.refusals import SURE
from tests.faults.schedule import Answer
from tests.support import until

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
NASTY = ("", "\nid: 5-1", "\u2028", "é\u0301", "🏳️‍🌈", "data: x", ": no comment", " lead", "\\n\\n")

# What is asked, before the ticket's number; here a token is four characters.
PROMPT = "Say it once more, and as slowly as it was said the last time, if you please: ticket "
PROMPT_TOKENS = len(PROMPT) // 4

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
    kept: bool = False  # Whether the answer goes on without its connection.
    others: list[str] = field(default_factory=list)  # Replicas that asked for its rest.
    cancels: int = 0
    tokens: int = 0  # Of what was said so far.

    @property
    def paid(self) -> bool:
        """Whether it was anything but a sure refusal."""
        return self.outcome != "refused" or self.unsure or bool(self.sent)


class Play:
    """The answer to one call."""

    def __init__(
        self, played: dict[str, int], call: Call, answer: Answer, writer: asyncio.StreamWriter
    ) -> None:
        self.call = call
        self._played = played
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
        if self.call.number == 0:
            self._count(self._answer.fault)
        self.call.outcome = outcome

    def _count(self, what: str) -> None:
        self._played[what] = self._played.get(what, 0) + 1

    async def refuse(self, status: int) -> None:
        """Refuse, and count it."""
        self._fault("refused")
        self.call.unsure = status >= 500 and status not in SURE
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
        coding = b"Transfer-Encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        await self._write(STREAM + coding)
        if await self._events() and self._chunked:
            await self._write(b"0\r\n\r\n")

    async def _events(self) -> bool:
        """Send all events, up to a fault; say whether the answer is whole."""
        answer = self._answer
        for number in range(answer.events):
            if answer.fault and number == answer.at and await self._fails():
                return False
            await self._event(*self._text(number))
            await asyncio.sleep(answer.interval)
        self.call.finished = True
        await self._event(b"", self._chunk(answer.events, "", "stop"))
        if answer.fault and answer.at >= answer.events and await self._fails():
            return False
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": self.call.tokens}
        await self._event(b"", b'{"choices":[],"usage":%b}' % packed(usage))
        await self._event(b"", b"[DONE]")
        self.call.outcome = "whole"
        return True

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
            self._fault("" if self.call.finished else "error")
            await self._event(b"", data)
            return True
        self._fault()
        junk = self._chance.randbytes(60).replace(b"\n", b"").replace(b"\r", b"")
        await self._write(b"junk" + junk + b"\nid: 77-7\nretry: 1\n\n:" + junk + b"\n\n")
        return False

    def _text(self, number: int) -> Sent:
        name = self._chance.choice([b"", b"", b"", b"", b"", b"chunk", b"end", b"open"])
        text = self._chance.choice(NASTY) + "x" * self._answer.padding
        self.call.tokens += tokens_of(text)
        data = self._chunk(number, text)
        if self._chance.random() < 0.1:
            data = data.replace(b',"choices"', b',\n"choices"')
        return name, data

    def _chunk(self, number: int, text: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        known = {"ticket": self.call.ticket, "call": self.call.number, "n": number}
        return packed({**known, "choices": [choice]})

    async def _event(self, name: bytes, data: bytes) -> None:
        shown = b"upstream-" + name if name in {b"end", b"open", b"error"} else name
        lines = [b"event: " + name] if name else []
        lines += [b"data: " + line for line in data.split(b"\n")]
        block = b"\n".join(lines) + b"\n\n"
        self._keep((shown, data))  # Before it is sent: it may be shown before we go on.
        if self._answer.fault == "slow" and not self._answer.padding:
            half = self._chance.randrange(len(block))
            await self._write(self._framed(block[:half]))
            await asyncio.sleep(0.02)
            block = block[half:]
        await self._write(self._framed(block))

    def _keep(self, event: Sent) -> None:
        self.call.sent.append(event)

    async def _arrived(self) -> None:
        """Wait until all that was sent is acknowledged: an RST would overtake the rest of it."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        transport = self._writer.transport
        await until(lambda: not (transport.get_write_buffer_size() or unacknowledged(sock)))

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes that the other end has not acknowledged; ConnectionError if it is gone."""
    if sock.fileno() < 0:
        raise ConnectionResetError("the caller left")
    size = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(size, sys.byteorder)


def tokens_of(text: str) -> int:
    """Return how many tokens a piece of text is: one, or four letters of what fills it are one."""
    return max(1, text.count("x") // 4) if text else 0


def packed(value: Any) -> bytes:
    """Return JSON without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with an RST."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

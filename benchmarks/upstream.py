"""A mock OpenAI-style upstream, cheap enough not to be what is measured.

`POST` anything with `bench-EVENTS-INTERVALMS` in the body: EVENTS chat-completion chunks, the first
at once, then one every INTERVALMS (0: as fast as the reader takes them), a finish chunk and
`[DONE]`.
Every event carries `@SEQ:SENT_NS:` (monotonic clock) in its content. `GET` tells the counts so far.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Final, cast

import httptools
import uvloop

EVENT_BYTES: Final = 255
BLAST_BATCH: Final = 32
PLAN: Final = re.compile(rb"bench-(\d+)-(\d+)")
USAGE: Final = re.compile(rb'"include_usage"\s*:\s*true')
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk_json(delta: str, finish: str, tail: str = "") -> str:
    return (
        '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",'
        f'"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]{tail}}}'
    )


def framed(event: str) -> bytes:
    """One event as one HTTP chunk."""
    body = f"data: {event}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


def event_template() -> bytes:
    """A chunk of EVENT_BYTES once its sequence number and send time are filled in."""
    mark = f"@{0:07d}:{0:016d}:"
    bare = len("data: \n\n" + chunk_json('{"content":""}', "null")) + len(mark)
    sized = framed(chunk_json(f'{{"content":"{mark}{"x" * (EVENT_BYTES - bare)}"}}', "null"))
    return sized.replace(b"@0000000:0000000000000000:", b"@%07d:%016d:")


EVENT: Final = event_template()
FINISH: Final = framed(chunk_json("{}", '"stop"'))
TOKENS: Final = '"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}'
USAGE_CHUNK: Final = framed(
    '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",'
    f'"choices":[],{TOKENS}}}'
)
DONE: Final = framed("[DONE]") + b"0\r\n\r\n"


class Wheel:
    """Paced streams by the millisecond in which their next event is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.slots: dict[int, list[Completion]] = {}
        self.at = 0
        self.requests = 0
        self.events = 0
        self.late_ms = 0

    def add(self, stream: Completion, due_ms: int) -> None:
        if not self.slots:
            self.at = time.monotonic_ns() // 1_000_000
            self.loop.call_later(0.001, self.tick)
        self.slots.setdefault(max(due_ms, self.at + 1), []).append(stream)

    def tick(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        self.late_ms = max(self.late_ms, now - self.at)
        while self.at < now:
            self.at += 1
            for stream in self.slots.pop(self.at, ()):
                if (due := stream.send_next(self.at)) is not None:
                    self.slots.setdefault(max(due, self.at + 1), []).append(stream)
        if self.slots:
            self.loop.call_later(0.001, self.tick)


class Completion(asyncio.Protocol):
    """One connection; one answer at a time."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.body = b""
        self.seq = self.total = self.interval = 0
        self.usage = False
        self.may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        plan, self.usage = PLAN.search(self.body), bool(USAGE.search(self.body))
        self.body = b""
        if plan is None:
            self.answer_counts()
            return
        self.seq, self.total, self.interval = 0, int(plan[1]), int(plan[2])
        self.wheel.requests += 1
        self.write(HEAD)
        if self.interval:
            due = self.send_next(time.monotonic_ns() // 1_000_000)
            if due is not None:
                self.wheel.add(self, due)
        else:
            self.blast()

    def send_next(self, due_ms: int) -> int | None:
        """Send one event; tell when the next is due, None after the last."""
        if self.transport is None:
            return None
        self.transport.write(EVENT % (self.seq, time.monotonic_ns()))
        self.seq += 1
        self.wheel.events += 1
        if self.seq < self.total:
            return due_ms + self.interval
        self.finish()
        return None

    def blast(self) -> None:
        if self.transport is None or not self.may_write or self.seq >= self.total:
            return
        upto = min(self.seq + BLAST_BATCH, self.total)
        now = time.monotonic_ns()
        self.transport.write(b"".join([EVENT % (seq, now) for seq in range(self.seq, upto)]))
        self.wheel.events += upto - self.seq
        self.seq = upto
        if self.seq == self.total:
            self.finish()
        else:
            self.wheel.loop.call_soon(self.blast)

    def finish(self) -> None:
        self.write(FINISH + (USAGE_CHUNK if self.usage else b"") + DONE)

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def pause_writing(self) -> None:
        self.may_write = False

    def resume_writing(self) -> None:
        self.may_write = True
        if not self.interval:
            self.blast()

    def answer_counts(self) -> None:
        wheel = self.wheel
        counts = {"requests": wheel.requests, "events": wheel.events, "late_ms": wheel.late_ms}
        wheel.late_ms = 0
        body = json.dumps(counts).encode()
        self.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(loop)
    server = await loop.create_server(lambda: Completion(wheel), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--port", type=int, default=9901)
    uvloop.run(serve(cli.parse_args().port))

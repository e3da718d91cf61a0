"""The load client: opens streams, checks that each is whole and in order, times every event.

One raw `asyncio.Protocol` per stream. What a stream must bring is known from the plan: events
numbered from `first` without a hole, then the finish chunk and the target's own end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import json
import re
import resource
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

import uvloop

MARK: Final = re.compile(rb"@(\d+):(\d+):")
FIRST_ID: Final = re.compile(rb"^id: ?(\S+)", re.M)
OVER: Final = b"0\r\n\r\n"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Target:
    """A server under test and how a stream is had from it."""

    port: int
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    kind: str = "post"  # post: the answer is the stream; ticket: POST, then GET its stream_url; get
    end: bytes = b"[DONE]"
    host: str = "127.0.0.1"

    def post(self, events: int, interval_ms: int) -> bytes:
        body = json.dumps(
            {
                "model": "bench",
                "messages": [{"role": "user", "content": f"bench-{events}-{interval_ms}"}],
                "stream": True,
            }
        )
        extra = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        return self.head("POST", self.path, *extra) + body.encode()

    def get(self, path: str, *extra: str) -> bytes:
        return self.head("GET", path, "Accept: text/event-stream", *extra)

    def head(self, method: str, path: str, *extra: str) -> bytes:
        lines = (
            f"{method} {path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            *self.headers,
            *extra,
        )
        return "\r\n".join((*lines, "", "")).encode()


@dataclasses.dataclass(frozen=True)
class Plan:
    """So many streams, opened over `ramp` seconds, measured for `window` seconds after that."""

    streams: int
    events: int
    interval_ms: int = 20
    ramp: float = 0.0
    window: float = 0.0
    settle: float = 0.8  # between the last opening and the window
    grace: float = 10.0  # seconds past the streams' own length before the rest counts as cut
    first: int = 0
    request: bytes = b""  # instead of the target's own first request

    @property
    def length(self) -> float:
        return self.ramp + self.events * self.interval_ms / 1000

    @classmethod
    def paced(
        cls, streams: int, window: float, *, per_second: int = 200, settle: float = 1.5
    ) -> Plan:
        """Streams of one event per 20 ms, all of them open throughout the window."""
        ramp = max(0.5, streams / per_second)
        events = int((ramp + settle + window + 0.5) * 50)
        return cls(streams, events, 20, ramp, window, settle)


@dataclasses.dataclass
class Result:
    """What the client saw. Rates and latencies are of the window, the rest of the whole plan."""

    streams: int = 0
    whole: int = 0
    begun: int = 0  # had their first event when the window ended
    lost: int = 0
    repeated: int = 0
    cut: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    events: int = 0
    window_events: int = 0
    rate: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    get_ttft_p50_ms: float = 0.0
    open_seconds: float = 0.0
    client_busy: float = 0.0
    stream_url: str = ""
    first_id: str = ""

    @property
    def ok(self) -> bool:
        return self.whole == self.streams and not self.lost and not self.repeated


def quantile(values: list[float] | array[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else 0.0


class Load:
    """The streams of one plan and what they have seen together."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self.target = target
        self.plan = plan
        self.first_request = plan.request or target.post(plan.events, plan.interval_ms)
        self.latencies = array("d")
        self.ttft: list[float] = []
        self.get_ttft: list[float] = []
        self.measuring = False
        self.left = plan.streams
        self.result = Result(streams=plan.streams)
        self.reasons: Counter[str] = Counter()
        self.over = asyncio.Event()

    def ended(self, reason: str) -> None:
        if reason:
            self.result.cut += 1
            self.reasons[reason] += 1
        else:
            self.result.whole += 1
        self.left -= 1
        if not self.left:
            self.over.set()


class Stream(asyncio.Protocol):
    """One viewer."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.expected = load.plan.first
        self.raw = b""  # of the head or an unfinished HTTP chunk
        self.line = b""  # an unfinished line
        self.trailer = b""
        self.in_body = False
        self.chunked = False
        self.redeeming = load.target.kind != "ticket"
        self.finished = False
        self.began = self.got = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.began = self.got = time.monotonic_ns()
        self.transport.write(self.load.first_request)

    def data_received(self, data: bytes) -> None:
        if self.in_body:
            self.body(data)
        else:
            self.head(data)

    def head(self, data: bytes) -> None:
        self.raw += data
        head, blank, rest = self.raw.partition(b"\r\n\r\n")
        if not blank:
            return
        status = head[9:12].decode()
        if not self.redeeming:
            self.redeem(status, head, rest)
        elif status != "200":
            self.finish(f"status {status}")
        else:
            self.raw, self.in_body = b"", True
            self.chunked = b"chunked" in head.lower()
            if rest:
                self.body(rest)

    def redeem(self, status: str, head: bytes, body: bytes) -> None:
        length = re.search(rb"content-length: *(\d+)", head, re.I)
        if length is None or status not in ("200", "201"):
            self.finish(f"ticket status {status}")
        elif len(body) >= int(length[1]):
            self.raw, self.redeeming = b"", True
            url = self.load.result.stream_url = json.loads(body)["stream_url"]
            self.got = time.monotonic_ns()
            self.transport.write(self.load.target.get(url))

    def body(self, data: bytes) -> None:
        if self.chunked:
            data = self.dechunk(data)
        if self.line:
            data = self.line + data
            self.line = b""
        if not data.endswith(b"\n"):
            data, newline, self.line = data.rpartition(b"\n")
            data += newline
        if marks := MARK.findall(data):
            self.events(data, marks)
        if self.expected >= self.load.plan.events:
            self.trailer += data[-1024:]
        if self.chunked and self.raw == OVER:
            self.close()

    def dechunk(self, data: bytes) -> bytes:
        """The body bytes in what was read: nearly always one whole HTTP chunk."""
        if not self.raw and data != OVER:
            at = data.find(b"\r\n")
            if at > 0 and int(data[:at], 16) == len(data) - at - 4:
                return data[at + 2 : -2]
        raw, parts, pos = self.raw + data, [], 0
        while (at := raw.find(b"\r\n", pos)) >= 0:
            size = int(raw[pos:at], 16)
            if not size or len(raw) < at + 4 + size:
                break
            parts.append(raw[at + 2 : at + 2 + size])
            pos = at + 4 + size
        self.raw = raw[pos:]
        return b"".join(parts)

    def events(self, data: bytes, marks: list[tuple[bytes, bytes]]) -> None:
        now, load = time.monotonic_ns(), self.load
        if self.expected == load.plan.first:
            self.first_event(now, data)
        for number, sent in marks:
            seq = int(number)
            if seq == self.expected:
                self.expected += 1
            elif seq > self.expected:
                load.result.lost += seq - self.expected
                self.expected = seq + 1
            else:
                load.result.repeated += 1
            if load.measuring:
                load.latencies.append((now - int(sent)) / 1e6)
        load.result.events += len(marks)

    def first_event(self, now: int, data: bytes) -> None:
        self.load.ttft.append((now - self.began) / 1e6)
        self.load.get_ttft.append((now - self.got) / 1e6)
        if not self.load.result.first_id and (found := FIRST_ID.search(data)):
            self.load.result.first_id = found[1].decode()

    def close(self) -> None:
        if self.expected < self.load.plan.events:
            self.finish("ended early")
        elif b'"stop"' not in self.trailer or self.load.target.end not in self.trailer:
            self.finish("no true end")
        else:
            self.finish("")

    def finish(self, reason: str) -> None:
        if not self.finished:
            self.finished = True
            self.load.ended(reason)
            if self.began:
                self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished and self.in_body and not self.chunked:
            self.close()
        self.finish(type(exc).__name__ if exc else "closed by the server")


async def open_streams(load: Load) -> list[Stream]:
    """All streams, evenly over the ramp."""
    loop, plan, opened = asyncio.get_running_loop(), load.plan, []
    tasks: set[asyncio.Task[None]] = set()
    slots = asyncio.Semaphore(1000)  # connections being made at a time

    async def connect(stream: Stream) -> None:
        try:
            async with slots:
                await loop.create_connection(lambda: stream, load.target.host, load.target.port)
        except OSError as error:
            stream.finished = True
            load.ended(type(error).__name__)

    began = loop.time()
    for number in range(plan.streams):
        wait = began + plan.ramp * number / plan.streams - loop.time()
        if wait > 0.001:
            await asyncio.sleep(wait)
        opened.append(stream := Stream(load))
        tasks.add(loop.create_task(connect(stream)))
    await asyncio.gather(*tasks)
    load.result.open_seconds = loop.time() - began
    return opened


Probe = Callable[[], dict[str, float]]


async def measure(load: Load, probe: Probe | None) -> dict[str, float]:
    """Let the window pass; tell by how much what the probe reads has grown meanwhile."""
    await asyncio.sleep(load.plan.ramp + load.plan.settle)
    before = probe() if probe else {}
    busy, began, seen = time.process_time(), time.monotonic(), load.result.events
    load.measuring = True
    await asyncio.sleep(load.plan.window)
    load.measuring = False
    after, result = probe() if probe else {}, load.result
    result.seconds = time.monotonic() - began
    result.begun = len(load.ttft)
    result.window_events = result.events - seen
    result.rate = result.window_events / result.seconds
    result.client_busy = (time.process_time() - busy) / result.seconds
    return {name: after[name] - value for name, value in before.items()}


async def drive(target: Target, plan: Plan, probe: Probe | None) -> tuple[Result, dict[str, float]]:
    load = Load(target, plan)
    began = time.monotonic()
    window = asyncio.create_task(measure(load, probe)) if plan.window else None
    streams = await open_streams(load)
    grown = await window if window else {}
    with contextlib.suppress(TimeoutError):
        left = plan.length + plan.grace - (time.monotonic() - began)
        await asyncio.wait_for(load.over.wait(), max(0.1, left))
    result = load.result
    result.seconds = result.seconds or time.monotonic() - began
    for stream in streams:
        if not stream.finished:
            stream.finish("not over in time")
    result.reasons = dict(load.reasons)
    result.p50_ms, result.p99_ms = (quantile(load.latencies, q) for q in (0.5, 0.99))
    result.ttft_p50_ms, result.ttft_p99_ms = (quantile(load.ttft, q) for q in (0.5, 0.99))
    result.get_ttft_p50_ms = quantile(load.get_ttft, 0.5)
    return result, grown


class Posting(asyncio.Protocol):
    """One kept-alive connection on which a ticket is asked for as soon as the last one is there."""

    def __init__(self, request: bytes, counts: Counter[str], until: float) -> None:
        self.request, self.counts, self.until = request, counts, until
        self.raw = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.raw += data
        head, blank, body = self.raw.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.I) if blank else None
        if length is None or len(body) < int(length[1]):
            return
        self.raw = b""
        self.counts[head[9:12].decode()] += 1
        if time.monotonic() < self.until:
            self.transport.write(self.request)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def post_tickets(
    target: Target, connections: int, seconds: float
) -> tuple[float, Counter[str]]:
    """Tickets per second and the statuses seen."""
    counts: Counter[str] = Counter()
    began, loop = time.monotonic(), asyncio.get_running_loop()
    pairs = [
        await loop.create_connection(
            lambda: Posting(target.post(1, 1), counts, began + seconds), target.host, target.port
        )
        for _ in range(connections)
    ]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*(p.over for _, p in pairs)), seconds + 10)
    return counts["201"] / (time.monotonic() - began), counts


def run(job: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, without the garbage collector's pauses in the client's own clock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    gc.disable()
    try:
        return uvloop.run(job)
    finally:
        gc.enable()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("port", type=int)
    cli.add_argument("--kind", default="post", choices=("post", "ticket"))
    cli.add_argument("--path", default="/v1/chat/completions")
    cli.add_argument("--header", action="append", default=[])
    cli.add_argument("--streams", type=int, default=50)
    cli.add_argument("--seconds", type=float, default=3.0)
    args = cli.parse_args()
    target = Target(args.port, args.path, tuple(args.header), args.kind)
    result, _ = run(drive(target, Plan.paced(args.streams, args.seconds), None))
    print(json.dumps(dataclasses.asdict(result), indent=2))


if __name__ == "__main__":
    main()

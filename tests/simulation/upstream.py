"""The simulated upstream: speaks HTTP, does what the schedule says, and counts what is paid for."""

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.sse import parse
from tests.simulation.kept import PATH, KeptResponse, KeptResponses
from tests.simulation.network import Connection, Network
from tests.support import chunk

# What is refused so costs nothing; any other status may come from a gateway that asked further.
UNPAID = frozenset({400, 401, 429, 503, 529})


@dataclass
class Call:
    """One request that arrived whole."""

    stream: str  # The name that the schedule gives it.
    host: str
    at: float  # When the connection to it was begun.
    paid: bool = True  # Unless it was surely refused.
    sent: list[bytes] = field(default_factory=list)  # Of its body.
    finished: bool = False  # It said that the completion is whole.
    failed: bool = False  # It said that it went wrong.
    left: float | None = None  # When the gateway hung up.

    @property
    def events(self) -> list[bytes]:
        """The data of the events sent so far."""
        return [event.data for event in parse(b"".join(self.sent))]


class Upstream:
    """The endpoint `upstream`; `scripts` are the schedule's answers, by stream and attempt."""

    def __init__(self, network: Network, say: Callable[[str], None]) -> None:
        self.calls: list[Call] = []
        self.down = False
        self.scripts: dict[str, list[dict[str, Any]]] = {}
        self.say = say
        self.network = network
        self.kept = KeptResponses(network.loop)

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseTransport:
        """Accept a connection."""
        begun = self.network.loop.time()
        await asyncio.sleep(2 * self.network.delay("upstream"))
        if self.down:
            raise ConnectionRefusedError("the upstream is down")
        connection = Connection(self.network, "upstream", factory())
        connection.made(_Peer(self, connection, begun))
        return connection

    def script(self, stream: str) -> dict[str, Any]:
        """Return what the next call for a stream gets."""
        attempts = sum(call.stream == stream for call in self.calls)
        scripts = self.scripts[stream]
        return scripts[min(attempts, len(scripts) - 1)]


class _Peer:
    """One connection, one request at a time."""

    def __init__(self, upstream: Upstream, connection: Connection, begun: float) -> None:
        self._upstream = upstream
        self._begun = begun
        self._connection = connection
        self._loop = upstream.network.loop
        self._data = b""
        self._call: Call | None = None
        self._response: KeptResponse | None = None

    def received(self, data: bytes) -> None:
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        if not blank:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-len")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if len(body) >= length:
            self._data = body[length:]
            method, path, *_ = head.decode().split()
            if path.startswith(PATH + "/"):
                self._upstream.say(f"upstream: {method} {path}")
                self._response = self._upstream.kept.answer(self, method, path)
            else:
                self._answer(json.loads(body[:length]))

    def send(self, data: bytes) -> None:
        self._connection.send(data)

    def hang_up(self, *, reset: bool) -> None:
        self._call = self._response = None
        self._connection.cut(ConnectionResetError("cut") if reset else None)

    def closed(self) -> None:
        if self._response is not None:
            self._response.leave(self)
        elif self._call is not None and self._call.left is None:
            self._call.left = self._loop.time()
        self._call = self._response = None

    def _answer(self, request: dict[str, Any]) -> None:
        stream = str((request.get("messages") or request["input"])[0]["content"])
        script = self._upstream.script(stream)
        host = self._connection.host.name if self._connection.host else ""
        call = Call(stream, host, self._begun)
        self._upstream.calls.append(call)
        self._upstream.say(f"upstream call {len(self._upstream.calls)} for {stream} from {host}")
        self._call = call
        call.paid = script["status"] not in UNPAID
        if "input" in request and script["status"] == 200 and script["end"] != "json":
            self._response = self._upstream.kept.make(stream, call, script, self)
            return
        steps = _steps(script, len(self._upstream.calls), stream)
        self._next(call, steps)

    def _next(self, call: Call, steps: list[tuple[float, str, bytes]]) -> None:
        if steps:
            self._loop.world(self._loop.time() + steps[0][0], self._step, call, steps)

    def _step(self, call: Call, steps: list[tuple[float, str, bytes]]) -> None:
        if self._call is not call:
            return
        _, what, data = steps.pop(0)
        if what == "cut":
            self._call = None
            self._connection.cut(ConnectionResetError("cut") if data else None)
            return
        if what == "finish":
            call.finished = True
        elif what == "error":
            call.failed = True
        call.sent.append(data.partition(b"\r\n\r\n")[2] if data.startswith(b"HTTP/") else data)
        self._connection.send(data)
        self._next(call, steps)


def _steps(script: dict[str, Any], number: int, stream: str) -> list[tuple[float, str, bytes]]:
    """Return what to send: after how many seconds, what it means, the bytes."""
    wait, gap = script["wait"], script["gap"]
    status = script["status"]
    if status == 0:  # It takes the request and hangs up.
        return [(wait, "cut", b"x")]
    if status == -1:  # It never answers.
        return []
    if status != 200:
        head = b"HTTP/1.1 %d Busy\r\nContent-Length: 0\r\nRetry-After: 0\r\n" % status
        return [(wait, "data", head + b"Connection: close\r\n\r\n")]
    if script["end"] == "json":
        body = b'{"answer": 42}'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        return [(wait, "data", head % len(body) + body)]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    steps = [(wait, "data", head)]
    rng = random.Random(script["seed"])
    for index in range(script["events"]):
        block = b"data: " + chunk(f"{stream}/{number}/{index} ") + b"\n\n"
        pause = gap * 2 * rng.random() if rng.random() < 0.8 else 0.0
        if rng.random() < 0.15:
            cut = rng.randrange(1, len(block))
            steps += [(pause, "data", block[:cut]), (gap * rng.random(), "data", block[cut:])]
        elif index and rng.random() < 0.2:
            before, what, data = steps.pop()
            steps.append((before, what, data + block))
        else:
            steps.append((pause, "data", block))
    return steps + _END[script["end"]](gap)


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


_FINISH = _event(chunk("", finish="stop"))
_USAGE = _event(b'{"choices":[],"usage":{"completion_tokens":7}}')
_DONE = _event(b"[DONE]")
_END: dict[str, Callable[[float], list[tuple[float, str, bytes]]]] = {
    "done": lambda gap: [
        (gap, "finish", _FINISH),
        (gap, "data", _USAGE),
        (gap, "data", _DONE),
        (0.01, "cut", b""),
    ],
    "at_once": lambda gap: [(gap, "finish", _FINISH + _USAGE + _DONE), (0.0, "cut", b"")],
    "finish_only": lambda gap: [(gap, "finish", _FINISH), (gap, "cut", b"")],
    "finish_and_silence": lambda gap: [(gap, "finish", _FINISH)],
    "cut": lambda gap: [(gap, "cut", b"x")],
    "eof": lambda gap: [(gap, "cut", b"")],
    "stall": lambda gap: [],
    "error": lambda gap: [
        (gap, "error", _event(b'{"error": {"message": "overloaded"}}')),
        (gap, "cut", b""),
    ],
    "half": lambda gap: [(gap, "data", b'data: {"choices": [{"in'), (gap, "cut", b"x")],
}
ENDS = [*sorted(_END), "json"]

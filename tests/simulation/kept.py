"""Kept responses: answers that the simulated upstream goes on with, whoever is connected.

As OpenAI's background responses: their events are numbered, the rest after a number can be asked
for, they can be looked at, and are stopped by a request only.
"""

import json
import random
from collections.abc import Callable
from typing import Any, Protocol

from tests.simulation.loop import VirtualLoop

PATH = "/v1/responses"
_STALL = 8.0  # Seconds of silence, which is longer than any profile bears without asking.
_MORE = 3  # Events that follow where a connection was cut.
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_CUTS = {"cut": b"x", "eof": b"", "half": b"x"}


class Peer(Protocol):
    """A connection of somebody who asked."""

    def send(self, data: bytes) -> None:
        """Send bytes."""

    def hang_up(self, *, reset: bool) -> None:
        """End the connection."""


class Paid(Protocol):
    """What is known of the request that a response was made by."""

    at: float
    sent: list[bytes]
    finished: bool
    failed: bool
    left: float | None


class KeptResponse:
    """One answer, from its creation on."""

    def __init__(self, loop: VirtualLoop, name: str, call: Paid, script: dict[str, Any]) -> None:
        self.name = name
        self.call = call
        self.cancels = 0
        self.over_at = float("inf")  # When it came to its own end.
        self._loop = loop
        self._script = script
        self._rng = random.Random(script["seed"])
        self._blocks: list[bytes] = []
        self._peers: list[Peer] = []
        self._over = False

    def begin(self, peer: Peer, texts: list[str]) -> None:
        """Answer who made it, and go on by itself."""
        self._peers = [peer]
        end, gap = self._script["end"], self._script["gap"]
        steps: list[tuple[float, Callable[[], None]]] = [(self._script["wait"], self._created)]
        steps += [(gap * 2 * self._rng.random(), self._said(text)) for text in texts]
        if end in _CUTS:
            steps.append((gap, self._cut))
            steps += [(gap, self._said(f"{self.name}/more/{number} ")) for number in range(_MORE)]
        wait = _STALL if end == "stall" else gap
        steps.append((wait, self._failed if end == "error" else self._completed))
        self._next(steps)

    def attach(self, peer: Peer, after: int) -> None:
        """Give who asks what follows an event."""
        peer.send(_HEAD + b"".join(self._blocks[after + 1 :]))
        if self._over:
            peer.hang_up(reset=False)
        else:
            self._peers.append(peer)

    def leave(self, peer: Peer) -> None:
        """Note that somebody is gone, who makes no difference."""
        self._peers = [each for each in self._peers if each is not peer]

    def cancel(self) -> None:
        """Stop, as somebody says so."""
        self.cancels += 1
        if not self._over:
            self._over, self.call.left = True, self._loop.time()
            self._hang_up()

    @property
    def status(self) -> str:
        """How it is."""
        if self.cancels:
            return "cancelled"
        return "completed" if self._over else "in_progress"

    def _next(self, steps: list[tuple[float, Callable[[], None]]]) -> None:
        if steps:
            self._loop.world(self._loop.time() + steps[0][0], self._step, steps)

    def _step(self, steps: list[tuple[float, Callable[[], None]]]) -> None:
        if not self._over:
            steps.pop(0)[1]()
            self._next(steps)

    def _created(self) -> None:
        for peer in self._peers:
            peer.send(_HEAD)
        self._say("response.created", response={"id": self.name, "status": "in_progress"})

    def _said(self, text: str) -> Callable[[], None]:
        return lambda: self._say("response.output_text.delta", delta=text, output_index=0)

    def _completed(self) -> None:
        self.call.finished = True
        usage = {"input_tokens": 3, "output_tokens": len(self._blocks)}
        whole = {"id": self.name, "status": "completed", "usage": usage}
        self._say("response.completed", response=whole)
        self._ended()

    def _failed(self) -> None:
        self.call.failed = True
        error = {"code": "server_error", "message": "overloaded"}
        whole = {"id": self.name, "status": "failed", "error": error}
        self._say("response.failed", response=whole)
        self._ended()

    def _ended(self) -> None:
        self._over, self.over_at = True, self._loop.time()
        if self._script["end"] != "finish_and_silence":
            self._loop.world(self._loop.time() + 0.01, self._hang_up)

    def _hang_up(self) -> None:
        peers, self._peers = self._peers, []
        for peer in peers:
            peer.hang_up(reset=False)

    def _cut(self) -> None:
        peers, self._peers = self._peers, []
        for peer in peers:
            if self._script["end"] == "half":
                peer.send(b'data: {"type": "response.out')
            peer.hang_up(reset=self._script["end"] != "eof")

    def _say(self, kind: str, **members: Any) -> None:
        data = {"type": kind, "sequence_number": len(self._blocks), **members}
        block = b"event: %s\ndata: %s\n\n" % (kind.encode(), json.dumps(data).encode())
        self._blocks.append(block)
        self.call.sent.append(block)
        for peer in self._peers:
            peer.send(block)


class KeptResponses:
    """All of them, by their ids."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._all: dict[str, KeptResponse] = {}

    def of(self, stream: str) -> list[KeptResponse]:
        """Return those that were made for a stream."""
        return [each for each in self._all.values() if each.name.startswith(f"resp_{stream}_")]

    def make(self, stream: str, call: Paid, script: dict[str, Any], peer: Peer) -> KeptResponse:
        """Begin one for who asked."""
        name = f"resp_{stream}_{len(self._all)}"
        response = self._all[name] = KeptResponse(self._loop, name, call, script)
        response.begin(peer, [f"{name}/{index} " for index in range(script["events"])])
        return response

    def answer(self, peer: Peer, method: str, path: str) -> KeptResponse | None:
        """Answer who asks for one that was made; return it if its events follow."""
        name, _, rest = path.removeprefix(PATH + "/").partition("?")
        name, _, verb = name.partition("/")
        response = self._all.get(name)
        if response is None:
            peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif method == "GET" and "stream=true" in rest:
            response.attach(peer, int(rest.partition("starting_after=")[2] or -1))
            return response
        else:
            if verb == "cancel":
                response.cancel()
            body = json.dumps({"id": name, "status": response.status}).encode()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        return None

"""The simulated receiver of webhooks, and the oracle of what it hears.

Until the schedule is calm it does what it likes: it is down, refuses, hangs up before it has heard
or just after, or is silent. Then it hears all. So every end is heard at least once, of each stream
under one id, and says what the log of the stream says: unless Redis lost what it had of it.
"""

import asyncio
import json
import random
from base64 import b64decode, b64encode
from collections.abc import Callable
from hashlib import sha256
from hmac import new
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.network import Connection, Network

if TYPE_CHECKING:
    from tests.simulation.world import World

_KEY = b64encode(b"the key of all simulated hooks").decode()
HOOK = {"webhook": "http://receiver/hook", "webhook_secret": f"whsec_{_KEY}"}
_TURNS = ("hears",) * 4 + ("refuses", "busy", "leads on", "cuts", "cuts", "hears and cuts", "hangs")


class Heard(NamedTuple):
    """A message that the receiver has read whole, and taken."""

    id: str
    body: bytes

    @property
    def data(self) -> dict[str, Any]:
        """What it says of the end."""
        return dict(json.loads(self.body)["data"])


class Receiver:
    """The endpoint `receiver`; from `calm` on, in seconds, it hears all."""

    def __init__(self, network: Network, calm: float, rng: random.Random) -> None:
        self.heard: list[Heard] = []
        self.tried: list[Heard] = []
        self.forged: list[str] = []
        self._network = network
        self._calm = calm
        self._rng = rng

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseTransport:
        """Accept a connection."""
        await asyncio.sleep(2 * self._network.delay("receiver"))
        if self._network.loop.time() < self._calm and self._rng.random() < 0.2:
            raise ConnectionRefusedError("the receiver is down")
        connection = Connection(self._network, "receiver", factory())
        connection.made(_Peer(self, connection))
        return connection

    def turn(self) -> str:
        """Return what becomes of the next message."""
        if self._network.loop.time() >= self._calm:
            return "hears"
        return self._rng.choice(_TURNS)

    def take(self, head: bytes, body: bytes, turn: str) -> None:
        """Note a message that was read whole."""
        lines = (line.decode().partition(": ") for line in head.split(b"\r\n")[1:])
        told = {name.lower(): value for name, _, value in lines}
        name = told["webhook-id"]
        signed = f"{name}.{told['webhook-timestamp']}.".encode() + body
        digest = b64encode(new(b64decode(_KEY), signed, sha256).digest()).decode()
        if told["webhook-signature"] != f"v1,{digest}":
            self.forged.append(name)
        self.tried.append(Heard(name, body))
        if turn in ("hears", "hears and cuts"):
            self.heard.append(Heard(name, body))


class _Peer:
    """One connection, one request at a time."""

    def __init__(self, receiver: Receiver, connection: Connection) -> None:
        self._receiver = receiver
        self._connection = connection
        self._data = b""

    def received(self, data: bytes) -> None:
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        if not blank:
            return
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        if len(body) >= length:
            self._data = body[length:]
            self._answer(head, body[:length])

    def closed(self) -> None:
        pass

    def _answer(self, head: bytes, body: bytes) -> None:
        turn = self._receiver.turn()
        self._receiver.take(head, body, turn)
        status = {
            "hears": b"204 No Content",
            "refuses": b"500 No",
            "busy": b"429 Busy\r\nRetry-After: 2",
            "leads on": b"307 There\r\nLocation: http://receiver/elsewhere",
        }.get(turn)
        if status is not None:
            self._connection.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
        elif turn != "hangs":
            self._connection.cut(ConnectionResetError("cut"))


def unheard(world: "World") -> list[str]:
    """Return the streams whose end was not heard yet, and that Redis lost nothing of."""
    if not world.hooked:
        return []
    known = {each.data["stream_id"] for each in world.receiver.heard}
    ended = [
        each.stream_id
        for each in world.streams.values()
        if b"end_id" in world.redis.record(each.stream_id)
    ]
    return [each for each in ended if each not in known and not world.oracle.touched(each)]


def judge_hooks(world: "World", accuse: Callable[[str, str], None]) -> None:
    """Judge what was told of each stream."""
    for each in world.receiver.forged:
        accuse("webhooks", f"{each} has a false signature")
    for stream_id in unheard(world):
        accuse("webhooks", f"the end of {stream_id} was not heard")
    for stream in world.streams.values():
        tried = [
            each for each in world.receiver.tried if each.data["stream_id"] == stream.stream_id
        ]
        if world.oracle.touched(stream.stream_id) or not tried:
            continue
        if len({each.id for each in tried}) > 1:
            accuse("webhooks", f"{stream.name} was told under {[each.id for each in tried]}")
        if len({each.body for each in tried}) > 1:
            accuse("webhooks", f"{stream.name} was told in other words: {tried}")
        state = world.redis.record(stream.stream_id).get(b"state", b"").decode()
        if state not in ("", tried[0].data["state"]):
            accuse("webhooks", f"{stream.name} is {state}, and was told: {tried[0].body!r}")
        if state and tried[0].data["text"] is None:
            accuse("webhooks", f"{stream.name} was told without its text")

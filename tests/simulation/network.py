"""The simulated network: connections whose bytes take a while, in order, and that can be cut."""

import asyncio
import random
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Protocol

from tests.simulation.loop import HOST, Host, VirtualLoop

LATER = 1e-7  # Seconds: what was sent later must not arrive at the same moment.


class Peer(Protocol):
    """The server's side of a connection."""

    def received(self, data: bytes) -> None:
        """Take what the client sent."""

    def closed(self) -> None:
        """Note that the client has gone."""


class Network:
    """Delays and partitions; all endpoints of a world share one."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.slow: dict[str, float] = {}  # Endpoint -> longest further delay, in seconds.
        self.connections: dict[Host | None, list[Connection]] = {}

    def delay(self, endpoint: str) -> float:
        """Return how long the next bytes take."""
        extra = self.slow.get(endpoint, 0.0)
        delay = 0.0002 + 0.001 * self.rng.random()
        return delay + extra * self.rng.random() if extra else delay

    def hang_up(self, host: Host) -> None:
        """Close all connections of a host that has died."""
        for connection in self.connections.pop(host, []):
            connection.hang_up()


class Connection(asyncio.Transport):
    """The client's end; the server's end is the methods `send` and `cut`."""

    def __init__(self, network: Network, endpoint: str, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self.host: Host | None = HOST.get()
        self.peer: Peer
        self._network = network
        self._loop = network.loop
        self._endpoint = endpoint
        self._context = copy_context()
        self._protocol: Any = protocol
        self._closing = False  # The client has closed it, or heard that it is closed.
        self._cut = False  # The server has closed it.
        self._there = self._here = 0.0  # When the last bytes arrive.
        self._paused = False
        self._waiting: list[tuple[Callable[..., None], Any]] = []

    def made(self, peer: Peer) -> None:
        """Note that the server has accepted it."""
        self.peer = peer
        self._network.connections.setdefault(self.host, []).append(self)
        self._protocol.connection_made(self)

    # The client's side

    def write(self, data: Any) -> None:
        """Send to the server, unless the host is dead: then it was never sent."""
        if not self._closing and not (self.host and self.host.dead):
            self._to_server(self._receive, bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        """Send several parts."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Close in order: what was sent before still arrives."""
        if not self._closing:
            self._closing = True
            self._to_server(self._hung_up)
            self._loop.call_soon(self._lost, None, context=self._context)

    abort = close

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return nothing: there is no socket."""
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand what comes to another one."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who gets what comes."""
        return self._protocol  # type: ignore[no-any-return]

    def pause_reading(self) -> None:
        """Hold back what comes."""
        self._paused = True

    def resume_reading(self) -> None:
        """Hand over what was held back."""
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for call, argument in waiting:
            call(argument)

    def can_write_eof(self) -> bool:
        """Say no."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return nothing: the network takes all."""
        return 0

    # The server's side

    def send(self, data: bytes) -> None:
        """Send to the client."""
        if not self._cut:
            self._to_client(self._data, data)

    def cut(self, error: Exception | None = None) -> None:
        """Close it from the server's side; with an error it was a reset."""
        if not self._cut:
            self._cut = True
            self._to_client(self._end, error)

    def hang_up(self) -> None:
        """Tell the server that the client has gone: its host is dead."""
        if not self._closing:
            self._closing = True
            self._to_server(self._hung_up)

    # On the way

    def _to_server(self, call: Callable[..., None], *args: Any) -> None:
        now = self._loop.time() + self._network.delay(self._endpoint)
        self._there = max(self._there + LATER, now)
        self._loop.world(self._there, call, *args)

    def _to_client(self, call: Callable[..., None], *args: Any) -> None:
        now = self._loop.time() + self._network.delay(self._endpoint)
        self._here = max(self._here + LATER, now)
        self._loop.call_at(self._here, call, *args, context=self._context)

    def _receive(self, data: bytes) -> None:
        if not self._cut:
            self.peer.received(data)

    def _hung_up(self) -> None:
        if not self._cut:
            self._cut = True
            self.peer.closed()

    def _data(self, data: bytes) -> None:
        if self._paused:
            self._waiting.append((self._data, data))
        elif not self._closing:
            self._protocol.data_received(data)

    def _end(self, error: Exception | None) -> None:
        if self._paused:
            self._waiting.append((self._end, error))
        elif not self._closing:
            self._closing = True
            if error is None:
                self._protocol.eof_received()
            self._lost(error)

    def _lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)

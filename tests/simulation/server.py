"""The simulated Redis server: connections, a clock that may jump, and everything it can do wrong.

It keeps a journal of its writes, so that a failover can lose a suffix of them, and a ledger of
every entry that any log ever had: what is not in it may never be shown to anybody.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hiredis import Reader

from gateway.eventlog.entries import EventId
from gateway.eventlog.packs import PACKED, unpacked
from gateway.store.keys import log_keys, packed_key
from tests.simulation.network import Connection, Network
from tests.simulation.redis import (
    DENIED_WHEN_FULL,
    Args,
    Id,
    Redis,
    RedisError,
    Reply,
    Status,
    Stream,
)

_LONG_ENOUGH = 30_000  # Milliseconds.
BORN = 1_700_000_000.0  # The date at which every schedule begins.


def _opened(number: Id, fields: Args) -> list[tuple[Id, Args]]:
    """Return the entries that one of a log holds."""
    if fields[0] != PACKED:
        return [(number, fields)]
    held = unpacked(EventId(*number), fields[1], int(fields[3]))
    return [((each.last.epoch, each.last.seq), [b"%d" % each.number, each.frames]) for each in held]


@dataclass
class Trap:
    """What becomes of the next batch that matches; it springs once."""

    on: str  # The name of a command or of a script, or any.
    how: str
    host: str = ""  # Whose; any if empty.
    seconds: float = 0.0
    seed: int = 0
    sprung: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Loss:
    """What Redis had acknowledged and then forgot, by stream id."""

    at: float
    claims: set[str] = field(default_factory=set)
    takeovers: set[str] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    everything: bool = False


class Server:
    """One Redis as the network sees it."""

    def __init__(
        self,
        network: Network,
        names: dict[bytes, str],
        heads: dict[str, str],
        say: Callable[[str], None],
    ) -> None:
        self.redis = Redis()
        self.offset = 0.0  # Of its clock.
        self.down = False  # Connections are refused.
        self.away = False  # Nothing answers.
        self.full = 0.0  # How often a command finds the memory full.
        self.blocked: set[str] = set()  # Hosts that cannot reach it.
        self.traps: list[Trap] = []
        self.ledger: dict[str, dict[Id, Args]] = {}
        self.clashes: list[tuple[str, str]] = []
        self.freeze: Callable[[str, float], None] = lambda host, seconds: None
        self.murder: Callable[[str, float], None] = lambda host, seconds: None
        self.set_back = False  # Its clock was.
        self.losses: list[Loss] = []
        self.sprung: list[str] = []
        self._network = network
        self._loop = network.loop
        self._names = names  # Of scripts, by their digest.
        self._heads = heads  # The same by their first lines.
        self._known: dict[bytes, str] = {}  # What is made of several, by its digest.
        self._say = say
        self._journal: list[tuple[int, int, list[Args]]] = []
        self._peers: dict[int, _Peer] = {}
        self._made = 0
        self._servers = 0  # Processes that were here before this one.
        self.redis.on_entry = self._note
        self.on_ran: Callable[[], None] = lambda: None
        self.on_note: Callable[[str, Id, Args], None] = lambda stream_id, number, fields: None

    # The network

    async def connect(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseTransport:
        """Accept a connection, as the network lets it."""
        await asyncio.sleep(2 * self._network.delay("redis"))
        connection = Connection(self._network, "redis", factory())
        name = connection.host.name if connection.host else ""
        if self.away or name in self.blocked:
            await asyncio.get_running_loop().create_future()  # Until the client has had enough.
        if self.down:
            raise ConnectionRefusedError("redis is down")
        self._made += 1
        peer = _Peer(self, connection, self._made, name)
        self._peers[peer.number] = peer
        connection.made(peer)
        return connection

    def gone(self, peer: "_Peer") -> None:
        """Forget a connection."""
        self._peers.pop(peer.number, None)

    def reachable(self, peer: "_Peer") -> bool:
        """Whether what this connection sent arrives now."""
        return not self.away and peer.host not in self.blocked

    def cut(self, host: str = "", *, subscribers: bool = False) -> None:
        """Cut connections: of one host or of all, or only those that are subscribed."""
        for peer in list(self._peers.values()):
            if (not host or peer.host == host) and (not subscribers or peer.channels):
                peer.cut()

    def answer_again(self) -> None:
        """Take what was sent while nothing arrived."""
        for peer in list(self._peers.values()):
            if self.reachable(peer):
                peer.catch_up()

    # Its memory

    def lose(self, count: int | None, *, clock: float = 0.0, cut: bool = True) -> None:
        """Fail over to a server that knows all but the last `count` writes, or nothing (None)."""
        before = self._streams()
        kept = [] if count is None else self._journal[: max(0, len(self._journal) - count)]
        lost = len(self._journal) - len(kept)
        self._journal = kept
        redis = Redis()
        redis.scripts = self.redis.scripts
        for now, process, commands in kept:
            redis.now, redis.process = now, process
            for command in commands:
                redis.run(command)
        redis.published.clear()
        redis.scripts, redis.on_entry = {}, self._note
        redis.wrote = False
        redis.process = self._servers
        self.redis = redis
        self.shift(clock)
        self.losses.append(self._loss(before, everything=count is None))
        self._say(f"redis lost {lost} writes: {self.losses[-1]}")
        if cut:
            self.end()

    def end(self) -> None:
        """End the process: its connections, and what is in their buffers."""
        self._servers += 1
        self.redis.process = self._servers
        self.cut()

    def _streams(self) -> dict[str, tuple[Any, int]]:
        self.tick()
        found: dict[str, tuple[Any, int]] = {}
        for key in self.redis.data:
            if key.endswith((b":record", b":channel")):
                stream_id = key.decode().split("{")[1].split("}")[0]
                record = dict(self.redis.value(key, dict) or {})
                record.pop(b"version", None)  # Of its form only.
                found[stream_id] = (record, len(self.log(stream_id)))
        return found

    def _loss(self, before: dict[str, tuple[Any, int]], *, everything: bool) -> Loss:
        loss, after = Loss(self._loop.time(), everything=everything), self._streams()
        for stream_id, (record, length) in before.items():
            now, left = after.get(stream_id, ({}, 0))
            if (record, length) != (now, left):
                loss.touched.add(stream_id)
            if b"epoch" in record and b"epoch" not in now:
                loss.claims.add(stream_id)
            elif record.get(b"epoch") != now.get(b"epoch"):
                loss.takeovers.add(stream_id)
        return loss

    def log(self, stream_id: str) -> list[tuple[Id, Args]]:
        """Return the entries of a stream's log as they are now, also where they were packed."""
        for key in log_keys(stream_id):
            if items := self.redis.value(key.encode(), Stream):
                return [each for item in items for each in _opened(*item)]
        return []

    def packed(self, stream_id: str) -> bool:
        """Whether a stream's log is packed, and is kept for long enough to be read."""
        self.tick()
        due = self.redis.expires.get(packed_key(stream_id).encode(), 0)
        return due > self.redis.now // 1000 + _LONG_ENOUGH

    def record(self, stream_id: str) -> dict[bytes, bytes]:
        """Return a stream's record as it is now."""
        self.tick()
        return dict(self.redis.value(f"gw:{{{stream_id}}}:record".encode(), dict) or {})

    def immortal(self) -> list[bytes]:
        """Return the keys that have no TTL."""
        return [key for key in self.redis.data if key not in self.redis.expires]

    def _note(self, key: bytes, number: Id, fields: Args) -> None:
        stream_id = key.decode().split("{")[1].split("}")[0]
        known = self.ledger.setdefault(stream_id, {})
        if key.endswith(b":packed"):  # Nothing new: what the log had.
            others = [each for each, had in _opened(number, fields) if known.get(each) != had]
            self.clashes += [
                (stream_id, f"{stream_id}: {each} is packed as it was not") for each in others
            ]
            return
        if known.setdefault(number, fields) != fields:
            words = f"{stream_id}: {number} was {known[number]} and is {fields}"
            self.clashes.append((stream_id, words))
        self.on_note(stream_id, number, fields)

    def shift(self, seconds: float) -> None:
        """Set the clock."""
        self.offset += seconds
        self.set_back = self.set_back or seconds < 0

    # Commands

    def tick(self) -> None:
        """Set the clock."""
        self.redis.now = int((BORN + self._loop.time() + self.offset) * 1_000_000)

    def handle(self, peer: "_Peer", batch: list[Args]) -> None:
        """Run a batch and answer it, unless a trap springs."""
        trap = next((each for each in self.traps if self._matches(each, peer, batch)), None)
        if trap is None:
            peer.answer(self.execute(peer, batch))
            return
        self.traps.remove(trap)
        trap.sprung.set()
        self._say(f"trap {trap.how} springs at {peer.host}: {self.words(batch)}")
        self.sprung.append(trap.how)
        getattr(self, f"_{trap.how}")(peer, batch, trap)

    def words(self, batch: list[Args]) -> str:
        """Return the names of a batch's commands, for the trace."""
        return " ".join(self._name(each) for each in batch)

    def _name(self, command: Args) -> str:
        name = command[0].decode().upper()
        if name == "EVALSHA":
            return self._names.get(command[1]) or self._joined(command[1])
        return "beat" if name == "HGETALL" else name

    def _joined(self, digest: bytes) -> str:
        """Return the names of the scripts that one is made of, by the first lines of each."""
        if digest not in self._known:
            text = self.redis.scripts.get(digest)
            if text is None:
                return "?"
            found = {text.find(head): name for head, name in self._heads.items()}
            self._known[digest] = "+".join(found[at] for at in sorted(found) if at >= 0)
        return self._known[digest]

    def _is_meant(self, trap: Trap, command: Args) -> bool:
        return trap.on in self._name(command).split("+")

    def _matches(self, trap: Trap, peer: "_Peer", batch: list[Args]) -> bool:
        if (trap.host and trap.host != peer.host) or batch[0][0] in {b"CLIENT", b"SUBSCRIBE"}:
            return False
        return trap.on == "any" or any(self._is_meant(trap, each) for each in batch)

    def execute(self, peer: "_Peer", batch: list[Args]) -> list[Reply]:
        """Run commands in one go and return their replies."""
        self.tick()
        return [self._one(peer, command) for command in batch]

    def _one(self, peer: "_Peer", command: Args) -> Reply:
        name = command[0].upper()
        if name == b"SUBSCRIBE":
            peer.channels.add(command[1])
            return [b"subscribe", command[1], len(peer.channels)]
        if name == b"UNSUBSCRIBE":
            peer.channels.clear()
            return [b"unsubscribe", None, 0]
        if name == b"MULTI":
            peer.queued, peer.spoiled = [], False
            return Status("OK")
        if peer.queued is None:
            return self._run([command])[0]
        if name != b"EXEC":
            if self._is_full() and name in DENIED_WHEN_FULL:
                peer.spoiled = True
                return RedisError("OOM command not allowed when used memory > 'maxmemory'.")
            peer.queued.append(command)
            return Status("QUEUED")
        queued, peer.queued = peer.queued, None
        if peer.spoiled:
            return RedisError("EXECABORT Transaction discarded because of previous errors.")
        return self._run(queued)

    def _is_full(self) -> bool:
        return self.redis.full or bool(self.full and self._network.rng.random() < self.full)

    def _run(self, commands: list[Args]) -> list[Reply]:
        full = self.redis.full
        self.redis.full = self._is_full() if len(commands) == 1 else False
        replies = [self.redis.run(command) for command in commands]
        self.redis.full = full
        if self.redis.wrote:
            self.on_ran()
            self.redis.wrote = False
            self._journal.append((self.redis.now, self.redis.process, commands))
        if self.redis.published:
            for channel, message in self.redis.published:
                for peer in self._peers.values():
                    if channel in peer.channels:
                        peer.push([b"message", channel, message])
            self.redis.published.clear()
        return replies

    # Traps

    def _drop_request(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        peer.cut()

    def _drop_reply(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        self.execute(peer, batch)
        peer.cut()

    def _half(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        self.execute(peer, batch[: random.Random(trap.seed).randint(0, len(batch))])
        peer.cut()

    def _hang(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        peer.deaf = True

    def _hang_after(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        self.execute(peer, batch)
        peer.deaf = True

    def _late(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        """What was in the server's socket buffer runs, whether or not the client has gone.

        Unless the process went first: no other one has its buffers.
        """
        peer.deaf = True
        when = self._loop.time() + trap.seconds
        self._loop.world(when, self._at_last, peer, batch, self._servers)

    def _at_last(self, peer: "_Peer", batch: list[Args], server: int) -> None:
        if server != self._servers:
            return
        self._say(f"late: {self.words(batch)} of {peer.host}")
        peer.answer(self.execute(peer, batch))
        peer.deaf = False
        peer.catch_up()

    def _freeze(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        """The replica is stopped between its request and the reply."""
        self.freeze(peer.host, trap.seconds)
        peer.answer(self.execute(peer, batch))

    def _murder(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        self.murder(peer.host, trap.seconds)

    def _murder_after(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        self.execute(peer, batch)
        self.murder(peer.host, trap.seconds)

    def _oom(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        self.tick()
        rng, replies = random.Random(trap.seed), []
        for command in batch:
            self.redis.full = len(batch) == 1 or rng.random() < 0.6
            replies.append(self._one(peer, command))
        self.redis.full = False
        peer.answer(replies)

    def _nonsense(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        """Answer what no script answers, and run it or not; what went with it is answered."""
        runs = random.Random(trap.seed).random() < 0.5
        replies: list[Reply] = []
        for command in batch:
            its = self._is_meant(trap, command)
            reply = self.execute(peer, [command])[0] if runs or not its else None
            replies.append(1 if its else reply)
        peer.answer(replies)

    def _readonly(self, peer: "_Peer", batch: list[Args], trap: Trap) -> None:
        error = RedisError("READONLY You can't write against a read only replica.")
        peer.queued = None
        peer.answer([error for _ in batch])


class _Peer:
    """The server's side of one connection."""

    def __init__(self, server: Server, connection: Connection, number: int, host: str) -> None:
        self.number = number
        self.host = host
        self.channels: set[bytes] = set()
        self.queued: list[Args] | None = None
        self.spoiled = False
        self.deaf = False
        self._server = server
        self._connection = connection
        self._reader = Reader()
        self._buffered: list[bytes] = []

    def received(self, data: bytes) -> None:
        if self.deaf or not self._server.reachable(self):
            self._buffered.append(data)
            return
        self._reader.feed(data)
        batch: list[Args] = []
        while (command := self._reader.gets()) is not False:
            batch.append(command)
        if batch:
            self._server.handle(self, batch)

    def catch_up(self) -> None:
        if not self.deaf:
            buffered, self._buffered = self._buffered, []
            for data in buffered:
                self.received(data)

    def closed(self) -> None:
        self._server.gone(self)

    def cut(self) -> None:
        self._server.gone(self)
        self._connection.cut(ConnectionResetError("reset by peer"))

    def answer(self, replies: list[Reply]) -> None:
        self._connection.send(b"".join(map(packed, replies)))

    def push(self, message: list[Any]) -> None:
        if not self.deaf and self._server.reachable(self):
            self._connection.send(packed(message))


def packed(reply: Reply) -> bytes:
    """Return a reply as it goes over the wire (RESP 2)."""
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply.encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(packed, reply)))
    if isinstance(reply, RedisError):
        return b"-%b\r\n" % str(reply).encode()
    return b"$-1\r\n"

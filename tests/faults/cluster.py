"""Cluster: three masters with a replica each; a master can die, and slots in use can move."""

import asyncio
import time
from pathlib import Path

from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.clusters import ClusterServer, RedisCluster, wait
from tests.faults.redis import Reign, fixed_port

_DOWN_AFTER = 1500  # Milliseconds.
_SLOTS = 20  # At most, in one move.
_STEP = 0.005  # Seconds between two keys of a slot that moves.


class Cluster:
    """A Redis Cluster whose masters can be killed or frozen, and whose slots can be moved."""

    def __init__(self, folder: Path) -> None:
        self._cluster = RedisCluster(folder / "cluster", 3, 1, fixed_port, _DOWN_AFTER)
        self._reigns = [Reign(each.port) for each in self._cluster.masters]
        self._noting: asyncio.Task[None] | None = None
        self.url = self._cluster.url

    async def start(self) -> None:
        """Start all, and wait until they agree."""
        await asyncio.to_thread(self._cluster.start)
        self._noting = asyncio.create_task(self._note())

    async def _note(self) -> None:
        while True:
            for number, server in enumerate(self._cluster.masters):
                reign = self._reigns[number]
                info = await asyncio.to_thread(_replication, server)
                if reign.master == server.port:
                    reign.note(info)
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Kill all."""
        if self._noting:
            self._noting.cancel()
            await asyncio.gather(self._noting, return_exceptions=True)
        await asyncio.to_thread(self._cluster.kill)

    def master(self) -> tuple[int, ...]:
        """Return the ports of those who call themselves masters; () while any says nothing."""
        told = {each.port: _replication(each) for each in self._cluster.servers}
        if not all(told.values()):
            return ()
        return tuple(port for port, info in told.items() if "role:master" in info)

    async def failover(self, how: float, *, frozen: bool) -> tuple[float, float]:
        """Kill (or freeze) a master and let it follow its replica.

        Returns from when to when writes may be lost, as `Sentinels.failover` does.
        """
        return await asyncio.to_thread(self._fail_over, int(how * 300) % 3, frozen)

    def _fail_over(self, shard: int, frozen: bool) -> tuple[float, float]:
        old, successor = self._cluster.masters[shard], self._cluster.replicas[shard]
        stopped = time.monotonic()
        if frozen:
            old.pause()
        else:
            old.kill()
        wait(lambda: "role:master" in _replication(successor), 30)
        chosen = time.monotonic()
        known = self._reigns[shard].known_until(_replication(successor))
        self._reigns[shard] = Reign(successor.port)
        self._cluster.masters[shard], self._cluster.replicas[shard] = successor, old
        if frozen:
            old.resume()
        else:
            old.start()
        wait(lambda: _follows(old, successor), 30)
        wait(self._agreed)
        since = stopped if known is None else min(stopped, known)
        return since, time.monotonic() if frozen else chosen

    def _agreed(self) -> bool:
        """Whether all have one map: by another one a slot is refused, or taken back."""
        maps = [each.run("CLUSTER", "SLOTS") for each in self._cluster.servers]
        homes = [{(first, last, at[1]) for first, last, at, *_ in each} for each in maps]
        masters = {each.port for each in self._cluster.masters}
        return all(each == homes[0] for each in homes) and {at for *_, at in homes[0]} == masters

    async def reshard(self, how: float) -> None:
        """Move slots that have keys from one master to another, key by key."""
        await asyncio.to_thread(self._reshard, int(how * 600) % 6)

    def _reshard(self, which: int) -> None:
        masters = self._cluster.masters
        source, target = masters[which % 3], masters[(which % 3 + 1 + which // 3) % 3]
        slots = sorted({key_slot(key) for key in source.client.scan_iter(count=1000)})
        for slot in slots[:: len(slots) // _SLOTS + 1]:
            self._cluster.begin_to_move(slot, source, target)
            while keys := source.run("CLUSTER", "GETKEYSINSLOT", slot, 1):
                self._cluster.move_keys(source, target, *keys)
                time.sleep(_STEP)
            self._cluster.end_move(slot, target)
        wait(self._agreed)


def _follows(old: ClusterServer, successor: ClusterServer) -> bool:
    """Whether one is the other's replica; it becomes so by itself only if that has all its slots.

    If others have some of them, since they moved, it stays a master without any.
    """
    told = _replication(old)
    if "role:master" in told and not _has_slots(old):
        old.run("FLUSHALL")
        old.run("CLUSTER", "REPLICATE", successor.id)
    return "master_link_status:up" in told


def _has_slots(server: ClusterServer) -> bool:
    """Whether a server says that slots are its own."""
    return any(at[1] == server.port for _, _, at, *_ in server.run("CLUSTER", "SLOTS"))


def _replication(server: ClusterServer) -> str:
    """Return what a server says of its replication, "" if it does not answer."""
    try:
        told = server.info("replication")
    except (RedisError, OSError):
        return ""
    return "\n".join(f"{name}:{value}" for name, value in told.items())

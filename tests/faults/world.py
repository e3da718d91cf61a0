"""World: the replicas, nginx and Redis of one run, and the faults of processes.

`limit` is how many streams a user may run at once, 0 if any number, and `patience` after how many
seconds a stream without an end is one. `hook` is what each preset says of its webhook.

Each replica has a place, with a port that a replacement takes over, and its own API key, so that
the upstream knows who called. A fault waits for its place, or for Redis, to be free of others.
"""

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.faults.cluster import Cluster
from tests.faults.redis import Sentinels, Single, fixed_port
from tests.faults.story import DRAIN, Facts, Finding, Hit, Loss, Outage
from tests.nginx import Nginx, servers_at
from tests.support import SECRET, Process

_KEPT = 'protocol = "responses"\nbackground = true\n'
_BRIEF = "grace = 3\n"  # For pages that leave for good.
_PRESETS = {"default": "", "brief": _BRIEF, "kept": _KEPT, "keptbrief": _BRIEF + _KEPT}
SERVICE = "what-the-harness-itself-asks-with"
# Failovers that may follow one another at once; then there must be a whole lease in which Redis
# answers, or nobody could ever be seen to be dead.
_STORM = 5
_EXIT = 30.0  # Seconds a SIGTERM may take at the worst: drain, seal, close.
_SETTINGS = {
    "log_level": "info",
    "heartbeat": "1",
    "grace": "15",
    "drain": str(DRAIN),
    "write_timeout": "2",
    "upstream_stall": "4",
    "upstream_retries": "2",
    "log_ttl": "90",
    "events_keep": "10000",  # Else a gap would be told for what nobody lost.
}

_Servers = Single | Sentinels | Cluster
_SERVERS: dict[str, Callable[[Path], _Servers]] = {
    "single": Single,
    "sentinel": Sentinels,
    "cluster": Cluster,
}


class Place:
    """Where one replica runs: a port, and a lock that a fault holds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.port = fixed_port()
        self.lock = asyncio.Lock()
        self.process: Process | None = None
        self.name = ""
        self.count = 0


class World:
    """Three replicas on one Redis of a kind; `apply` does what the schedule says."""

    def __init__(
        self,
        folder: Path,
        upstream_url: str,
        *,
        kind: str,
        lease: float,
        proxied: bool,
        limit: int = 0,
        hook: str = "",
        patience: float = 90.0,
    ) -> None:
        self.limit = limit
        self.patience = patience
        self.findings: list[Finding] = []
        self.played: dict[str, int] = {}
        self.hits: list[Hit] = []
        self.stalls: list[Hit] = []
        self.losses: list[Loss] = []
        self.outages: list[Outage] = []
        self._folder = folder
        self._lease = lease
        self._redis = _SERVERS[kind](folder)
        self._redis_lock = asyncio.Lock()
        self._places = [Place(number) for number in range(3)]
        self._nginx = self._in_front(folder / "nginx") if proxied else None
        self._tasks: set[asyncio.Future[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._master: object = None
        limits = f"[limits]\nstreams = {limit}\n" if limit else ""
        presets = [f"[presets.{name}]\n{each}{hook}" for name, each in _PRESETS.items()]
        (folder / "presets.toml").write_text("".join([limits, *presets]))
        self._settings = {
            **_SETTINGS,
            "config": str(folder / "presets.toml"),
            "redis_url": self._redis.url,
            "upstream_url": upstream_url,
            "secrets": SECRET,
            "service_tokens": SERVICE,
            "start_by": str(patience),  # Some wait for a slot.
            "lease": str(lease),
        }

    def _in_front(self, folder: Path) -> Nginx:
        size: dict[str, Any] = {"workers": 1, "connections": 4096, "patience": "3s"}
        return Nginx(folder, servers_at(*self.ports), **size, NGINX_ACCESS_LOG="/dev/null")

    @property
    def facts(self) -> Facts:
        """What was injected so far."""
        given = (tuple(self.losses), tuple(self.outages), self._lease, tuple(self.stalls))
        return Facts(tuple(self.hits), *given, time.time() - time.monotonic())

    @property
    def ports(self) -> list[int]:
        """The replicas' ports."""
        return [place.port for place in self._places]

    @property
    def front(self) -> int | None:
        """nginx's port, where there is one."""
        return self._nginx.port if self._nginx else None

    # Life

    async def start(self) -> None:
        """Start everything."""
        await self._redis.start()
        if not isinstance(self._redis, Single):
            self._watching = asyncio.create_task(self._watch_master(self._redis))
        await asyncio.gather(*(self._start(place) for place in self._places))
        if self._nginx:
            await asyncio.to_thread(self._nginx.configure)
            await asyncio.to_thread(self._nginx.start)

    async def settle(self) -> None:
        """Wait for the faults that still go on."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """End everything, by process; what has died by itself is a finding."""
        tasks = [*self._tasks, *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._nginx:
            await asyncio.to_thread(self._nginx.stop)
        for place in self._places:
            if place.process is not None:
                self._look_alive(place)
                await asyncio.to_thread(place.process.stop)
        await self._redis.stop()
        self._read_logs()

    def _look_alive(self, place: Place) -> None:
        code = place.process.process.poll() if place.process else None
        if code is not None:
            self._find(f"{place.name} ended by itself with {code}")

    def _find(self, text: str) -> None:
        self.findings.append(Finding("process", -1, text))

    def _read_logs(self) -> None:
        """What a replica logs with a traceback is a mistake of ours, whoever noticed it."""
        for path in sorted(self._folder.glob("replica-*.log")):
            text = path.read_text("utf-8", "replace")
            if "Traceback" in text:
                last = text[text.index("Traceback") :].splitlines()
                words = next((line for line in last[1:] if line[:1].strip()), "")
                self.findings.append(Finding("mistake", -1, f"{path.name}: {words}"[:300]))

    async def _start(self, place: Place) -> None:
        place.count += 1
        place.name = f"replica-{place.number}-{place.count}"
        log = str(self._folder / f"{place.name}.log")
        given = {**self._settings, "upstream_api_key": place.name}
        for left in reversed(range(20)):
            process = Process("serve", "--port", str(place.port), log=log, **given)
            try:
                await asyncio.to_thread(process.ready)
                break
            except AssertionError:
                if not left:
                    raise
                await asyncio.sleep(0.2)  # The one before has not closed its listener yet.
        place.process = process

    # Faults

    async def apply(self, kind: str, where: float, how: float) -> None:
        """Begin a fault, once nothing else is the matter with its victim."""
        faults: dict[str, Callable[[float], Awaitable[None]]] = {
            "redis_restart": self._restart_redis,
            "redis_empty": self._empty_redis,
            "redis_pause": self._pause_redis,
            "failover": self._fail_over,
            "reshard": self._reshard,
        }
        if kind == "reload":
            if self._nginx:
                await asyncio.to_thread(self._nginx.reload, *self.ports)
                self._count(kind)
            return
        lock, place = self._redis_lock, None
        if kind not in faults:
            place = await self._free_place(where)
            lock = place.lock
        await lock.acquire()
        work = self._outage(faults[kind](how)) if place is None else self._hit(place, kind, how)
        self._spawn(self._holding(lock, work))
        self._count(kind)

    def _count(self, kind: str) -> None:
        self.played[kind] = self.played.get(kind, 0) + 1

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Future[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            self._find(f"the harness: {task.exception()!r} {task.exception()}")

    async def _holding(self, lock: asyncio.Lock, work: Awaitable[None]) -> None:
        try:
            await work
        finally:
            lock.release()

    async def _free_place(self, where: float) -> Place:
        """Return the place that is meant, or the next one where nothing is the matter."""
        first = int(where * len(self._places))
        order = self._places[first:] + self._places[:first]
        while True:
            for place in order:
                if not place.lock.locked():
                    return place
            await asyncio.sleep(0.02)

    async def _hit(self, place: Place, kind: str, how: float) -> None:
        assert place.process is not None
        self._look_alive(place)
        process, name, now = place.process, place.name, time.monotonic()
        if kind == "kill":
            self.hits.append(Hit(kind, name, now, now))
            process.process.kill()
            await asyncio.to_thread(process.stop)
            await self._start(place)
        elif kind == "term":
            # Before the deadline of the drain nothing may be ended by it.
            self.hits.append(Hit(kind, name, now + DRAIN - 0.2, now + _EXIT))
            process.signal(signal.SIGTERM)
            self._spawn(self._exits(process, name))
            await self._start(place)
        elif kind == "pause_short":  # With the third between two beats it stays below the lease.
            await _paused(process, self._lease * (0.05 + 0.3 * how))
            self.stalls.append(Hit(kind, name, now, time.monotonic()))
        else:
            seconds = self._lease * (1.2 + how)
            self.hits.append(Hit(kind, name, now, now + seconds + self._lease))
            await _paused(process, seconds)

    async def _outage(self, work: Awaitable[None]) -> None:
        before = time.monotonic()
        try:
            await work
        finally:
            self.outages.append(Outage(before, time.monotonic()))

    async def _exits(self, process: Process, name: str) -> None:
        try:
            code = await asyncio.to_thread(process.wait, _EXIT)
            if code:
                self._find(f"{name} ended with {code} after SIGTERM")
        except subprocess.TimeoutExpired:
            self._find(f"{name} did not end within {_EXIT} s of SIGTERM")
        finally:
            await asyncio.to_thread(process.stop)

    async def _restart_redis(self, how: float) -> None:
        assert isinstance(self._redis, Single)
        await self._redis.restart(how * 1.5)

    async def _empty_redis(self, how: float) -> None:
        assert isinstance(self._redis, Single)
        before = time.monotonic()
        loss = len(self.losses)
        self.losses.append(Loss("empty", before, before + 60))
        await self._redis.restart(how, empty=True)
        self.losses[loss] = Loss("empty", before, time.monotonic())

    async def _pause_redis(self, how: float) -> None:
        assert isinstance(self._redis, Single)
        await self._redis.pause(0.2 + 3 * how)

    async def _fail_over(self, how: float) -> None:
        assert not isinstance(self._redis, Single)
        before = time.monotonic()
        loss = len(self.losses)
        self.losses.append(Loss("failover", before, before + 60))
        since, until = await self._redis.failover(how, frozen=how > 0.9)
        self.losses[loss] = Loss("failover", since, until + 0.5)
        self._master = await asyncio.to_thread(self._redis.master)
        if not len(self.losses) % _STORM:
            await asyncio.sleep(2.5 * self._lease)

    async def _reshard(self, how: float) -> None:
        assert isinstance(self._redis, Cluster)
        await self._redis.reshard(how)

    async def _watch_master(self, servers: Sentinels | Cluster) -> None:
        """Note a failover that nobody asked for: the servers of a busy machine err too."""
        self._master = await asyncio.to_thread(servers.master)
        while True:
            await asyncio.sleep(0.5)
            asked_for = self._redis_lock.locked()
            now = await asyncio.to_thread(servers.master)
            asked_for = asked_for or self._redis_lock.locked()
            if now and now != self._master and not asked_for:
                self._master = now
                end = time.monotonic()
                self.losses.append(Loss("failover", end - 5, end + 1))
                self._count("failover unasked")


async def _paused(process: Process, seconds: float) -> None:
    process.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        process.signal(signal.SIGCONT)


def any_port(world: World, *, direct: bool) -> Callable[[], int]:
    """Return where a viewer's next connection goes: nginx, or a replica each time."""

    def port() -> int:
        if world.front is not None and not direct:
            return world.front
        return random.choice(world.ports)

    return port

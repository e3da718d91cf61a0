"""The world of one schedule: replicas, a Redis, an upstream, viewers, and what goes wrong."""

import asyncio
import gc
import json
import logging
import random
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from hashlib import sha1
from pathlib import Path
from typing import Any
from unittest.mock import patch

import redis.utils
from redis.asyncio.connection import AbstractConnection

import gateway
import gateway.store.outage
import gateway.upstream.transport
from gateway.app import Gateway
from gateway.auth.tickets import Tickets
from gateway.config.settings import Settings
from gateway.eventlog import packs
from gateway.eventlog.viewer import Viewer
from gateway.eventlog.writer import EventLog
from gateway.runs import compaction
from gateway.store.pools import TIMEOUT
from tests.simulation.channel import TOKEN, Channel
from tests.simulation.client import Broken, EventSource, Exchange
from tests.simulation.composite import CompositeSource
from tests.simulation.kept import PATH
from tests.simulation.loop import Host, VirtualLoop, run
from tests.simulation.network import Network
from tests.simulation.oracle import Oracle
from tests.simulation.receiver import HOOK, Receiver, unheard
from tests.simulation.schedule import CALM, HOOKED, LIMITED, Act, Schedule
from tests.simulation.server import Server, Trap
from tests.simulation.upstream import Upstream
from tests.support import SECRET, settings

_SETTLE = 60.0  # Seconds after the last fault within which everything has come to its end.
_LUA = sorted((Path(gateway.__file__).parent / "store" / "lua").glob("*.lua"))
NAMES = {sha1(path.read_bytes()).hexdigest().encode(): path.stem for path in _LUA}
_HEADS = {path.read_text("utf-8").partition("\n")[0]: path.stem for path in _LUA}


async def whoever(headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
    """Believe a header: an authenticator. Not a plain one: those run in threads."""
    return headers.get("x-user")


_KEPT = {"protocol": "responses", "url": f"http://upstream{PATH}", "background": True}


def _profile(preset: dict[str, Any] | None = None, **changes: Any) -> Settings:
    of_both = preset or {}
    given: dict[str, Any] = {
        "redis_url": "redis://redis:6379/0",
        "upstream_url": "http://upstream/v1",
        "auth": "tests.simulation.world:whoever",
        "lease": 1.5,
        "grace": 3,
        "heartbeat": 2,
        "start_by": 8,
        "log_ttl": 120,
        "max_run": 30,
        "drain": 2,
        "write_timeout": 3,
        "upstream_stall": 3,
        "upstream_retries": 2,
        "presets": {"default": of_both, "kept": {**_KEPT, **of_both}},
        "subject_bytes": 0,
        "service_tokens": TOKEN,
        "events_keep": 4,
        "store_share": 1,  # Its Redis has no INFO.
    }
    return settings(**{**given, **changes})


_CHANGES: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {}),
    ({}, {"grace": 1.5, "upstream_retries": 1}),
    ({}, {"lease": 4, "upstream_stall": 6}),
    ({"on_leave": "finish"}, {}),
    ({"on_crash": "restart"}, {}),
)
# Two of its streams may wait at once, and a third one that was cancelled be kept; one may run.
_LIMITS: dict[str, Any] = {"subject_bytes": 3300, "limits": {"streams": 1}}
_HOOKS: tuple[dict[str, Any], ...] = ({}, HOOK)
PROFILES = tuple(
    _profile({**preset, **hook}, **changes, **limits)
    for hook in _HOOKS
    for limits in ({}, _LIMITS)
    for preset, changes in _CHANGES
)


_LATE: Act = {
    "act": "view",
    "at": 0.0,
    "leaves": [],
    "lend": True,
    "flaky": True,
    "late": True,
    **dict.fromkeys(("post", "sticks", "reloads"), False),
}
# Its logs are short, and are to be packed all the same, in several packs.
_SMALLER = (patch.object(compaction, "_SMALL", 0), patch.object(packs, "_ROOM", 1500))


class Replica:
    """One process of the gateway."""

    def __init__(self, world: "World", number: int, name: str) -> None:
        self.world = world
        self.loop = world.loop
        self.number = number
        self.host = Host(name)
        self.context = self.host.context()
        self.exchanges: set[Exchange] = set()
        self.accepting = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.ended = asyncio.Event()
        self._stop = self.loop.create_future()
        self.gateway = self.context.run(Gateway, world.settings)
        self.context.run(self.spawn, self._main())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin a task of this process."""
        self.tasks.append(self.loop.create_task(work))

    async def _main(self) -> None:
        async with self.gateway.running():
            self.accepting = True
            await self._stop
            self.accepting = False
        self.ended.set()

    def drain(self) -> None:
        """Send it a SIGTERM."""
        self.accepting = False
        if not self._stop.done():
            self.loop.call_soon(self._stop.set_result, None, context=self.context)

    def kill(self) -> None:
        """Send it a SIGKILL."""
        self.accepting = False
        self.host.stopped = self.host.dead = True
        self.world.network.hang_up(self.host)
        for exchange in list(self.exchanges):
            exchange.cut()
        self.ended.set()


class Stream:
    """One completion that somebody wants."""

    def __init__(self, plan: Act) -> None:
        self.plan = plan
        self.name: str = plan["name"]
        self.key = f"key of {self.name}" if plan["key"] else ""
        self.kept: bool = plan.get("kept", False)
        self.path = "/tickets/kept" if self.kept else "/tickets"
        said = [{"role": "user", "content": self.name}]
        self.body = json.dumps({"input" if self.kept else "messages": said}).encode()
        self.ticket = ""
        self.stream_id = ""
        self.tickets: list[str] = []
        self.posted = asyncio.Event()
        self.cancels: list[tuple[float, str]] = []  # When, and what came back; "" if nothing.

    def headers(self) -> dict[str, str]:
        """Return the headers of its POST."""
        key = {"Idempotency-Key": self.key} if self.key else {}
        return {"X-User": "alice", "Content-Type": "application/json", **key}


class World:
    """Everything in one schedule; `trace` is where its story goes."""

    def __init__(
        self, schedule: Schedule, loop: VirtualLoop, trace: Callable[[str], None] | None
    ) -> None:
        self.schedule = schedule
        self.loop = loop
        self.settings = PROFILES[schedule.profile]
        self.limited = schedule.profile % HOOKED >= LIMITED
        self.hooked = schedule.profile >= HOOKED
        self.network = Network(loop, random.Random(f"network {schedule.seed}"))
        self.redis = Server(self.network, NAMES, _HEADS, self.say)
        self.upstream = Upstream(self.network, self.say)
        chance = random.Random(f"receiver {schedule.seed}")
        self.receiver = Receiver(self.network, CALM, chance)
        loop.hosts = {"redis": self.redis, "upstream": self.upstream, "receiver": self.receiver}
        self.replicas: list[Replica] = []
        self.everybody: list[Replica] = []
        self.streams = {plan["name"]: Stream(plan) for plan in schedule.streams}
        self.viewers: list[EventSource] = []
        self.troubles: list[tuple[float, float, str]] = []  # From when to when what went wrong.
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.broken: list[str] = []  # What the gateway itself called a fault of its own.
        self._tickets = Tickets([SECRET])
        self._trace = trace
        self._made = 0
        self._reactions: set[asyncio.Task[None]] = set()
        self.redis.freeze, self.redis.murder = self._freeze, self._murder
        self.oracle = Oracle(self)
        self.channel = Channel(self)
        self.upstream.scripts = {s.name: s.plan["script"] for s in self.streams.values()}

    def say(self, words: str) -> None:
        """Tell the story."""
        if self._trace is not None:
            self._trace(f"{self.loop.time():9.4f}  {words}")

    async def until(self, moment: float) -> None:
        """Wait for a moment of the schedule."""
        if moment > self.loop.time():
            await asyncio.sleep(moment - self.loop.time())

    def replica(self, rng: random.Random) -> Replica | None:
        """Return what a load balancer chooses: somebody who accepts connections."""
        able = [each for each in self.replicas if each.accepting]
        return rng.choice(able) if able else None

    def _start(self, number: int) -> Replica:
        self._made += 1
        replica = Replica(self, number, f"r{number}.{self._made}")
        self.everybody.append(replica)
        return replica

    async def main(self) -> None:
        """Run the schedule, let everything come to its end, and judge."""
        self.replicas = [self._start(number) for number in range(self.schedule.replicas)]
        people = [asyncio.create_task(self._post(each)) for each in self.streams.values()]
        for number, act in enumerate(self.schedule.acts):
            work = getattr(self, f"_{act['act']}")
            people.append(asyncio.create_task(self._act(work, act, number)))
        await asyncio.gather(*people)
        await asyncio.gather(*self._reactions)
        self.say("everything has come to its end")
        await self._settled()
        await self._look_at_what_was_lost()
        await self._look_at_what_was_packed()
        self.oracle.judge_streams()
        self.channel.judge()
        await self._stop_all()
        gc.collect(0)  # What was dropped with an error says so now.
        self.oracle.judge_leftovers()

    async def _act(
        self, work: Callable[[Act, int], Coroutine[Any, Any, None]], act: Act, number: int
    ) -> None:
        await self.until(act["at"])
        if act["act"] not in {"view", "trap", "listen"}:
            self.say(" ".join(f"{key}={value}" for key, value in act.items() if key != "at"))
        await work(act, number)

    async def _look_at_what_was_lost(self) -> None:
        """Ask once for what Redis forgot the owner of: nobody else could know of it."""
        for name in self.oracle.open():
            if self.oracle.touched(self.streams[name].stream_id):
                await self._completion({"stream": name, "host": 0}, 0)
        await self._settled()

    async def _look_at_what_was_packed(self) -> None:
        """Read once more what ended a while ago, as whoever comes late does."""
        await asyncio.sleep(2 * self.settings.lease + compaction.DELAY + 2)
        packed = [each for each in self.streams.values() if self.redis.packed(each.stream_id)]
        late = [{**_LATE, "stream": each.name, "seed": self.schedule.seed} for each in packed]
        await asyncio.gather(*(self._view(act, 1000 + nth) for nth, act in enumerate(late)))

    async def _settled(self) -> None:
        # What Redis forgot is written again at a beat.
        over = max((end for _, end, _ in self.troubles), default=0.0)
        await self.until(over + self.settings.lease + 1.5)
        deadline = max(CALM, self.loop.time()) + _SETTLE
        while self.loop.time() < deadline and self.oracle.open():  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        while self.loop.time() < CALM + _SETTLE and unheard(self):  # noqa: ASYNC110
            await asyncio.sleep(0.5)

    async def _stop_all(self) -> None:
        for replica in self.replicas:
            replica.drain()
        for replica in self.replicas:
            await replica.ended.wait()

    def wake_all(self) -> None:
        """Let what was stopped run again, so that it can be ended."""
        for replica in self.everybody:
            self.loop.release(replica.host)

    # People

    async def _post(self, stream: Stream) -> None:
        await self.until(stream.plan["at"])
        rng = random.Random(f"{stream.name} {self.schedule.seed}")
        while not await self._posted(stream, self.replica(rng)):  # noqa: ASYNC110
            await asyncio.sleep(0.3)

    async def _posted(self, stream: Stream, replica: Replica | None) -> bool:
        if replica is None:
            return False
        exchange = Exchange(
            replica, "POST", stream.path, headers=stream.headers(), body=stream.body
        )
        try:
            body = await exchange.whole()
        except Broken:
            return False
        if exchange.status not in {200, 201}:
            if exchange.status != 429 or not self.limited:
                self.oracle.refused("POST", exchange.status, body)
            return False
        stream.ticket = json.loads(body)["ticket"]
        stream.stream_id = self._tickets.verify(stream.ticket).stream_id
        stream.tickets.append(stream.ticket)
        self.say(f"{stream.name} is {stream.stream_id}")
        stream.posted.set()
        return True

    async def _view(self, act: Act, number: int) -> None:
        kind = CompositeSource if act.get("composite") and not act["post"] else EventSource
        viewer = kind(self.streams[act["stream"]], act, number)
        self.viewers.append(viewer)
        task = asyncio.create_task(viewer.run(self))
        await asyncio.wait({task}, timeout=CALM + _SETTLE)
        task.cancel()

    async def _push(self, act: Act, number: int) -> None:
        await self.channel.push(act)

    async def _listen(self, act: Act, number: int) -> None:
        await self.channel.listen(act, number, CALM + _SETTLE)

    async def _ask(
        self, act: Act, method: str, path: str, headers: dict[str, str] | None = None
    ) -> Exchange | None:
        stream = self.streams[act["stream"]]
        await stream.posted.wait()
        replica = self.replicas[act["host"] % len(self.replicas)]
        if not replica.accepting:
            return None
        headers = {"X-User": "alice", **(headers or {})}
        return Exchange(replica, method, path, headers=headers, query={"ticket": stream.ticket})

    async def _ghost(self, act: Act, number: int) -> None:
        exchange = await self._ask(act, "GET", "/stream", {"Accept": "text/event-stream"})
        if exchange is not None:
            await asyncio.sleep(act["hold"])
            exchange.leave()

    async def _cancel(self, act: Act, number: int) -> None:
        beacon = act["form"] == "beacon"
        method, path = ("POST", "/stream/cancel") if beacon else ("DELETE", "/stream")
        stream = self.streams[act["stream"]]
        exchange = await self._ask(act, method, path)
        if exchange is None:
            return
        answer = (self.loop.time(), "")
        stream.cancels.append(answer)
        try:
            body = await exchange.whole()
        except Broken:
            return
        if exchange.status == 200:
            state = json.loads(body)["state"]
            stream.cancels[stream.cancels.index(answer)] = (self.loop.time(), state)
            self.say(f"the cancel of {stream.name} was answered {state}")
        else:
            self.oracle.refused(method, exchange.status, body)

    async def _completion(self, act: Act, number: int) -> None:
        exchange = await self._ask(act, "GET", "/completion")
        if exchange is None:
            return
        try:
            body = await exchange.whole()
        except Broken:
            return
        if exchange.status == 200:
            self.answers.append((act["stream"], json.loads(body)))
        else:
            self.oracle.refused("GET", exchange.status, body)

    async def _repost(self, act: Act, number: int) -> None:
        stream = self.streams[act["stream"]]
        await stream.posted.wait()
        replica = self.replicas[act["host"] % len(self.replicas)]
        await self._posted(stream, replica if replica.accepting else None)

    # Faults

    @contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        begin = self.loop.time()
        try:
            yield
        finally:
            self.troubles.append((begin, self.loop.time(), what))
            self.say(f"{what} is over")

    def _host(self, act: Act) -> Replica:
        return self.replicas[int(act["host"]) % len(self.replicas)]

    async def _trap(self, act: Act, number: int) -> None:
        host = self._host(act).host.name if act["host"] >= 0 else ""
        trap = Trap(act["on"], act["how"], host, act["seconds"], act["seed"])
        self.redis.traps.append(trap)
        with self._trouble(f"trap {trap.how} on {trap.on}"):
            with suppress(TimeoutError):
                await asyncio.wait_for(trap.sprung.wait(), CALM - self.loop.time())
            if trap.sprung.is_set():
                await asyncio.sleep(TIMEOUT + trap.seconds)
        if trap in self.redis.traps:
            self.redis.traps.remove(trap)

    def _freeze(self, name: str, seconds: float) -> None:
        for each in self._named(name):
            self._later(self._paused(each.host, seconds))

    def _murder(self, name: str, seconds: float) -> None:
        for each in self._named(name):
            self._later(self._killed(each, seconds))

    def _named(self, name: str) -> list[Replica]:
        """Return the one of a name; none if it is gone: commands of dead ones come late."""
        return [each for each in self.replicas if each.host.name == name]

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._reactions.add(task)

    async def _pause(self, act: Act, number: int) -> None:
        await self._paused(self._host(act).host, act["seconds"])

    async def _paused(self, host: Host, seconds: float) -> None:
        if not host.stopped:
            host.stopped = True
            with self._trouble(f"pause {host.name}"):
                await asyncio.sleep(seconds)
            if not host.dead:
                self.loop.release(host)

    async def _kill(self, act: Act, number: int) -> None:
        await self._killed(self._host(act), act["seconds"])

    async def _killed(self, replica: Replica, seconds: float) -> None:
        if replica.host.dead:
            return
        replica.kill()
        with self._trouble(f"death of {replica.host.name}"):
            await asyncio.sleep(seconds)
            if self.replicas[replica.number] is replica:
                self.replicas[replica.number] = self._start(replica.number)

    async def _drain(self, act: Act, number: int) -> None:
        replica = self._host(act)
        if replica.host.dead or not replica.accepting:
            return
        replica.drain()
        with self._trouble(f"drain {replica.host.name}"):
            await replica.ended.wait()
            if self.replicas[replica.number] is replica:
                self.replicas[replica.number] = self._start(replica.number)

    async def _block(self, act: Act, number: int) -> None:
        name = self._host(act).host.name
        self.redis.blocked.add(name)
        with self._trouble(f"block {name}"):
            await asyncio.sleep(act["seconds"])
        self.redis.blocked.discard(name)
        self.redis.answer_again()

    async def _away(self, act: Act, number: int) -> None:
        self.redis.away = True
        with self._trouble("redis away"):
            await asyncio.sleep(act["seconds"])
        self.redis.away = False
        self.redis.answer_again()

    async def _down(self, act: Act, number: int) -> None:
        self.redis.down = True
        self.redis.end()
        with self._trouble("redis down"):
            await asyncio.sleep(act["seconds"])
        self.redis.down = False

    async def _slow(self, act: Act, number: int) -> None:
        self.network.slow["redis"] = act["delay"]
        with self._trouble("redis slow"):
            await asyncio.sleep(act["seconds"])
        self.network.slow.pop("redis", None)

    async def _full(self, act: Act, number: int) -> None:
        self.redis.full = act["share"]
        with self._trouble("redis full"):
            await asyncio.sleep(act["seconds"])
        self.redis.full = 0.0

    async def _failover(self, act: Act, number: int) -> None:
        self.redis.lose(act["lost"], clock=act["clock"])
        await self._down(act, number)

    async def _empty(self, act: Act, number: int) -> None:
        self.redis.lose(None)
        await self._down(act, number)

    async def _flush(self, act: Act, number: int) -> None:
        self.redis.lose(None, cut=False)
        with self._trouble("flush"):
            await asyncio.sleep(0)

    async def _clock(self, act: Act, number: int) -> None:
        self.redis.shift(act["by"])
        with self._trouble("clock"):
            await asyncio.sleep(0)

    async def _cut(self, act: Act, number: int) -> None:
        self.redis.cut(self._host(act).host.name if act["host"] >= 0 else "")
        with self._trouble("cut"):
            await asyncio.sleep(0)

    async def _deafen(self, act: Act, number: int) -> None:
        name = self._host(act).host.name if act["host"] >= 0 else ""
        self.redis.cut(name, subscribers=True)
        with self._trouble("pubsub cut"):
            await asyncio.sleep(0)

    async def _refuse(self, act: Act, number: int) -> None:
        self.upstream.down = True
        with self._trouble("upstream down"):
            await asyncio.sleep(act["seconds"])
        self.upstream.down = False


class _Faults(logging.Handler):
    """Keeps what the gateway logs as a fault of its own."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO if world._trace else logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, and tell it."""
        words = record.getMessage()
        if record.exc_info:
            words += f": {record.exc_info[1]!r}"
        if record.levelno >= logging.ERROR:
            self._world.broken.append(words)
        self._world.say(f"    {record.name}: {words}")


# Redis's client asks the file system for it at each connection: a third of all time here.
redis.utils.get_lib_version = lru_cache(redis.utils.get_lib_version)

# What the gateway keeps in sets: their order is that of the hashes, which are addresses else.
_IN_SETS = (Viewer, EventLog, AbstractConnection)


def _serial(loop: VirtualLoop) -> Callable[[Any], int]:
    kept: dict[int, tuple[int, Any]] = {}  # What has slots: as long as it is here, so is its id.

    def serial(each: Any) -> int:
        if hasattr(each, "__dict__"):
            return int(vars(each).setdefault("serial number", next(loop.numbers)))
        return kept.setdefault(id(each), (next(loop.numbers), each))[0]

    return serial


@contextmanager
def _surroundings(world: World) -> Iterator[None]:
    """Make chance and clocks a part of the schedule, for the time of one."""
    rng = random.Random(f"ids {world.schedule.seed}")
    random.seed(world.schedule.seed)
    urandom = secrets.token_urlsafe
    clocks = [vars(module) for module in (gateway.upstream.transport, gateway.store.outage)]
    monotonics = [module["monotonic"] for module in clocks]
    secrets.token_urlsafe = lambda n=None: (  # type: ignore[assignment]
        urlsafe_b64encode(rng.randbytes(n or 16)).decode().rstrip("=")
    )
    for module in clocks:
        module["monotonic"] = world.loop.time
    hashes = [patch.object(each, "__hash__", _serial(world.loop)) for each in _IN_SETS]
    logger, handler = logging.getLogger("gateway"), _Faults(world)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    logger.propagate = False
    try:
        with ExitStack() as stack:
            for each in hashes:
                stack.enter_context(each)
            for smaller in _SMALLER:
                stack.enter_context(smaller)
            yield
    finally:
        secrets.token_urlsafe = urandom
        for module, clock in zip(clocks, monotonics, strict=True):
            module["monotonic"] = clock
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def simulate(schedule: Schedule, trace: Callable[[str], None] | None = None) -> list[str]:
    """Run one schedule; return the promises it broke, each with what was seen."""
    gc.disable()  # What it finds, and when, would differ from run to run.
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world = World(schedule, loop, trace)
    try:
        with _surroundings(world):
            try:
                run(loop, world.main(), world.wake_all)
            except (RuntimeError, TimeoutError) as error:
                world.oracle.accuse("liveness", f"{type(error).__name__}: {error}")
    finally:
        asyncio.set_event_loop(None)
        gc.enable()
    return world.oracle.broken

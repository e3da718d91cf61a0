"""The scene: a Redis, a steady and a hostile upstream, two replicas, and a stranger who watches."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from redis import Redis

from tests.support import (
    SECRET,
    Call,
    Process,
    RedisServer,
    Script,
    ask,
    client,
    cookie,
    process,
    redis_server,
    scripted,
    settings,
    whole,
)

MEGABYTE = 1 << 20
INTERVAL = 0.05  # Seconds between two events of the stranger's stream.
_SAMPLE = 0.05

_PRESETS = """
[presets.default]
url = "{steady}/v1/chat/completions"
on_leave = "finish"

[presets.hostile]
url = "{hostile}"
api_key = "sk-that-nobody-may-see"
retries = 0
on_leave = "finish"
"""


@dataclass
class Figures:
    """What others noticed of an attack: seconds without an event, memory in MB above before."""

    gap: float = 0.0
    process: float = 0.0
    redis: float = 0.0


class Scene:
    """What attacks play in: `attacked` is the stranger's replica, `other` one beside it."""

    def __init__(self, redis: RedisServer, attacked: Process, other: Process, log: Path) -> None:
        self.attacked = attacked
        self.other = other
        self.script: Script = whole
        self._redis = Redis(port=redis.port)
        self._log = log

    async def upstream(self, call: Call) -> None:
        """What the hostile upstream does: the `script` of the attack at hand."""
        await self.script(call)

    @property
    def address(self) -> tuple[str, int]:
        """Where the replica under attack listens."""
        parts = urlsplit(self.attacked.url)
        return parts.hostname or "", parts.port or 0

    @property
    def logged(self) -> str:
        """What the replica under attack wrote to its log."""
        return self._log.read_text("utf-8")

    def client(self, subject: str, at: Process | None = None) -> httpx.AsyncClient:
        """Return a client with a subject's cookie."""
        http = client((at or self.attacked).url)
        http.headers.update(cookie(settings(), subject))
        return http

    async def ticket(self, http: httpx.AsyncClient, preset: str = "hostile") -> str:
        """Return the stream_url of a new ticket."""
        answer = await http.post(f"/tickets/{preset}", json=ask())
        assert answer.status_code == 201, answer.text
        return str(answer.json()["stream_url"])

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Figures]:
        """Measure while the block runs; the figures are right after it."""
        figures, peak = Figures(), 0.0
        self._forget_peak()
        process_before, redis_before = self._resident("VmRSS"), self._stored()

        async def sample() -> None:
            nonlocal peak
            while True:
                with suppress(OSError):
                    peak = max(peak, await asyncio.to_thread(self._stored))
                await asyncio.sleep(_SAMPLE)

        async with self._stranger() as heard:
            sampling = asyncio.create_task(sample())
            try:
                yield figures
            finally:
                sampling.cancel()
        figures.gap = heard["gap"]
        figures.process = self._resident("VmHWM") - process_before
        figures.redis = peak - redis_before

    @asynccontextmanager
    async def _stranger(self) -> AsyncIterator[dict[str, float]]:
        heard: dict[str, float] = {}
        async with self.client("stranger") as http:
            path = await self.ticket(http, "default")
            words = [*map(str, self.address), path, http.headers["cookie"]]
        reader = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.hostile.stranger", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert reader.stdout is not None
        try:
            assert await reader.stdout.readline() == b"begun\n"
            yield heard
            said, _ = await reader.communicate(b"")
            heard |= json.loads(said)
        finally:
            if reader.returncode is None:
                reader.kill()
                await reader.wait()

    def _stored(self) -> float:
        return float(self._redis.info("memory")["used_memory"]) / MEGABYTE

    def _resident(self, name: str) -> float:
        status = Path(f"/proc/{self.attacked.process.pid}/status").read_text()
        (line,) = (each for each in status.splitlines() if each.startswith(name))
        return int(line.split()[1]) / 1024

    def _forget_peak(self) -> None:
        Path(f"/proc/{self.attacked.process.pid}/clear_refs").write_text("5")


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """Start everything on loopback, and stop it."""
    script: list[Script] = []

    async def upstream(call: Call) -> None:
        await script[0](call)

    async with AsyncExitStack() as stack:
        memory = ("--maxmemory", "256mb", "--maxmemory-policy", "noeviction")
        redis = stack.enter_context(redis_server(folder, *memory))
        pretend = ("upstream", "--port", "0", "--interval", str(INTERVAL), "--tokens", "100000")
        steady = stack.enter_context(process(*pretend))
        hostile = await stack.enter_async_context(scripted(upstream))
        config = folder / "gateway.toml"
        config.write_text(_PRESETS.format(steady=steady.url, hostile=hostile.url))
        log = folder / "attacked.log"
        shared = {"redis_url": redis.url, "secrets": SECRET, "config": str(config)}
        attacked = stack.enter_context(process("serve", "--port", "0", log=str(log), **shared))
        other = stack.enter_context(
            process("serve", "--port", "0", log=str(folder / "other.log"), **shared)
        )
        played = Scene(redis, attacked, other, log)
        script.append(played.upstream)
        await _warm(played)
        yield played


async def _warm(scene: Scene) -> None:
    """Load what the first requests load."""
    async with scene.client("stranger") as http:
        answer = await http.get(await scene.ticket(http), headers={"Accept": "text/event-stream"})
        assert answer.status_code == 200

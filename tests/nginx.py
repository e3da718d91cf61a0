"""A real nginx on the very template that we ship, in front of real replicas."""

import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

import gateway
from tests.support import (
    SECRET,
    Process,
    RedisServer,
    ask,
    cookie,
    free_port,
    missing,
    settings,
    until,
    wait_for_port,
)

HOME = Path(gateway.__file__).parent.parent / "nginx"
TEMPLATE = HOME / "gateway.conf.template"
DEFAULTS = HOME / "gateway.env"

# As hostile to streams as the rest of a site may want it: the template must not depend on it.
MAIN = """
{user}
pid {folder}/pid;
error_log {folder}/main.log;
daemon off;
worker_processes {workers};
worker_shutdown_timeout {patience};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    gzip on;
    gzip_proxied any;
    gzip_min_length 0;
    gzip_types *;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/gateway.conf;
}}
"""

# The two ways to render: Debian's (the one in gateway.env), and what the official image does.
BY_HAND = """set -a; . "$1"; set +a
envsubst "$(sed -n 's/^\\([A-Z_]*\\)=.*/${\\1}/p' "$1")" < "$2" """
BY_IMAGE = """set -a; . "$1"; set +a
filter='^(GATEWAY|NGINX)_'
envsubst "$(printf '${%s} ' $(awk "END {
    for (name in ENVIRON) print (name ~ /${filter}/) ? name : \\"\\"
}" < /dev/null))" < "$2" """


def which(name: str) -> str | None:
    """Return a program's path, also where only root would find it."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin")


def absent() -> str:
    """Return what it needs and this machine lacks, "" for nothing."""
    return next((each for each in ("nginx", "envsubst", "openssl") if which(each) is None), "")


def binary(name: str) -> str:
    """Return a program's path; the test skips or fails without it."""
    found = which(name)
    if found is None:
        missing(name)
    assert found is not None
    return found


def rendered(how: str, folder: Path, **variables: str) -> str:
    """Return the template with the defaults, but for these variables."""
    binary("envsubst")
    given = folder / "gateway.env"
    more = "".join(f"{name}='{value}'\n" for name, value in variables.items())
    given.write_text(DEFAULTS.read_text("utf-8") + more, "utf-8")
    command = ["sh", "-ec", how, "sh", str(given), str(TEMPLATE)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Nginx:
    """An nginx in a folder of its own, over TLS at `url` and without at `plain`."""

    def __init__(
        self,
        folder: Path,
        servers: str,
        workers: int = 2,
        connections: int = 2048,
        patience: str = "1h",
        **variables: str,
    ) -> None:
        """`patience` is how long after a reload old workers have for their streams."""
        self.folder = folder
        self._size = {"workers": workers, "connections": connections, "patience": patience}
        secure, plain = free_port(), free_port()
        self.port = plain
        self.url, self.plain = f"https://localhost:{secure}", f"http://localhost:{plain}"
        self._ports = (secure, plain)
        self._process: subprocess.Popen[bytes] | None = None
        self._variables = {
            "NGINX_SERVERS": servers,
            "NGINX_LISTEN": f"listen 127.0.0.1:{secure} ssl http2; listen 127.0.0.1:{plain};",
            "NGINX_TLS": f"ssl_certificate {folder}/cert; ssl_certificate_key {folder}/key;",
            "NGINX_PLAIN": "serve",
            "NGINX_ACCESS_LOG": f"{folder}/access.log",
            "NGINX_ERROR_LOG": f"{folder}/error.log",
            **variables,
        }

    def configure(self) -> None:
        """Write its files: the main one, the template's, and once a certificate for localhost."""
        self.folder.mkdir(exist_ok=True)
        if not (self.folder / "cert").exists():
            self._certify()
        # Its workers would be `nobody` under root, and nobody may write into a test's folder.
        user = "user root;" if os.geteuid() == 0 else ""
        main = MAIN.format(folder=self.folder, user=user, **self._size)
        (self.folder / "nginx.conf").write_text(main, "utf-8")
        text = rendered(BY_HAND, self.folder, **self._variables)
        (self.folder / "gateway.conf").write_text(text, "utf-8")

    def _certify(self) -> None:
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        where = ["-keyout", f"{self.folder}/key", "-out", f"{self.folder}/cert"]
        subprocess.run(
            [
                *(binary("openssl"), "req", "-x509", "-days", "2", "-subj", "/CN=localhost"),
                *("-addext", names, *curve, *where),
            ],
            check=True,
            capture_output=True,
        )

    @property
    def command(self) -> list[str]:
        """What starts it, or with -t checks its files."""
        folder = str(self.folder)
        log = f"{folder}/main.log"
        return [binary("nginx"), "-e", log, "-p", folder, "-c", f"{folder}/nginx.conf"]

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        for port in self._ports:
            wait_for_port(port)

    def stop(self) -> None:
        """End it as a reboot does: all connections are cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)
            self._process = None

    def reload(self, *ports: int) -> None:
        """Have other replicas from now on: render the template anew, then `nginx -s reload`."""
        self._variables["NGINX_SERVERS"] = servers_at(*ports)
        self.configure()
        subprocess.run([*self.command, "-s", "reload"], check=True, capture_output=True)

    def client(self, *, secure: bool = False) -> httpx.AsyncClient:
        """Return an HTTP/1.1 client, without or over TLS; it trusts the certificate."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "cert"))
        limits = httpx.Limits(max_connections=None)
        url = self.url if secure else self.plain
        return httpx.AsyncClient(
            base_url=url, timeout=20, limits=limits, trust_env=False, verify=trusted
        )

    def accesses(self) -> list[str]:
        """Return the lines of the access log."""
        return (self.folder / "access.log").read_text("utf-8").splitlines()

    def errors(self) -> str:
        """Return the error logs: the server's and the main one."""
        paths = [self.folder / "error.log", self.folder / "main.log"]
        return "".join(path.read_text("utf-8") for path in paths if path.exists())


def servers_at(*ports: int) -> str:
    """Return the upstream block's lines for these ports of this machine."""
    return " ".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;" for port in ports)


@contextmanager
def nginx(folder: Path, *ports: int, **options: Any) -> Iterator[Nginx]:
    """Run nginx in front of what listens, or does not, on these ports; see `Nginx` for options."""
    binary("nginx")
    server = Nginx(folder, servers_at(*ports), **options)
    server.configure()
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Replicas:
    """Replicas of one site, each on a port that it keeps when it is replaced."""

    def __init__(self, count: int, redis: RedisServer, upstream: str, **more: str) -> None:
        self.ports = [free_port() for _ in range(count)]
        self._variables = {
            "redis_url": redis.url,
            "upstream_url": upstream,
            "secrets": SECRET,
            "log_level": "warning",
            "lease": "10",
            "heartbeat": "1",
            "drain": "10",
            **more,
        }
        self.processes: list[Process] = []

    def begin(self, number: int) -> Process:
        """Start one, not waiting for it."""
        port = str(self.ports[number])
        return Process("serve", "--port", port, **self._variables)

    def replace(self, number: int) -> None:
        """Start one where there was one, and wait until it is ready."""
        self.processes[number].stop()
        self.processes[number] = self.begin(number)
        self.processes[number].ready()

    def signal(self, number: int, what: int) -> None:
        """Send a signal to one."""
        self.processes[number].signal(what)

    def at(self, address: str) -> int:
        """Return which one listens on an address."""
        return self.ports.index(int(address.rpartition(":")[2]))


@contextmanager
def replicas(count: int, redis: RedisServer, upstream: str, **more: str) -> Iterator[Replicas]:
    """Run replicas; `more` are their settings."""
    started = Replicas(count, redis, upstream, **more)
    started.processes = [started.begin(number) for number in range(count)]
    try:
        for each in started.processes:
            each.ready()
        yield started
    finally:
        for each in started.processes:
            each.stop()


class Front:
    """Replicas behind an nginx, and a page of alice."""

    def __init__(self, proxy: Nginx, behind: Replicas, http: httpx.AsyncClient) -> None:
        self.nginx = proxy
        self.replicas = behind
        self.http = http
        self.alice = cookie(settings())

    async def post(self, prompt: str = "Hello?", **headers: str) -> httpx.Response:
        """POST a request to /tickets."""
        return await self.http.post("/tickets", json=ask(prompt), headers={**self.alice, **headers})

    async def ticket(self, prompt: str = "Hello?") -> str:
        """POST a request and return its stream_url."""
        answer = await self.post(prompt)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["stream_url"])

    async def spread(self, each: int, among: int = 0) -> list[list[str]]:
        """Return for each of the first `among` replicas (0: all) so many tickets of its own."""
        found: list[list[str]] = [[] for _ in self.replicas.ports[: among or None]]
        while min(map(len, found)) < each:
            url = await self.ticket(f"Ask {sum(map(len, found))}.")
            found[await self.replica_of(url)].append(url)
        return [urls[:each] for urls in found]

    async def replica_of(self, url: str) -> int:
        """Return the replica that nginx takes a ticket to."""
        name = uuid4().hex
        where = url.replace("/stream", "/completion")
        await self.http.get(where, headers={**self.alice, "User-Agent": name})
        (line,) = await until(lambda: [each for each in self.nginx.accesses() if name in each])
        return self.replicas.at(line.partition(" replica=")[2].split()[0])


@asynccontextmanager
async def front(
    folder: Path,
    redis: RedisServer,
    upstream: str,
    count: int = 2,
    proxy: dict[str, str] | None = None,
    **more: str,
) -> AsyncIterator[Front]:
    """Run nginx and replicas; `proxy` are variables of nginx, `more` settings of the replicas."""
    with (
        replicas(count, redis, upstream, **more) as behind,
        nginx(folder / "nginx", *behind.ports, **(proxy or {})) as server,
    ):
        async with server.client() as http:
            yield Front(server, behind, http)

"""Composition: what compose.yaml describes, as processes of this machine.

The commands, the environment, the flags, the files and the certificate are the file's own. Other
than in containers are only the addresses, the paths of what is mounted, and users.
"""

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from tests.support import (
    Process,
    RedisServer,
    free_port,
    missing,
    process,
    redis_server,
    wait_for_port,
)

HOME = Path(__file__).parent.parent
FILE = HOME / "compose.yaml"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+):-(?P<default>[^}]*)\})")

Service = dict[str, Any]


def services(**variables: str) -> dict[str, Service]:
    """Return the services with the variables filled in, as `docker compose config` would."""
    found: dict[str, Service] = document(**variables)["services"]
    for service in found.values():
        service["environment"] = _environment(service, variables)
    return found


def document(**variables: str) -> dict[str, Any]:
    """Return the whole file with the variables filled in."""
    return dict(_filled(YAML(typ="safe", pure=True).load(FILE.read_text("utf-8")), variables))


def _filled(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(each, variables) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, variables) for each in value]
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda found: _value(found, variables), value)


def _value(found: re.Match[str], variables: dict[str, str]) -> str:
    name = found["name"]
    return variables.get(name) or found["default"] if name else "$"


def _environment(service: Service, variables: dict[str, str]) -> dict[str, str]:
    """Return what a container gets: the env_file below, names without a value only if set."""
    given: dict[str, str] = {}
    if "env_file" in service:
        for line in (HOME / service["env_file"]).read_text("utf-8").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.partition("=")
                given[name] = "".join(shlex.split(value))
    for name, value in service.get("environment", {}).items():
        if value is not None:
            given[name] = str(value)
        elif name in variables:
            given[name] = variables[name]
    return given


def mounts(service: Service) -> Iterator[tuple[str, str, str]]:
    """Yield source, target and options of everything that is mounted."""
    for line in service.get("volumes", []):
        source, target, *options = line.split(":")
        yield source, target, ",".join(options)


def image_command() -> list[str]:
    """Return the arguments that the image gives to `gateway` where a service gives none."""
    found = re.search(r"^CMD (\[.*\])$", (HOME / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return [str(word) for word in json.loads(found[1])]


class Composition:
    """The running whole; `url` is where a browser goes, `http` a client that trusts nobody else."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.services = services(**variables)
        self.ports: dict[str, int] = {}  # Of one process of each service.
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.logs = folder / "log"
        self.redis: RedisServer | None = None
        self._folder = folder
        self._addresses: dict[str, str] = {}
        self._gateways: list[str] = []

    def start(self, stack: ExitStack) -> None:
        """Start everything in the order of depends_on; raises what does not start."""
        self.make_keys()
        self.redis = stack.enter_context(self._redis())
        self._listens("redis", 6379, f"127.0.0.1:{self.redis.port}")
        for name in ("upstream", "page"):
            self._listens(name, 8000, _address(stack.enter_context(self._gateway(name))))
        for _ in range(int(self.services["gateway"]["deploy"]["replicas"])):
            self._gateways.append(_address(stack.enter_context(self._gateway("gateway"))))
        self._listens("gateway", 8000, self._gateways[0])
        stack.enter_context(self._nginx())
        self.ports["nginx"] = self.port

    def make_keys(self) -> subprocess.CompletedProcess[str]:
        """Run the service that makes what nobody gave; returns how it ended."""
        service = self.services["keys"]
        return subprocess.run(
            [self._local("keys", word) for word in service["entrypoint"]],
            env={"PATH": os.environ["PATH"], **service["environment"]},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def context(self) -> ssl.SSLContext:
        """What trusts the certificate that was made, and no other."""
        return ssl.create_default_context(cafile=self._volume("tls") / "gateway.crt")

    def client(self) -> httpx.AsyncClient:
        """Return a client without cookies that comes in through nginx."""
        return httpx.AsyncClient(
            base_url=self.url, timeout=20, verify=self.context, trust_env=False
        )

    def probe(self, name: str, port: int) -> int:
        """Return the exit code of a service's health check, with another port."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words = [re.sub(r"\b8000\b|\b8443\b", str(port), word) for word in command]
        if name == "redis":
            words[1:1] = ["-p", str(port)]
        return subprocess.run(words, capture_output=True, check=False).returncode

    def _listens(self, name: str, port: int, here: str) -> None:
        self._addresses[f"{name}:{port}"] = here
        self.ports[name] = int(here.rpartition(":")[2])

    def _redis(self) -> Any:
        (folder := self._volume("redis")).mkdir(parents=True, exist_ok=True)
        return redis_server(folder, *self.services["redis"]["command"][1:])

    def _gateway(self, name: str) -> Any:
        service = self.services[name]
        command = [*service.get("command", image_command()), "--port", "0"]
        variables = {
            key.removeprefix("GATEWAY_").lower(): self._local(name, value)
            for key, value in service["environment"].items()
        }
        return process(*(word.replace("0.0.0.0", "127.0.0.1") for word in command), **variables)

    @contextmanager
    def _nginx(self) -> Iterator[None]:
        binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        if binary is None:
            missing("nginx")
        assert binary is not None
        configuration = self.render()
        self.logs.mkdir()
        command = [binary, "-p", str(self._folder), "-c", str(configuration), "-g", "daemon off;"]
        with (self.logs / "nginx").open("wb") as said:
            test = subprocess.run([*command[:-2], "-t"], stderr=said, check=False)
            assert test.returncode == 0, (self.logs / "nginx").read_text()
            running = subprocess.Popen(command, stderr=said)
        try:
            wait_for_port(self.port)
            yield
        finally:
            running.terminate()
            running.wait()

    def render(self) -> Path:
        """Fill the template in as the image would; returns where the whole configuration is."""
        service = self.services["nginx"]
        environment, sources = service["environment"], {}
        for source, target, _ in mounts(service):
            sources[target] = HOME / source
        allowed = re.compile(environment["NGINX_ENVSUBST_FILTER"])
        text = sources["/etc/nginx/templates/gateway.conf.template"].read_text("utf-8")
        for name, value in environment.items():
            if allowed.search(name):
                text = text.replace(f"${{{name}}}", self._for_here(value))
        (temporary := self._folder / "nginx" / "tmp").mkdir(parents=True)
        (temporary / "gateway.conf").write_text(self._local("nginx", text), "utf-8")
        whole = self._folder / "nginx.conf"
        text = sources["/etc/nginx/nginx.conf"].read_text("utf-8")
        whole.write_text(self._local("nginx", text), "utf-8")
        return whole

    def _for_here(self, value: str) -> str:
        """Say it to an nginx that may be older than the image's, and without a name server."""
        server = re.search(r"resolver [^;]+; server gateway:8000 resolve ([^;]+);", value)
        if server:
            return " ".join(f"server {each} {server[1]};" for each in self._gateways)
        listen = f"listen 127.0.0.1:{self.port} ssl http2;"
        return value.replace("listen 8443 ssl; http2 on;", listen)

    def _volume(self, source: str) -> Path:
        return HOME / source if "/" in source else self._folder / "volumes" / source

    def _local(self, name: str, text: str) -> str:
        """Return a text of a service with the addresses and paths that it has here."""
        here = dict(self._addresses)
        for source, target, _ in mounts(self.services[name]):
            here[target] = str(self._volume(source))
        for line in self.services[name].get("tmpfs", []):
            target = line.partition(":")[0]
            here[target] = f"{self._folder}/{name}{target}"
        if name == "nginx":
            here["/var/log/nginx"] = str(self.logs)
        for folder in here.values():
            if folder.startswith(f"{self._folder}/volumes"):
                Path(folder).mkdir(parents=True, exist_ok=True)
        names = "|".join(map(re.escape, sorted(here, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.-])(?:{names})\b", lambda found: here[found[0]], text)


def _address(process: Process) -> str:
    return process.url.removeprefix("http://")


@contextmanager
def composed(folder: Path, **variables: str) -> Iterator[Composition]:
    """Run the whole for the length of the block; `variables` are what .env would say."""
    whole = Composition(folder, **variables)
    with ExitStack() as stack:
        whole.start(stack)
        yield whole

"""Composition: what compose.yaml describes, as processes of this machine.

Commands, flags, environment, files and certificate are the file's own. Addresses, paths of what is
mounted and users are this machine's. A name is known only to who shares a network with it.
"""

import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from examples.composition import Service, environment, filled
from gateway.cli import main
from tests.nginx import binary
from tests.support import Process, free_port, process, redis_server, wait_for_port

HOME = Path(__file__).parent.parent
DOCKERFILE = (HOME / "Dockerfile").read_text("utf-8")
FILE = HOME / "compose.yaml"
REPLICAS_BY_NAME = re.compile(r"resolver [^;]+; server (\S+) resolve ([^;]+);")

# What the files say


def document(**variables: str) -> dict[str, Any]:
    """Return the file with the variables filled in, as `docker compose config` would."""
    return dict(filled(YAML(typ="safe", pure=True).load(FILE.read_text("utf-8")), variables))


def services(**variables: str) -> dict[str, Service]:
    """Return the services, each with the whole environment that its containers get."""
    found: dict[str, Service] = document(**variables)["services"]
    for service in found.values():
        service["environment"] = environment(HOME, service, variables)
    return found


def mounts(service: Service) -> Iterator[tuple[str, str]]:
    """Yield source and target of everything that is mounted."""
    for line in service.get("volumes", []):
        source, target, *_ = line.split(":")
        yield source, target


def networks(service: Service) -> set[str]:
    """Return the networks that a service is on."""
    return set() if "network_mode" in service else set(service.get("networks", ["default"]))


def instruction(name: str) -> list[str]:
    """Return the words of an instruction of the Dockerfile that is in exec form."""
    text = DOCKERFILE.replace("\\\n", "")
    found = re.search(rf"^{name} [^\[\n]*(\[.*\])$", text, re.MULTILINE)
    assert found is not None
    return [str(word) for word in json.loads(found[1])]


def command(service: Service) -> list[str]:
    """Return the arguments that a service gives to `gateway`, or else its image."""
    return list(service.get("command", instruction("CMD")))


def port_of(service: Service) -> str:
    """Return where a service of ours listens; fails where other containers could not reach it."""
    name, *words = command(service)
    given = dict(pairwise(words))
    assert "--host" not in given  # The image says it, for whatever it is told to run.
    assert re.search(r"^ENV (.*\\\n)* +GATEWAY_HOST=0\.0\.0\.0$", DOCKERFILE, re.MULTILINE)
    default = {each.name: each.default for each in main.commands[name].params}["port"]
    return given.get("--port", str(default))


# The whole as processes


class Composition:
    """The running whole; `ports` has one process of each service, as `port_of` has its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.services = services(**variables)
        self.ports = {"nginx": free_port()}
        self.url = f"https://localhost:{self.ports['nginx']}"
        self.logs = folder / "nginx" / "log"
        self._folder = folder
        self._inside = {"nginx": self.services["nginx"]["ports"][0].rpartition(":")[2]}
        self._replicas: list[str] = []

    def start(self, stack: ExitStack) -> None:
        """Start everything in the order that depends_on gives."""
        assert self.make_keys().returncode == 0
        self._inside["redis"] = "6379"  # The image's.
        self.ports["redis"] = stack.enter_context(self._redis())
        for name in ("upstream", "page", "gateway"):
            self._inside[name] = port_of(self.services[name])
            for _ in range(int(self.services[name]["deploy"]["replicas"])):
                url = stack.enter_context(self._ours(name)).url
                self.ports[name] = int(url.rpartition(":")[2])
                if name == "gateway":
                    self._replicas.append(url.removeprefix("http://"))
        stack.enter_context(self._nginx())

    def make_keys(self) -> subprocess.CompletedProcess[str]:
        """Run the service that makes what nobody gave; returns how it ended."""
        binary("openssl")
        service = self.services["keys"]
        words = [self._here("keys", word) for word in service["entrypoint"]]
        environment = {"PATH": os.environ["PATH"], **service["environment"]}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    def trust(self) -> ssl.SSLContext:
        """Return what trusts the certificate that was made, and no other."""
        return ssl.create_default_context(cafile=self._source("tls") / "gateway.crt")

    def client(self) -> httpx.AsyncClient:
        """Return a client that comes in through nginx, and keeps its cookies."""
        return httpx.AsyncClient(
            base_url=self.url, timeout=20, verify=self.trust(), trust_env=False
        )

    def healthy(self, name: str, port: int, test: list[str] | None = None) -> bool:
        """Run a health check, the service's own if none is given, against a port of ours."""
        kind, *words = test or self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        words[0] = sys.executable if words[0] == "python" else binary(words[0])
        if name == "redis":
            words[1:1] = ["-p", str(port)]
        words = [re.sub(rf"\b{self._inside[name]}\b", str(port), word) for word in words]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    @contextmanager
    def _redis(self) -> Iterator[int]:
        folder = self._source("redis")
        folder.mkdir(parents=True)
        with redis_server(folder, *self.services["redis"]["command"][1:]) as running:
            yield running.port

    def _ours(self, name: str) -> AbstractContextManager[Process]:
        service = self.services[name]
        words = command(service)
        variables = {
            key.removeprefix("GATEWAY_").lower(): self._here(name, value)
            for key, value in service["environment"].items()
        }
        return process(*words, "--port", "0", **variables)

    @contextmanager
    def _nginx(self) -> Iterator[None]:
        words = [binary("nginx"), "-p", str(self._folder), "-c", str(self._configuration())]
        with (self.logs / "stderr").open("wb") as said:
            test = subprocess.run([*words, "-t"], stderr=said, check=False)
            assert test.returncode == 0, (self.logs / "stderr").read_text("utf-8")
            running = subprocess.Popen([*words, "-g", "daemon off;"], stderr=said)
        try:
            wait_for_port(self.ports["nginx"])
            yield
        finally:
            running.terminate()
            running.wait()

    def _configuration(self) -> Path:
        """Fill the template in as the image's entry point does; return what includes it."""
        service = self.services["nginx"]
        environment = service["environment"]
        sources = {target: self._source(source) for source, target in mounts(service)}
        text = sources["/etc/nginx/templates/gateway.conf.template"].read_text("utf-8")
        for name, value in environment.items():
            if re.search(environment["NGINX_ENVSUBST_FILTER"], name):
                text = text.replace(f"${{{name}}}", self._for_any_nginx(value))
        output = Path(self._here("nginx", environment["NGINX_ENVSUBST_OUTPUT_DIR"]))
        for folder in (output, self.logs):
            folder.mkdir(parents=True)
        (output / "gateway.conf").write_text(self._here("nginx", text), "utf-8")
        whole = self._folder / "nginx" / "nginx.conf"
        text = sources["/etc/nginx/nginx.conf"].read_text("utf-8")
        whole.write_text(self._here("nginx", text), "utf-8")
        return whole

    def _for_any_nginx(self, value: str) -> str:
        """Spell it for an nginx older than the image's, and for a machine without Docker's DNS."""
        named = REPLICAS_BY_NAME.fullmatch(value)
        if named:
            assert named[1] == f"gateway:{self._inside['gateway']}"
            return " ".join(f"server {address} {named[2]};" for address in self._replicas)
        inside = f"listen {self._inside['nginx']} ssl; http2 on;"
        return value.replace(inside, f"listen 127.0.0.1:{self.ports['nginx']} ssl http2;")

    def _source(self, name: str) -> Path:
        return HOME / name if "/" in name else self._folder / "volumes" / name

    def _here(self, name: str, text: str) -> str:
        """Return a text of a service with the addresses and paths that it has on this machine."""
        service, here = self.services[name], {}
        for other, port in self._inside.items():
            if networks(service) & networks(self.services[other]) and other in self.ports:
                here[f"{other}:{port}"] = f"127.0.0.1:{self.ports[other]}"
        for source, target in mounts(service):
            here[target] = str(self._source(source))
            if "/" not in source:
                self._source(source).mkdir(parents=True, exist_ok=True)
        for line in service.get("tmpfs", []):
            here[line.partition(":")[0]] = str(self._folder / name / "tmpfs")
        if name == "nginx":
            here["/var/log/nginx"] = str(self.logs)
        if not here:
            return text
        names = "|".join(map(re.escape, sorted(here, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.-])(?:{names})\b", lambda found: here[found[0]], text)


@contextmanager
def composed(folder: Path, **variables: str) -> Iterator[Composition]:
    """Run the whole for the length of the block; `variables` are what .env would say."""
    whole = Composition(folder, **variables)
    with ExitStack() as stack:
        whole.start(stack)
        yield whole

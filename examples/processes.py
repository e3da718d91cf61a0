"""Processes: an example without containers, each service of its compose.yaml a process.

Commands, environment, files and the nginx template are those of the composition. What differs is
where: services have a free port of 127.0.0.1 in place of a name, and a temporary folder in place of
a file system of their own.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.composition import HOME, Service, mounts, services

INSIDE = {"nginx": 8080, "redis": 6379}  # Where they listen in a container; all others at 8000.
PATIENCE = 60  # Seconds until a service listens, on a busy machine.
PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


class Unable(Exception):
    """What this machine lacks, or what went wrong."""


class Example:
    """An example's processes; `ports` has one of each service."""

    def __init__(
        self, name: str, folder: Path, variables: Mapping[str, str], **elsewhere: int
    ) -> None:
        """`variables` fill in the compose.yaml; `elsewhere` has ports of what runs already.

        Raises Unable where a variable is missing.
        """
        self._home = HOME / name
        self._folder = folder
        try:
            self._services = services(name, variables)
        except KeyError as error:
            raise Unable(error.args[0]) from None
        self._own = [each for each in self._services if each not in elsewhere]
        self.ports = {each: _free_port() for each in self._own} | elsewhere
        if given := int(self._services["nginx"]["ports"][0].split(":")[1]):
            self.ports["nginx"] = given
        self.url = f"http://localhost:{self.ports['nginx']}"
        self.redis_url = f"redis://127.0.0.1:{self.ports['redis']}/0"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start everything, and wait until all of it listens; raises Unable."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.ports["nginx"]))
            except OSError as error:
                raise Unable(f"{self.url}: {error.strerror}; PORT=… takes another") from None
        for name in self._own:
            self.begin(name)
        for name in self._own:
            self.wait(name)

    def begin(self, name: str) -> None:
        """Start one, not waiting for it."""
        service = self._services[name]
        here = {"PATH": PATHS, "PYTHONUNBUFFERED": "1"}
        given = {key: self._here(name, value) for key, value in service["environment"].items()}
        rest = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._command(name, service),
                env=rest | here | given,
                cwd=HOME.parent if service.get("build") == ".." else self._home,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # A Ctrl+C is ours: we end them in order.
            )

    def wait(self, name: str) -> None:
        """Return once a service listens; raises Unable where it ends instead."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.check(name)
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[name])):
                return
            if time.monotonic() > deadline:
                raise Unable(f"{name} does not listen")
            time.sleep(0.02)

    def check(self, *names: str) -> None:
        """Raise Unable where one of these, or of all, has ended."""
        for name in names or self._running:
            if self._running[name].poll() is not None:
                said = self._log(name).read_text("utf-8", "replace").strip()
                raise Unable(f"{name} has ended: {said or 'without a word'}")

    def stop(self, *names: str) -> None:
        """End these services, or all: their connections are cut."""
        chosen = names or tuple(self._running)
        # The store last: a gateway that ends waits for one that is away.
        _end([self._running.pop(name) for name in chosen if name != "redis"])
        _end([self._running.pop(name) for name in chosen if name == "redis"])

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _command(self, name: str, service: Service) -> list[str]:
        if name == "nginx":
            # Under root its workers would be `nobody`, who may not read our files.
            user = "user root; " if os.geteuid() == 0 else ""
            whole = [*("-e", "stderr", "-g", f"{user}daemon off;"), "-c", str(self._nginx(service))]
            return [_program("nginx"), "-p", str(self._folder), *whole]
        if name == "redis":
            where = ["--port", str(self.ports[name]), "--bind", "127.0.0.1"]
            program = _program("redis-server", "valkey-server")
            return [program, *service["command"][1:], *where, "--dir", str(self._folder)]
        first, *words = service.get("command", ["serve", "--port", "8000"])
        if service["build"] == "..":
            words = ["-m", "gateway", first, *words]
        elif first != "python":
            words = ["-m", first, *words]
        local = [
            re.sub(r"\b8000\b", str(self.ports[name]), word.replace("0.0.0.0", "127.0.0.1"))
            for word in words
        ]
        return [sys.executable, *local]

    def _nginx(self, service: Service) -> Path:
        """Fill the template in as the image does; returns the file that includes it."""
        text = self._file("nginx", "/etc/nginx/templates/gateway.conf.template").read_text("utf-8")
        for key, value in service["environment"].items():
            text = text.replace(f"${{{key}}}", value)
        output = Path(self._here("nginx", service["environment"]["NGINX_ENVSUBST_OUTPUT_DIR"]))
        (output / "gateway.conf").write_text(self._here("nginx", text), "utf-8")
        return self._file("nginx", "/etc/nginx/nginx.conf")

    def _file(self, name: str, target: str) -> Path:
        """Return a copy of a mounted file, with what is there called as it is here."""
        (source,) = [each for each, where in mounts(self._services[name]) if where == target]
        copy = self._place(name, "files") / source.name
        copy.write_text(self._here(name, source.read_text("utf-8"), files=False), "utf-8")
        return copy

    def _here(self, name: str, text: str, *, files: bool = True) -> str:
        """Return a text of a service with the addresses and paths that it has on this machine."""
        here = {
            f"{each}:{INSIDE.get(each, 8000)}": f"127.0.0.1:{port}"
            for each, port in self.ports.items()
        }
        if name == "nginx":
            here["listen 8080"] = f"listen 127.0.0.1:{self.ports[name]}"
            here["/var/log/nginx"] = str(self._place(name, "log"))
        for target in self._services[name].get("tmpfs", []):
            here[target.partition(":")[0]] = str(self._place(name, "tmp"))
        for source, target in mounts(self._services[name]):
            if source.is_dir():
                here[target] = str(source)
            elif files and target in text:
                here[target] = str(self._file(name, target))
        names = "|".join(map(re.escape, sorted(here, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.-])(?:{names})\b", lambda found: here[found[0]], text)

    def _place(self, name: str, what: str) -> Path:
        folder = self._folder / name / what
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def running(name: str, variables: Mapping[str, str], **elsewhere: int) -> Iterator[Example]:
    """Run an example for the length of the block; see `Example`."""
    with TemporaryDirectory(prefix=f"example-{name}-") as folder:
        example = Example(name, Path(folder), variables, **elsewhere)
        try:
            example.start()
            yield example
        finally:
            example.stop()


def missing() -> str:
    """Return what an example needs and this machine lacks, "" for nothing."""
    try:
        _program("redis-server", "valkey-server")
        _program("nginx")
    except Unable as error:
        return str(error)
    return ""


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for each in processes:
        each.terminate()
    for each in processes:
        try:
            each.wait(2)
        except subprocess.TimeoutExpired:  # A gateway lets its runs finish: for these too long.
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def _program(*names: str) -> str:
    """Return the path of one of these programs, also where only root would find it."""
    found = next(filter(None, (shutil.which(name, path=PATHS) for name in names)), None)
    if found is None:
        raise Unable(f"needs {names[0]}, which this machine lacks")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

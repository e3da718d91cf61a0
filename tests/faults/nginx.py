"""nginx in front of the replicas, for the harness."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.faults.redis import fixed_port
from tests.support import wait_for_port

_TEMPLATE = Path(__file__).parents[2] / "nginx" / "gateway.conf.template"
_MAIN = """
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
worker_shutdown_timeout 3s;
{user}
events {{ worker_connections 4096; }}
http {{
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {site}
}}
"""


def config(folder: Path, port: int, replicas: Sequence[int]) -> str:
    """Return a whole nginx.conf around our template, that listens in front of these ports."""
    values = dict(re.findall(r"^([A-Z_]+)='?(.*?)'?$", _defaults(), re.MULTILINE))
    values |= {
        "NGINX_SERVERS": " ".join(
            f"server 127.0.0.1:{each} max_fails=1 fail_timeout=1s;" for each in replicas
        ),
        "NGINX_LISTEN": f"listen 127.0.0.1:{port};",
        "NGINX_TLS": "",
        "NGINX_PLAIN": "serve",
        "NGINX_ACCESS_LOG": "/dev/null",
        "NGINX_ERROR_LOG": f"{folder}/error.log",
    }
    site = re.sub(r"\$\{([A-Z_]+)\}", lambda found: values[found[1]], _TEMPLATE.read_text("utf-8"))
    user = "user root;" if os.geteuid() == 0 else ""  # Else its workers cannot use the folder.
    return _MAIN.format(folder=folder, user=user, site=site)


def _defaults() -> str:
    return _TEMPLATE.with_name("gateway.env").read_text("utf-8")


def binary() -> str | None:
    """Return nginx, where this machine has it (and this checkout has our template)."""
    if not _TEMPLATE.exists():
        return None
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class Nginx:
    """One nginx, in the foreground."""

    def __init__(self, folder: Path, replicas: Sequence[int]) -> None:
        self.port = fixed_port()
        self._folder = folder / "nginx"
        self._folder.mkdir()
        self._replicas = replicas
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        path = self._folder / "nginx.conf"
        path.write_text(config(self._folder, self.port, self._replicas))
        command = [str(binary()), "-p", str(self._folder), "-c", str(path)]
        await asyncio.to_thread(self._run, [*command, "-g", "daemon off;"])

    def _run(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for_port(self.port)

    def reload(self) -> None:
        """Let new workers take over; old ones have a few seconds for their streams."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> None:
        """End it with its workers."""
        if self._process is not None:
            self._process.terminate()
            await asyncio.to_thread(self._process.wait)

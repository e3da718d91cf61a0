"""Programs of others: each is installed once in a virtual environment of its own, and run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

# In the order in which they are installed. Torch comes first, and of one version, that nobody asks
# for the newest: that would be gigabytes of CUDA.
NEEDED = {
    "litellm": ("litellm[proxy]>=1.108,<1.109",),
    "transformers": ("torch==2.13.0", "transformers[serving]>=5.24,<5.25"),
}
BEGINS = 180.0  # Seconds that a server may take until it answers.
ENDS = 10.0


def cache() -> Path:
    """Return the folder that the virtual environments are in, outside of every checkout."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sse-ticket-gateway"


def installed(name: str, folder: Path) -> Path:
    """Return the folder of the commands of one of `NEEDED`, installed if it is not yet."""
    home, wanted = folder / name, "\n".join(NEEDED[name])
    done = home / "installed.txt"  # Written last: what has it is whole.
    if not (done.exists() and done.read_text() == wanted):
        print(f"{name}: installing in {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        for each in NEEDED[name]:
            subprocess.run([home / "bin" / "pip", "install", "--quiet", each], check=True)
        done.write_text(wanted)
    return home / "bin"


@contextmanager
def serving(command: list[str | Path], health: str, log: Path, **options: object) -> Iterator[None]:
    """Run a server for the length of the block, which begins when this URL of it answers 200."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=log.parent,
            env={**os.environ, **{name: str(value) for name, value in options.items()}},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            _wait_for(process, health, log)
            yield
        finally:
            _end(process)


def _wait_for(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + BEGINS
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(health, trust_env=False).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text("utf-8", "replace")[-2000:]
            raise RuntimeError(f"{process.args!r} does not serve; it said: {said}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started: its session is its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(ENDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

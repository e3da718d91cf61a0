"""Workers: several processes on one port, each with a listener of its own.

A listener that is shared would go on taking connections for a worker that drains; one of its own
closes with it, and the kernel gives new connections to the others.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import FrameType

_MARK = "GATEWAY_WORKER"
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none.
_PAUSE = 1.0  # Seconds before a worker that died is started again.

logger = logging.getLogger("gateway")


def outlive_terminal() -> None:
    """Go on when the terminal goes away, and without it."""
    if _HANGUP is not None:
        signal.signal(_HANGUP, _say)


def _say(sig: int, frame: FrameType | None) -> None:
    logger.warning("SIGHUP: settings are read at the start only; this process goes on")


def inside() -> bool:
    """Whether this process is a worker."""
    return _MARK in os.environ


def supervise(command: Sequence[str], count: int, variables: Mapping[str, str], url: str) -> int:
    """Run `count` workers until a signal; return the exit code, 0 if all ended in good order."""
    return _Supervisor(command, variables).run(count, url)


class _Supervisor:
    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        self._command = command
        self._variables = {**os.environ, **variables, _MARK: "1"}
        self._workers: list[subprocess.Popen[str]] = []
        self._stopping = False

    def run(self, count: int, url: str) -> int:
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._forward)
        for _ in range(count):
            self._workers.append(self._start())
        for worker in self._workers:
            assert worker.stdout is not None
            worker.stdout.readline()  # It says that it listens, or ends.
        if all(worker.poll() is None for worker in self._workers):
            print(f"gateway listening on {url} with {count} workers", flush=True)
        return self._watch()

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl+C must reach a worker once, from here; twice means at once.
        return subprocess.Popen(
            self._command,
            env=self._variables,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _forward(self, sig: int, frame: FrameType | None) -> None:
        self._stopping = True
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(sig)

    def _watch(self) -> int:
        worst = 0
        while self._workers:
            for worker in list(self._workers):
                code = worker.poll()
                if code is None:
                    continue
                self._workers.remove(worker)
                if self._stopping:
                    worst = max(worst, abs(code))
                elif code == 78:  # Its settings are wrong: the same would happen again.
                    self._forward(signal.SIGTERM, None)
                    worst = code
                else:
                    logger.warning("a worker ended with %d; starting another", code)
                    time.sleep(_PAUSE)
                    if not self._stopping:
                        self._workers.append(self._start())
            time.sleep(0.1)
        return worst

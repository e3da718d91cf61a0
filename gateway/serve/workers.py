"""Workers: several processes on one port, each with a listener of its own.

A listener that is shared would go on taking connections for a worker that drains; one of its own
closes with it, and the kernel gives new connections to the others.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

_MARK = "GATEWAY_WORKER"
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none.
_PAUSE = 1.0  # Seconds before a worker that died is started again.
_LONGER = 5.0  # The same, where it could not begin: with what the file says now it never will.

logger = logging.getLogger("gateway")


def outlive_terminal() -> None:
    """Go on when the terminal goes away, and without it; workers begin so.

    A SIGHUP waits for `on_hangup`: by default it would end a process that has no handler yet.
    """
    if _HANGUP is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {_HANGUP})


def on_hangup(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have SIGHUP handled from here on, also one that has come by now."""
    if _HANGUP is not None:
        signal.signal(_HANGUP, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_HANGUP})


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
        self._served = False  # Whether all of them have listened once.
        self._hung_up = False

    def run(self, count: int, url: str) -> int:
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._forward)
        on_hangup(self._hang_up)
        for _ in range(count):
            self._workers.append(self._start())
        for worker in self._workers:
            assert worker.stdout is not None
            worker.stdout.readline()  # It says that it listens, or ends.
        self._served = all(worker.poll() is None for worker in self._workers)
        if self._served:
            print(f"gateway listening on {url} with {count} workers", flush=True)
        return self._watch()

    def _start(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl+C must reach a worker once, from here; twice means at once.
        outlive_terminal()
        try:
            return subprocess.Popen(
                self._command,
                env=self._variables,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        finally:
            on_hangup(self._hang_up)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        self._hung_up = True

    def _pass_on_hangup(self) -> None:
        if not self._hung_up or _HANGUP is None:
            return
        self._hung_up = False
        told = "SIGHUP: %d worker(s) are told to read the presets again"
        logger.warning(told, len(self._workers))
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(_HANGUP)

    def _forward(self, sig: int, frame: FrameType | None) -> None:
        self._stopping = True
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(sig)

    def _watch(self) -> int:
        worst = 0
        while self._workers:
            self._pass_on_hangup()
            for worker in list(self._workers):
                code = worker.poll()
                if code is None:
                    continue
                self._workers.remove(worker)
                if self._stopping:
                    worst = max(worst, abs(code))
                elif code == 78 and not (self._served and self._workers):
                    # Its settings are wrong: the same would happen again.
                    self._forward(signal.SIGTERM, None)
                    worst = code
                else:
                    logger.warning("a worker ended with %d; starting another", code)
                    self._pause(_LONGER if code == 78 else _PAUSE)
                    if not self._stopping:
                        self._workers.append(self._start())
            time.sleep(0.1)
        return worst

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            time.sleep(0.1)

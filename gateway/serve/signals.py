"""Signals: hearing that a server is about to end which is not ours.

Such a server waits for its open responses before it ends the application's lifespan, and for a
stream that is as long as its answer takes. So the first signal is heard beside the server's own
handler, and streams are sent away while it waits.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_ENDS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def heard(leave: Callable[[], object]) -> Iterator[None]:
    """Call `leave` on the running loop at the first signal to end; whoever had it has it too.

    Only the main thread may hear signals: elsewhere nothing is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in _ENDS}

    def hear(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # A loop that broke off: its server must hear all the same.
            loop.call_soon_threadsafe(leave)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    ours = [each for each, handler in before.items() if callable(handler)]
    for each in ours:
        signal.signal(each, hear)
    try:
        yield
    finally:
        for each in ours:
            if signal.getsignal(each) is hear:
                signal.signal(each, before[each])

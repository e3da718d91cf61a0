"""A name whose server hangs keeps no other name from its addresses."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from gateway.upstream.lookup import Lookup, NoAnswer

MANY = 64  # More than a process has threads for it.


async def test_a_name_whose_server_hangs_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real, go, asked = socket.getaddrinfo, threading.Event(), []

    def getaddrinfo(host: Any, *given: Any, **more: Any) -> Any:
        if host not in ("hangs.test", b"hangs.test"):
            return real(host, *given, **more)
        asked.append(host)
        go.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hanging, other = Lookup(), Lookup()
    tell = hanging.tell
    tries = [
        asyncio.create_task(tell("http://hangs.test/", [], b"", seconds=100)) for _ in range(MANY)
    ]
    try:
        with pytest.raises(NoAnswer, match="ConnectError"):
            await other.tell("http://localhost:1/", [], b"", seconds=20)
    finally:
        go.set()
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert {str(each) for each in ends} == {
        f"ConnectError: [Errno {socket.EAI_AGAIN}] nobody knows"
    }
    assert len(asked) == 1
    await hanging.close()
    await other.close()

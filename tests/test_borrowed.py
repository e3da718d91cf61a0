"""What we use of others though they call it private, and the version it was last seen in.

A newer version may change it without a word: then it is here that something fails, by its name.
"""

import asyncio
import inspect
import tomllib
import zlib
from collections import deque
from pathlib import Path

import pytest
from redis.asyncio import ConnectionPool
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.serve.compact import event
from tests.support import RedisServer
from tests.test_layout import BORROWED

SEEN_IN = {"python": "3.11", "uvicorn": "0.54", "redis": "8.1"}
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))[
    "project"
]


@pytest.mark.parametrize("library", sorted(SEEN_IN.keys() - {"python"}))
def test_nothing_older_than_what_was_looked_at_is_allowed(library: str) -> None:
    needs = next(each for each in PROJECT["dependencies"] if each.startswith(library))
    assert f">={SEEN_IN[library]}," in needs


def test_no_older_python_is_allowed_either() -> None:
    assert PROJECT["requires-python"] == f">={SEEN_IN['python']}"


def test_every_borrowed_name_is_tested_here() -> None:
    text = Path(__file__).read_text("utf-8")
    names = {name for borrowed in BORROWED.values() for name in borrowed}
    assert {name for name in names if f"test_{name.strip('_').lower()}_" not in text} == set()


async def test_waiters_of_an_event_may_be_any_list() -> None:  # asyncio.Event._waiters
    assert isinstance(asyncio.Event()._waiters, deque)
    ours = event()
    waiting = [asyncio.create_task(ours.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(ours._waiters) == 3
    waiting[1].cancel()
    await asyncio.sleep(0)
    ours.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert done[0] is True
    assert done[2] is True
    assert not ours._waiters


async def test_is_writable_event_is_what_a_full_connection_waits_for() -> None:  # FlowControl's
    flow = FlowControl(asyncio.Transport())
    assert flow._is_writable_event.is_set()
    flow._is_writable_event = event(done=True)
    flow.pause_writing()
    waiting = asyncio.create_task(flow.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    flow.resume_writing()
    await waiting


def test_start_asgi_task_is_given_a_request_and_its_application() -> None:  # HttpToolsProtocol's
    # That it begins what was sent ahead is seen in `serve.test_protocol`.
    parameters = inspect.signature(HttpToolsProtocol._start_asgi_task).parameters
    assert list(parameters) == ["self", "cycle", "app"]


async def test_writer_of_a_connection_has_a_transport_that_takes_another_protocol(
    shared_redis: RedisServer,
) -> None:  # AbstractConnection._writer
    async with ConnectionPool.from_url(shared_redis.url) as pool:
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        assert connection._writer is not None
        assert callable(connection._writer.transport.set_protocol)
        await pool.release(connection)


def test_decompress_is_what_the_types_call_what_zlib_returns() -> None:  # zlib._Decompress
    inflating = zlib.decompressobj()
    assert inflating.decompress(zlib.compress(b"text") + b"more") == b"text"
    assert (inflating.eof, inflating.unused_data, inflating.unconsumed_tail) == (True, b"more", b"")

"""Workers: several processes on one port, one that looks after them, and no child left behind."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.support import (
    SECRET,
    Process,
    RedisServer,
    ask,
    client,
    cookie,
    free_port,
    process,
    read,
    scripted,
    settings,
    until,
    whole,
)


def children(of: int) -> list[int]:
    """Return the running children of a process, in the order of their start."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(") ")
        except OSError:
            continue  # It ended while we looked.
        state, parent = rest.split()[:2]
        if int(parent) == of and state != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def supervised(redis: RedisServer, **more: str) -> AsyncIterator[Process]:
    """Run two workers over a real store; whatever is left of them at the end is killed."""
    async with scripted(whole) as upstream:
        given = {"redis_url": redis.url, "secrets": SECRET, "upstream_url": upstream.url, **more}
        with process("serve", "--workers", "2", "--port", "0", **given) as parent:
            workers = children(parent.process.pid)
            try:
                yield parent
            finally:
                for pid in {*workers, *children(parent.process.pid)}:
                    if alive(pid):
                        os.kill(pid, signal.SIGKILL)


async def ready(url: str) -> bool:
    """Whether a connection of its own is answered."""
    try:
        async with client(url) as http:
            return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def completed(url: str) -> str:
    """Ask and read on two connections, of whichever worker; return the end's state."""
    headers = cookie(settings())
    async with client(url) as one, client(url) as other:
        answer = await one.post("/tickets", json=ask(), headers=headers)
        got = await read(other, answer.json()["stream_url"], headers=headers)
    return str(got.end["state"])


def listeners(port: int) -> int:
    """Return how many sockets listen on a port."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)


async def test_two_workers_serve_one_port_with_a_listener_each(shared_redis: RedisServer) -> None:
    async with supervised(shared_redis) as parent:
        assert len(children(parent.process.pid)) == 2
        port = int(parent.url.rpartition(":")[2])
        await until(lambda: listeners(port) == 2)
        assert [await completed(parent.url) for _ in range(6)] == ["done"] * 6


async def test_a_worker_that_dies_is_replaced(shared_redis: RedisServer) -> None:
    async with supervised(shared_redis) as parent:
        dead, kept = children(parent.process.pid)
        os.kill(dead, signal.SIGKILL)
        await until(lambda: len({*children(parent.process.pid)} - {dead}) == 2)
        assert kept in children(parent.process.pid)
        port = int(parent.url.rpartition(":")[2])
        await until(lambda: listeners(port) == 2)
        assert await completed(parent.url) == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_in_good_order(number: int, shared_redis: RedisServer) -> None:
    async with supervised(shared_redis) as parent:
        workers = children(parent.process.pid)
        port = int(parent.url.rpartition(":")[2])
        await until(lambda: listeners(port) == 2)
        await until(lambda: ready(parent.url))
        parent.signal(number)
        assert await asyncio.to_thread(parent.wait) == 0
        assert not [pid for pid in workers if alive(pid)]


async def test_a_signal_just_after_a_death_leaves_no_worker_behind(
    shared_redis: RedisServer,
) -> None:
    async with supervised(shared_redis) as parent:
        errors = parent.process.stderr
        assert errors is not None
        os.kill(children(parent.process.pid)[0], signal.SIGKILL)
        await asyncio.to_thread(_line_with, errors, "starting another")
        parent.signal(signal.SIGTERM)  # While the supervisor waits before it starts the next.
        assert await asyncio.to_thread(parent.wait) == 0


def _line_with(errors: Iterable[str], words: str) -> str:
    for line in errors:
        if words in line:
            return line
    raise AssertionError(f"never said: {words}")


async def test_workers_do_not_outlive_a_supervisor_that_was_killed(
    shared_redis: RedisServer,
) -> None:
    async with supervised(shared_redis, drain="1") as parent:
        workers = children(parent.process.pid)
        await until(lambda: ready(parent.url))
        parent.signal(signal.SIGKILL)
        await until(lambda: not [pid for pid in workers if alive(pid)], seconds=20)


def test_a_wrong_setting_is_said_once_and_no_worker_is_started() -> None:
    given = {"redis_url": f"redis://127.0.0.1:{free_port()}/0", "upstream_url": "http://u/v1"}
    ended = Process("serve", "--workers", "2", "--port", "0", **given)
    assert ended.wait() == 78
    errors = ended.process.communicate()[1]
    assert re.fullmatch(r"gateway: GATEWAY_SECRETS.*\n", errors)


def test_flags_reach_the_workers(shared_redis: RedisServer) -> None:
    flags = ("--redis-url", shared_redis.url, "--secrets", SECRET, "--upstream-url", "http://u/v1")
    with process("serve", "--workers", "2", "--port", "0", *flags) as parent:
        workers = children(parent.process.pid)
        assert len(workers) == 2
        parent.signal(signal.SIGTERM)
        parent.wait()
    assert not [pid for pid in workers if alive(pid)]


def test_no_secret_is_in_a_workers_command_line(shared_redis: RedisServer) -> None:
    flags = ("--redis-url", shared_redis.url, "--secrets", SECRET, "--upstream-url", "http://u/v1")
    with process("serve", "--workers", "2", "--port", "0", *flags) as parent:
        workers = children(parent.process.pid)
        shown = subprocess.run(
            ["ps", "-o", "args=", "-p", ",".join(map(str, workers))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        parent.signal(signal.SIGTERM)
        parent.wait()
    assert "serve" in shown
    assert SECRET not in shown


# A port of one's own


def refused_on(port: int, redis: RedisServer, *workers: str) -> str:
    """Return what a gateway says that cannot listen."""
    given = {"redis_url": redis.url, "secrets": SECRET, "upstream_url": "http://u/v1"}
    ended = Process("serve", *workers, "--port", str(port), **given)
    try:
        assert ended.wait() == 78
    finally:
        errors = ended.stop()
    assert errors.count("\n") == 1
    assert errors.startswith(f"gateway: cannot listen on 127.0.0.1:{port}")
    return errors


@pytest.mark.parametrize("second", [("--workers", "2"), ()], ids=["workers", "one process"])
async def test_no_stranger_shares_the_port_of_workers(
    second: tuple[str, ...], shared_redis: RedisServer
) -> None:
    async with supervised(shared_redis) as parent:
        port = int(parent.url.rpartition(":")[2])
        await until(lambda: listeners(port) == 2)
        await asyncio.to_thread(refused_on, port, shared_redis, *second)
        assert [await completed(parent.url) for _ in range(4)] == ["done"] * 4


@pytest.mark.parametrize("second", [("--workers", "2"), ()], ids=["workers", "one process"])
async def test_nobody_takes_the_port_while_no_worker_listens(
    second: tuple[str, ...], shared_redis: RedisServer
) -> None:
    """Both may have died, and the next ones need a moment."""
    async with supervised(shared_redis) as parent:
        port = int(parent.url.rpartition(":")[2])
        pids = children(parent.process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # Nobody replaces those who do not end.
        parent.signal(signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: listeners(port) == 0)
        await asyncio.to_thread(refused_on, port, shared_redis, *second)
        parent.signal(signal.SIGCONT)
        await until(lambda: listeners(port) == 2)
        assert await completed(parent.url) == "done"


async def test_workers_do_not_share_the_port_of_one_process(shared_redis: RedisServer) -> None:
    given = {"redis_url": shared_redis.url, "secrets": SECRET, "upstream_url": "http://u/v1"}
    with process("serve", "--port", "0", **given) as served:
        port = int(served.url.rpartition(":")[2])
        await until(lambda: ready(served.url))
        await asyncio.to_thread(refused_on, port, shared_redis, "--workers", "2")
        assert await ready(served.url)


async def test_workers_follow_one_process_on_its_port_at_once(shared_redis: RedisServer) -> None:
    """What is left of its connections takes a minute to go."""
    given = {"redis_url": shared_redis.url, "secrets": SECRET, "upstream_url": "http://u/v1"}
    with process("serve", "--port", "0", **given) as served:
        port = served.url.rpartition(":")[2]
        await until(lambda: ready(served.url))
        async with client(served.url) as http:
            await http.get("/healthz")
            served.signal(signal.SIGTERM)  # It closes first.
            assert await asyncio.to_thread(served.wait) == 0
    for _ in range(2):
        with process("serve", "--workers", "2", "--port", port, **given) as parent:
            await until(lambda: listeners(int(port)) == 2)
            await until(lambda: ready(parent.url))
            parent.signal(signal.SIGTERM)
            assert await asyncio.to_thread(parent.wait) == 0


# The terminal


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_terminal_that_goes_away_ends_nobody(
    workers: str, shared_redis: RedisServer
) -> None:
    given = {"redis_url": shared_redis.url, "secrets": SECRET, "upstream_url": "http://u/v1"}
    with process("serve", "--workers", workers, "--port", "0", **given) as served:
        port = int(served.url.rpartition(":")[2])
        await until(lambda: listeners(port) == int(workers), "all know what to do at a signal")
        await until(lambda: ready(served.url))
        pids = [served.process.pid, *children(served.process.pid)]
        errors = served.process.stderr
        assert errors is not None
        for pid in pids:
            os.kill(pid, signal.SIGHUP)
            assert "SIGHUP" in await asyncio.to_thread(_line_with, errors, "SIGHUP")
        assert all(map(alive, pids))
        assert await ready(served.url)
        served.signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.wait) == 0


async def test_workers_are_replaced_also_after_the_terminal_has_gone(
    shared_redis: RedisServer,
) -> None:
    """What cannot be said any more must not end who says it."""
    async with supervised(shared_redis) as parent:
        await until(lambda: ready(parent.url))
        errors = parent.process.stderr
        assert errors is not None
        errors.close()
        parent.signal(signal.SIGHUP)
        dead = children(parent.process.pid)[0]
        os.kill(dead, signal.SIGKILL)
        await until(lambda: len({*children(parent.process.pid)} - {dead}) == 2)
        port = int(parent.url.rpartition(":")[2])
        await until(lambda: listeners(port) == 2)
        await until(lambda: ready(parent.url))

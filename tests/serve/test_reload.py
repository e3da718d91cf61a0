"""Reload: SIGHUP puts a file's presets in force, on every worker, and no stream notices."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serve.test_workers import listeners
from tests.support import (
    OK,
    SECRET,
    Call,
    Process,
    RedisServer,
    ask,
    chunk,
    client,
    cookie,
    process,
    read,
    scripted,
    settings,
    sse,
    until,
)

CONNECTIONS = 12  # Each to whichever worker: that all of them are one's is a chance in thousands.


class Held:
    """An answer that goes on when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        """Answer in two parts."""
        await call.send(OK, sse(chunk("Hel")))
        await self.go.wait()
        await call.send(sse(chunk("lo", finish="stop"), b"[DONE]"))


class Scene:
    """A gateway, the file of its presets, and an upstream that waits."""

    def __init__(self, served: Process, path: Path, url: str, held: Held) -> None:
        self.served = served
        self.held = held
        self._path = path
        self._url = url

    def write(self, *presets: str) -> None:
        """Have the file name these presets."""
        tables = [f'[presets.{each}]\nurl = "{self._url}"\n' for each in presets]
        self._path.write_text("".join(tables))

    def spoil(self) -> None:
        """Have the file be no TOML."""
        self._path.write_text("[presets.")

    def hang_up(self) -> None:
        """Send SIGHUP to the process that was started."""
        self.served.signal(signal.SIGHUP)

    async def statuses(self, preset: str) -> set[int]:
        """Return the answers to tickets of a preset, over many connections."""
        return set(await asyncio.gather(*(self._post(preset) for _ in range(CONNECTIONS))))

    async def _post(self, preset: str) -> int:
        async with client(self.served.url) as http:
            headers = cookie(settings())
            return (await http.post(f"/tickets/{preset}", json=ask(), headers=headers)).status_code

    async def reached(self, preset: str, status: int) -> None:
        """Wait until all connections have this answer, as each worker reads the file by itself."""

        async def all_say_so() -> bool:
            return await self.statuses(preset) == {status}

        await until(all_say_so, f"{preset} is {status} everywhere")

    async def log_says(self, words: str) -> None:
        """Wait until the process has said so."""
        errors = self.served.process.stderr
        assert errors is not None

        def line() -> bool:
            return any(words in each for each in iter(errors.readline, ""))

        assert await asyncio.wait_for(asyncio.to_thread(line), 20)


@asynccontextmanager
async def scene(folder: Path, workers: int, redis_url: str) -> AsyncIterator[Scene]:
    """Serve the preset `old`, with so many workers."""
    path, held = folder / "gateway.toml", Held()
    async with scripted(held) as upstream:
        path.write_text(f'[presets.old]\nurl = "{upstream.url}"\n')
        given = {"redis_url": redis_url, "secrets": SECRET, "config": str(path)}
        with process("serve", "--workers", str(workers), "--port", "0", **given) as served:
            port = int(served.url.rpartition(":")[2])
            await until(lambda: listeners(port) == workers, "each has read the file")
            yield Scene(served, path, upstream.url, held)


def first_child(of: int) -> int:
    """Return a running child of a process."""
    return int(Path(f"/proc/{of}/task/{of}/children").read_text().split()[0])


async def opened(at: Scene, preset: str) -> asyncio.Task[Any]:
    """Begin to read a stream of a preset; return when its first event is there."""
    headers, first = cookie(settings()), asyncio.Event()

    async def reading() -> Any:
        async with client(at.served.url) as http:
            answer = await http.post(f"/tickets/{preset}", json=ask(), headers=headers)
            url = answer.json()["stream_url"]
            got = await read(http, url, headers=headers, enough=lambda got: bool(got.data))
            first.set()
            return await read(http, url, headers=headers, last_id=got.last_id)

    task = asyncio.create_task(reading())
    await asyncio.wait_for(first.wait(), 20)
    return task


@pytest.mark.parametrize("workers", [1, 2])
async def test_presets_of_the_file_are_reached_on_every_worker_and_no_stream_is_dropped(
    workers: int, tmp_path: Path, shared_redis: RedisServer
) -> None:
    async with scene(tmp_path, workers, shared_redis.url) as at:
        stream = await opened(at, "old")
        assert await at.statuses("added") == {404}
        at.write("added")
        at.hang_up()
        await at.reached("added", 201)
        await at.reached("old", 404)
        at.held.go.set()
        end = (await asyncio.wait_for(stream, 20)).end
        assert (end["state"], end["preset"]) == ("done", "old")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_wrong_file_keeps_the_old_presets_and_ends_nobody(
    workers: int, tmp_path: Path, shared_redis: RedisServer
) -> None:
    async with scene(tmp_path, workers, shared_redis.url) as at:
        at.spoil()
        at.hang_up()
        for _ in range(workers):
            await at.log_says("SIGHUP: the presets stay as they were: GATEWAY_CONFIG: cannot read")
        assert await at.statuses("old") == {201}
        at.write("old", "added")
        at.hang_up()
        await at.reached("added", 201)
        at.served.signal(signal.SIGTERM)
        assert await asyncio.to_thread(at.served.wait) == 0


async def test_a_worker_that_dies_while_the_file_is_wrong_takes_no_other_along(
    tmp_path: Path, shared_redis: RedisServer
) -> None:
    async with scene(tmp_path, 2, shared_redis.url) as at:
        at.spoil()
        os.kill(first_child(at.served.process.pid), signal.SIGKILL)
        await at.log_says("a worker ended with 78; starting another")
        assert await at.statuses("old") == {201}


async def test_an_embedded_gateway_reloads_too(tmp_path: Path) -> None:
    async with scene(tmp_path, 1, "") as at:
        at.write("added")
        at.hang_up()
        await at.reached("added", 201)


def test_the_demo_reloads_the_file_that_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("[presets.old]\n")
    with process("demo", "--port", "0", config=str(path)) as served:
        path.write_text("[presets.added]\n")
        served.signal(signal.SIGHUP)
        errors = served.process.stderr
        assert errors is not None
        words = "SIGHUP: the presets were read again: new added; gone old"
        assert any(words in line for line in iter(errors.readline, ""))

"""Pages: parts of logs that are read from Redis for viewers who are behind, and shared by them.

A page that is asked for by many is read once. Pages are kept up to a number of bytes, those last
asked for; a viewer keeps none, and asks again for what is not here any more. So neither viewers who
do not read nor many large streams fill the memory: they are only read more slowly.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.eventlog.entries import EventId
from gateway.eventlog.reader import Page, read_channel, read_page
from gateway.store.client import RedisClient
from gateway.store.keys import is_channel
from gateway.tasks import Tasks

_AT_ONCE = 4  # Pages read at the same time, of all streams.
_OF_ONE = 2  # Of those of one subject.

Key = tuple[str, EventId | None]


class Turns:
    """Lets a few work at a time, and fewer of one subject: the others wait behind their own."""

    def __init__(self, at_once: int, of_one: int) -> None:
        self._all = asyncio.Semaphore(at_once)
        self._of_one = of_one
        self._subjects: dict[str, asyncio.Semaphore] = {}
        self._count: dict[str, int] = {}

    @asynccontextmanager
    async def of(self, subject: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the length of the block."""
        own = self._subjects.setdefault(subject, asyncio.Semaphore(self._of_one))
        self._count[subject] = self._count.get(subject, 0) + 1
        try:
            async with own, self._all:
                yield
        finally:
            self._count[subject] -= 1
            if not self._count[subject]:
                del self._count[subject], self._subjects[subject]


class Pages:
    """The pages of one replica, of `room` bytes at most; `stop` ends what is being read."""

    def __init__(self, store: RedisClient, room: int) -> None:
        self.size = 0
        self._store = store
        self._room = room
        self._kept: OrderedDict[Key, Page] = OrderedDict()
        self._loads: dict[Key, asyncio.Task[Page]] = {}
        self._turns = Turns(_AT_ONCE, _OF_ONE)
        self._tasks = Tasks()

    def get(self, stream_id: str, at: EventId | None) -> Page | None:
        """Return what is here of a log from an event id on."""
        page = self._kept.get((stream_id, at))
        if page is not None:
            self._kept.move_to_end((stream_id, at))
        return page

    def load(self, stream_id: str, at: EventId | None, subject: str) -> asyncio.Task[Page]:
        """Read a page, unless it is being read; the task may raise Unavailable."""
        key = stream_id, at
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = self._tasks.spawn(self._load(key, subject))
            task.add_done_callback(lambda done: self._loaded(key, done))
        return task

    def _loaded(self, key: Key, task: asyncio.Task[Page]) -> None:
        del self._loads[key]
        if not task.cancelled():
            task.exception()  # Those who wait hear of it, if they still do.

    async def _load(self, key: Key, subject: str) -> Page:
        async with self._turns.of(subject):
            if is_channel(key[0]):  # What it has runs out: who comes later reads it anew.
                return await read_channel(self._store, *key)
            page = await read_page(self._store, *key)
        if page.more or key[1] is not None:  # A whole log is what its tail begins with.
            self._keep(key, page)
        return page

    def _keep(self, key: Key, page: Page) -> None:
        self.drop(*key)
        self._kept[key] = page
        self.size += page.size
        while self.size > self._room:
            _, gone = self._kept.popitem(last=False)
            self.size -= gone.size

    def drop(self, stream_id: str, at: EventId | None) -> None:
        """Let go of a page."""
        page = self._kept.pop((stream_id, at), None)
        if page is not None:
            self.size -= page.size

    def forget(self, stream_id: str) -> None:
        """Let go of all pages of a log: it began anew, or nobody looks at it."""
        for key in [each for each in self._kept if each[0] == stream_id]:
            self.drop(*key)

    async def stop(self) -> None:
        """End what is being read."""
        await self._tasks.stop()

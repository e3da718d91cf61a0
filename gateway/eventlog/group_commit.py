"""Group commit: that of one process, for all its logs.

It sends the next entries of all logs in one pipeline, at once when nothing is in flight: an idle
system pays no delay, a busy one a single round trip for hundreds of events. What it sends is never
sent again by itself. A new connection may lead to another server, which took over and knows less:
then all logs are in doubt.

In a Cluster each master has a committer of its own: one that is slow or away holds up its own logs
only. A log whose slot has moved goes over to the committer of the master that has it now.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gateway.errors import Unavailable
from gateway.eventlog.base import Ownership
from gateway.eventlog.entries import EntryBatches
from gateway.eventlog.writer import EventLog, wake_ups
from gateway.store.client import RedisClient
from gateway.store.keys import log_key
from gateway.store.node import Node
from gateway.store.per_node import PerNodeTasks

logger = logging.getLogger("gateway.eventlog.group_commit")

_REPAIRS = 64  # Logs asked after at the same time.


class GroupCommit:
    """Writes what its logs have to write; `run` owns its tasks, one for each master.

    `closed` is told of each log that is written here no more.
    """

    def __init__(
        self,
        store: RedisClient,
        ownership: Ownership,
        closed: Callable[[EventLog], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._ownership = ownership
        self._closed = closed
        self._committers = PerNodeTasks(self._begin)

    def _begin(self, node: Node) -> "NodeCommitter":
        return NodeCommitter(node, self._committer_of)

    def _committer_of(self, stream_id: str) -> "NodeCommitter":
        return self._committers.of(self._store.node_for(stream_id))

    def open(
        self, stream_id: str, epoch: int, entries: EntryBatches, fields: dict[str, Any]
    ) -> EventLog:
        """Return a log that is written here, until it is closed."""
        committer = self._committer_of(stream_id)
        parts = (self._store, self._ownership, committer.mark)
        log = EventLog(*parts, stream_id, epoch, entries, fields)
        committer.add(log)
        return log

    def close(self, log: EventLog) -> None:
        """Forget a log that has ended, and let it forget its run."""
        for each in self._committers:
            each.remove(log)
        log.forget()
        self._closed(log)

    async def run(self) -> None:
        """Commit for ever; the owner cancels it."""
        await self._committers.run()

    def look_at_connection(self) -> None:
        """Doubt all logs on a new connection, also those with nothing to write for now."""
        for each in self._committers:
            each.look_at_connection()
            each.look_at_homes()

    async def ask(self) -> None:
        """Doubt the logs of each server that is not surely the one it was at the last commit."""
        await asyncio.gather(*(each.ask() for each in self._committers))


class NodeCommitter:
    """The commits on one server, one after the other."""

    def __init__(self, node: Node, of: Callable[[str], "NodeCommitter"]) -> None:
        self._node = node
        self._of = of
        self._open: set[EventLog] = set()
        self._marked: dict[EventLog, None] = {}  # In this order.
        self._wake = asyncio.Event()
        self._generation = 0

    def add(self, log: EventLog) -> None:
        """Doubt this log, too, where the connection may lead to another server."""
        self._open.add(log)

    def remove(self, log: EventLog) -> None:
        """Forget a log."""
        self._open.discard(log)

    def mark(self, log: EventLog) -> None:
        """Look at this log at the next commit."""
        self._marked[log] = None
        self._wake.set()

    async def run(self) -> None:
        """Commit for ever."""
        while True:
            if not self._marked:
                self._wake.clear()
                await self._wake.wait()
            await self._commit_marked()

    async def _commit_marked(self) -> None:
        self.look_at_connection()
        marked, self._marked = self._marked, {}
        # What has moved is no more of ours: marked here again, it would be written from both.
        logs = [each for each in marked if not (each.in_doubt and self._moved(each))]
        doubtful = [each for each in logs if each.in_doubt and not each.fenced]
        try:
            failed = await self._repair(doubtful) if doubtful else None
            await self._commit([each for each in logs if each.ready])
            if failed is not None:
                raise failed
        except Unavailable as error:
            logger.debug("nothing can be written: %s", error)
            await asyncio.sleep(0.1)
        except Exception:  # Of no log's own; each is in doubt if it was touched.
            logger.exception("a group commit broke")
            await asyncio.sleep(1)
        finally:
            for each in logs:
                if each.has_work:
                    self.mark(each)

    def _moved(self, log: EventLog) -> bool:
        """Move a log in doubt whose slot another server has: it was refused, or nobody answers."""
        if log.fenced or (home := self._of(log.stream_id)) is self:
            return False
        if log in self._open:
            self.remove(log)
            home.add(log)
        log.move_to(home.mark)
        return True

    def look_at_connection(self) -> None:
        """Doubt all logs on a new connection."""
        if self._generation != self._node.generation:
            self._generation = self._node.generation
            for each in self._open:
                each.doubt()

    async def ask(self) -> None:
        """Doubt all logs unless the connection still leads to a server that has them.

        A Cluster's master that was relieved keeps its connections and answers a PING; asked for a
        key it says who has it now.
        """
        if not self._open:
            return
        answer, asked = None, ("EXISTS", log_key(next(iter(self._open)).stream_id))
        with suppress(Unavailable):
            (answer,) = await self._node.append([asked], self._generation)
        if answer is None:
            for each in self._open:
                each.doubt()

    def look_at_homes(self) -> None:
        """Doubt the logs that another server has now: it may know less than this one did."""
        for each in self._open:
            if self._of(each.stream_id) is not self:
                each.doubt()

    async def _repair(self, logs: list[EventLog]) -> Unavailable | None:
        """Repair what is in doubt; return a failure, which must not hold up the other logs."""
        failed: Unavailable | None = None
        for start in range(0, len(logs), _REPAIRS):
            batch = logs[start : start + _REPAIRS]
            repairs = (each.repair() for each in batch)
            results = await asyncio.gather(*repairs, return_exceptions=True)
            for each, result in zip(batch, results, strict=True):
                if isinstance(result, Unavailable):
                    failed = result
                elif result is not None:
                    each.broke(result)
        return failed

    async def _commit(self, logs: list[EventLog]) -> None:
        if not logs:
            return
        commands = [each.next_batch() for each in logs]
        try:
            replies = await self._node.append([*commands, *wake_ups(logs)], self._generation)
        except BaseException:
            for each in logs:  # Sent or not, stored or not: nobody knows.
                each.doubt()
            raise
        for each, reply in zip(logs, replies, strict=False):
            if reply is None:
                each.doubt()
                continue
            try:
                each.acknowledged()
            except Exception as error:  # The others are stored too, and must not be sent again.
                each.broke(error)

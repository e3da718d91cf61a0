"""Writer: the group commit of one process, for all its logs.

It sends the next entries of all logs in one pipeline, at once when nothing is in flight: an idle
system pays no delay, a busy one a single round trip for hundreds of events. What it sends is never
sent again by itself. A new connection may lead to another server, which took over and knows less:
then all logs are in doubt.
"""

import asyncio
import logging
from typing import Any

from gateway.errors import Passing
from gateway.eventlog import EventLog, wake_ups
from gateway.positions import Entries
from gateway.records import Records
from gateway.store import Store

log = logging.getLogger("gateway.writer")

_REPAIRS = 64  # Logs asked after at the same time.


class Writer:
    """Writes what its logs have to write; `run` is its only task."""

    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._records = records
        self._open: set[EventLog] = set()
        self._dirty: list[EventLog] = []
        self._wake = asyncio.Event()
        self._generation = 0

    def open(
        self, stream_id: str, epoch: int, entries: Entries, fields: dict[str, Any]
    ) -> EventLog:
        """Return a log that is written here, until it is closed."""
        opened = EventLog(self._records, self.mark, stream_id, epoch, entries, fields)
        self._open.add(opened)
        return opened

    def close(self, log: EventLog) -> None:
        """Forget a log that has ended, and let it forget its run."""
        self._open.discard(log)
        log.forget()

    def mark(self, log: EventLog) -> None:
        """Let the next round look at this log."""
        if not log.dirty:
            log.dirty = True
            self._dirty.append(log)
            self._wake.set()

    async def run(self) -> None:
        """Commit for ever; the owner cancels it."""
        while True:
            if not self._dirty:
                self._wake.clear()
                await self._wake.wait()
            await self._round()

    async def _round(self) -> None:
        self.look_at_connection()
        logs, self._dirty = self._dirty, []
        for each in logs:
            each.dirty = False
        logs = [each for each in logs if not each.fenced]
        try:
            failed = await self._repair([each for each in logs if each.in_doubt])
            await self._commit([each for each in logs if not each.in_doubt and each.has_news])
            if failed is not None:
                raise failed
        except Passing as error:
            log.info("nothing can be written: %s", error.detail)
            await asyncio.sleep(0.1)
        finally:
            for each in logs:
                if not each.fenced and (each.has_news or each.flying is not None):
                    self.mark(each)

    def look_at_connection(self) -> None:
        """Doubt all logs on a new connection, also those with nothing to write for now."""
        if self._generation != self._store.generation:
            self._generation = self._store.generation
            for each in self._open:
                each.doubt()

    async def _repair(self, logs: list[EventLog]) -> BaseException | None:
        """Repair what is in doubt; return a failure, which must not hold up the other logs."""
        failed: BaseException | None = None
        for start in range(0, len(logs), _REPAIRS):
            batch = logs[start : start + _REPAIRS]
            repairs = (each.repair() for each in batch)
            for result in await asyncio.gather(*repairs, return_exceptions=True):
                if isinstance(result, BaseException):
                    failed = result
        return failed

    async def _commit(self, logs: list[EventLog]) -> None:
        if not logs:
            return
        commands = [each.take() for each in logs]
        try:
            replies = await self._store.append(commands + wake_ups(logs), self._generation)
        except BaseException:
            for each in logs:  # Sent or not, stored or not: nobody knows.
                each.in_doubt = True
            raise
        for each, reply in zip(logs, replies, strict=False):
            if reply is None:
                each.in_doubt = True
            else:
                each.landed()

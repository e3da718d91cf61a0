"""Logout: the end of all that a subject has under way, on whatever replicas that is.

Every replica is told first: it stops what it runs of the subject, also where Redis forgot the
record, and sends away who still watches once the `end` of what was cancelled had its time to
arrive. A word can be lost: each cancel is stored as any other, which owners look for each second,
and what runs comes before what only waits, as thousands may.

A word can come late, too: it has the time of the log-out, and what was asked for since is left
alone, as another login's.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

from gateway.eventlog.fanout import Fanout
from gateway.eventlog.tail import Tail
from gateway.membership.heartbeat import Heartbeat
from gateway.runs.cancellation import Cancellation
from gateway.runs.endings import FINAL
from gateway.runs.records import Records
from gateway.runs.registry import RunRegistry
from gateway.store.keys import control_channel

_LOOK = 0.3  # Seconds after which logs are read again: who runs them may have woken nobody.
_LINGER = 0.7  # Seconds in which viewers may have the end of what was cancelled.
_HASTE = 0.2  # Seconds that the word waits for the states, of which the runs' change by it.
_DIGITS = 20  # Of a time: of thousands, Python makes no number.
_UNKNOWN = ("unknown", "unknown")  # The state and the webhook of what cannot be read now.
_AT_ONCE = 64  # Streams that are cancelled side by side.


class Logout:
    """Ends what subjects have under way, as it is asked for here and by others."""

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        fanout: Fanout,
        registry: RunRegistry,
        cancellation: Cancellation,
    ) -> None:
        self._records = records
        self._heartbeat = heartbeat
        self._fanout = fanout
        self._registry = registry
        self._cancellation = cancellation

    async def of(self, subject: str) -> int:
        """Cancel all of a subject's streams and cut its viewers; return how many were cancelled.

        May raise Unavailable; it is harmless to ask again.
        """
        asked = await self._records.now()
        streams = await self._records.limits.streams_of(subject)
        look = asyncio.ensure_future(self._records.known_states(streams))
        await asyncio.wait({look}, timeout=_HASTE)
        await self._tell(subject, asked)
        states = await look
        told = {each: states.get(each, _UNKNOWN) for each in streams}
        left = {each: found for each, found in told.items() if found[0] not in {"", *FINAL}}
        waiting = {each: hook for each, (state, hook) in left.items() if state == "cached"}
        running = {each: hook for each, (state, hook) in left.items() if state != "cached"}
        done = await self._cancelled(subject, running, waits=False)
        done += await self._cancelled(subject, waiting, waits=True)
        for each in done:  # One server that is away keeps nothing of the others alive.
            if isinstance(each, BaseException):
                raise each
        return done.count("cancelled")

    async def _tell(self, subject: str, asked: int) -> None:
        words = [quote(subject, safe=""), str(asked)]  # A message's words have blanks between them.
        self.heard(words)
        others = {*await self._heartbeat.replicas()} - {self._records.replica}
        message = " ".join(["logout", *words])
        await self._records.store.publish((control_channel(each), message) for each in others)

    async def _cancelled(
        self, subject: str, streams: Mapping[str, str], *, waits: bool
    ) -> list[str | BaseException]:
        """Cancel streams; return the states that they end with, or why that is not known."""
        done: list[str | BaseException] = []
        cancel, all_of_them = self._cancellation.of_stream, [*streams.items()]
        for start in range(0, len(streams), _AT_ONCE):
            some = all_of_them[start : start + _AT_ONCE]
            each = (cancel(id_, subject, waits=waits, webhook=bool(hook)) for id_, hook in some)
            done += await asyncio.gather(*each, return_exceptions=True)
        return done

    def heard(self, words: Sequence[str]) -> None:
        """Stop what a subject, by its quoted name, runs here, and send its viewers away.

        The second word is when it was logged out, in milliseconds of Redis's clock.
        """
        match words:
            case [name, time] if time.isdecimal() and len(time) <= _DIGITS:
                self._end(unquote(name), int(time))

    def _end(self, subject: str, asked: int) -> None:
        mine = [run for run in self._registry.active if run.subject == subject]
        self._cancellation.carry_out(run.log.stream_id for run in mine if run.issued < asked)
        watched = self._fanout.tails_of(subject, asked)
        loop = asyncio.get_running_loop()
        loop.call_later(_LOOK, self._fanout.mark, [tail.stream_id for tail in watched])
        loop.call_later(_LINGER, _send_away, watched)


def _send_away(tails: Iterable[Tail]) -> None:
    for tail in tails:
        tail.drop()

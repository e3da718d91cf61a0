"""Inquiry: what replicas answer who asks from outside what they run, and who watches it.

Nothing is counted for it beforehand: a replica that is asked, by a word on its channel, looks at
what it has, and publishes it on the channel of who asks, in messages of bounded size. Words can be
lost: who gets no whole answer in time does without.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import NamedTuple

from gateway import clock
from gateway.eventlog.fanout import Fanout
from gateway.runs.registry import RunRegistry
from gateway.runs.run import Run
from gateway.store.client import RedisClient
from gateway.store.keys import control_channel, new_id
from gateway.tasks import Tasks

WORD = "streams"

_AT_ONCE = 500  # Streams that a message tells of: some 20 KB.
_PATIENCE = 3.0  # Seconds until the channel must be heard.


class Sight(NamedTuple):
    """What a replica sees of a stream: viewers there, and its events where that replica runs it."""

    viewers: int
    events: int | None


Sights = dict[str, Sight]  # By stream.


class Respondent:
    """Answers for one replica."""

    def __init__(
        self, store: RedisClient, replica: str, fanout: Fanout, registry: RunRegistry, tasks: Tasks
    ) -> None:
        self._store = store
        self._replica = replica
        self._fanout = fanout
        self._registry = registry
        self._tasks = tasks

    def heard(self, names: Sequence[str]) -> None:
        """Answer who asks, by the name of its channel."""
        for name in names[:1]:
            self._tasks.spawn(self._answer(name))

    async def _answer(self, name: str) -> None:
        sights = list(self._sights().items())
        starts = range(0, len(sights), _AT_ONCE) or [0]
        for number, start in enumerate(starts):
            told = " ".join(map(_told, sights[start : start + _AT_ONCE]))
            words = f"{self._replica} {number} {len(starts)} {told}"
            await self._store.publish([(control_channel(name), words)])

    def _sights(self) -> Sights:
        viewers = self._fanout.watched()
        sights = {each: Sight(count, None) for each, count in viewers.items()}
        for run in self._registry.active:
            stream_id = run.log.stream_id
            sights[stream_id] = Sight(viewers.get(stream_id, 0), _events(run))
        return sights


async def ask(store: RedisClient, replicas: Collection[str], seconds: float) -> dict[str, Sights]:
    """Return what those of the replicas see that answer within so many seconds, each in full."""
    name = f"asks-{new_id()}"
    answers = {each: _Answer() for each in replicas}
    until = 0.0
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(_PATIENCE) as limit,
            aclosing(store.messages(control_channel(name))) as messages,
        ):
            async for message in messages:
                if not message:  # From here on it is heard, perhaps once more.
                    until = until or clock.now() + seconds  # Else who says nothing prolongs it.
                    limit.reschedule(until)
                    words = f"{WORD} {name}"
                    await store.publish((control_channel(each), words) for each in replicas)
                else:
                    _sort(message, answers)
                if all(each.whole for each in answers.values()):
                    break
    return {each: answer.sights for each, answer in answers.items() if answer.whole}


class _Answer:
    """What came of one replica's answer."""

    def __init__(self) -> None:
        self._parts: dict[int, Sights] = {}
        self._of = 0

    @property
    def whole(self) -> bool:
        return 0 < self._of == len(self._parts)

    @property
    def sights(self) -> Sights:
        return {name: sight for part in self._parts.values() for name, sight in part.items()}

    def add(self, number: int, of: int, part: Sights) -> None:
        if of != self._of:  # It was asked twice, and has more or less to tell by now.
            self._parts.clear()
        self._of = of
        self._parts[number] = part


def _sort(message: bytes, answers: dict[str, _Answer]) -> None:
    with suppress(ValueError):  # Some other words.
        replica, number, of, *told = message.decode().split()
        if answer := answers.get(replica):
            answer.add(int(number), int(of), dict(_read(told)))


def _told(item: tuple[str, Sight]) -> str:
    stream_id, (viewers, events) = item
    return f"{stream_id}:{viewers}:{'' if events is None else events}"


def _read(told: Sequence[str]) -> Iterator[tuple[str, Sight]]:
    for each in told:
        stream_id, viewers, events = each.split(":")
        yield stream_id, Sight(int(viewers), int(events) if events else None)


def _events(run: Run) -> int:
    """Return how many events a stream has, those of its earlier owners too."""
    log = run.log
    if not log.taken_over:
        return log.count
    return log.count + sum(each.number for each in log.entries if each.last.epoch != log.epoch)

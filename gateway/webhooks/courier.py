"""Courier: tells receivers of ends, until each was heard.

An end is told by the replica that wrote it, and stays on that one's list until it was heard: who
finds the list of a dead one goes on. Nothing waits for a receiver: neither a stream, nor a drain.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress

from gateway import clock
from gateway.config.presets import Preset
from gateway.errors import Unavailable
from gateway.store.client import RedisClient
from gateway.tasks import Tasks
from gateway.upstream.lookup import Answer, NoAnswer
from gateway.upstream.retry_after import retry_after
from gateway.webhooks.message import message, message_id
from gateway.webhooks.outbox import Outbox, Turn, Verdict
from gateway.webhooks.post import Post
from gateway.webhooks.queues import Queue, pause

logger = logging.getLogger("gateway.webhooks")

GIVEN_UP = 24 * 3600.0  # Seconds after its end.

_SHELVED = 20.0  # Seconds that an end waits for its turn before its text is stored,
_LOOK = 10.0  # and between two looks at which those are.
_AWAY = 2.0  # Seconds until Redis is asked again.
_BROKEN = 20.0  # Seconds until one is tried again that broke here.
_IN_DOUBT = 60.0  # Seconds in which the owner of an end writes it again that Redis forgot.
_MOST = 100_000  # Ends that wait here; what is beyond waits on the list, until there is room.
_BODIES = 32 << 20  # Bytes of messages that are kept here, to be sent without a look at Redis.
_TURN = ("due", "tries", "body")

Text = Callable[[str, str], Awaitable[bytes | None]]


class Owed:
    """One end that is to be told."""

    __slots__ = (
        *("body", "failed", "fields", "missed", "receiver"),
        *("since", "stored", "stream_id", "told", "tries"),
    )

    def __init__(self, stream_id: str, receiver: str) -> None:
        self.stream_id = stream_id
        self.receiver = receiver
        self.since = clock.now()  # Since when it waits for its first turn; inf once it had one.
        self.missed: float | None = None  # Since when Redis is known to lack it.
        self.tries = 0  # Here, or as Redis has it.
        self.failed = False  # One of those here was in vain.
        self.fields: Mapping[bytes, bytes] = {}  # As Redis has them, once they were read.
        self.body = b""
        self.stored = False  # Whether Redis has the body.
        self.told = False  # There is nothing left to do but to say so.


class Courier:
    """The ends that this replica tells; `text` reads what a log of a dialect says, while it is
    there, and `leave` takes a stream off this replica's list."""

    def __init__(
        self,
        store: RedisClient,
        presets: Callable[[str], Preset | None],
        text: Text,
        register: Callable[[str], Awaitable[None]],
        leave: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._outbox = Outbox(store)
        self._text = text
        self._register = register
        self._leave = leave
        self._post = Post(presets)
        self._tasks = Tasks()
        self._owed: dict[str, Owed] = {}
        self._queues: dict[str, Queue] = {}
        self._bodies = 0  # Bytes.
        self.skips = False  # Since the list was last read, ends on it found no room.
        self._news = asyncio.Event()

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._owed

    def __len__(self) -> int:
        return len(self._owed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._owed)

    @property
    def has_room_again(self) -> bool:
        """Whether the list is to be read again for ends that found no room."""
        return self.skips and len(self._owed) <= _MOST // 2

    @property
    def fresh(self) -> bool:
        """Whether an end was not told even once, or just now."""
        return any(not (each.failed or each.told) for each in self._owed.values())

    def owe(self, stream_id: str, receiver: str) -> None:
        """Tell an end, which Redis has noted, and leave the stream when it was heard."""
        if stream_id in self._owed:
            return
        if len(self._owed) >= _MOST:
            if not self.skips:
                logger.error("%s: its webhook waits on the list: %d do here", stream_id, _MOST)
            self.skips = True
            return
        self._owed[stream_id] = Owed(stream_id, receiver)
        self._put(self._owed[stream_id], 0.0)

    async def inherit(self, stream_id: str) -> bool:
        """Tell an end that a dead replica may have left untold; return whether one is to be told.

        Raises Unavailable.
        """
        if stream_id in self._owed:  # Redis may have forgotten it.
            return True
        if receiver := await self._outbox.receiver(stream_id):
            self.owe(stream_id, receiver)
        return bool(receiver)

    async def again(self, datasets: Collection[str]) -> None:
        """Write again what is known here and servers forgot."""
        at = self._store.dataset_key_of
        for owed in [each for each in self._owed.values() if at(each.stream_id) in datasets]:
            with suppress(Unavailable):
                await self._register(owed.stream_id)
                if owed.fields:
                    await self._put_off(owed, pause(owed.tries, None, random.random()), whole=True)

    async def run(self) -> None:
        """Tell what is due, for ever."""
        while True:
            self._news.clear()
            now, following = clock.now(), float("inf")
            for receiver, queue in list(self._queues.items()):
                for stream_id in queue.due(now):
                    self._tasks.spawn(self._turn(self._owed[stream_id], queue))
                following = min(following, queue.next)
                if queue.empty:
                    del self._queues[receiver]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(60.0, max(0.0, following - now))):
                    await self._news.wait()

    async def shelve(self) -> None:
        """Store what is told of those that wait long for a slow receiver, for ever: their logs
        will be gone."""
        while True:
            await asyncio.sleep(_LOOK)
            for owed in list(self._owed.values()):
                if clock.now() - owed.since > _SHELVED:
                    with suppress(Unavailable):
                        await self._shelve(owed)

    async def _shelve(self, owed: Owed) -> None:
        turn = await self._outbox.begin(owed.stream_id, known=False)
        if turn.verdict is Verdict.MISSING:
            return
        owed.since = float("inf")
        if turn.verdict is Verdict.GO:
            body = await self._body(owed, turn)
            owed.tries = turn.tries - 1  # It was none.
            await self._put_off(owed, 0.0, body=body)

    async def close(self) -> None:
        """End all tries; what was not heard is on the list."""
        await self._tasks.stop()
        await self._post.close()

    def _put(self, owed: Owed, seconds: float) -> None:
        queue = self._queues.setdefault(owed.receiver, Queue())
        queue.put(clock.now() + seconds, owed.stream_id)
        self._news.set()

    async def _turn(self, owed: Owed, queue: Queue) -> None:
        wait = await self._tried(owed)
        queue.busy -= 1
        self._news.set()
        if wait is not None:
            self._put(owed, wait)
            return
        # By now in no receiver's way: a booking may take until its server is back.
        try:
            await self._leave(owed.stream_id)
        finally:
            self._forget(owed)

    async def _tried(self, owed: Owed) -> float | None:
        try:
            return await self._tell(owed)
        except Unavailable as error:
            logger.debug("%s: its webhook waits for the store: %s", owed.stream_id, error)
            return _AWAY * (0.5 + random.random())
        except Exception:  # One that breaks must not keep the others from being told.
            logger.exception("%s: its webhook broke", owed.stream_id)
            return _BROKEN

    def _forget(self, owed: Owed) -> None:
        self._bodies -= len(owed.body)
        del self._owed[owed.stream_id]

    async def _tell(self, owed: Owed) -> float | None:
        """Try once; return the seconds until it is to be tried again, None if it is over."""
        if not owed.told:
            turn = await self._outbox.begin(owed.stream_id, known=bool(owed.body))
            if turn.verdict is Verdict.HEARD:
                return None
            if turn.verdict is not Verdict.MISSING:
                owed.since = float("inf")
            if turn.verdict is Verdict.WAIT:
                return turn.wait
            if turn.verdict is Verdict.MISSING and not owed.fields:
                return self._missing(owed)
            if (wait := await self._try(owed, turn)) is not None:
                return wait
        owed.told = True
        await self._outbox.told(owed.stream_id)
        return None

    def _missing(self, owed: Owed) -> float | None:
        """It was never noted, or Redis forgot it: then the owner of the log writes both again."""
        owed.missed = owed.missed or clock.now()
        if clock.now() - owed.missed < _IN_DOUBT:
            return 1.0
        logger.warning("%s: the store forgot its end before its webhook was told", owed.stream_id)
        return None

    async def _try(self, owed: Owed, turn: Turn) -> float | None:
        owed.tries = max(owed.tries + 1, turn.tries)
        body = await self._body(owed, turn)
        asked_for: float | None = None
        try:
            told = message_id(owed.stream_id, owed.fields)
            answer = await self._post.send(owed.receiver, told, body)
            if self._is_over(owed, answer):
                return None
            asked_for = retry_after(_lowered(answer))
            why = NoAnswer(f"it answered {answer.status}")
        except NoAnswer as error:
            why = error
        if turn.age > GIVEN_UP:
            words = "%s: its webhook is given up after %d tries in %.0f h: %s"
            logger.error(words, owed.stream_id, owed.tries, turn.age / 3600, why)
            return None
        owed.failed = True
        logger.debug("%s: try %d of its webhook: %s", owed.stream_id, owed.tries, why)
        self._post.failed(owed.receiver, why)
        wait = pause(owed.tries, asked_for, random.random())
        await self._put_off(owed, wait, body=body, whole=turn.verdict is Verdict.MISSING)
        return wait

    async def _body(self, owed: Owed, turn: Turn) -> bytes:
        """Return what is told, at each try the same; it is kept here if there is room."""
        if turn.fields:
            owed.fields = {k: v for k, v in turn.fields.items() if k.decode() not in _TURN}
        body = owed.body or turn.fields.get(b"body") or await self._message(owed)
        owed.stored = owed.stored or b"body" in turn.fields
        self._keep(owed, body)
        return body

    async def _message(self, owed: Owed) -> bytes:
        """Return what is told, from the log if it is still there; Unavailable where Redis is."""
        dialect = owed.fields.get(b"protocol", b"").decode()
        try:
            text = await self._text(owed.stream_id, dialect)
        except Unavailable:
            raise
        except Exception:  # The app must hear of the end all the same.
            logger.exception("%s: what its log tells is not understood", owed.stream_id)
            text = None
        return message(owed.stream_id, owed.fields, text)

    def _keep(self, owed: Owed, body: bytes) -> None:
        if not owed.body and self._bodies + len(body) <= _BODIES:
            owed.body = body
            self._bodies += len(body)

    def _is_over(self, owed: Owed, answer: Answer) -> bool:
        if answer.status == 410:
            words = "%s: its webhook is told no more: the receiver answered 410"
            logger.warning(words, owed.stream_id)
        return answer.status == 410 or 200 <= answer.status < 300

    async def _put_off(
        self, owed: Owed, wait: float, *, body: bytes = b"", whole: bool = False
    ) -> None:
        """Store when the next try is, and what the first one has made: the log will be gone."""
        fields = dict(owed.fields) if whole else {}
        if (whole or not owed.stored) and (kept := body or owed.body):
            fields[b"body"] = kept
        owed.stored = await self._outbox.put_off(owed.stream_id, wait, owed.tries, fields)


def _lowered(answer: Answer) -> list[tuple[str, str]]:
    return [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in answer.headers]

"""A user's channel in one world: two who write to it, pages that listen, and what must hold.

Each message has an id of its own and is pushed until that is answered, as an app's server does. A
page has, in order and once, all that came since its first position, or since what a gap told last.
A message may be missing only where Redis lost what it had acknowledged; a gap is told for that, and
for what is not kept any more.
"""

import asyncio
import json
import random
import re
from typing import TYPE_CHECKING, Any

from gateway.eventlog.entries import EventId
from gateway.store.keys import channel_id
from tests.simulation.client import Broken, EventSource, Exchange

if TYPE_CHECKING:
    from tests.simulation.world import World

USER = "carol"
TOKEN = "a-service-token-of-the-simulation"

Act = dict[str, Any]
Shown = tuple[EventId, str]  # A message's id and its text.

_AGAIN = 0.3  # Seconds after which a push is sent again.
_TEXT = re.compile(rb"data: (\S+)")


class Listener(EventSource):
    """A page that has opened the channel."""

    def __init__(self, channel: "Channel", act: Act, number: int) -> None:
        super().__init__(channel, act, number)
        self.base: EventId | None = None  # From where on it wants all; None until it knows.
        self.messages: list[Shown] = []  # Since then.

    def _asked(self, replica: Any, headers: dict[str, str]) -> Exchange:
        headers |= {"X-User": USER}
        query = {"from": "start"} if self.act["start"] else {}
        return Exchange(
            replica, "GET", "/events", headers=headers, query=query, lend=self.act["lend"]
        )

    def _show(self, world: Any, event_id: str, block: bytes) -> None:
        world.channel.shown(self, event_id, block)

    def begin(self, base: EventId, messages: list[Shown]) -> None:
        """Have these messages and want all that follow."""
        self.base, self.messages = base, messages


class Channel:
    """The channel, and the judge of all who use it."""

    def __init__(self, world: "World") -> None:
        self.posted = asyncio.Event()  # What an EventSource waits for.
        self.posted.set()
        self._world = world
        self._id = channel_id(USER)
        self._turns = [asyncio.Lock(), asyncio.Lock()]
        self._pushes = sum(act["act"] == "push" for act in world.schedule.acts)
        self._acked: dict[str, list[str]] = {}  # Text -> the ids that were answered.
        self._listeners: list[Listener] = []

    # People

    async def push(self, act: Act) -> None:
        """Push a message until that is answered; some are pushed once more after it."""
        rng = random.Random(act["seed"])
        async with self._turns[act["writer"]]:
            for _ in range(1 + act["twice"]):
                while not await self._pushed(act["text"], rng):  # noqa: ASYNC110
                    await asyncio.sleep(_AGAIN)
        self._pushes -= 1

    async def _pushed(self, text: str, rng: random.Random) -> bool:
        replica = self._world.replica(rng)
        if replica is None:
            return False
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        body = json.dumps({"data": text, "message_id": text}).encode()
        path = f"/users/{USER}/events"
        exchange = Exchange(replica, "POST", path, headers=headers, body=body)
        try:
            answer = await exchange.whole()
        except Broken:
            return False
        if exchange.status != 202:
            self._world.oracle.refused("a push", exchange.status, answer)
            return False
        self._acked.setdefault(text, []).append(json.loads(answer)["id"])
        self._world.say(f"{text} is stored as {self._acked[text][-1]}")
        return True

    async def listen(self, act: Act, number: int, patience: float) -> None:
        """Listen until all is written and seen."""
        listener = Listener(self, act, number)
        self._listeners.append(listener)
        task = asyncio.create_task(listener.run(self._world))
        while self._world.loop.time() < patience and not self._has_all(listener):  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        task.cancel()

    def _has_all(self, listener: Listener) -> bool:
        over = max((end for _, end, _ in self._world.troubles), default=0.0)
        calm = self._world.loop.time() > max(over, 10.0) + self._world.settings.lease
        if not listener.stays or self._pushes or not calm:
            return bool(listener.outcome)
        kept = self._kept()
        return not kept or (bool(listener.messages) and listener.messages[-1] == kept[-1])

    # While it runs

    def shown(self, listener: Listener, event_id: str, block: bytes) -> None:
        """Judge one block that a page got."""
        this, found = EventId.parse(event_id), _TEXT.search(block)
        if this is None:
            self._accuse(listener, f"got the id {event_id}")
        elif block.startswith(b"event: gap\n"):
            self._judge_gap(listener, json.loads(block.split(b"\n")[1][6:])["from"])
            listener.begin(this, [])
        elif found is None:
            listener.begin(this, [])
        else:
            self._judge_message(listener, (this, found[1].decode()))

    def _judge_message(self, listener: Listener, message: Shown) -> None:
        this, text = message
        if message not in self._ever():
            self._accuse(listener, f"got {this} {text}, which was never stored")
        if text in {each for _, each in listener.messages}:
            self._accuse(listener, f"got {text} twice")
        last = listener.messages[-1][0] if listener.messages else listener.base
        if last is None:  # It wants what is kept, whatever that is.
            listener.begin(EventId(this.epoch, this.seq - 1), [message])
            return
        if this <= last or this.seq != (last.seq + 1 if this.epoch == last.epoch else 1):
            self._accuse(listener, f"got {this} after {last}")
        listener.messages.append(message)

    def _judge_gap(self, listener: Listener, told: str) -> None:
        """A gap is told where what followed went with a loss, or was too much to be kept.

        Of another epoch nobody knows whether its first message followed one that is not kept.
        """
        since, kept = EventId.parse(told), self._kept()
        assert since is not None
        first = kept[0][0] if kept else since
        trimmed = (first.epoch, first.seq - (first.epoch == since.epoch)) > since
        if not trimmed and not self._world.oracle.touched(self._id):
            self._accuse(listener, f"was told of a gap after {told}, and all of it is there")

    def _accuse(self, listener: Listener, words: str) -> None:
        self._world.oracle.accuse("one order", f"{listener.name} of the channel {words}")

    # At the end

    def judge(self) -> None:
        """Judge what is stored, and what each page has."""
        ever, lost = self._ever(), self._world.oracle.touched(self._id)
        stored = {(str(event_id), text) for event_id, text in ever}
        for text, ids in self._acked.items():
            if any((each, text) not in stored for each in ids) or (len({*ids}) > 1 and not lost):
                self._world.oracle.accuse("stored once", f"{text} was answered {ids}")
        for messages in (self._kept(), [] if lost else ever):
            texts = [text for _, text in messages]
            if len({*texts}) != len(texts):
                self._world.oracle.accuse("stored once", f"{texts}")
        for listener in self._listeners:
            self._judge_listener(listener, ever, lost=lost)

    def _judge_listener(self, listener: Listener, ever: list[Shown], *, lost: bool) -> None:
        if listener.outcome:
            self._accuse(listener, f"was told {listener.outcome}")
        base = listener.base
        if not listener.stays or base is None:
            return
        kept = [each for each in self._kept() if each[0] > base]
        if [each for each in listener.messages if each in kept] != kept:
            self._accuse(listener, f"has {listener.messages} of {kept}")
        missing = [each for each in ever if each[0] > base and each not in listener.messages]
        if missing and not lost:
            self._accuse(listener, f"was not told of {missing}")

    def _kept(self) -> list[Shown]:
        """Return what is in the log now."""
        entries = self._world.redis.log(self._id)
        return [(EventId(*number), _text(fields[1])) for number, fields in entries]

    def _ever(self) -> list[Shown]:
        """Return all that was ever in the log, in order."""
        ledger = self._world.redis.ledger.get(self._id, {})
        return [(EventId(*number), _text(ledger[number][1])) for number in sorted(ledger)]


def _text(frames: bytes) -> str:
    found = _TEXT.search(frames)
    assert found is not None
    return found[1].decode()

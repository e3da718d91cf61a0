"""Channels: two users who are pushed messages all the time, their pages, and what must hold.

Each message is pushed until that is answered, and once more. A page has, since its start or since
what a gap told last, each message once and in order; it may lack only what was acknowledged while
Redis lost such things, and only then may it be told of a gap.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import quote

from tests.faults.schedule import Act, Watch
from tests.faults.story import Facts, Finding
from tests.faults.viewer import Got, Transcript, Viewer, request
from tests.faults.world import SERVICE, World, any_port
from tests.support import cookie, settings

USERS = ("reader one", "reader two")
_CUTS = 0.15  # A second, of each page.
_LONGEST = 1800.0  # Seconds that any run takes.
_LAG = 1.0  # Seconds before a failover of which the new master may know nothing.
_PATIENCE = 60.0  # Seconds after all faults.


@dataclass
class Message:
    """One message: when it was acknowledged first, and the id that each answer told."""

    text: str
    at: float = 0.0
    ids: list[str] = field(default_factory=list)


@dataclass
class Told:
    """All that is known of one user's channel."""

    user: str
    messages: list[Message] = field(default_factory=list)
    pages: list[Transcript] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Channels:
    """Plays the channels of some users in a world; `told` is what came of it."""

    def __init__(self, world: World) -> None:
        self.told = [Told(user) for user in USERS]
        self._world = world
        self._over = asyncio.Event()

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """Write and watch for the length of the block, and until every page has all."""
        both = [(told, nth) for told in self.told for nth in (0, 1)]
        pages = [asyncio.create_task(self._watch(*each)) for each in both]
        try:
            async with asyncio.TaskGroup() as group:
                for told in self.told:
                    group.create_task(self._write(told))
                yield
                self._over.set()
            await self._caught_up()
        finally:
            for page in pages:
                page.cancel()
            await asyncio.gather(*pages, return_exceptions=True)

    async def _write(self, told: Told) -> None:
        while not self._over.is_set():
            message = Message(f"m{len(told.messages)}")
            told.messages.append(message)
            for _ in range(2):
                await self._pushed(told, message)
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _pushed(self, told: Told, message: Message) -> None:
        body = json.dumps({"data": message.text, "message_id": message.text}).encode()
        headers = {"Authorization": f"Bearer {SERVICE}", "Content-Type": "application/json"}
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            status = 0
            try:
                port, path = random.choice(self._world.ports), f"/users/{quote(told.user)}/events"
                status, answer = await request(port, "POST", path, headers, body)
            except (OSError, EOFError, ValueError):
                pass
            if status == 202:
                message.at = message.at or time.monotonic()
                message.ids.append(json.loads(answer)["id"])
                return
            if status and status < 500:
                told.problems.append(f"a push was answered {status} {answer!r}")
                return
            await asyncio.sleep(0.3)
        told.problems.append(f"nobody took {message.text} within {_PATIENCE} s")

    async def _watch(self, told: Told, nth: int) -> None:
        """Watch all that is kept, one page through nginx, the other one past it and often cut."""
        cuts = [random.expovariate(_CUTS) for _ in range(int(_LONGEST * _CUTS))]
        acts = tuple(Act(sum(cuts[: n + 1]), "cut") for n in range(len(cuts)))
        watch, sent = Watch(acts=acts if nth else ()), cookie(settings(), told.user)["Cookie"]
        where = any_port(self._world, direct=bool(nth))
        viewer = Viewer("/events?from=start", sent, watch, where)
        told.pages.append(viewer.transcript)
        await viewer.run(_LONGEST)

    async def _caught_up(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and not all(map(_has_last, self.told)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _has_last(told: Told) -> bool:
    last = [message.ids[-1] for message in told.messages if message.ids][-1:]
    return all([event.id for event in page.events[-1:]] == last for page in told.pages)


def judge_channel(told: Told, facts: Facts) -> Iterable[Finding]:
    """Yield what is wrong with a channel, and with what its pages have."""
    found = [*told.problems]
    for message in told.messages:
        if len({*message.ids}) > 1 and not _may_be_lost(message, facts):
            found.append(f"{message.text} was stored as {message.ids}")
    if not _has_last(told):
        found.append(f"a page waits for ever: {[page.events[-1:] for page in told.pages]}")
    for page in told.pages:
        found += _wrong(page, told.messages, facts)
    for words in found:
        yield Finding("channel", -1, f"{told.user}: {words}"[:400])


def _wrong(page: Transcript, messages: Sequence[Message], facts: Facts) -> list[str]:
    found = [f"a page was refused: {page.why}"] if page.final != "unfinished" else []
    parts = _parts(page.events)
    if len(parts) > 1 and not facts.losses:
        found.append("a gap was told, and nothing was lost")
    for part in parts:
        numbers = [_number(event.id) for event in part]
        texts = [event.data.decode() for event in part]
        found += [f"{b} came after {a}" for a, b in pairwise(numbers) if b <= a]
        found += [f"{texts} have one twice"] if len({*texts}) < len(texts) else []
    ids = [event.id for event in parts[-1]]
    for message in messages:
        missing = message.ids and message.ids[-1] not in ids
        if missing and not _may_be_lost(message, facts):
            found.append(f"{message.text}, stored as {message.ids}, did not come")
    stored = {(each, message.text) for message in messages for each in message.ids}
    if not facts.losses:  # Whoever stored what is lost may have been told nothing.
        events = [event for part in parts for event in part]
        strange = [each for each in events if (each.id, each.data.decode()) not in stored]
        found += [f"{each} was stored by nobody" for each in strange]
    return found


def _parts(events: Iterable[Got]) -> list[list[Got]]:
    """Return what a page got between gaps; after one comes all that is kept."""
    parts: list[list[Got]] = [[]]
    for event in events:
        if event.name == b"gap":
            parts.append([])
        else:
            parts[-1].append(event)
    return parts


def _may_be_lost(message: Message, facts: Facts) -> bool:
    """Whether Redis lost what it acknowledged at that time, or all that came before."""
    return any(
        message.at <= loss.until and (loss.kind == "empty" or message.at >= loss.at - _LAG)
        for loss in facts.losses
    )


def _number(event_id: str) -> tuple[int, int]:
    epoch, _, seq = event_id.partition("-")
    return int(epoch), int(seq)

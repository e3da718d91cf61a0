"""Followers: pages that follow several streams of their user over one connection.

As a stream begins its page comes back with a longer list. What it gets is taken apart again into a
transcript for each stream, so the oracle judges it as it does any other viewer's.
"""

import asyncio
import json
import time
from contextlib import suppress

from tests.faults.pages import Page
from tests.faults.schedule import Act, Watch
from tests.faults.story import Story
from tests.faults.viewer import Got, Transcript, Viewer
from tests.faults.world import World, any_port
from tests.support import cookie, settings, until

_MOST = 12  # Streams of one connection.
_PATIENCE = 60.0  # Seconds after which a stream without an end is one, as all others are through.
_GONE = frozenset({"ticket_expired", "log_expired"})


class Follower(Viewer):
    """One page's EventSource for several streams; each has a transcript of its own."""

    def __init__(self, world: World, user: str) -> None:
        login = cookie(settings(), user)["Cookie"]
        super().__init__("", login, Watch(), any_port(world, direct=False))
        self.transcript.began = time.monotonic()  # A second stream may come before it runs.
        self._parts: list[tuple[Story, Transcript]] = []

    @property
    def full(self) -> bool:
        """Whether it follows as many as it may."""
        return len(self._parts) >= _MOST

    @property
    def over(self) -> bool:
        """Whether nothing more is to come of its streams."""
        return all(part.final != "unfinished" for _, part in self._parts)

    def add(self, story: Story) -> None:
        """Follow one more stream: it comes back with a longer list."""
        now = time.monotonic()
        part = Transcript(began=now, connections=1)
        self._parts.append((story, part))
        story.transcripts.append(part)
        tickets = "&".join(each.path.partition("?")[2] for each, _ in self._parts)
        self._path = f"/events?{tickets}"
        if len(self._parts) > 1:
            self._acts.append(Act(now - self.transcript.began, "cut"))

    def close(self) -> None:
        """Say how it ended, and give the ends the ids that other viewers know them by."""
        silences, self.transcript.silences = self.transcript.silences, 0
        for story, part in self._parts:
            part.silences, silences = silences, 0  # Once, whosever connection it was.
            part.ended = part.ended or time.monotonic()
            part.events = [_known(each, part, story) for each in part.events]
            if self.transcript.final == "refused" and part.final == "unfinished":
                part.final, part.why = "refused", self.transcript.why

    def _got(self, events: list[Got]) -> None:
        for event in events:
            number, _, name = event.name.partition(b".")
            if number.isdigit():
                _, part = self._parts[int(number) - 1]
                _take(part, Got(name, event.data, place_of(event.id, int(number))))


def _take(part: Transcript, event: Got) -> None:
    code = json.loads(event.data)["code"] if event.name == b"failure" else ""
    if part.final == "refused":
        return  # The end of what is kept no more, where another viewer would have had a 204.
    if code in _GONE:
        part.final, part.why = "refused", code
        return
    part.events.append(event)
    if event.name == b"end":
        part.final, part.over = "204", time.monotonic()
        part.ended = part.over


def place_of(event_id: str, number: int) -> str:
    """Return what an id of several streams says of one of them, "" where that has ended."""
    epoch, dash, seq = event_id.split(".")[1 + number].partition("-")
    return f"{int(epoch, 36)}-{int(seq, 36)}" if dash else ""


def _known(event: Got, part: Transcript, story: Story) -> Got:
    if event.id:
        return event
    told = (each for other in story.transcripts if other is not part for each in other.events)
    for each in told:
        if each.id and each[:2] == event[:2]:
            return each
    before = [each.id for each in part.events if each.id]
    epoch, _, seq = (before[-1] if before else "0-0").partition("-")
    return event._replace(id=f"{epoch}-{int(seq) + 1}")


class Followers:
    """The followers of all users; one that nobody else may watch with is in none."""

    def __init__(self, world: World) -> None:
        self.connections = 0
        self._world = world
        self._newest: dict[str, Follower] = {}
        self._all: list[Follower] = []
        self._tasks: list[asyncio.Task[Transcript]] = []

    def follow(self, page: Page) -> None:
        """Have the page's stream followed, which was asked for now."""
        stream = page.story.stream
        if stream.fault == "away":
            return
        newest = self._newest.get(stream.user)
        if newest is None or newest.full:
            newest = self._newest[stream.user] = Follower(self._world, stream.user)
            newest.add(page.story)
            self._all.append(newest)
            self._tasks.append(asyncio.create_task(newest.run(3600)))
        else:
            newest.add(page.story)

    async def finish(self) -> None:
        """Wait until all have seen the ends of their streams."""
        with suppress(AssertionError):  # The oracle says what is missing.
            await until(lambda: all(each.over for each in self._all), seconds=_PATIENCE)

    async def close(self) -> None:
        """End their connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in self._all:
            each.close()
            self.connections += each.transcript.connections

"""Pages: one for each stream of the schedule; POST, viewers, DELETE, and the story of it."""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from tests.faults.plays import PROMPT
from tests.faults.schedule import Stream, Watch
from tests.faults.story import Deletion, Story
from tests.faults.upstream import Upstream
from tests.faults.viewer import Viewer, request
from tests.faults.world import SERVICE, World, any_port
from tests.support import cookie, settings


async def usage_of(world: World, user: str) -> dict[str, Any]:
    """Return what a user's streams took yesterday and today, as any replica tells it."""
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    path = f"/users/{quote(user)}/usage?from={yesterday}"
    headers = {"Authorization": f"Bearer {SERVICE}"}
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError, EOFError, ValueError):
            status, answer = await request(random.choice(world.ports), "GET", path, headers)
            if status == 200:
                return dict(json.loads(answer))
            assert status >= 500, (status, answer)
        assert time.monotonic() < deadline, "nobody tells what was booked"
        await asyncio.sleep(0.3)


class Page:
    """Plays one stream; `story` is what came of it."""

    def __init__(
        self,
        world: World,
        upstream: Upstream,
        stream: Stream,
        posted: Callable[["Page"], None] = lambda _: None,
    ) -> None:
        self.story = Story(stream)
        self._posted = posted
        self.played: dict[str, int] = {}
        self._world = world
        self._upstream = upstream
        self._stream = stream
        self._cookie = cookie(settings(), stream.user)["Cookie"]

    async def play(self) -> None:
        """POST, watch, and perhaps DELETE, until all viewers are through."""
        self._upstream.answers[self._stream.number] = self._stream.answer
        await asyncio.sleep(self._stream.delay)
        path = await self._post()
        if path is None:
            return
        self.story.path = path
        self._posted(self)
        viewers = [self._view(path, watch) for watch in self._stream.watches]
        await asyncio.gather(self._delete(path), *viewers)
        self.story.calls = self._upstream.calls.get(self._stream.number, [])

    async def _post(self) -> str | None:
        """Return the stream's URL; a page tries again where nobody answers."""
        prompt = f"{PROMPT}{self._stream.number}"
        body: dict[str, Any] = {"model": "pretend"}
        if self._stream.kept:
            body["input"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        headers = {"Cookie": self._cookie, "Content-Type": "application/json"}
        headers["X-Stream-Ref"] = str(self._stream.number)
        if self._stream.number % 2:
            headers["Idempotency-Key"] = f"key of {self._stream.number}"
        path = f"/tickets/{self._stream.preset}".rstrip("/")
        deadline = time.monotonic() + self._world.patience
        status = 0
        while time.monotonic() < deadline:
            self.story.posted = time.monotonic()
            try:
                port = any_port(self._world, direct=random.random() < 0.5)()
                packed = json.dumps(body).encode()
                status, answer = await request(port, "POST", path, headers, packed)
            except (OSError, EOFError, ValueError):
                status = 0
            if status in {200, 201}:
                return str(json.loads(answer)["stream_url"])
            if status and status < 500 and not (status == 429 and self._world.limit):
                break
            await asyncio.sleep(0.3)
        self.story.problems.append(f"POST was answered {status}")
        return None

    async def _view(self, path: str, watch: Watch) -> None:
        await asyncio.sleep(watch.delay)
        direct = watch.direct or self._stream.fault == "duplicate"
        viewer = Viewer(path, self._cookie, watch, any_port(self._world, direct=direct))
        self.story.transcripts.append(viewer.transcript)
        await viewer.run(self._world.patience)
        self._count(viewer.played, watch)

    def _count(self, acts: dict[str, int], watch: Watch) -> None:
        fault = self._stream.fault
        first = watch is self._stream.watches[0]
        asked = fault in {"duplicate", "page_reload"} and not first
        if asked or (first and acts):
            self.played[fault] = 1

    async def _delete(self, path: str) -> None:
        if self._stream.delete_at is None:
            return
        await asyncio.sleep(self._stream.delete_at)
        deletion = Deletion(time.monotonic(), 0, "")
        self.story.deletions.append(deletion)  # Before it is sent: it may work without an answer.
        self.played["delete"] = 1
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            try:
                port = any_port(self._world, direct=random.random() < 0.5)()
                status, answer = await request(port, "DELETE", path, {"Cookie": self._cookie})
            except (OSError, EOFError, ValueError):
                status, answer = 0, b""
            if status and status < 500:
                deletion.status = status
                deletion.state = str(json.loads(answer).get("state", "")) if answer else ""
                return
            await asyncio.sleep(0.3)

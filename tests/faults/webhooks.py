"""Webhooks: a receiver that is down at first and lies later, and what it must hear in the end.

Each stream that some viewer saw end is told: at least once, under one id, as it ended. It may be
missing only where Redis lost what it had acknowledged at about its end, or later. What it was told
as before such a loss it may have been: who wrote it again died with it, and nobody had seen it.
"""

import asyncio
import json
import random
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from hmac import new
from typing import NamedTuple

from tests.faults.redis import fixed_port
from tests.faults.story import Facts, Finding, Story

_KEY = b64encode(b"what the harness signs hooks with").decode()
_LATE = 3.0  # Seconds until a viewer is told 204, after the end.
_HEARS = b"HTTP/1.1 204 Heard\r\n\r\n"
_ANSWERS = (
    *(_HEARS,) * 4,
    b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 There\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Later\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    b"",
)


class Told(NamedTuple):
    """A message that came whole."""

    id: str
    number: int  # Of the ticket.
    state: str
    signed: bool
    heard: bool
    at: float


class Hooks:
    """The receiver: `open` begins to listen; it is `fair` where it hears all that comes."""

    def __init__(self, *, fair: bool = False) -> None:
        self.port = fixed_port()
        self.told: list[Told] = []
        self._fair = fair
        self._server: asyncio.Server | None = None

    @property
    def keys(self) -> str:
        """What a preset says of it."""
        url = f"http://127.0.0.1:{self.port}/ends"
        return f'webhook = "{url}"\nwebhook_secret = "whsec_{_KEY}"\n'

    @property
    def heard(self) -> set[int]:
        """The tickets whose ends were heard."""
        return {each.number for each in self.told if each.heard}

    async def open(self, after: float = 0.0) -> None:
        """Listen, after so many seconds in which nobody does."""
        await asyncio.sleep(after)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def be_fair(self) -> None:
        """Hear all that comes from now on."""
        self._fair = True

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
            headers = {name.lower(): value for name, _, value in lines}
            body = await reader.readexactly(int(headers["content-length"]))
            answer = _HEARS if self._fair else random.choice(_ANSWERS)
            self._note(headers, body, heard=answer is _HEARS)
            writer.write(answer)
            await writer.drain()
        writer.close()

    def _note(self, headers: dict[str, str], body: bytes, *, heard: bool) -> None:
        name = headers["webhook-id"]
        signed = f"{name}.{headers['webhook-timestamp']}.".encode() + body
        digest = b64encode(new(b64decode(_KEY), signed, sha256).digest()).decode()
        sound = headers["webhook-signature"] == f"v1,{digest}"
        data = json.loads(body)["data"]
        number, at = int(data["ref"]), time.monotonic()
        self.told.append(Told(name, number, data["state"], sound, heard, at))


def judge_webhooks(
    stories: Sequence[Story], told: Iterable[Told], facts: Facts
) -> Iterable[Finding]:
    """Yield whose end was not heard, or told under two ids, or as another than it was."""
    by_number: dict[int, list[Told]] = {}
    for each in told:
        by_number.setdefault(each.number, []).append(each)
    for story in stories:
        number = story.stream.number
        messages = by_number.get(number, [])
        for words in _wrong(story, messages, facts):
            yield Finding("unheard", number, words)


def _wrong(story: Story, messages: list[Told], facts: Facts) -> Iterable[str]:
    if not all(each.signed for each in messages):
        yield "its webhook has a false signature"
    ends = [each for each in story.transcripts if each.events and each.events[-1].name == b"end"]
    if not ends or _excused(min(each.over for each in ends), facts):
        return
    if not any(each.heard for each in messages):
        yield f"its end was not heard, of {len(messages)} tries"
    if len({each.id for each in messages}) > 1:
        yield f"it was told under {sorted({each.id for each in messages})}"
    states = {str(json.loads(each.events[-1].data)["state"]) for each in ends}
    if any(each.state not in states and not _excused(each.at, facts) for each in messages):
        yield f"it ended {sorted(states)}, and was told as {[each.state for each in messages]}"


def _excused(end: float, facts: Facts) -> bool:
    """Whether Redis lost what it had at about an end, or of what was still to be told."""
    return any(each.until >= end - _LATE for each in facts.losses)

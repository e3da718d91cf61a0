"""Snapshot: what a log tells of its completion so far."""

import asyncio
from dataclasses import dataclass

from gateway.chat import Reading, text_of
from gateway.positions import Entry
from gateway.sse import OURS, parse


@dataclass(frozen=True, slots=True)
class Answer:
    """What a log tells of its completion: the reading, the text of choice 0, the last id."""

    reading: Reading
    text: str
    last_id: str | None


async def answer_of(entries: list[Entry], choices: int = 1) -> Answer:
    """Return what a log tells since its last `reset`; a long one lets others have their time."""
    reading, last_id = Reading(choices), None
    text: list[str] = []
    for entry in entries:
        for number, event in enumerate(parse(entry.frames)):
            if event.name == b"reset":
                reading, text = Reading(choices), []
            elif event.name not in OURS:
                reading.see(event)
                text.append(text_of(event.data))
            last_id = event.id.decode()
            if number % 100 == 0:
                await asyncio.sleep(0)
    return Answer(reading, "".join(text), last_id)

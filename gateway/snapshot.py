"""Snapshot: what a log tells of its completion so far."""

import asyncio
from dataclasses import dataclass

from gateway.chat import Reading, Voice
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
    voice = Voice()
    for entry in entries:
        for number, event in enumerate(parse(entry.frames)):
            if event.name == b"reset":
                reading, text, voice = Reading(choices), [], Voice()
            elif event.name not in OURS:
                reading.see(event)
                said = voice.text_of(event.data)
                if voice.anew:
                    text.clear()
                text.append(said)
            last_id = event.id.decode()
            if number % 100 == 0:
                await asyncio.sleep(0)
    return Answer(reading, "".join(text), last_id)

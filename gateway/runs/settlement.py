"""Settlement: what the answers of a log took, where their upstream told it of none.

Done once, at the end, from what is logged: while events come nothing is counted but their number.
It takes time, so others have theirs in between.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TypeVar

from gateway import clock
from gateway.eventlog.entries import EntryBatch
from gateway.sse import OURS, Event, parse
from gateway.upstream.protocols.base import CompletionState, Protocol, Tokens
from gateway.upstream.protocols.demand import prompt_tokens
from gateway.upstream.protocols.volume import Volume

T = TypeVar("T")

_SAMPLE = 512  # Events that are decoded: a drain ends thousands of answers at once.
_PAUSE = 0.002  # Seconds of work after which others have their turn.


async def settle(
    completion: CompletionState,
    protocol: Protocol,
    request: bytes,
    entries: Iterable[EntryBatch],
    more: bytes = b"",
) -> Tokens:
    """Weigh the last answer of a log, if need be, and return what those before it took.

    Those before were lost with the replica that asked for them, and are paid for all the same.
    """
    answers = [answer async for answer in _answers([*entries], more)]
    await _weigh(completion, protocol, answers[-1])
    total = Tokens()
    for events in answers[:-1]:
        lost = protocol.completion(request)
        async for event in _unhurried(events):
            lost.see(event)
        await _weigh(lost, protocol, events)
        total = total.plus(with_prompt(lost.tokens, request))
    return total


def with_prompt(tokens: Tokens, request: bytes) -> Tokens:
    """Return what a request took that was read, its prompt estimated where nobody told it."""
    if tokens.prompt is not None or not request:
        return tokens
    prompt = prompt_tokens(request)
    return tokens._replace(prompt=prompt, estimated=tokens.estimated + prompt)


async def _weigh(completion: CompletionState, protocol: Protocol, events: list[Event]) -> None:
    if completion.counted:
        return
    step = len(events) // _SAMPLE | 1  # Odd: every other event may be one of another kind.
    volume = Volume()
    async for event in _unhurried(events[::step]):
        for piece in protocol.said(event):
            volume.add(piece)
    completion.weigh(volume.tokens(step))


async def _answers(entries: list[EntryBatch], more: bytes) -> AsyncIterator[list[Event]]:
    """Yield the events of each answer: a `reset` begins another."""
    events: list[Event] = []
    frames = [*(entry.frames for entry in entries), more]
    async for each in _unhurried(frames):
        for event in parse(each):
            if event.name == b"reset":
                yield events
                events = []
            elif event.name not in OURS:
                events.append(event)
    yield events


async def _unhurried(items: Sequence[T]) -> AsyncIterator[T]:
    since = clock.now()
    for each in items:
        yield each
        if clock.now() - since > _PAUSE:
            await asyncio.sleep(0)
            since = clock.now()

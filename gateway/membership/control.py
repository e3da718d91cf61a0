"""Control: what other replicas tell this one: what is new, what to cancel, who watches.

A message can be lost. News are read once a second in any case, presence is a key; a cancel is kept
in Redis as well, and looked for.
"""

from collections.abc import Callable, Mapping, Sequence

from gateway.store.client import RedisClient
from gateway.store.keys import control_channel

Handler = Callable[[Sequence[str]], None]


class ControlChannel:
    """Hands each message on by its first word, with the others; `listen` is its task."""

    def __init__(self, store: RedisClient, replica: str, handlers: Mapping[str, Handler]) -> None:
        self._store = store
        self._replica = replica
        self._handlers = handlers

    async def listen(self) -> None:
        """Do what messages ask for, for ever."""
        async for message in self._store.messages(control_channel(self._replica)):
            word, *rest = message.decode("utf-8", "replace").split() or [""]
            if handle := self._handlers.get(word):
                handle(rest)

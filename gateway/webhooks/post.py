"""Post: one message to one receiver, signed, and what operators are told of receivers."""

import logging
from collections.abc import Callable
from functools import partial
from time import time

from gateway.config.presets import Preset
from gateway.config.webhooks import signing_key
from gateway.errors import redacted
from gateway.store.outage import Outage
from gateway.tasks import in_thread
from gateway.upstream.lookup import Answer, Lookup, NoAnswer
from gateway.webhooks.message import headers, of_receiver

logger = logging.getLogger("gateway.webhooks")

_TIMEOUT = 15.0  # Seconds that a receiver has to answer.
_LARGE = 1 << 20  # Bytes, above which a message is signed in a thread.


class Post:
    """Sends messages; `presets` has the secrets that sign them."""

    def __init__(self, presets: Callable[[str], Preset | None]) -> None:
        self._presets = presets
        self._lookup = Lookup()
        self._outages: dict[str, Outage] = {}

    async def send(self, receiver: str, name: str, body: bytes) -> Answer:
        """Tell a receiver what a message of this id says; return the answer. Raises NoAnswer."""
        asked, url = of_receiver(receiver)
        preset = self._presets(asked)
        secret = preset.webhook_secret if preset else None
        if secret is None or not secret.get_secret_value():
            raise NoAnswer(f"preset {asked} has no webhook_secret here any more")
        sign = partial(headers, signing_key(secret), name, int(time()), body)
        signed = sign() if len(body) < _LARGE else await in_thread(sign)
        answer = await self._lookup.tell(url, signed, body, seconds=_TIMEOUT)
        if 200 <= answer.status < 300 and (outage := self._outages.get(receiver)) is not None:
            outage.passed()
            if not outage.open:
                del self._outages[receiver]
        return answer

    def failed(self, receiver: str, why: NoAnswer) -> None:
        """Say once that a receiver does not hear, however many ends it is to be told."""
        name, url = of_receiver(receiver)
        who = f"the webhook of preset {name} ({redacted(url)})"
        outage = self._outages.get(receiver)
        if outage is None:
            outage = Outage(logger, f"{who} is not heard", f"{who} is heard again")
            self._outages[receiver] = outage
        outage.failed(why)

    async def close(self) -> None:
        """Break off what is being sent, and close the connections."""
        await self._lookup.close()

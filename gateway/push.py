"""Push: the command of that name: one message into a user's channel, from a shell."""

from typing import NamedTuple

from gateway.channels.message import Message
from gateway.channels.publisher import publisher
from gateway.config.settings import Settings
from gateway.report import Report, asked
from gateway.store.client import RedisClient
from gateway.web.users import named


class Draft(NamedTuple):
    """A message as it was typed."""

    event: str | None
    text: str
    message_id: str | None
    ttl: float | None


async def pushed(settings: Settings, subject: str, draft: Draft) -> Report:
    """Store a message, and report its id; raises Rejected."""

    async def ask(store: RedisClient) -> Report:
        writer = publisher(settings, store)
        message = Message.of(*draft, writer.bounds)
        return Report([await writer.push(named(subject), message)])

    return await asked(settings, ask)

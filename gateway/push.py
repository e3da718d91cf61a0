"""Push: the command of that name: one message into a user's channel, from a shell."""

from typing import NamedTuple

from gateway.auth.base import usable
from gateway.channels.message import Message
from gateway.channels.publisher import publisher
from gateway.config.settings import Settings
from gateway.errors import Rejected, Unavailable, one_line, with_cause
from gateway.store.client import RedisClient
from gateway.streams import Report

_FAILED, _BLIND = 1, 2  # Exit codes.


class Draft(NamedTuple):
    """A message as it was typed."""

    event: str | None
    text: str
    message_id: str | None
    ttl: float | None


async def pushed(settings: Settings, subject: str, draft: Draft) -> Report:
    """Store a message, and report its id."""
    if settings.embedded:
        words = "GATEWAY_REDIS_URL: missing; an embedded store is seen by its own process only"
        return Report((), [words], _BLIND)
    if usable(subject) is None:
        return Report((), ["bad_subject: it takes 1 to 256 printable characters"], _FAILED)
    store = RedisClient(settings.redis_url)
    writer = publisher(settings, store)
    try:
        message = Message.of(*draft, writer.bounds)
        return Report([await writer.push(subject, message)])
    except Rejected as error:
        return Report((), [one_line(f"{error.code}: {error.detail}")], _FAILED)
    except Unavailable as error:
        return Report((), [with_cause(f"Redis: {error}", None)], _FAILED)
    finally:
        await store.close()

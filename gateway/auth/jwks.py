"""Jwks: the public keys that an issuer publishes, as they are now.

They are asked for when the first token comes, again after a while, and when a token names one that
is not among them: once a minute at most, as strangers can name any. While the issuer is away, those
that it had go on to count.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from gateway.auth.keys import Key, of_set
from gateway.errors import Unavailable, with_cause
from gateway.tasks import in_thread
from gateway.upstream.lookup import Lookup, NoAnswer

_TIMEOUT = 5.0  # Seconds for an answer.
_LARGEST = 256 * 1024  # Bytes of an answer.
_FRESH = 600.0  # Seconds after which they are asked for again.
_OLD = 3600.0  # And after which nothing is verified before the answer, if there is one.
_APART = 60.0  # Seconds between two questions, if there are keys.
_SOON = 1.0  # And if there are none.

logger = logging.getLogger("gateway.auth.jwks")


class StaticKeys:
    """Keys that stay as they are."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = keys
        self.generation = 0

    async def get(self, kid: str | None) -> Sequence[Key]:
        """Return the keys that a token with this `kid` may be signed with."""
        return chosen(self._keys, kid) or self._keys

    async def renew(self) -> None:
        """Leave them as they are."""


class Jwks:
    """The keys of one URL."""

    def __init__(self, lookup: Lookup, url: str, now: Callable[[], float] = monotonic) -> None:
        self._lookup = lookup
        self._url = url
        self._now = now
        self._keys: Sequence[Key] = ()
        self._asked_at: float | None = None
        self._had_at = 0.0
        self._away = ""  # Why the last question had no answer.
        self._asking: asyncio.Task[None] | None = None
        self.generation = 0  # Grows where keys have changed: what they verified counts no more.

    async def get(self, kid: str | None) -> Sequence[Key]:
        """Return the keys that a token with this `kid` may be signed with.

        Raises Unavailable if that cannot be known now.
        """
        await self.renew()
        found = chosen(self._keys, kid)
        if found:
            return found
        if self._asking is None and self._age() >= (_APART if self._keys else _SOON):
            self._ask()
        if self._asking is not None:
            await asyncio.shield(self._asking)
        found = chosen(self._keys, kid)
        if not found and self._away:
            raise Unavailable("auth_unavailable", reason=f"GATEWAY_JWT_JWKS_URL: {self._away}")
        return found

    async def renew(self) -> None:
        """Ask for the keys again if it is time; wait for it only where nobody came for long."""
        if not self._keys:
            return
        if self._age() > (_APART if self._away else _FRESH):
            self._ask()
        old = self._now() - self._had_at > _OLD
        if old and self._asking is not None and not self._away:
            await asyncio.shield(self._asking)

    def _age(self) -> float:
        return float("inf") if self._asked_at is None else self._now() - self._asked_at

    def _ask(self) -> None:
        if self._asking is None and self._age() >= _SOON:
            self._asked_at = self._now()
            self._asking = self._lookup.spawn(self._fetch())

    async def _fetch(self) -> None:
        try:
            keys = await self.fetched()
        except (NoAnswer, ValueError) as error:
            self._away = with_cause(str(error), error)
            left = "those that there are go on to count" if self._keys else "no token is verified"
            logger.warning("GATEWAY_JWT_JWKS_URL: %s; %s", self._away, left)
        else:
            self._away = ""
            self._keys, self._had_at = keys, self._now()
            self.generation += 1
        finally:
            self._asking = None

    async def fetched(self) -> Sequence[Key]:
        """Return the keys that the issuer publishes now; raises NoAnswer, ValueError."""
        answer = await self._lookup.get(self._url, [], seconds=_TIMEOUT, limit=_LARGEST)
        if answer.status != 200:
            raise NoAnswer(f"it answers {answer.status}")
        if not answer.whole:
            raise NoAnswer(f"it is compressed, or larger than {_LARGEST} bytes")
        return await in_thread(partial(of_set, answer.body))  # It may be many large numbers.


def chosen(keys: Sequence[Key], kid: str | None) -> Sequence[Key]:
    """Return the keys of this name, and those without one; all for a token that names none."""
    if kid is None:
        return keys
    named = [each for each in keys if each.kid == kid]
    return named or [each for each in keys if each.kid is None]

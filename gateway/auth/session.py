"""Session: Starlette's session cookie, so that an app which has one needs no code."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from time import time
from typing import Any

from itsdangerous import BadData, TimestampSigner

from gateway.auth.base import one_of, usable
from gateway.auth.cookies import values_of

_SKEW = 60  # Seconds an app's clock may be ahead of ours.
_KNOWN = 1024  # Cookies whose signature was looked at.
_COOKIE = 4096  # Characters that are remembered of one: what browsers keep (RFC 6265 §6.1).


class SignedCookie:
    """Starlette's session cookie: base64 of a JSON object, signed by itsdangerous with a time."""

    def __init__(
        self,
        secrets: Sequence[str],
        *,
        name: str,
        field: str,
        max_age: float,
        now: Callable[[], float] = time,
    ) -> None:
        self.name = name
        self._signer = TimestampSigner(list(reversed(secrets)))  # The last one signs.
        self._field = field
        self._max_age = max_age
        self._now = now
        # The same cookie comes with every POST, GET and reconnect; its age is looked at each time.
        self._read = lru_cache(_KNOWN)(self._verified)

    async def subject(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
        """Return what the session's field says, None if the cookie is missing, forged or old."""
        return one_of({self._subject_of(each) for each in values_of(cookies, self.name)})

    def _subject_of(self, cookie: str) -> str | None:
        made, subject = (self._read if len(cookie) <= _COOKIE else self._verified)(cookie)
        age = self._now() - made
        return subject if -_SKEW <= age <= self._max_age else None

    def _verified(self, cookie: str) -> tuple[float, str | None]:
        """Return when a cookie was made and for whom, None for nobody."""
        try:
            # Not with max_age: that refuses a cookie from an app whose clock is a second ahead.
            data, made = self._signer.unsign(cookie, return_timestamp=True)
            session = json.loads(b64decode(data))
        except (BadData, ValueError, RecursionError):
            return 0.0, None
        return made.timestamp(), usable(_member(session, self._field))

    def sign(self, subject: str) -> str:
        """Return a cookie value for a subject, as the app would set it."""
        session: Any = subject
        for part in reversed(self._field.split(".")):
            session = {part: session}
        data = b64encode(json.dumps(session).encode())
        return self._signer.sign(data).decode()


def _member(session: Any, field: str) -> Any:
    for part in field.split("."):
        session = session.get(part) if isinstance(session, dict) else None
    return session

"""Guest: pages without a login: each browser is somebody, by a signed cookie of our own.

It is set where a page of ours POSTs, and nowhere else: whoever only has an address starts nothing.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from secrets import token_urlsafe
from time import time

from itsdangerous import BadData, TimestampSigner

from gateway.auth.base import Caller, Finding, agreed
from gateway.auth.cookies import values_of

COOKIE = "gateway_guest"

_SALT = "gateway.guest.v1"
_SKEW = 60  # Seconds that another replica's clock may be ahead.
_KNOWN = 1024  # Cookies whose signature was looked at.
_LONGEST = 200  # Characters of such a cookie, and some.


class Guest:
    """The authenticator that lets everybody in, and knows them again."""

    name = "guest"

    def __init__(
        self, secrets: Sequence[str], *, max_age: float, now: Callable[[], float] = time
    ) -> None:
        self._signer = TimestampSigner(
            list(reversed(secrets)),  # itsdangerous signs with the last.
            salt=_SALT,
            key_derivation="hmac",
            digest_method=hashlib.sha256,
        )
        self._max_age = max_age
        self._now = now
        self._read = lru_cache(_KNOWN)(self._verified)  # As with sessions: it comes again.

    async def find(self, caller: Caller) -> Finding:
        """Return the guest whom the cookie names, a new one if a page of ours POSTs without."""
        found = [self._found(each, caller) for each in values_of(caller.cookies, COOKIE)]
        said = agreed(found) if found else Finding(why=f"the request has no cookie {COOKIE}")
        if said.subject is not None or said.sure or not caller.page:
            return said
        return self._welcomed(f"guest-{token_urlsafe(16)}", caller)

    def _found(self, cookie: str, caller: Caller) -> Finding:
        read = self._read(cookie) if len(cookie) <= _LONGEST else None
        if read is None:
            return Finding(None, "bad_cookie", f"the cookie {COOKIE} is not of our secrets")
        guest, made = read
        age = self._now() - made
        if not -_SKEW <= age <= self._max_age:
            return Finding(None, "expired", f"the cookie {COOKIE} is {age / 86400:.1f} days old")
        if caller.page and age > self._max_age / 2:  # Else who comes daily is another some day.
            return self._welcomed(guest, caller)
        return Finding(guest)

    def _verified(self, cookie: str) -> tuple[str, float] | None:
        try:
            guest, made = self._signer.unsign(cookie, return_timestamp=True)
            return guest.decode(), made.timestamp()
        except (BadData, ValueError):
            return None

    def _welcomed(self, guest: str, caller: Caller) -> Finding:
        # TLS may end at a proxy: the page knows what it was loaded by.
        secure = "; Secure" * caller.headers.get("origin", "").lower().startswith("https:")
        value = f"{COOKIE}={self._signer.sign(guest).decode()}; Max-Age={self._max_age:.0f}"
        return Finding(guest, cookie=f"{value}; HttpOnly; SameSite=Lax{secure}")

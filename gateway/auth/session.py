"""Session: a session that a web app keeps whole in a signed cookie, so that it needs no code here.

What a framework's cookie is made of is the business of a module each; what is the same for all is
here: several of one name, age, the field that names the user.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from time import time
from typing import Any, NamedTuple

from gateway.auth.base import Caller, Finding, agreed, known, member, shown
from gateway.auth.cookies import values_of
from gateway.auth.likeness import refused

_SKEW = 60  # Seconds an app's clock may be ahead of ours.
_KNOWN = 1024  # Cookies whose signature was looked at.
_COOKIE = 4096  # Characters that are remembered of one: what browsers keep (RFC 6265 §6.1).

_LOST = -float("inf")  # When a cookie was made that cannot be read.


class Bad(ValueError):
    """A cookie cannot be read; the message says why."""


class Unsigned(Bad):
    """A cookie is none of this kind, or not signed with these secrets."""


class Opened(NamedTuple):
    """A cookie whose signature is right; `made` is in seconds of the epoch."""

    made: float
    session: Any


class Form(NamedTuple):
    """What a framework's cookie is: `open` raises Unsigned for what is none, or Bad."""

    name: str
    open: Callable[[str], Opened]
    cookie: str
    fields: Sequence[str]  # The first that is there names the user.
    plain: Callable[[Any], Any] = lambda value: value  # What a framework writes for an id.


class SessionCookie:
    """The authenticator that reads the sessions of one form."""

    def __init__(
        self, form: Form, *, max_age: float, tried: str = "", now: Callable[[], float] = time
    ) -> None:
        """`tried` tells an operator which secrets these are, and how many."""
        self.name = form.name
        self.cookie = form.cookie
        self._open = form.open
        self._fields, self._plain = form.fields, form.plain
        self._max_age = max_age
        self._tried = tried
        self._now = now
        # The same cookie comes with every POST, GET and reconnect; its age is looked at each time.
        self._read = lru_cache(_KNOWN)(self._verified)

    async def find(self, caller: Caller) -> Finding:
        """Return what the session's field says, nobody if the cookie is missing, forged or old."""
        found = [self._found(each) for each in values_of(caller.cookies, self.cookie)]
        if found:
            return agreed(found)
        names = shown(caller.cookies)
        return Finding(None, "no_cookie", f"the request has no cookie {self.cookie}", names)

    def _found(self, cookie: str) -> Finding:
        made, finding = (self._read if len(cookie) <= _COOKIE else self._verified)(cookie)
        age = self._now() - made
        if -_SKEW <= age <= self._max_age or made == _LOST:
            return finding
        old = f"{age / 86400:.1f} days old" if age > 0 else "from the future"
        return Finding(None, "expired", f"the session of the cookie {self.cookie} is {old}")

    def _verified(self, cookie: str) -> tuple[float, Finding]:
        try:
            made, session = self._open(cookie)
        except Bad as error:
            wrong = isinstance(error, Unsigned)
            why = refused(self.name, cookie, self._tried) if wrong else str(error)
            return _LOST, Finding(None, "bad_cookie", f"the cookie {self.cookie}: {why}")
        return made, self._named(session)

    def _named(self, session: Any) -> Finding:
        values = [member(session, field) for field in self._fields]
        there = [value for value in values if value is not None]
        what = "names nobody" if there else "is not there"
        why = f"in the session of the cookie {self.cookie}, {' or '.join(self._fields)} {what}"
        return known(self._plain(there[0]) if there else None, why, _names(session))


def _names(session: Any) -> list[str]:
    return [name for name in session if isinstance(name, str)] if isinstance(session, dict) else []

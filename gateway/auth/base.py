"""Base: what an authenticator is: from plain headers and cookies to the subject, who the caller is.

Another kind is a module with this method, and its name in `loading`: nobody else knows it by that.

Of several cookies of one name each is tried: a forged one hides no good one, and two that name two
callers name nobody.
"""

from collections.abc import Mapping
from typing import Any, Protocol

_LONGEST = 256


class Authenticator(Protocol):
    """Tells who is calling; headers are asked for by lower-case names."""

    async def subject(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
        """Return the caller's subject, None without a valid sign of one.

        Raises Unavailable (`auth_unavailable`) if that cannot be told now.
        """


def usable(subject: Any) -> str | None:
    """Return a subject as a string, None if it cannot name anybody."""
    if isinstance(subject, int) and not isinstance(subject, bool):
        subject = str(subject)
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST:
        return None
    return subject if subject.isprintable() else None


def one_of(subjects: set[str | None]) -> str | None:
    """Return the one that all agree on who name anybody."""
    known = subjects - {None}
    return known.pop() if len(known) == 1 else None

"""Base: what an authenticator is: from what a request shows to the subject, who its caller is.

Another kind is a module with this one method, and its name in `loading`: nobody else knows it by
that.

Of several signs of one kind, as cookies of one name, each is looked at: a forged one hides no good
one, and two that name two callers name nobody. What an authenticator does not know may be another's
to know; `sure` is said only of what can be nobody's.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Reason = Literal["no_cookie", "bad_cookie", "expired", "no_subject"]

REASONS: tuple[Reason, ...] = ("no_cookie", "bad_cookie", "no_subject", "expired")  # By how near.

_LONGEST = 256
_NAMES, _NAME = 20, 40  # Of a session's or a request's that are told, and how long.


class Caller(NamedTuple):
    """What a request shows of its caller; headers are asked for by lower-case names."""

    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    peer: str = ""  # The address of who connected to us.
    page: bool = False  # A page of ours POSTs it, and says so.


class Finding(NamedTuple):
    """Who the caller is, or why that is not known; `why` and `names` are for operators alone."""

    subject: str | None = None
    reason: Reason = "no_cookie"
    why: str = ""  # Without any value that the caller sent.
    names: tuple[str, ...] = ()  # What there is, where what is looked for is missing.
    sure: bool = False  # It is a forgery, or says two things: nobody else is to be asked.
    cookie: str = ""  # To be set in the answer, without its path.


class Authenticator(Protocol):
    """Tells who is calling; it is known by its name in `GATEWAY_AUTH`."""

    @property
    def name(self) -> str:
        """Return what the settings call it."""

    async def find(self, caller: Caller) -> Finding:
        """Return who the caller is, or why that is not known.

        Raises Unavailable (`auth_unavailable`) if that cannot be told now.
        """


def usable(subject: Any) -> str | None:
    """Return a subject as a string, None if it cannot name anybody."""
    if isinstance(subject, int) and not isinstance(subject, bool):
        subject = str(subject) if subject.bit_length() < 4 * _LONGEST else None
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST:
        return None
    return subject if subject.isprintable() else None


def known(subject: Any, why: str, names: Iterable[Any] = ()) -> Finding:
    """Return the finding of a sign that is genuine; `why` tells what is wrong with its subject."""
    usable_one = usable(subject)
    if usable_one is not None:
        return Finding(usable_one)
    return Finding(None, "no_subject", why, shown(names))


def agreed(findings: Sequence[Finding]) -> Finding:
    """Return what several signs of one kind say together; at least one is given."""
    if len(findings) == 1:
        return findings[0]
    named = {each.subject: each for each in findings if each.subject is not None}
    if len(named) > 1:
        return Finding(None, "bad_cookie", "it is there twice, of two users", sure=True)
    for finding in named.values():
        return finding
    return max(findings, key=lambda each: (each.sure, REASONS.index(each.reason)))


def shown(names: Iterable[Any]) -> tuple[str, ...]:
    """Return names as a log may have them: a few, and short."""
    texts = [each for each in names if isinstance(each, str) and each]
    return tuple(each[:_NAME] for each in texts[:_NAMES])


def member(data: Any, field: str) -> Any:
    """Return what a path of names, with dots between them, leads to; None if it leads nowhere."""
    for part in field.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def lines_of(headers: Mapping[str, str], name: str) -> list[str]:
    """Return all lines of a header, also of a mapping that knows only one."""
    every = getattr(headers, "getlist", None)
    if every is not None:
        return list(every(name))
    return [headers[name]] if name in headers else []


def different_lines(headers: Mapping[str, str], name: str) -> list[str]:
    """Return the lines of a header that is to be there once: of more, nobody knows which counts."""
    return [*dict.fromkeys(lines_of(headers, name))]

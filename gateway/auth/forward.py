"""Forward: the app itself is asked whose cookies these are; it fits every kind of session.

A yes is kept for seconds, as a page sends its POST, GET and reconnects close together; a no never
is, as whoever logs in then comes back at once. Cookies are kept as digests only.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from time import monotonic
from typing import NamedTuple

from gateway.auth.absence import Absence
from gateway.auth.base import Caller, Finding, agreed
from gateway.auth.cookies import Cookies
from gateway.auth.header import named
from gateway.auth.refusal import doubt, leads_to
from gateway.errors import Unavailable, with_cause
from gateway.upstream.lookup import Answer, Lookup, NoAnswer

_OTHERS = 4  # Questions of a request where cookies are there twice: each is one to the app.
_KEPT = 10_000  # Users whose yes is kept.
_OPEN = 256  # Questions that are open: the app is not to fall by what strangers send us.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BODY = 16 * 1024  # Bytes of an answer's body that are read, and thrown away.

logger = logging.getLogger("gateway.auth.forward")


class _Yes(NamedTuple):
    finding: Finding
    until: float


class Forward:
    """The authenticator that asks a URL of the app, with the caller's cookies and nothing else."""

    name = "forward"

    def __init__(
        self,
        lookup: Lookup,
        url: str,
        header: str,
        *,
        ttl: float,
        timeout: float,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._lookup = lookup
        self._url = url
        self._header = header.lower()
        self._ttl = ttl
        self._timeout = timeout
        self._now = now
        self._absence = Absence(logger, "GATEWAY_FORWARD_AUTH_URL", now)
        self._kept: dict[bytes, _Yes] = {}
        self._asked: dict[bytes, asyncio.Task[Finding | NoAnswer]] = {}

    async def find(self, caller: Caller) -> Finding:
        """Return whom the app names; without any cookie it is not asked.

        Raises Unavailable where it does not answer.
        """
        lines = _lines(caller.cookies)
        if not lines:
            return Finding(None, "no_cookie", "the request has no cookie")
        if any(_CONTROL.search(line) for line in lines):  # Another header of the question, else.
            return Finding(None, "bad_cookie", "its cookies have control characters", sure=True)
        return agreed([await self._known(line) for line in lines])

    async def _known(self, line: str) -> Finding:
        key = blake2b(line.encode("latin-1", "replace"), digest_size=32).digest()
        kept = self._kept.get(key)
        if kept is not None:
            if self._now() < kept.until:
                return kept.finding
            del self._kept[key]
        asked = self._asked.get(key)
        if asked is None:
            if len(self._asked) >= _OPEN:
                self._absence.noted(f"{_OPEN} questions are open")
                raise Unavailable("auth_unavailable", reason="too many questions are open")
            asked = self._asked[key] = self._lookup.spawn(self._ask(key, line))
        said = await asyncio.shield(asked)  # Others may wait for the same.
        if isinstance(said, NoAnswer):
            raise Unavailable("auth_unavailable", reason=f"GATEWAY_FORWARD_AUTH_URL: {said}")
        return said

    async def _ask(self, key: bytes, line: str) -> Finding | NoAnswer:
        try:
            finding = self._said(await self.question(line))
        except NoAnswer as error:  # Not thrown: nobody may be left to catch it.
            self._absence.noted(with_cause(str(error), None))
            return error
        finally:
            del self._asked[key]
        self._absence.over()
        if finding.subject is not None and self._ttl:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = _Yes(finding, self._now() + self._ttl)
        return finding

    async def question(self, line: str) -> Answer:
        """Return what the app answers to some cookies, "" for none; raises NoAnswer."""
        headers = [("cookie", line)] if line else []
        return await self._lookup.get(self._url, headers, seconds=self._timeout, limit=_BODY)

    def _said(self, answer: Answer) -> Finding:
        """Return what an answer says; raises NoAnswer if it says nothing of the caller."""
        if answer.status >= 500 or answer.status == 429:
            raise NoAnswer(f"it answers {answer.status}")
        if not 200 <= answer.status < 300:
            leads = f", and leads to {path}" if (path := leads_to(self._url, answer)) else ""
            hint = f" ({words})" if (words := doubt(self._url, answer)) else ""
            why = f"the app says {answer.status} to its cookies{leads}{hint}"
            return Finding(None, "bad_cookie", why)
        lines = answer.lines(self._header)
        if len(lines) != 1:
            how = "twice" if lines else "not"
            why = f"the app says {answer.status}, but {self._header} is {how} in its answer"
            return Finding(None, "no_subject", why)
        return named(lines[0], f"the app's {self._header}")


def _lines(cookies: Mapping[str, str]) -> list[str]:
    if isinstance(cookies, Cookies):
        return cookies.lines(_OTHERS)
    return ["; ".join(f"{name}={value}" for name, value in cookies.items())] if cookies else []

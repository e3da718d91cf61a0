"""Authenticators: from plain headers and cookies to the subject, who the caller is.

`signed` reads the cookie of Starlette's SessionMiddleware, so that an app which has one needs no
code. Anything else is `module:callable`, which gets headers and cookies and returns the subject.
Of several cookies of one name each is tried: a forged one hides no good one, and two that name two
callers name nobody.
"""

import asyncio
import importlib
import inspect
import json
import logging
import os
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from time import monotonic, time
from typing import Any, Protocol

from itsdangerous import BadData, TimestampSigner

from gateway.cookies import Cookies, values_of
from gateway.errors import GatewayError, Passing, SettingsError, with_cause
from gateway.settings import Settings
from gateway.threads import Threads

_SKEW = 60  # Seconds an app's clock may be ahead of ours.
_LONGEST = 256
_KNOWN = 1024  # Cookies whose signature was looked at.
_COOKIE = 4096  # Characters that are remembered of one: what browsers keep (RFC 6265 §6.1).
_PATIENCE = 10.0  # Seconds that a callable may take.
_OTHERS = 3  # Further tries where a cookie is there twice: each may be a look-up of theirs.
_THREADS = 32
_WAITING = 1024  # Callers that wait for a thread.
_QUIET = 60.0  # Seconds in which the same fault of a callable is not told again.

_CREDENTIAL = re.compile(r"[^\s;,=\"']{6,}")

log = logging.getLogger("gateway.auth")


class Authenticator(Protocol):
    """Tells who is calling."""

    async def subject(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
        """Return the caller's subject, None if there is no valid sign of one; may raise Passing."""


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
        return _one_of({self._subject_of(each) for each in values_of(cookies, self.name)})

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


class Custom:
    """A callable of the app's own: `(headers, cookies) -> subject | None`, async or not."""

    def __init__(
        self, name: str, call: Callable[[Mapping[str, str], Mapping[str, str]], Any]
    ) -> None:
        self._name = name
        self._call = call
        self._threads = None if _is_async(call) else Threads(_THREADS, _WAITING)
        self._told: dict[str, float] = {}

    async def subject(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
        """Return what the callable says; raises Passing if that cannot reach what it needs."""
        said = {await self._ask(headers, cookies)}
        if isinstance(cookies, Cookies):
            others = islice(cookies.others(), _OTHERS)
            said |= {await self._ask(headers, each) for each in others}
        return _one_of(said)

    async def _ask(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> str | None:
        call = partial(self._call, headers, cookies)
        try:
            async with asyncio.timeout(_PATIENCE):
                said = await self._threads.run(call) if self._threads else call()
                return usable(await said if inspect.isawaitable(said) else said)
        except GatewayError:
            raise
        except OSError as error:  # Among them what it connects to, and a TimeoutError.
            raise Passing("auth_unavailable", reason=type(error).__name__) from error
        except (Exception, SystemExit) as error:  # A bug of theirs lets nobody in.
            self._tell(error, headers)
            return None

    def _tell(self, error: BaseException, headers: Mapping[str, str]) -> None:
        """Say in one line where it broke: once a minute, as any stranger can make it break."""
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at else "its call"
        now = monotonic()
        if now - self._told.get(where, -_QUIET) < _QUIET:
            return
        self._told[where] = now
        words = str(error)[:300]
        for given in _CREDENTIAL.findall(" ".join(_credentials(headers))):
            words = words.replace(given, "***")  # A ValueError shows what it was given.
        what = f"{self._name}: {type(error).__name__} at {where}: {words}"
        log.error("GATEWAY_AUTH %s", with_cause(what, None))


def authenticator(settings: Settings) -> Authenticator:
    """Return the one that the settings name; raises SettingsError."""
    if settings.auth == "signed":
        return signed_cookie(settings)
    module, colon, name = settings.auth.partition(":")
    if not colon:
        raise SettingsError(
            f"GATEWAY_AUTH: {settings.auth!r} is neither signed nor module:callable"
        )
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.append(here)  # Last: a stray file there hides no library.
    try:
        call = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # A module of the app's own may raise anything.
        words = f"GATEWAY_AUTH: cannot load {settings.auth}: {type(error).__name__}: {error}"
        raise SettingsError(with_cause(words, error)) from None
    if not callable(call):
        raise SettingsError(f"GATEWAY_AUTH: {settings.auth} is not callable")
    return Custom(settings.auth, call)


def signed_cookie(settings: Settings) -> SignedCookie:
    """Return the `signed` authenticator; raises SettingsError without a secret."""
    secrets = settings.cookie_secrets or settings.secrets
    if not secrets:
        raise SettingsError("GATEWAY_COOKIE_SECRETS: missing, as are GATEWAY_SECRETS")
    return SignedCookie(
        [secret.get_secret_value() for secret in secrets],
        name=settings.cookie_name,
        field=settings.subject_field,
        max_age=settings.cookie_max_age,
    )


def usable(subject: Any) -> str | None:
    """Return a subject as a string, None if it cannot name anybody."""
    if isinstance(subject, int) and not isinstance(subject, bool):
        subject = str(subject)
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST:
        return None
    return subject if subject.isprintable() else None


def _one_of(subjects: set[str | None]) -> str | None:
    """Return the one that all agree on who name anybody."""
    known = subjects - {None}
    return known.pop() if len(known) == 1 else None


def _credentials(headers: Mapping[str, str]) -> list[str]:
    return [headers.get(name, "") for name in ("cookie", "authorization")]


def _is_async(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - of an object with an async one
    )


def _member(session: Any, field: str) -> Any:
    for part in field.split("."):
        session = session.get(part) if isinstance(session, dict) else None
    return session

"""Custom: a callable of the app's own, which gets headers and cookies and returns the subject."""

import asyncio
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

from gateway.auth.absence import Absence
from gateway.auth.base import Caller, Finding, agreed, known, lines_of, shown
from gateway.auth.cookies import Cookies
from gateway.auth.threads import Threads
from gateway.errors import GatewayError, Unavailable, with_cause

_TIMEOUT = 10.0  # Seconds that a callable may take.
_OTHERS = 3  # Further tries where a cookie is there twice: each may be a look-up of theirs.
_THREADS = 32
_WAITING = 1024  # Callers that wait for a thread.
_QUIET = 60.0  # Seconds in which the same fault of a callable is not told again.

_TOLD = 300  # Characters of an error.
_LAST = re.compile(r"[^\s;,=\"']+\Z")
_CREDENTIAL = re.compile(r"[^\s;,=\"']{6,}")

logger = logging.getLogger("gateway.auth.custom")


class Custom:
    """A callable of the app's own: `(headers, cookies) -> subject | None`, async or not."""

    def __init__(
        self, name: str, call: Callable[[Mapping[str, str], Mapping[str, str]], Any]
    ) -> None:
        self.name = name
        self._call = call
        self._threads = None if _is_async(call) else Threads(_THREADS, _WAITING)
        self._absence = Absence(logger, f"GATEWAY_AUTH {name}")
        self._told: dict[str, float] = {}

    async def find(self, caller: Caller) -> Finding:
        """Return what the callable says; raises Unavailable if that cannot reach what it needs."""
        headers, cookies = caller.headers, caller.cookies
        said = [await self._ask(headers, cookies)]
        if isinstance(cookies, Cookies):
            said += [await self._ask(headers, each) for each in cookies.others(_OTHERS)]
        finding = agreed(said)
        if finding.reason == "bad_cookie" and not (cookies or lines_of(headers, "authorization")):
            return Finding(why="the request has no cookie, and it names nobody without")
        return finding

    async def _ask(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Finding:
        call = partial(self._call, headers, cookies)
        try:
            async with asyncio.timeout(_TIMEOUT):
                said = await self._threads.run(call) if self._threads else call()
                said = await said if inspect.isawaitable(said) else said
        except Unavailable:
            self._absence.noted("it says so")
            raise
        except GatewayError:
            raise
        except OSError as error:  # Among them what it connects to, and a TimeoutError.
            self._absence.noted(type(error).__name__)
            raise Unavailable("auth_unavailable", reason=type(error).__name__) from error
        except (Exception, SystemExit) as error:  # A bug of theirs lets nobody in.
            self._tell(error, headers)
            return Finding(None, "bad_cookie", f"it raises {type(error).__name__}", sure=True)
        self._absence.over()
        if said is None:
            return Finding(None, "bad_cookie", "it names nobody", shown(cookies))
        return known(said, f"it says a {type(said).__name__} that can name nobody")

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
        words = _cut(str(error))
        for given in _CREDENTIAL.findall(" ".join(_credentials(headers))):
            words = words.replace(given, "***")  # A ValueError shows what it was given.
        what = f"{self.name}: {type(error).__name__} at {where}: {words}"
        logger.error("GATEWAY_AUTH %s", with_cause(what, None))


def _cut(words: str) -> str:
    """Return the beginning, without a last word that is not whole: it may be half a credential."""
    return words if len(words) <= _TOLD else _LAST.sub("…", words[:_TOLD])


def _credentials(headers: Mapping[str, str]) -> list[str]:
    return [headers.get(name, "") for name in ("cookie", "authorization")]


def _is_async(call: Any) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - of an object with an async one
    )

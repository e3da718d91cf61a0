"""Chain: the authenticators of the settings, tried in turn; the first that knows the caller has it.

Strangers see four reasons and no more. What operators need to mend a setting is said in the log,
once a minute for each authenticator and reason, as any stranger can bring it about.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from gateway.auth.base import REASONS, Authenticator, Caller, Finding, different_lines
from gateway.auth.cookies import Crowded
from gateway.errors import one_line

_QUIET = 60.0  # Seconds in which the same is not told again.
_TWICE = Finding(None, "bad_cookie", "Authorization is there twice, and differs", sure=True)

logger = logging.getLogger("gateway.auth.chain")


class Chain:
    """Authenticators in their order, and what they hold together."""

    def __init__(
        self,
        each: Sequence[Authenticator],
        close: Callable[[], Awaitable[None]],
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.each = each
        self.close = close
        self._now = now
        self._told: dict[tuple[str, str], float] = {}

    async def find(self, caller: Caller) -> Finding:
        """Return who the caller is, or the most telling reason why nobody knows.

        Raises Unavailable if one that comes before who knows the caller cannot tell now.
        """
        if len(different_lines(caller.headers, "authorization")) > 1:
            self._tell("anybody", _TWICE)
            return _TWICE
        found: list[Finding] = []
        for authenticator in self.each:
            try:
                finding = await authenticator.find(caller)
            except Crowded as error:
                finding = Finding(None, "bad_cookie", str(error), sure=True)
            if finding.subject is not None:
                return finding
            found.append(finding)
            self._tell(authenticator.name, finding)
            if finding.sure:
                return finding
        return max(found, key=lambda each: REASONS.index(each.reason))

    def _tell(self, name: str, finding: Finding) -> None:
        key, now = (name, finding.reason), self._now()
        if now - self._told.get(key, -_QUIET) < _QUIET:
            return
        self._told[key] = now
        logger.info("a caller is nobody to %s", one_line(told(name, finding)))


def told(name: str, finding: Finding) -> str:
    """Return what an authenticator says of a caller, for an operator."""
    if finding.subject is not None:
        return f"{name}: {finding.subject}"
    names = f" (there is {', '.join(finding.names)})" if finding.names else ""
    return f"{name}: {finding.reason}: {finding.why}{names}"

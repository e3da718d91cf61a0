"""Failover: who is asked after a sure refusal, before the first event.

A preset names others, which are tried in turn, each with its own retries. One that refused lately
is passed over while another is free, and then probed by one call: a page must not wait for what
is known to be down. What was refused lately is what this process has seen.

A time-out, a stall or a cut is no sure refusal: it may have been paid for. Only a preset that says
`fallback_on_timeout` goes on after one, and the first is hung up before the second is asked.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from gateway import clock
from gateway.config.presets import Preset, chain_of
from gateway.errors import Rejected, UpstreamFailure
from gateway.upstream.request_body import RequestBody

logger = logging.getLogger("gateway.runs.failover")

_SKIPPED = 10.0  # Seconds that one which refused is passed over, where it does not say.
_LONGEST = 300.0  # Seconds that it is passed over at most, whatever it says.
_PROBE = 15.0  # Seconds in which a probe is to be answered before there is another.


class Candidate(NamedTuple):
    """A preset, and what it makes of a page's request."""

    name: str
    preset: Preset
    request: bytes


class Refusals:
    """The presets whose upstreams refused lately, as this process has seen it."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def refused(self, name: str, retry_after: float | None) -> None:
        """Pass it over for the seconds that it says, or for some."""
        seconds = _SKIPPED if retry_after is None else retry_after
        self._until[name] = clock.now() + min(max(seconds, 1.0), _LONGEST)

    def answered(self, name: str) -> None:
        """Ask it as before."""
        self._until.pop(name, None)

    def is_free(self, name: str) -> bool:
        """Whether it may be asked: it did not refuse, or that is over and nobody probes it yet."""
        return self._until.get(name, 0.0) <= clock.now()

    def ask(self, name: str) -> None:
        """Note that it is asked: after a refusal that is a probe, and others wait for its news."""
        if name in self._until:
            self._until[name] = clock.now() + _PROBE


class Plan:
    """The candidates of one run; `body` reads what its page asked for, b"" if that is gone."""

    def __init__(
        self,
        name: str,
        presets: Callable[[str], Preset | None],
        refusals: Refusals,
        body: Callable[[], Awaitable[bytes]],
    ) -> None:
        self.tried: list[str] = []
        self._name = name  # Of the one at hand.
        self._own = presets(name)
        self._refusals = refusals
        self._body = body
        # As they are now: a page reads one protocol, and a preset read anew may speak another.
        chain = {each: presets(each) for each in chain_of(name, presets)}
        self._left = {each: preset for each, preset in chain.items() if preset is not None}

    def ask(self) -> None:
        """Note that the one at hand is asked."""
        self._refusals.ask(self._name)
        if self.tried[-1:] != [self._name]:
            self.tried.append(self._name)

    def answered(self) -> None:
        """Note that the one at hand has begun to answer."""
        self._refusals.answered(self._name)

    async def first(self) -> Candidate | None:
        """Return who is asked instead of the preset itself, None where that one is."""
        passed = self._name
        if self._refusals.is_free(passed):
            return None
        other = await self._next()
        if other is not None and self._own is not None:
            self._left[passed] = self._own  # It may be well again when all others have refused.
        return other

    async def after(self, failed: UpstreamFailure, *, waits: bool) -> Candidate | None:
        """Return who is asked next, None if nobody is; `waits`: the one at hand may be once more.

        Then only who is free is better than waiting for it.
        """
        if failed.sure:
            self._refusals.refused(self._name, failed.retry_after)
        return await self._next() or (None if waits else await self._next(free=False))

    async def _next(self, *, free: bool = True) -> Candidate | None:
        """Return the next that takes the request; in a second round those that refused lately."""
        for name in list(self._left):
            if free and not self._refusals.is_free(name):
                continue
            if candidate := await self._candidate(name, self._left.pop(name)):
                self._name = name
                return candidate
        return None

    async def _candidate(self, name: str, preset: Preset) -> Candidate | None:
        try:
            body = await self._body()
            if not body:
                return None
            made = RequestBody(body).instead(preset)
        except Rejected as error:
            logger.info("fallback %s is left out: %s", name, error.code)
            return None
        return Candidate(name, preset, made.text)

"""Life: whether this replica has begun, and whether it ends."""

import logging

from gateway.errors import Rejected, Unavailable
from gateway.runs.supervisor import RunSupervisor

logger = logging.getLogger("gateway.web.life")

_WORDS = (
    "the gateway is asked before it runs: the application that it is mounted in has to run "
    "`gateway.lifespan` in its own"
)


class Life:
    """Whether a replica's loops run: without them a stream would begin, and nothing ever come."""

    def __init__(self, supervisor: RunSupervisor) -> None:
        self._supervisor = supervisor
        self._told = False

    @property
    def draining(self) -> bool:
        """Whether it is about to end."""
        return self._supervisor.draining

    def check(self) -> None:
        """Raise Rejected before its start, and say so once: waiting would not mend it.

        Raises Unavailable after its end: the store would be opened anew, by nobody's leave.
        """
        if self._supervisor.stopped:
            raise Unavailable("draining")
        if self._supervisor.started:
            return
        if not self._told:
            self._told = True
            logger.error("%s", _WORDS)
        raise Rejected("not_started", "Its application has to run gateway.lifespan.")

    def check_stays(self) -> None:
        """Raise Unavailable if it is about to end."""
        if self.draining:
            raise Unavailable("draining")

"""Health: whether this replica is alive, and whether it is able to serve."""

from collections.abc import Callable

from starlette.requests import Request

from gateway.errors import Unavailable
from gateway.runs.records import Records
from gateway.runs.rehearsal import can_store
from gateway.web.endpoint import AnyResponse
from gateway.web.responses import reply


class HealthEndpoints:
    """What a load balancer asks; no login is needed."""

    def __init__(self, records: Records, draining: Callable[[], bool]) -> None:
        self._records = records
        self._draining = draining

    async def alive(self, request: Request) -> AnyResponse:
        """GET /healthz: the process answers."""
        return reply({"status": "ok"})

    async def ready(self, request: Request) -> AnyResponse:
        """GET /readyz: able to serve."""
        if self._draining():
            raise Unavailable("draining")
        await can_store(self._records)
        return reply({"status": "ready"})

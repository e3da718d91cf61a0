"""Health: whether this replica is alive, and whether it is able to serve."""

from starlette.requests import Request

from gateway.runs.records import Records
from gateway.runs.rehearsal import can_store
from gateway.web.endpoint import AnyResponse
from gateway.web.life import Life
from gateway.web.responses import reply


class HealthEndpoints:
    """What a load balancer asks; no login is needed."""

    def __init__(self, records: Records, life: Life) -> None:
        self._records = records
        self._life = life

    async def alive(self, request: Request) -> AnyResponse:
        """GET /healthz: the process answers."""
        return reply({"status": "ok"})

    async def ready(self, request: Request) -> AnyResponse:
        """GET /readyz: able to serve."""
        self._life.check_stays()
        await can_store(self._records)
        return reply({"status": "ready"})

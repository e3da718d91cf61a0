"""Kept responses: what SDKs ask of a response by its id, told from our log of it."""

from starlette.requests import Request

from gateway.errors import Rejected
from gateway.runs.aliases import Aliases
from gateway.runs.cancellation import Cancellation
from gateway.runs.record import Record
from gateway.upstream.protocols.apis import RESPONSES
from gateway.web.endpoint import AnyResponse
from gateway.web.sdk.answers import Answers, Wanted, wanted_of
from gateway.web.sdk.callers import SdkCallers
from gateway.web.sdk.completions import Owned

_LONGEST = 1000  # Characters of an id.


class KeptResponses:
    """`/v1/responses/{id}`: every response is kept here, whether its upstream keeps it or not."""

    def __init__(
        self,
        callers: SdkCallers,
        aliases: Aliases,
        owned: Owned,
        answers: Answers,
        cancellation: Cancellation,
    ) -> None:
        self._callers = callers
        self._aliases = aliases
        self._owned = owned
        self._answers = answers
        self._cancellation = cancellation

    async def get(self, request: Request) -> AnyResponse:
        """GET /v1/responses/{id}: how it is; with `stream=true` what follows `starting_after`."""
        wanted = wanted_of(request, streams=False)
        record = await self._record(request, watches=wanted.streams)
        wanted = wanted._replace(now=not wanted.streams)
        return await self._answers.of_record(RESPONSES, record, wanted)

    async def cancel(self, request: Request) -> AnyResponse:
        """POST /v1/responses/{id}/cancel: stop it, for all who watch it."""
        record = await self._record(request)
        state = await self._cancellation.cancel(record)
        wanted = Wanted(streams=False, now=True, cancelled=state == "cancelled")
        return await self._answers.of_record(RESPONSES, record, wanted)

    async def _record(self, request: Request, *, watches: bool = False) -> Record:
        caller = await self._callers.of(request, watches=watches)
        answer_id = request.path_params["id"]
        if len(answer_id) > _LONGEST:
            raise Rejected("response_not_found")
        stream_id = await self._aliases.find(caller.lookup, answer_id)
        return await self._owned.by_stream(stream_id, caller)

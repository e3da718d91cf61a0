"""Errors: a problem (RFC 9457) that is an error of a provider's own shape as well."""

import json

from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import Rejected, Unavailable
from gateway.telemetry.base import Telemetry
from gateway.upstream.protocols.api import Api
from gateway.upstream.protocols.apis import CHAT, MESSAGES
from gateway.upstream.protocols.problems import Problem
from gateway.web.endpoint import Call, Methods
from gateway.web.life import Life
from gateway.web.origins import Origins
from gateway.web.responses import Retry

_LENGTH = "content-length"
_NO_RETRY = {"X-Should-Retry": "false"}  # All SDKs of these providers obey it.


class SdkMethods(Methods):
    """One URL of an API, or of two: its refusals are told in the shape of the one that asks."""

    def __init__(
        self,
        origins: Origins,
        retry: Retry,
        life: Life,
        telemetry: Telemetry,
        *,
        api: Api | None,
        **calls: Call,
    ) -> None:
        super().__init__(origins, retry, life, telemetry, **calls)
        self._api = api

    def rejected(self, error: Rejected, request: Request) -> Response:
        """Return a refusal; a mistake of ours may have been paid for."""
        answer = super().rejected(error, request)
        if error.code == "internal":
            answer.headers.update(_NO_RETRY)
        return self._shaped(answer, error, request)

    def unavailable(self, error: Unavailable, request: Request) -> Response:
        """Return what will pass."""
        return self._shaped(super().unavailable(error, request), error, request)

    def opens_stream(self, request: Request) -> bool:
        """Return False: an empty stream is a good end to an SDK."""
        return False

    def _shaped(
        self, answer: Response, error: Rejected | Unavailable, request: Request
    ) -> Response:
        message = f"{error.title}. {error.detail}" if error.detail else f"{error.title}."
        problem = Problem(answer.status_code, error.code, message)
        api = self._api or (MESSAGES if "anthropic-version" in request.headers else CHAT)
        told = {**json.loads(bytes(answer.body)), **api.error(problem)}
        headers = {name: answer.headers[name] for name in answer.headers if name != _LENGTH}
        return Response(json.dumps(told), answer.status_code, headers)


def failed(api: Api, problem: Problem) -> Response:
    """Return what became of a stream of which nothing was shown yet."""
    told = {
        "type": "about:blank",
        "title": "The stream ended before its answer was whole",
        "status": problem.status,
        "code": problem.code,
        "detail": problem.message,
        **api.error(problem),
    }
    headers = {"Cache-Control": "no-store", **({} if problem.again else _NO_RETRY)}
    if problem.after is not None:
        headers["Retry-After"] = str(problem.after)
    return Response(json.dumps(told), problem.status, headers, "application/problem+json")

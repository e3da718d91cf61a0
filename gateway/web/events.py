"""Events: messages for users, as the app's server writes them to their channels."""

import asyncio
from typing import Any

from starlette.requests import Request

from gateway.auth.service import ServiceTokens
from gateway.channels.message import MEMBERS, Message
from gateway.channels.publisher import Publisher
from gateway.errors import Rejected, Unavailable
from gateway.upstream.request_body import RequestBody
from gateway.web.endpoint import AnyResponse
from gateway.web.requests import body_of
from gateway.web.responses import reply
from gateway.web.users import named

_MOST = 1000  # Subjects of one request.
_AT_ONCE = 64
_BESIDE = 1 << 20  # Bytes of a body beside its data, which may be escaped.


class MessageEndpoints:
    """What is pushed to users, with a service token."""

    def __init__(self, service: ServiceTokens, publisher: Publisher) -> None:
        self._service = service
        self._publisher = publisher

    async def push(self, request: Request) -> AnyResponse:
        """POST /users/{subject}/events: store a message for a user."""
        self._service.check(request.headers)
        subject = named(request.path_params["subject"])
        message = self._message(await self._body(request), MEMBERS)
        return reply({"id": await self._publisher.push(subject, message)}, 202)

    async def push_all(self, request: Request) -> AnyResponse:
        """POST /events: store a message for several users, each by itself."""
        self._service.check(request.headers)
        body = await self._body(request)
        message = self._message(body, MEMBERS | {"subjects"})
        subjects = _subjects(body.values.get("subjects"))
        results: list[dict[str, Any] | Unavailable] = []
        for start in range(0, len(subjects), _AT_ONCE):
            some = subjects[start : start + _AT_ONCE]
            results += await asyncio.gather(*(self._result(each, message) for each in some))
        failed = [each for each in results if isinstance(each, Unavailable)]
        if len(failed) == len(results):
            raise failed[0]  # Nothing is stored: to be asked again as a whole.
        told = [
            {"subject": subject, "code": each.code} if isinstance(each, Unavailable) else each
            for subject, each in zip(subjects, results, strict=True)
        ]
        return reply({"results": told}, 202)

    async def _result(self, subject: str, message: Message) -> dict[str, Any] | Unavailable:
        try:
            event_id = await self._publisher.push(named(subject), message)
        except Rejected as error:
            return {"subject": subject, "code": error.code}
        except Unavailable as error:
            return error
        return {"subject": subject, "id": event_id}

    async def _body(self, request: Request) -> RequestBody:
        return await body_of(request, 6 * self._publisher.bounds.size + _BESIDE)

    def _message(self, body: RequestBody, members: frozenset[str]) -> Message:
        given = body.values
        if unknown := given.keys() - members:
            raise Rejected("unknown_member", f"{sorted(unknown)[0][:100]!a} is none of a message.")
        if "data" not in given:
            raise Rejected("bad_data", "It is missing.")
        data = given["data"]
        text = data if isinstance(data, str) else body.text_of("data")
        about = (given.get("message_id"), given.get("ttl"), self._publisher.bounds)
        return Message.of(given.get("event"), text, *about)


def _subjects(given: Any) -> list[str]:
    """Return those named, each once; raises Rejected."""
    is_list = isinstance(given, list) and all(isinstance(each, str) for each in given)
    if not is_list or not 0 < len(given) <= _MOST:
        raise Rejected("bad_subjects", f"A list of 1 to {_MOST} strings.")
    return list(dict.fromkeys(given))

"""The pretend upstream, which answers like six providers and fails on request.

What is to fail is named by `UpstreamOptions.fault`, or by a request's own body, which wins:

    {"model": "…", "messages": […], "pretend": {"fault": "cut:12", "interval": 0.02, "tokens": 200}}

`FAULTS` lists what there is; N counts chunks with content, over all choices, and is 10 if left out.
`pretend` may also say `attach_for`, the seconds after which a background response is streamed to
nobody new; `script`, that of the answer: one of `SCRIPTS`, or `prompt` for the prompt's own;
`ask`, a name by which `/calls` tells of the request.
"""

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.demo.pretend.anthropic import Anthropic
from gateway.demo.pretend.base import (
    Answer,
    Asked,
    Event,
    Provider,
    Refused,
    Terms,
    UpstreamOptions,
    encoded,
    terms_of,
)
from gateway.demo.pretend.chat import Chat, openai_error
from gateway.demo.pretend.cohere import Cohere
from gateway.demo.pretend.faults import FAULTS, Fault, parse_fault
from gateway.demo.pretend.gemini import Gemini
from gateway.demo.pretend.kept import KeptResponses
from gateway.demo.pretend.ollama import Ollama
from gateway.demo.pretend.responses import Response as KeepableResponse
from gateway.demo.pretend.responses import Responses
from gateway.demo.pretend.sending import Line, gzipped, paced
from gateway.demo.pretend.text import Object, answer, prompt_of

__all__ = ["FAULTS", "PATHS", "URLS", "UpstreamOptions", "answer", "parse_fault", "upstream"]

PATHS: Final[dict[str, Provider]] = {
    "/v1/chat/completions": Chat(),
    "/v1/responses": Responses(),
    "/v1/messages": Anthropic(),
    "/api/chat": Ollama(),
    "/api/generate": Ollama(),
    "/v1beta/models/{model}": Gemini(),
    "/v2/chat": Cohere(),
}
URLS: Final = tuple(
    path.replace("{model}", "MODEL:streamGenerateContent?alt=sse") for path in PATHS
)

_LATER = frozenset({"cuts", "comments", "crlf", "named"})  # Faults of later connections too.


class _Calls:
    """What is remembered of requests for an answer."""

    def __init__(self) -> None:
        self.count = self.open = self.creates = 0
        self.recent: deque[Object] = deque(maxlen=1000)

    def begin(self, protocol: str) -> Object:
        """Return what is to be known of one more."""
        call: Object = {"at": time.time(), "prompt": "", "status": None, "closed": None, "ask": ""}
        self.recent.append(call | {"protocol": protocol})
        self.count += 1
        self.open += 1
        return self.recent[-1]

    def end(self, call: Object) -> None:
        """Note that nothing of its connection is left."""
        self.open -= 1
        call["closed"] = call["closed"] or "client"

    def refused(self, status: float, prompt: str) -> int:
        """Return how many with this prompt were answered with this status."""
        return [each["prompt"] for each in self.recent if each["status"] == status].count(prompt)


class _Endpoint:
    """The place where one provider is asked for answers."""

    def __init__(
        self, provider: Provider, options: UpstreamOptions, calls: _Calls, kept: KeptResponses
    ) -> None:
        self._provider = provider
        self._options = options
        self._calls = calls
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._calls.begin(self._provider.name)
        try:
            response = await self._response(Request(scope, receive), call)
            call["status"] = response.status_code
            await response(scope, receive, send)
            if not isinstance(response, StreamingResponse):
                call["closed"] = call["closed"] or "finished"
        finally:
            self._calls.end(call)

    async def _response(self, request: Request, call: Object) -> Response:
        try:
            return await self._answered(request, call)
        except Refused as refused:
            return _refusal(self._provider, refused)

    async def _answered(self, request: Request, call: Object) -> Response:
        provider, asked = self._provider, _asked(request)
        provider.admit(asked, self._options.api_key)
        content = await request.body()
        try:
            asked = asked._replace(body=_object(content))
            call["prompt"] = prompt_of(provider.messages(asked))[:1000]
            terms = terms_of(asked.body, self._options, provider.lacks)
            call["ask"] = terms.ask
            made = provider.answer(asked, terms)
        except RecursionError:
            raise Refused(400, "The JSON body of your request is nested too deeply.") from None
        if terms.fault.name == "hang":
            await request.receive()  # The body is read, so what comes is the client's going.
            call["closed"] = "client"
            raise Refused(499, "")
        if terms.fault.name == "status":
            self._refuse(terms.fault, call["prompt"])
        return self._begun(made, terms, call, request.receive)

    def _refuse(self, fault: Fault, prompt: str) -> None:
        if not fault.times or self._calls.refused(fault.number, prompt) < fault.times:
            raise Refused(int(fault.number), f"This {fault.number} is pretended.")

    def _begun(self, made: Answer, terms: Terms, call: Object, receive: Receive) -> Response:
        """Return the answer in the form that was asked for, or that the fault makes of it."""
        events = paced(made, terms)
        if isinstance(made, KeepableResponse) and made.background:
            events = self._kept.keep(made, terms).after(-1)
            call["id"] = made.id
        self._calls.creates += 1
        fault = terms.fault.name
        if fault == "html":
            return Response("<!doctype html><p>Not what you asked for.", media_type="text/html")
        if fault == "json" or not made.streams:
            return _json(made.whole())
        line = Line(self._provider.framed, _hanging_up(receive), terms.fault, call)
        return _streamed(line, events, self._provider.media_type)


class _KeptEndpoints:
    """The places where background responses are asked for once they are made."""

    def __init__(self, provider: Provider, options: UpstreamOptions, kept: KeptResponses) -> None:
        self._provider = provider
        self._key = options.api_key
        self._kept = kept

    def routes(self) -> list[Route]:
        """Return them."""
        one = "/v1/responses/{id}"
        return [
            Route(one, self._guarded(self._shown), methods=["GET"]),
            Route(one, self._guarded(self._deleted), methods=["DELETE"]),
            Route(f"{one}/cancel", self._guarded(self._cancelled), methods=["POST"]),
        ]

    def _guarded(self, answer: Callable[[Request, str], Response]) -> Callable[..., Any]:
        async def endpoint(request: Request) -> Response:
            try:
                self._provider.admit(_asked(request), self._key)
                return answer(request, request.path_params["id"])
            except Refused as refused:
                return _refusal(self._provider, refused)

        return endpoint

    def _shown(self, request: Request, id_: str) -> Response:
        if request.query_params.get("stream") != "true":
            return _json(encoded(self._kept.looked_at(id_)))
        after = request.query_params.get("starting_after", "-1")
        kept = self._kept.attached(id_)
        if after != "-1" and not (after.isdecimal() and len(after) < 10):
            raise Refused(400, "'starting_after' must be a number.", "starting_after")
        fault = kept.terms.fault if kept.terms.fault.name in _LATER else Fault("")
        line = Line(self._provider.framed, _hanging_up(request.receive), fault, {})
        return _streamed(line, kept.after(int(after)), self._provider.media_type)

    def _cancelled(self, request: Request, id_: str) -> Response:
        return _json(encoded(self._kept.cancelled(id_)))

    def _deleted(self, request: Request, id_: str) -> Response:
        self._kept.forget(id_)
        return _json(encoded({"id": id_, "object": "response", "deleted": True}))


def _asked(request: Request) -> Asked:
    return Asked(request.scope["path"], request.query_params, request.headers, {})


def _object(content: bytes) -> Object:
    """Return a request's body; raises Refused where it is no JSON object."""
    try:
        body = json.loads(content)
    except ValueError:
        raise Refused(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body of your request must be a JSON object.")
    return body


def _streamed(line: Line, events: AsyncIterator[Event], media_type: str) -> Response:
    body, headers = line.blocks(events), {"Cache-Control": "no-cache"}
    if line.fault.name == "gzip":
        body, headers["Content-Encoding"] = gzipped(body), "gzip"
    return StreamingResponse(body, media_type=media_type, headers=headers)


def _hanging_up(receive: Receive) -> Callable[[], None]:
    def hang_up() -> None:
        # ASGI has no word for it, and an exception would be logged as the application's error,
        # so uvicorn's transport is closed under it. On other servers this raises, and will do.
        cycle = receive.__self__  # type: ignore[attr-defined]
        cycle.transport.close()

    return hang_up


def _json(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = text.encode("utf-8", "replace")  # Names in a refusal may be halves of a pair.
    return Response(content, status, headers, "application/json")


def _refusal(provider: Provider, refused: Refused) -> Response:
    headers = {"Retry-After": "1"} if refused.status in provider.waits else None
    return _json(encoded(provider.refusal(refused)), refused.status, headers)


def _astray(_: Request, error: Any) -> Response:
    return JSONResponse(
        openai_error(Refused(error.status_code, error.detail)), error.status_code, error.headers
    )


def upstream(options: UpstreamOptions | None = None) -> Starlette:
    """Return an app that answers like the providers of `PATHS`, or fails as asked."""
    given = options or UpstreamOptions()
    parse_fault(given.fault)  # A wrong one is said now, not with the first request.
    calls, kept = _Calls(), KeptResponses()

    async def report(request: Request) -> Response:
        """Tell how often we were asked, and what became of it, or of what `?ask=` names."""
        asks = {"creates": calls.creates, **asdict(kept.counted), "responses": kept.tell()}
        ask = request.query_params.get("ask")
        recent = [each for each in calls.recent if ask is None or each["ask"] == ask]
        told = {"count": calls.count, "open": calls.open, "calls": recent}
        return JSONResponse(told | asks)

    routes = [
        Route(path, _Endpoint(provider, given, calls, kept), methods=["POST"])
        for path, provider in PATHS.items()
    ]
    routes += _KeptEndpoints(PATHS["/v1/responses"], given, kept).routes()
    routes += [
        Route("/calls", report),
        Route("/healthz", JSONResponse({"status": "ok"}), methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _astray})

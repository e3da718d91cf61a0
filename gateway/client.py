"""Client: an answer of a gateway as a loop, for programs; it outlives cuts and replicas."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import httpx

try:
    import httpx_sse
except ImportError as missing:
    raise ImportError("gateway.client needs: pip install 'sse-ticket-gateway[client]'") from missing

_SILENCE = httpx.Timeout(10, read=40)  # Seconds: a heartbeat comes every 15, else the line is dead.


class Refused(Exception):
    """A refusal, or an answer that is not whole, which has a `state`; `code` is stable."""

    def __init__(self, told: Mapping[str, Any], status: int = 0, state: str = "") -> None:
        words = told.get("detail") or told.get("title") or told.get("message") or state
        super().__init__(words or f"The gateway answered {status}.")
        self.code = str(told.get("code") or state or f"http_{status}")
        self.status, self.state = status, state
        self.passes = not state and (status == 429 or status >= 500)


class Answer:
    """One answer, for one loop, asked for at `…/tickets`; without a body `url` is a stream_url.

    Raises Refused where it is refused, not whole, or void without a `discard` to clear the text,
    and what broke the connection for `patience` seconds. `options` are for `httpx.AsyncClient`.
    """

    def __init__(
        self,
        url: str,
        body: Mapping[str, Any] | None = None,
        *,
        discard: Callable[[], object] | None = None,
        patience: float = 60,
        **options: Any,
    ) -> None:
        self.text, self.end = "", dict[str, Any]()  # So far, and what the last event told.
        self.stream_url = "" if body is not None else url
        self._url, self._body, self._discard, self._patience = url, body, discard, patience
        self._options = {"timeout": _SILENCE, **options}
        self._last_id, self._failure, self._failing = "", dict[str, Any](), 0.0

    async def stop(self) -> None:
        """Cancel what has a `stream_url`: the loop then raises Refused `cancelled`."""
        async with httpx.AsyncClient(**self._options) as http:
            await _checked(await http.delete(self.stream_url))

    async def __aiter__(self) -> AsyncIterator[str]:
        key = {"Idempotency-Key": str(uuid4())}
        async with httpx.AsyncClient(**self._options) as http:
            while not self.end:
                try:
                    if not self.stream_url:
                        asked = await http.post(self._url, json=self._body, headers=key)
                        told = (await _checked(asked)).json()
                        self.stream_url = urljoin(self._url, told["stream_url"])
                    async for piece in self._connection(http):
                        yield piece
                    if not self.end:
                        raise Refused({"code": "sent_away", "title": "It did not end."}, 503)
                except (httpx.TransportError, Refused) as error:
                    await self._wait(error)
        if self.end["state"] != "done":
            raise Refused(self._failure, self._failure.get("status", 0), self.end["state"])

    async def _connection(self, http: httpx.AsyncClient) -> AsyncIterator[str]:
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        form = {"format": "text", "heartbeat": "event"}  # Whoever sends one is not failing.
        url = httpx.URL(self.stream_url).copy_merge_params(form)
        async with httpx_sse.aconnect_sse(http, "GET", str(url), headers=headers) as source:
            await _checked(source.response)
            async for event in source.aiter_sse():
                self._failing, self._last_id = 0.0, event.id or self._last_id
                if event.event == "message" and event.data:  # A comment may look like an empty one.
                    self.text += event.data
                    yield event.data
                elif event.event in ("reset", "gap"):
                    if self.text and not self._discard:
                        raise Refused({"code": "begun_anew", "title": "The text so far is void."})
                    self.text = ""
                    if self._discard:
                        self._discard()
                elif event.event == "failure":
                    self._failure = event.json()
                elif event.event == "end":
                    self.end = event.json()

    async def _wait(self, error: httpx.TransportError | Refused) -> None:
        now = time.monotonic()
        self._failing = self._failing or now
        failing = now - self._failing
        if failing > self._patience or not getattr(error, "passes", True):
            raise error
        await asyncio.sleep(min(15, 0.5 + failing) * random.uniform(0.5, 1))


async def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code in (200, 201):
        return answer
    told: Any = {"code": "log_expired"} if answer.status_code == 204 else {}
    with suppress(ValueError):  # A proxy has other words.
        told = json.loads(await answer.aread())
    raise Refused(told if isinstance(told, dict) else {}, answer.status_code)


complete = Answer  # As it reads in a loop.

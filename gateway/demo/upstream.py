"""The pretend upstream, which answers like OpenAI and fails on request.

What is to fail is named by `UpstreamOptions.fault`, or by a request's own body, which wins:

    {"model": "…", "messages": […], "pretend": {"fault": "cut:12", "interval": 0.02, "tokens": 200}}

`FAULTS` lists what there is; N counts chunks with content, over all choices, and is 10 if left out.
"""

import asyncio
import json
import re
import secrets
import time
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.sse import comment, lines

Object = dict[str, Any]
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

FAULTS: Final = {
    "status:CODE:N": "refuse with CODE; with :N only a prompt's first N requests",
    "hang": "not even response headers",
    "stall:N": "silence after N chunks; 0 is headers and no byte",
    "cut:N": "the connection breaks inside the event after N chunks",
    "close:N": "a clean end after N chunks: no finish reason, no [DONE]",
    "error:N": 'data: {"error": …} after N chunks, then a clean end',
    "no-done": "all but [DONE]",
    "html": "200 and a web page",
    "json": "200 and a completion that is not streamed",
    "gzip": "Content-Encoding: gzip, flushed with each chunk",
    "big:BYTES": "a delta of that size after 3 chunks",
    "comments": "a comment block after each event",
    "crlf": "lines end in CR LF",
    "named": "events are named chunk, the third open, the fifth end",
}
NUMBERS: Final = {spelling.split(":")[0]: spelling.count(":") for spelling in FAULTS}
PARAGRAPHS: Final = (
    "What was written down before it was shown survives a lost connection, to the last word.",
    "Связь пропадает чаще, чем хочется: тоннель, лифт, новая версия. Браузер вернётся сам.",
    "يكتب الخادم كل حدث في السجل قبل إرساله، ولذلك لا يضيع شيء عند انقطاع الاتصال.",
    "הדפדפן מתחבר מחדש לבדו ומבקש רק את מה שחסר; דבר אינו אובד ודבר אינו מגיע פעמיים.",
    "断线之后，浏览器会自动重连，并带上最后一个事件的编号；服务器从那里继续，不多也不少。",
    "途中でページを閉じても、答えは記録に残ります。もう一度開けば、最初から読み直せます。",
    "कनेक्शन टूटने पर भी उत्तर खोता नहीं: बस एक पल रुकिए, बाकी शब्द अपने आप आ जाएँगे।",
    "Même une phrase accentuée (où, garçon, Noël, cœur) arrive entière, « guillemets » compris.",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇫🇷 🇯🇵 🇧🇷 ❤️‍🔥 👍🏿, then U+2028:\N{LINE SEPARATOR} it ends no event.",
)


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """How the pretend upstream answers where a request does not say."""

    interval: float = 0.05  # Seconds between chunks.
    tokens: int | None = None  # Chunks in an answer; None is the text's natural length.
    fault: str = ""
    api_key: str = ""  # Empty: any will do.


class Fault(NamedTuple):
    """What is to go wrong; an empty name is nothing."""

    name: str
    number: int = 10
    times: int = 0


def parse_fault(text: str) -> Fault:
    """Return the fault that a text like `cut:12` names; raises ValueError that lists them all."""
    name, *numbers = text.split(":")
    most = NUMBERS.get(name, -1) if text else 0
    if len(numbers) <= most and all(re.fullmatch("[0-9]{1,8}", number) for number in numbers):
        fault = Fault(name, *map(int, numbers))
        if name != "status" or 400 <= fault.number <= 599:
            return fault
    raise ValueError(f"Unknown fault {text!r}. Known are: {', '.join(FAULTS)}.")


def answer(messages: list[Object], tokens: int | None = None, choice: int = 0) -> list[str]:
    """Return the exact deltas of the answer to these messages: the same for the same prompt."""
    prompt = _prompt(messages)
    turn = (zlib.crc32(prompt.encode()) + choice) % len(PARAGRAPHS)
    paragraphs = (f"“{prompt[:80].strip()}”", *PARAGRAPHS[turn:], *PARAGRAPHS[:turn])
    # At most five characters a piece: models cut words, and emoji sequences, just as blindly.
    pieces: list[str] = re.findall(r"\s*\S{1,5}", "\n\n".join(paragraphs))
    return pieces if tokens is None else list(islice(cycle(pieces), tokens))


def _prompt(messages: list[Object]) -> str:
    said = [_text(message.get("content")) for message in messages if message.get("role") == "user"]
    return said[-1] if said else ""


def _text(content: object) -> str:
    """Return a message's text, of either shape that OpenAI takes, lone surrogates replaced."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "").encode("utf-8", "replace").decode()


def _number(given: Object, name: str, default: Any, low: int, high: int) -> Any:
    value = given.get(name)
    if value is None:
        return default
    if type(value) not in (int, type(default)) or not low <= value <= high:
        raise HTTPException(400, f"'{name}' must be a number from {low} to {high}.")
    return value


def _read(content: bytes) -> Any:
    """Return a request's body; raises HTTPException where it is no completion request."""
    try:
        body = json.loads(content)
    except ValueError:
        raise HTTPException(400, "We could not parse the JSON body of your request.") from None
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not messages:
        raise HTTPException(400, "Missing required parameter: 'messages'.")
    if not all(isinstance(each, dict) for each in [body.setdefault("pretend", {}), *messages]):
        raise HTTPException(400, "'pretend' and each of 'messages' must be an object.")
    return body


class _Ask:
    """One valid completion request, its answer already known."""

    def __init__(self, body: Object, options: UpstreamOptions) -> None:
        messages, pretend = body["messages"], body["pretend"]
        try:
            self.fault = parse_fault(str(pretend.get("fault", options.fault)))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        self._interval = _number(pretend, "interval", float(options.interval), 0, 60)
        self._stream = body.get("stream") is True
        tokens = _number(pretend, "tokens", options.tokens, 0, 100_000)
        most = _number(body, "max_tokens", None, 1, 1 << 30)
        most = _number(body, "max_completion_tokens", most, 1, 1 << 30)
        natural = [answer(messages, tokens, i) for i in range(_number(body, "n", 1, 1, 128))]
        self._deltas = [pieces[:most] for pieces in natural]
        self._reason = "stop" if natural == self._deltas else "length"
        asked = sum(len(_text(message.get("content")).split()) + 4 for message in messages)
        told = sum(map(len, self._deltas))
        usage = {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
        wanted = body.get("stream_options") if self._stream else {"include_usage": True}
        counted = isinstance(wanted, dict) and wanted.get("include_usage") is True
        self._usage = {"usage": usage} if counted else {}
        self._head: Object = {  # The members that all chunks of this answer share.
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": _text(body.get("model") or "pretend-1"),
            "system_fingerprint": "fp_pretend",
            **dict.fromkeys(self._usage),
        }
        if self.fault.name == "big":
            self._deltas[0].insert(3, "x" * self.fault.number)

    def response(self, call: Object, receive: Receive) -> Response:
        """Return the answer in the form that was asked for, or that the fault makes of it."""
        fault, headers = self.fault.name, {"Cache-Control": "no-cache"}
        if fault == "html":
            return Response("<!doctype html><p>Not what you asked for.", media_type="text/html")
        if fault == "json" or not self._stream:
            return Response(self._whole(), media_type="application/json")
        body = self._blocks(call, receive)
        if fault == "gzip":
            body, headers["Content-Encoding"] = _gzipped(body), "gzip"
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    async def _blocks(self, call: Object, receive: Receive) -> AsyncIterator[bytes]:
        """Yield the answer's events at the asked pace, up to the fault."""
        (fault, number, _), sent = self.fault, 0
        for index, (is_content, data) in enumerate(self._events()):
            block = _block(fault, index, data)
            if fault in ("stall", "cut", "close", "error") and sent >= number:
                if fault == "stall":
                    await asyncio.Event().wait()  # Until the client's going cancels this.
                error = _event(_json(_error(500, "The server had an error.")))
                yield {"cut": block[: len(block) // 2], "error": error}.get(fault, b"")
                break
            if is_content:
                await asyncio.sleep(self._interval)
            yield block
            sent += is_content
        call["closed"] = "finished"
        if fault == "cut" and sent == number:
            # ASGI has no word for it, and an exception would be logged as the application's error,
            # so uvicorn's transport is closed under it. On other servers this raises, and will do.
            cycle = receive.__self__  # type: ignore[attr-defined]
            cycle.transport.close()
            await asyncio.Event().wait()

    def _events(self) -> Iterator[tuple[bool, str]]:
        """Yield every event's data, each with whether it is content."""
        for index, _ in enumerate(self._deltas):
            yield False, self._chunk(index, {"role": "assistant", "content": ""})
        for pieces in zip_longest(*self._deltas):
            for index, piece in enumerate(pieces):
                if piece is not None:
                    yield True, self._chunk(index, {"content": piece})
        for index, _ in enumerate(self._deltas):
            yield False, self._chunk(index, {}, self._reason)
        if self._usage:
            yield False, _json({**self._head, "choices": [], **self._usage})
        if self.fault.name != "no-done":
            yield False, "[DONE]"

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _json({**self._head, "choices": [choice]})

    def _whole(self) -> str:
        said = [{"role": "assistant", "content": "".join(pieces)} for pieces in self._deltas]
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._reason}
            for index, message in enumerate(said)
        ]
        head = {**self._head, "object": "chat.completion", "choices": choices}
        return _json({**head, **self._usage})


def _block(fault: str, index: int, data: str) -> bytes:
    """Return one event as the fault wants it written."""
    name = {2: b"open", 4: b"end"}.get(index, b"chunk")
    block = _event(data, name if fault == "named" else b"")
    block += comment(b"keep-alive") + b"\n" if fault == "comments" else b""
    return block.replace(b"\n", b"\r\n") if fault == "crlf" else block


def _event(data: str, name: bytes = b"") -> bytes:
    return lines(data.encode(), name) + b"\n"


async def _gzipped(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    squeeze = zlib.compressobj(wbits=31)
    async for block in body:
        yield squeeze.compress(block) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    yield squeeze.flush()


class _Upstream:
    """The completion endpoint and what it remembers of its calls."""

    def __init__(self, options: UpstreamOptions) -> None:
        self._calls: deque[Object] = deque(maxlen=1000)
        self._count = self._open = 0
        self._options = options
        parse_fault(options.fault)  # A wrong one is said now, not with the first request.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Object = {"at": time.time(), "prompt": "", "status": None, "closed": None}
        self._calls.append(call)
        self._count += 1
        self._open += 1
        try:
            response = await self._response(Request(scope, receive), call)
            call["status"] = response.status_code
            await response(scope, receive, send)
            if not isinstance(response, StreamingResponse):
                call["closed"] = "finished"
        except HTTPException as refusal:
            call |= {"status": refusal.status_code, "closed": call["closed"] or "finished"}
            raise
        finally:
            self._open -= 1
            call["closed"] = call["closed"] or "client"

    async def _response(self, request: Request, call: Object) -> Response:
        key, given = self._options.api_key, request.headers.get("authorization")
        if key and given != f"Bearer {key}":
            raise HTTPException(401, "Incorrect API key provided.")
        body = _read(await request.body())
        call["prompt"] = _prompt(body["messages"])[:1000]
        ask = _Ask(body, self._options)
        if ask.fault.name == "hang":
            await request.receive()  # The body is read, so what comes is the client's going.
            call["closed"] = "client"
            raise HTTPException(499)
        if ask.fault.name == "status":
            self._refuse(ask.fault, call["prompt"])
        return ask.response(call, request.receive)

    def _refuse(self, fault: Fault, prompt: str) -> None:
        refused = [call["prompt"] for call in self._calls if call["status"] == fault.number]
        if not fault.times or refused.count(prompt) < fault.times:
            headers = {"Retry-After": "1"} if fault.number in (429, 503) else None
            raise HTTPException(fault.number, f"This {fault.number} is pretended.", headers)

    async def report(self, _: Request) -> Response:
        """Tell how often we were asked, and what became of it."""
        return JSONResponse({"count": self._count, "open": self._open, "calls": [*self._calls]})


def _error(status: int, message: str) -> Object:
    """Return an error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _refusal(_: Request, error: Any) -> Response:
    return JSONResponse(_error(error.status_code, error.detail), error.status_code, error.headers)


def upstream(options: UpstreamOptions | None = None) -> Starlette:
    """Return an app that answers `POST /v1/chat/completions` like OpenAI, or fails as asked."""
    endpoint = _Upstream(options or UpstreamOptions())
    routes = [
        Route("/v1/chat/completions", endpoint, methods=["POST"]),
        Route("/calls", endpoint.report),
        Route("/healthz", JSONResponse({"status": "ok"}), methods=["GET"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refusal})

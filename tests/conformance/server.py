"""Server: what is judged, over sockets, as one user sees it."""

import asyncio
import http.cookiejar
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx

from tests.conformance.wire import FINAL, STREAM, Answer, Ended, Stream, Ticket, Unkept, is_stream


@dataclass(frozen=True, slots=True)
class Options:
    """Where the server is, who asks, and what may be used to try it."""

    url: str
    cookie: str
    other_cookie: str = ""
    user: str = ""
    service_token: str = ""
    origin: str = ""
    pretend: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    seconds: float = 60.0
    insecure: bool = False


class Server:
    """The server under test; what several promises look at is asked for once."""

    def __init__(self, options: Options, http: httpx.AsyncClient) -> None:
        self.options = options
        self.base = options.url.rstrip("/")
        self.http = http
        self._made: dict[str, Ended | None] = {}

    # What is asked

    def body(self, **pretend: Any) -> dict[str, Any]:
        """Return a request that no other promise has sent; `pretend` is for the pretend upstream.

        Who gave a body of their own, and no pretend upstream, gets that.
        """
        given = self.options.body
        if given and not self.options.pretend:
            return given
        words = f"Say something of three sentences. ({secrets.token_hex(8)})"
        body = {"model": "pretend-1", **given, "messages": [{"role": "user", "content": words}]}
        if self.options.pretend:
            body["pretend"] = {"tokens": 12, "interval": 0.01, **pretend}
        return body

    def long(self) -> dict[str, Any]:
        """Return a request whose stream is still running when something is done to it."""
        return self.body(tokens=4000, interval=0.02)

    async def ask(
        self,
        method: str,
        url: str,
        *,
        cookie: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        """Send one request, of the user or with another `cookie` ("": none)."""
        sent = self._headers(cookie, headers)
        async with self.http.stream(method, self._url(url), headers=sent, **more) as response:
            content = b""
            if response.status_code != 200 or not is_stream(response.headers):
                content = await response.aread()
            return Answer(response.status_code, response.headers, content)

    async def post(
        self, body: Any, *, cookie: str | None = None, url: str = "/tickets", **headers: str
    ) -> Answer:
        """POST a completion request; `idempotency_key=…` and the like are headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("POST", url, cookie=cookie, headers=named, json=body)

    async def ticket(self, body: Any = None) -> Ticket:
        """Return a new ticket; raises Unkept."""
        answer = await self.post(body or self.body())
        if answer.status != 201:
            raise Unkept(f"there is no ticket: {answer}")
        return self.told(str(answer.object.get("stream_url", "")))

    def told(self, stream_url: str) -> Ticket:
        """Return the ticket of a `stream_url` or a `Content-Location`.

        Where it names another host, as behind GATEWAY_PUBLIC_URL, no cookie is sent there.
        """
        parts = urlsplit(stream_url)
        (value,) = parse_qs(parts.query).get("ticket", [""])[:1]
        if not value:
            raise Unkept(f"{stream_url!r} has no ticket")
        own = f"{self.base}/stream?ticket={value}"
        here = not parts.netloc or parts.netloc == urlsplit(self.base).netloc
        names = ("/stream/cancel", "/completion")
        cancel, completion = (f"{self.base}{name}?ticket={value}" for name in names)
        return Ticket(value, urljoin(own, stream_url) if here else own, cancel, completion)

    @asynccontextmanager
    async def open(
        self,
        url: str,
        last_id: str = "",
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[Stream]:
        """Open a stream as an EventSource does; with a body, as a client that fetches."""
        sent = {"Accept": STREAM, "Accept-Encoding": "gzip, deflate, br", **(headers or {})}
        if last_id:
            sent["Last-Event-ID"] = last_id
        method, more = ("GET", {}) if body is None else ("POST", {"json": body})
        sent = self._headers(None, sent)
        async with self.http.stream(method, self._url(url), headers=sent, **more) as response:
            yield Stream(response)

    async def read(self, url: str, last_id: str = "", **more: Any) -> Stream:
        """Read a stream to its close."""
        async with self.open(url, last_id, **more) as stream:
            return await stream.rest()

    async def completion(self, ticket: Ticket) -> dict[str, Any]:
        """Return the answer so far; raises Unkept."""
        answer = await self.ask("GET", ticket.completion)
        if answer.status != 200:
            raise Unkept(f"there is no completion: {answer}")
        return answer.object

    async def calls(self, body: dict[str, Any]) -> int:
        """Return how often the pretend upstream was asked this."""
        where = self.options.pretend.removesuffix("/v1/chat/completions").rstrip("/")
        answer = await self.http.get(f"{where}/calls")
        prompt = body["messages"][-1]["content"]
        return sum(each["prompt"] == prompt for each in answer.json()["calls"])

    async def declare(self, path: str, length: int) -> Answer:
        """POST the head of a body of that length, and nothing of the body."""
        parts = urlsplit(self.base + path)
        context = _context(self.options) if parts.scheme == "https" else None
        port = parts.port or (443 if context else 80)
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
        lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"Cookie: {self.options.cookie}", "Content-Type: application/json"]
        writer.write("\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode())
        try:
            status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = [line.split(": ", 1) for line in rest if line]
            headers = httpx.Headers([(name, value) for name, value in pairs])
            content = await reader.readexactly(int(headers.get("content-length", "0")))
            return Answer(int(status.split()[1]), headers, content)
        finally:
            writer.close()

    # What several promises look at

    async def ended(self) -> Ended:
        """Return a stream that was redeemed by a GET and read to its end."""
        return await self._once("ended stream", self._end)

    async def posted(self) -> Ended:
        """Return one that was asked for and read by a single POST, without a key."""
        return await self._once("stream of a POST", self._post)

    async def _end(self) -> Ended:
        body = self.body()
        ticket = await self.ticket(body)
        return Ended(body, ticket, await self.read(ticket.stream))

    async def _post(self) -> Ended:
        body = self.body()
        stream = await self.read("/tickets", body=body)
        return Ended(body, self.told(stream.headers.get("content-location", "")), stream)

    async def _once(self, name: str, make: Callable[[], Awaitable[Ended]]) -> Ended:
        if name not in self._made:
            self._made[name] = None  # Should it not come, nobody waits for it once more.
            made = await make()
            if made.stream.status != 200 or made.stream.end.get("state") not in FINAL:
                raise Unkept(f"the {name} has no end: {made.stream.tail!r}")
            self._made[name] = made
        found = self._made[name]
        if found is None:
            raise Unkept(f"there is no {name} to look at")
        return found

    def _url(self, url: str) -> str:
        return self.base + url if url.startswith("/") else url

    def _headers(self, cookie: str | None, more: dict[str, str] | None) -> dict[str, str]:
        cookie = self.options.cookie if cookie is None else cookie
        return {**({"Cookie": cookie} if cookie else {}), **(more or {})}


def client(options: Options) -> httpx.AsyncClient:
    """Return a client that keeps neither cookies nor connections, and follows nothing."""
    policy = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
    return httpx.AsyncClient(
        cookies=http.cookiejar.CookieJar(policy),
        timeout=options.seconds,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        verify=_context(options),
        trust_env=False,
    )


def _context(options: Options) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if options.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context

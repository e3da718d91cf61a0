"""Clients that nobody here wrote: each gets every event once, and stops by itself at the end."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import httpx2
import httpx_sse
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from starlette.applications import Starlette

from gateway.demo.upstream import UpstreamOptions, answer, upstream
from gateway.sse import Event
from gateway.upstream.protocols.chat_text import ChatText
from tests.clients import beside, node_modules
from tests.support import (
    OK,
    WHOLE,
    Call,
    Script,
    Served,
    ask,
    chunk,
    running,
    scripted,
    served,
    sse,
    until,
    whole,
)

NODE = ["eventsource", "event-source-polyfill", "fetch-event-source"]
TOKENS = 40

Row = tuple[str, str, str]  # Name, id, data.


def rows(events: list[Event]) -> list[Row]:
    """Return events as the scripts in clients/ report them."""
    return [
        (each.name.decode() or "message", each.id.decode(), each.data.decode()) for each in events
    ]


async def logged(gateway: Served, url: str) -> list[Row]:
    """Return the whole stream as the gateway tells it to a plain reader."""
    return rows((await gateway.read(url)).events)


# The clients


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of clients/ beside the packages that they import."""
    return beside(node_modules(), tmp_path_factory.mktemp("clients"))


class Client:
    """A script of clients/ at work; `rows` is what it has reported so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.rows: list[Row] = []
        self.process = process
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            name, event_id, data = json.loads(line)
            self.rows.append((name, event_id, data))

    async def stopped(self, seconds: float = 20) -> None:
        """Wait until it has ended by itself: nothing is left that could make another request."""
        done, _ = await asyncio.wait({self._reading}, timeout=seconds)
        assert done, f"it still runs after {seconds} s, at {self.rows[-1:]}"
        assert await self.process.wait() == 0


@asynccontextmanager
async def node(scripts: Path, name: str, gateway: Served, url: str) -> AsyncIterator[Client]:
    """Run a script of clients/ with alice's cookie on a stream of the gateway."""
    process = await asyncio.create_subprocess_exec(
        "node",
        scripts / f"{name}.mjs",
        url if "://" in url else gateway.url + url,
        env={
            "PATH": os.environ["PATH"],
            "COOKIE": gateway.cookie()["Cookie"],
            "BODY": json.dumps(ask()),
        },
        stdout=asyncio.subprocess.PIPE,
    )
    client = Client(process)
    try:
        yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await client._reading


# What is between a client and the gateway


class Cutter:
    """A TCP proxy that resets its first connections after so many bytes of the answer each."""

    def __init__(self, port: int, after: list[int]) -> None:
        self.requests: list[bytes] = []
        self._port = port
        self._after = after

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        sending = asyncio.create_task(self._send(reader, back))
        try:
            left = self._after.pop(0) if self._after else -1
            while data := await there.read(left if left > 0 else 65536):
                writer.write(data)
                await writer.drain()
                left -= len(data) if left > 0 else 0
                if left == 0:
                    writer.transport.abort()
                    return
        except ConnectionError:
            pass
        finally:
            sending.cancel()
            back.close()
            writer.close()

    async def _send(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                self.requests.append(data)
                back.write(data)
            back.close()


@asynccontextmanager
async def cutting(gateway: Served, after: list[int]) -> AsyncIterator[tuple[str, Cutter]]:
    """Run a Cutter before the gateway; yields its URL as well."""
    cutter = Cutter(int(gateway.url.rpartition(":")[2]), after)
    server = await asyncio.start_server(cutter, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cutter
    finally:
        server.close()


@asynccontextmanager
async def pretending(**options: float | str) -> AsyncIterator[str]:
    """Run the pretend upstream; yields its completion endpoint."""
    app: Starlette = upstream(UpstreamOptions(**{"interval": 0.01, "tokens": TOKENS, **options}))  # type: ignore[arg-type]
    async with served(app) as url:
        yield f"{url}/v1/chat/completions"


async def calls(url: str) -> int:
    """Return how many requests the pretend upstream got."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return int((await http.get(url.replace("/v1/chat/completions", "/calls"))).json()["count"])


def paused() -> tuple[Script, asyncio.Event]:
    """Return the script of a completion that waits in its middle, and what lets it go on."""
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(OK, sse(*(chunk(f"{number} ") for number in range(20))))
        await go_on.wait()
        await call.send(sse(*(chunk(f"{number} ") for number in range(20, 40))), WHOLE)

    return script, go_on


# npm


@pytest.mark.parametrize("name", NODE)
async def test_node_client_gets_each_event_once_and_stops_by_itself(
    scripts: Path, name: str
) -> None:
    async with (
        pretending(interval=0.1, tokens=12) as url,
        running(upstream_url=url, heartbeat=0.02) as gateway,
        cutting(gateway, []) as (through, proxy),
    ):
        stream = await gateway.ticket()
        async with node(scripts, name, gateway, through + stream) as client:
            await client.stopped()
        assert client.rows == await logged(gateway, stream)
        assert client.rows[-1][0] == "end"
        assert await calls(url) == 1
    first, *more = [each.lower() for each in proxy.requests]
    assert b"last-event-id" not in first
    if name == "eventsource":  # It hears from the 204 that it is over.
        (last,) = more
        assert f"last-event-id: {client.rows[-1][1]}\r\n".encode() in last
    else:
        assert not more


@pytest.mark.parametrize("name", NODE)
async def test_node_client_that_the_server_sends_away_resumes_without_loss(
    scripts: Path, name: str
) -> None:
    script, go_on = paused()
    async with scripted(script) as upstream, running(upstream_url=upstream.url) as gateway:
        stream = await gateway.ticket()
        async with node(scripts, name, gateway, stream) as client:
            await until(lambda: len(client.rows) == 20, "half of the events")
            drop(gateway, stream)
            go_on.set()
            await client.stopped()
        assert client.rows == await logged(gateway, stream)
        assert client.rows[-1][0] == "end"
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("name", NODE)
async def test_node_client_whose_connection_is_cut_resumes_without_loss(
    scripts: Path, name: str
) -> None:
    async with (
        pretending() as url,
        running(upstream_url=url) as gateway,
        cutting(gateway, [300, 1501, 2200]) as (through, cutter),
    ):
        stream = await gateway.ticket()
        async with node(scripts, name, gateway, through + stream) as client:
            await client.stopped()
        assert client.rows == await logged(gateway, stream)
        assert client.rows[-1][0] == "end"
        assert await calls(url) == 1
    assert len(cutter.requests) >= 4


@pytest.mark.parametrize("name", NODE)
async def test_node_client_is_told_why_there_is_no_more(scripts: Path, name: str) -> None:
    async with pretending(fault="cut:5") as url, running(upstream_url=url) as gateway:
        stream = await gateway.ticket()
        async with node(scripts, name, gateway, stream) as client:
            await client.stopped()
    assert [row[0] for row in client.rows[-2:]] == ["failure", "end"]
    assert json.loads(client.rows[-1][2])["state"] == "truncated"


@pytest.mark.parametrize("name", NODE)
async def test_node_client_is_not_sent_a_first_event_by_a_gateway_that_is_away_for_a_moment(
    scripts: Path, name: str
) -> None:
    """A connection that ends with nothing but a `retry:` line is no event and no end."""
    async with scripted(whole) as upstream, running(upstream_url=upstream.url) as gateway:
        stream = await gateway.ticket()
        gateway.gateway.fanout.closing = True
        async with node(scripts, name, gateway, stream) as client:
            await until(lambda: upstream.calls, "the first request")
            gateway.gateway.fanout.closing = False
            await client.stopped()
        assert client.rows == await logged(gateway, stream)
        assert len(upstream.calls) == 1


async def test_fetch_event_source_that_posts_and_is_cut_again_and_again_pays_once(
    scripts: Path,
) -> None:
    async with (
        pretending() as url,
        running(upstream_url=url) as gateway,
        cutting(gateway, [1100, 2400, 1501]) as (through, cutter),
        node(scripts, "fetch-event-source-post", gateway, f"{through}/tickets") as client,
    ):
        await client.stopped()
        assert await calls(url) == 1
        pieces = [ChatText(0).text_of(Event(data.encode())) for _, _, data in client.rows]
        assert "".join(pieces) == "".join(answer(ask()["messages"], TOKENS))
        ids = [event_id for _, event_id, _ in client.rows]
        assert len(set(ids)) == len(ids)
        assert client.rows[-1][0] == "end"
        posts = [each.lower() for each in cutter.requests if each.startswith(b"POST /tickets ")]
        assert [b"last-event-id" in each for each in posts] == [False, True, True, True]


def drop(gateway: Served, stream: str) -> None:
    """Send a stream's viewers away, as a deploy would."""
    ticket = gateway.gateway.tickets.verify(stream.partition("ticket=")[2])
    tail = gateway.gateway.fanout.get(ticket.stream_id)
    assert tail is not None
    assert tail.drop() == 1


# httpx-sse


async def sse_rows(gateway: Served, url: str, last_id: str = "") -> AsyncIterator[Row]:
    """Read one connection with httpx-sse."""
    headers = gateway.cookie() | ({"Last-Event-ID": last_id} if last_id else {})
    async with httpx_sse.aconnect_sse(gateway.http, "GET", url, headers=headers) as source:
        async for event in source.aiter_sse():
            yield event.event, event.id, event.data


async def test_httpx_sse_has_no_event_of_a_heartbeat() -> None:
    async with (
        pretending(interval=0.1, tokens=8) as url,
        running(upstream_url=url, heartbeat=0.02) as gateway,
    ):
        stream = await gateway.ticket()
        got = [row async for row in sse_rows(gateway, stream)]
        assert got == await logged(gateway, stream)
        assert all(data for _, _, data in got)


async def test_httpx_sse_resumes_after_its_last_id() -> None:
    script, go_on = paused()
    async with scripted(script) as upstream, running(upstream_url=upstream.url) as gateway:
        stream = await gateway.ticket()
        got: list[Row] = []
        async for row in sse_rows(gateway, stream):
            got.append(row)
            if len(got) == 20:
                drop(gateway, stream)
        go_on.set()
        got += [row async for row in sse_rows(gateway, stream, got[-1][1])]
        assert got == await logged(gateway, stream)
        assert len(upstream.calls) == 1


async def test_httpx_sse_reads_plain_text_with_all_its_line_breaks() -> None:
    async with pretending(interval=0, tokens=0) as url, running(upstream_url=url) as gateway:
        whole = answer(ask()["messages"])
        stream = await gateway.ticket(ask(pretend={"tokens": len(whole)}))
        text = stream + "&format=text"
        got = [row async for row in sse_rows(gateway, text)]
    assert "".join(data for name, _, data in got if name == "message") == "".join(whole)
    assert got[-1][0] == "end"


async def test_plain_text_has_one_line_break_where_the_upstream_cut_one_in_two() -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("one\r"), chunk("\ntwo")), WHOLE)

    async with scripted(script) as upstream, running(upstream_url=upstream.url) as gateway:
        text = await gateway.ticket() + "&format=text"
        got = [row async for row in sse_rows(gateway, text)]
    assert "".join(data for name, _, data in got if name == "message") == "one\ntwoHello"


# fetch


@pytest.mark.parametrize("fault", ["", "cut:5"])
async def test_fetch_reads_the_text_alone_and_is_told_if_it_is_not_whole(
    scripts: Path, fault: str
) -> None:
    async with pretending(fault=fault) as url, running(upstream_url=url) as gateway:
        stream = await gateway.ticket() + "&format=raw"
        async with node(scripts, "raw", gateway, stream) as page:
            await page.stopped()
    said = answer(ask()["messages"], TOKENS)
    text, end = ("".join(said[:5]), "TypeError") if fault else ("".join(said), "whole")
    assert page.rows == [("200", end, text)]


# openai


@asynccontextmanager
async def sdk(gateway: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK on the one-request form: its request goes to /tickets and asks for a stream."""
    aside = openai.DefaultAsyncHttpxClient(trust_env=False)
    aside.event_hooks = {"request": [to_tickets]}
    headers = {**gateway.cookie(), "Accept": "text/event-stream"}
    async with openai.AsyncOpenAI(
        base_url=gateway.url, api_key="none", default_headers=headers, http_client=aside
    ) as client:
        yield client


async def to_tickets(request: httpx2.Request) -> None:
    """Send the SDK's request where the gateway takes it."""
    request.url = request.url.copy_with(path="/tickets")


async def chunks(client: openai.AsyncOpenAI, **more: object) -> AsyncIterator[ChatCompletionChunk]:
    """Ask the SDK for a streamed completion and yield what it makes of the answer."""
    stream = await client.chat.completions.create(
        model="pretend",
        messages=[{"role": "user", "content": "Hello?"}],
        stream=True,
        extra_body=more,
    )
    async with stream:
        async for each in stream:
            yield each


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    """Return the text that a user of the SDK would put together."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_openai_sdk_reads_a_whole_completion_with_heartbeats_between() -> None:
    async with (
        pretending(interval=0.1, tokens=8) as url,
        running(upstream_url=url, heartbeat=0.02) as gateway,
    ):
        async with sdk(gateway) as client:
            got = [each async for each in chunks(client)]
        assert text_of(got) == "".join(answer(ask()["messages"], 8))
        assert got[-2].choices[0].finish_reason == "stop"
        assert got[-1].usage is not None
        assert await calls(url) == 1


async def test_openai_sdk_that_sends_its_request_twice_with_a_key_pays_once() -> None:
    async with pretending(interval=0.02) as url, running(upstream_url=url) as gateway:
        async with sdk(gateway) as client:
            again = client.with_options(default_headers={"Idempotency-Key": "one"})
            first, second = await asyncio.gather(_text(again), _text(again))
        assert first == second == "".join(answer(ask()["messages"], TOKENS))
        assert await calls(url) == 1


async def _text(client: openai.AsyncOpenAI) -> str:
    return text_of([each async for each in chunks(client)])


async def test_openai_sdk_is_given_the_refusal_as_its_own_error() -> None:
    async with running() as gateway, sdk(gateway) as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await _text(client.with_options(default_headers={"Cookie": "session=forged"}))
    assert refused.value.code == "not_authenticated"


async def test_openai_sdk_can_tell_that_an_answer_is_not_whole() -> None:
    """It gives unknown events to its user as chunks; ours are told by their `state`."""
    async with (
        pretending(fault="cut:5") as url,
        running(upstream_url=url) as gateway,
        sdk(gateway) as client,
    ):
        got = [each async for each in chunks(client)]
    failure, end = (each.model_extra or {} for each in got[-2:])
    assert failure["code"] == "upstream_cut"
    assert end["state"] == "truncated"
    assert text_of(got[:-2]) == "".join(answer(ask()["messages"], TOKENS)[:5])


async def test_openai_decoder_reads_the_stream_of_a_ticket() -> None:
    async with pretending() as url, running(upstream_url=url) as gateway:
        stream = await gateway.ticket()
        async with gateway.http.stream("GET", stream, headers=gateway.cookie()) as response:
            decoded = openai.AsyncOpenAI(api_key="none")._make_sse_decoder()
            events = [each async for each in decoded.aiter_bytes(response.aiter_bytes())]
        told = [(each.event or "message", each.id or "", each.data) for each in events]
        assert told == await logged(gateway, stream)
        assert all(each.json() for each in events if each.data != "[DONE]")

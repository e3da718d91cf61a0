"""Clients of Python, and curl: each reads one stream as its documentation shows it."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import httpx_sse

from gateway.sse import Parser
from tests.clients.observed import Report
from tests.clients.world import Case
from tests.sdk_clients import CHAT, MESSAGES, Sdk
from tests.sdks import sdk

PACKAGES = ("aiohttp", "aiohttp_sse_client", "anthropic", "requests", "sseclient")

Read = Callable[[Case, dict[str, str], Report], Coroutine[Any, Any, None]]


def note(report: Report, name: str | None, data: str) -> None:
    """Take an event as its user would: the text, and what went wrong."""
    if name == "failure":
        report.failure = json.loads(data)["code"]
    elif name in (None, "", "message") and data != "[DONE]":
        for choice in json.loads(data).get("choices", []):
            report.text += choice["delta"].get("content") or ""


async def with_httpx_sse(case: Case, cookie: dict[str, str], report: Report) -> None:
    """Read with httpx-sse."""
    try:
        async with (
            httpx.AsyncClient(timeout=120, trust_env=False) as http,
            httpx_sse.aconnect_sse(http, "GET", case.url, headers=cookie) as source,
        ):
            async for event in source.aiter_sse():
                note(report, event.event, event.data)
    except Exception as error:
        report.error = type(error).__name__


async def with_sseclient(case: Case, cookie: dict[str, str], report: Report) -> None:
    """Read with sseclient-py over requests."""
    await asyncio.to_thread(_with_sseclient, case, cookie, report)


def _with_sseclient(case: Case, cookie: dict[str, str], report: Report) -> None:
    with sdk("requests").Session() as session:
        session.trust_env = False
        headers = {**cookie, "Accept": "text/event-stream"}
        try:
            response = session.get(case.url, stream=True, headers=headers, timeout=120)
            for event in sdk("sseclient").SSEClient(response).events():
                note(report, event.event, event.data)
        except Exception as error:
            report.error = type(error).__name__


async def with_aiohttp(case: Case, cookie: dict[str, str], report: Report) -> None:
    """Read with aiohttp-sse-client."""
    library = sdk("aiohttp_sse_client.client")
    logging.getLogger(library.__name__).setLevel(logging.CRITICAL)
    try:
        async with (
            sdk("aiohttp").ClientSession() as session,  # Its own stays open where it raises.
            library.EventSource(case.url, session=session, headers=dict(cookie)) as source,
        ):
            async for event in source:
                note(report, event.type, event.data)
    except Exception as error:
        report.error = type(error).__name__


async def with_curl(case: Case, cookie: dict[str, str], report: Report) -> None:
    """Read with curl, and look at what it prints."""
    options = ["--silent", "--no-buffer", "--noproxy", "*", "-H", f"Cookie: {cookie['Cookie']}"]
    process = await asyncio.create_subprocess_exec(
        "curl", *options, case.url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout
    parser = Parser(1 << 20)
    while printed := await process.stdout.read(65536):
        for event in parser.feed(printed):
            note(report, event.name.decode(), event.data.decode())
    if code := await process.wait():
        report.error = f"exit code {code}"


def with_sdk(of: Sdk) -> Read:
    """Return what reads with an official SDK."""

    async def read(case: Case, cookie: dict[str, str], report: Report) -> None:
        more = {"extra_body": {key: case.body[key] for key in ("pretend",) if key in case.body}}
        try:
            async with of.client(case.way.url, max_retries=0) as made:
                async for event in await of.calls(made).create(**of.body, **more, stream=True):
                    report.text += _text(event.model_dump(mode="json"))
        except Exception as error:
            report.error = type(error).__name__

    return read


def _text(event: dict[str, Any]) -> str:
    """Return the text of an event of either API."""
    deltas = [each["delta"].get("content") for each in event.get("choices", [])]
    deltas += [event.get("delta", {}).get("text")]
    return "".join(filter(None, deltas))


CLIENTS: dict[str, Read] = {
    "curl": with_curl,
    "httpx-sse": with_httpx_sse,
    "sseclient-py": with_sseclient,
    "aiohttp-sse-client": with_aiohttp,
    "openai (Python)": with_sdk(CHAT),
    "anthropic (Python)": with_sdk(MESSAGES),
}

"""Chats over HTTP: one call for an answer, which is whole wherever and whenever it is read."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.sse import Event
from gateway.store.keys import new_id
from tests.support import (
    OK,
    Call,
    RedisServer,
    Script,
    Served,
    Transcript,
    chunk,
    gateway,
    read,
    running,
    scripted,
    sse,
    until,
    whole,
)
from tests.test_clients import paused

TIMES: dict[str, Any] = {"lease": 10, "grace": 20, "heartbeat": 15}
HI = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Hello?"}]}


def asked(*messages: Any, chat: str = "c1", **more: Any) -> dict[str, Any]:
    """Return what the SDK's transport sends."""
    told = {"id": chat, "messages": [*(messages or [HI])], "trigger": "submit-message"}
    return {**told, "model": "pretend", **more}


def parts_of(got: Transcript) -> list[Any]:
    """Return the parts that came."""
    return [json.loads(each.data) for each in got.events if each.data != b"[DONE]"]


def said(got: Transcript) -> str:
    """Return the text that came."""
    return "".join(part.get("delta", "") for part in parts_of(got))


def kinds(got: Transcript) -> list[str]:
    """Return the types of the parts that came."""
    return [part["type"] for part in parts_of(got)]


def has(kind: str) -> Any:
    """Return a test of whether a part of this type has come."""
    return lambda got: kind in kinds(got)


class Page:
    """A user's page, as the SDK's transport asks for it."""

    def __init__(self, gate: Served, subject: str = "alice") -> None:
        self._gate = gate
        self._http = gate.http
        self.headers = gate.cookie(subject)

    @property
    def watched(self) -> int:
        """How many read at its replica now."""
        return self._gate.gateway.fanout.viewers

    async def ask(self, *messages: Any, path: str = "/chat", **more: Any) -> Transcript:
        """Ask for an answer and read it."""
        options = {each: more.pop(each) for each in ("enough", "headers") if each in more}
        options["headers"] = {**self.headers, **options.get("headers", {})}
        return await read(self._http, path, body=asked(*messages, **more), **options)

    async def resume(self, chat: str = "c1", **options: Any) -> Transcript:
        """Read the answer that is under way."""
        return await read(self._http, f"/chat/{chat}/stream", headers=self.headers, **options)

    async def stop(self, chat: str = "c1") -> httpx.Response:
        """Stop it."""
        return await self._http.delete(f"/chat/{chat}/stream", headers=self.headers)


@asynccontextmanager
async def two_replicas(
    script: Script, redis: RedisServer, **changes: Any
) -> AsyncIterator[tuple[Page, Page, list[Call]]]:
    """Run two replicas before one upstream; yields a page on each, of the same user."""
    subject, given = new_id(), {**TIMES, "drain": 0.2, "redis_url": redis.url, **changes}
    async with (
        scripted(script) as upstream,
        running(upstream_url=upstream.url, **given) as one,
        running(upstream_url=upstream.url, **given) as other,
    ):
        yield Page(one, subject), Page(other, subject), upstream.calls


async def test_an_answer_is_a_ui_message_stream_and_is_not_shown_again() -> None:
    async with gateway() as (gate, upstream):
        page = Page(gate)
        assert (await page.resume()).status == 204
        got = await page.ask()
        assert got.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert got.headers["content-type"].startswith("text/event-stream")
        assert got.headers["content-location"] == "/chat/c1/stream"
        assert kinds(got)[:3] == ["start", "start-step", "text-start"]
        assert kinds(got)[-3:] == ["text-end", "finish-step", "finish"]
        assert parts_of(got)[-1] == {"type": "finish", "finishReason": "stop"}
        assert got.events[-1] == Event(b"[DONE]")
        assert (await page.resume()).status == 204
        assert (await page.resume(last_id=got.last_id)).status == 204
        had = kinds(got).index("text-delta") + 1  # To who lacks the rest it is shown still.
        rest = await page.resume(last_id=got.events[had - 1].id.decode())
        assert rest.events == got.events[had:]
        (call,) = upstream.calls
        assert call.json["messages"] == [{"role": "user", "content": "Hello?"}]
        assert call.json.keys() == {"model", "messages", "stream", "stream_options"}


async def test_an_answer_under_way_is_read_from_its_start_or_from_where_one_was_elsewhere(
    shared_redis: RedisServer,
) -> None:
    script, go_on = paused()
    async with two_replicas(script, shared_redis) as (page, elsewhere, calls):
        reading = asyncio.create_task(page.ask())
        await until(lambda: calls, "the upstream is asked", 20)
        had = await elsewhere.resume(enough=lambda got: "19" in said(got))
        await until(lambda: elsewhere.watched == 0, "it is left", 20)
        from_start = asyncio.create_task(elsewhere.resume())
        rest = asyncio.create_task(elsewhere.resume(last_id=had.last_id))
        await until(lambda: elsewhere.watched == 2, "both watch", 20)
        go_on.set()
        first = await reading
        assert kinds(first)[-1] == "finish"
        assert (await from_start).events == first.events
        number = [each.id.decode() for each in first.events].index(had.last_id)
        assert (await rest).events == first.events[number + 1 :]
        assert len(calls) == 1


async def test_an_answer_that_nobody_was_shown_waits_for_who_comes_back() -> None:
    script, go_on = paused()
    async with gateway(script, **TIMES) as (gate, upstream):
        page = Page(gate)
        left = await page.ask(enough=has("text-delta"))
        go_on.set()
        await until(lambda: not gate.gateway.supervisor.active, "the run has ended", 20)
        back = await page.resume()
        assert kinds(back)[-1] == "finish"
        assert parts_of(back)[: len(parts_of(left))] == parts_of(left)
        assert (await page.resume()).status == 204
        assert len(upstream.calls) == 1


async def test_the_same_request_joins_the_answer_as_long_as_it_runs(
    shared_redis: RedisServer,
) -> None:
    script, go_on = paused()
    some: dict[str, Any] = {"enough": has("text-delta")}
    async with two_replicas(script, shared_redis) as (page, elsewhere, calls):
        at_once = await asyncio.gather(page.ask(**some), elsewhere.ask(**some))
        again = await elsewhere.ask(**some)
        (first,) = {parts_of(got)[0]["messageId"] for got in (*at_once, again)}
        anew = await page.ask(trigger="regenerate-message", **some)
        second = parts_of(anew)[0]["messageId"]
        assert len(calls) == 2
        go_on.set()
        assert parts_of(await elsewhere.resume())[0]["messageId"] == second
        third = parts_of(await page.ask())[0]["messageId"]
        assert len({first, second, third}) == len(calls) == 3


async def test_an_idempotency_key_holds_after_the_end_too() -> None:
    async with gateway() as (gate, upstream):
        page, key = Page(gate), {"Idempotency-Key": new_id()}
        first = await page.ask(headers=key)
        assert (await page.ask(headers=key)).events == first.events
        other = await page.ask({**HI, "parts": [{"type": "text", "text": "No"}]}, headers=key)
        assert other.status == 422
        assert len(upstream.calls) == 1


async def test_who_may_begin_no_other_answer_still_finds_the_one_that_runs() -> None:
    script, go_on = paused()
    other = {**HI, "parts": [{"type": "text", "text": "And now?"}]}
    async with gateway(script, subject_streams=1, **TIMES) as (gate, upstream):
        page = Page(gate)
        left = await page.ask(enough=has("text-delta"))
        refused = await gate.http.post("/chat", json=asked(other), headers=page.headers)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        joined = await page.ask(enough=has("text-delta"))
        resumed = await page.resume(enough=has("text-delta"))
        assert parts_of(joined)[0] == parts_of(resumed)[0] == parts_of(left)[0]
        go_on.set()
        assert len(upstream.calls) == 1


async def test_a_chat_is_its_users_own_and_two_may_have_the_same_id() -> None:
    script, go_on = paused()
    async with gateway(script, **TIMES) as (gate, upstream):
        alice, bob = Page(gate), Page(gate, "bob")
        hers = await alice.ask(enough=has("text-delta"))
        assert (await bob.resume()).status == (await bob.resume("nobodys")).status == 204
        for chat in ("c1", "nobodys"):
            answer = await bob.stop(chat)
            assert (answer.status_code, answer.json()["code"]) == (404, "chat_not_found")
        his = await bob.ask(enough=has("text-delta"))
        assert parts_of(his)[0]["messageId"] != parts_of(hers)[0]["messageId"]
        assert (await bob.stop()).json() == {"state": "cancelled"}
        go_on.set()
        assert kinds(await alice.resume())[-1] == "finish"
        assert (await bob.resume()).status == 204
        assert len(upstream.calls) == 2


async def test_a_stop_on_another_replica_aborts_the_answer_for_all(
    shared_redis: RedisServer,
) -> None:
    async def script(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await call.left.wait()

    async with two_replicas(script, shared_redis) as (page, elsewhere, calls):
        reading = asyncio.create_task(page.ask())
        await until(lambda: calls, "the upstream is asked", 20)
        watching = asyncio.create_task(elsewhere.resume())
        await until(lambda: elsewhere.watched, "it is watched", 20)
        await page.resume(enough=has("text-delta"))
        assert (await elsewhere.stop()).json() == {"state": "cancelled"}
        for got in (await reading, await watching):
            assert (said(got), kinds(got)[-1]) == ("Hel", "abort")
        await asyncio.wait_for(calls[0].left.wait(), 20)
        assert (await page.resume()).status == 204
        assert (await page.stop()).json() == {"state": "cancelled"}


async def cut(call: Call) -> None:
    await call.send(OK, sse(chunk("Hel")))
    call.cut()


async def refused(call: Call) -> None:
    error = b'{"error":{"message":"No such model."}}'
    head = b"HTTP/1.1 400 X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(error)
    await call.send(head + error)


async def silent(call: Call) -> None:
    await call.send(OK, sse(chunk("Hel")))
    await call.left.wait()


@pytest.mark.parametrize(
    ("script", "words"), [(cut, "whole"), (refused, "No such model."), (silent, "silent")]
)
async def test_what_is_not_whole_is_an_error_in_words_and_never_a_finish(
    script: Script, words: str
) -> None:
    async with scripted(script) as upstream:
        preset = {"url": upstream.url, "stall": 0.5, "retries": 0}
        async with running(**TIMES, drain=0.2, presets={"default": preset}) as gate:
            page = Page(gate)
            got = await page.ask()
            assert (kinds(got)[-1], "finish" in kinds(got)) == ("error", False)
            assert words in parts_of(got)[-1]["errorText"]
            again = await page.ask()  # What failed is asked for anew.
            assert parts_of(again)[0] != parts_of(got)[0]
            assert len(upstream.calls) == 2


async def test_who_is_sent_away_is_not_told_that_the_answer_has_ended() -> None:
    script, go_on = paused()
    async with gateway(script, **TIMES) as (gate, _):
        page, got = Page(gate), bytearray()

        async def ask() -> None:
            asking = gate.http.stream("POST", "/chat", json=asked(), headers=page.headers)
            async with asking as answer:
                async for each in answer.aiter_raw():
                    got.extend(each)
                    if b'"19 "' in got:
                        gate.gateway.supervisor.send_away()

        with pytest.raises(httpx.RemoteProtocolError):
            await ask()
        assert b"finish" not in got
        go_on.set()


async def test_a_message_that_the_answer_goes_on_with_keeps_its_name() -> None:
    answer = {"id": "a1", "role": "assistant", "parts": [{"type": "text", "text": "Well"}]}
    async with gateway() as (gate, _):
        page = Page(gate)
        assert parts_of(await page.ask(HI, answer))[0]["messageId"] == "a1"
        anew = await page.ask(HI, answer, trigger="regenerate-message")
        assert parts_of(anew)[0]["messageId"] != "a1"


async def test_a_role_takes_its_variables_and_what_was_said_last() -> None:
    talk = {
        "template": [{"role": "user", "content": "${tone}: ${message}"}],
        "variables": {"tone": {"default": "Kind"}, "message": {"max_chars": 9}},
        "models": ["m"],
    }
    async with scripted(whole) as upstream:
        inner = {"url": upstream.url, "public": False}
        presets = {"talk": {"url": upstream.url, **talk}, "inner": inner}
        async with running(presets=presets, drain=0.2) as gate:
            page = Page(gate)
            got = await page.ask(path="/chat/talk", model=None)
            assert got.status == 400
            body = {k: v for k, v in asked(tone="Rude").items() if k != "model"}
            got = await read(gate.http, "/chat/talk", body=body, headers=page.headers)
            assert kinds(got)[-1] == "finish"
            (call,) = upstream.calls
            assert call.json["messages"] == [{"role": "user", "content": "Rude: Hello?"}]
            body["messages"] = [{**HI, "parts": [{"type": "text", "text": "far too long"}]}]
            long = await gate.http.post("/chat/talk", json=body, headers=page.headers)
            assert (long.status_code, long.json()["code"]) == (400, "variable_too_long")
            assert (await page.resume(chat="talk/c1")).status == 204
            for name in ("inner", "nobody"):
                answer = await gate.http.post(f"/chat/{name}", json=body, headers=page.headers)
                assert (answer.status_code, answer.json()["code"]) == (404, "preset_not_found")


FILE = {"type": "file", "mediaType": "application/pdf", "url": "https://a.example/"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], int, str]] = {
    "a file": (asked({**HI, "parts": [FILE]}), {}, 400, "part_not_supported"),
    "a part that is not known": (
        asked({**HI, "parts": [{"type": "hologram"}]}),
        {},
        400,
        "part_not_supported",
    ),
    "no messages": (asked(messages=[]), {}, 400, "bad_chat"),
    "a foreign page": (asked(), {"Origin": "https://evil.example"}, 403, "foreign_origin"),
    "nobody's login": (asked(), {"Cookie": "session=x"}, 401, "not_authenticated"),
    "what is no JSON": (asked(), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
}


@pytest.mark.parametrize(("body", "headers", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_is_a_problem_before_anything_is_asked(
    body: dict[str, Any], headers: dict[str, str], status: int, code: str
) -> None:
    async with running() as gate:
        sent = {**gate.cookie(), **headers}
        answer = await gate.http.post("/chat", content=json.dumps(body), headers=JSON | sent)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await gate.http.get("/chat", headers=sent)).status_code == 405
        assert (await Page(gate).resume()).status == 204


JSON = {"Content-Type": "application/json"}


async def test_a_chat_under_a_path_is_its_own_pages_and_that_of_a_listed_one_elsewhere() -> None:
    there = "https://app.example"
    async with gateway(prefix="/llm", allowed_origins=[there]) as (gate, _):
        page, url = Page(gate), "/llm/chat/c1/stream"
        got = await page.ask(path="/llm/chat", headers={"Origin": there})
        assert (got.headers["content-location"], kinds(got)[-1]) == (url, "finish")
        assert got.headers["access-control-allow-origin"] == there
        asks = {"Origin": there, "Access-Control-Request-Method": "DELETE"}
        preflight = await gate.http.options(url, headers=asks)
        assert preflight.headers["access-control-allow-methods"] == "GET, DELETE"
        image = await gate.http.get(url, headers={**page.headers, "Sec-Fetch-Dest": "image"})
        evil = {**page.headers, "Origin": "https://evil.example"}
        foreign = await gate.http.delete(url, headers=evil)
        codes = [each.json()["code"] for each in (image, foreign)]
        assert codes == ["not_a_stream_request", "foreign_origin"]


async def test_a_chat_whose_log_is_gone_is_over() -> None:
    async with gateway(log_ttl=0.3) as (gate, _):
        page = Page(gate)
        await page.ask(enough=has("text-delta"))

        async def gone() -> bool:
            got = await page.resume()
            return got.status == 204 and (await page.stop()).status_code == 404

        await until(gone, "the log is gone", 20)


async def test_a_chat_is_found_in_every_kind_of_store(any_redis_url: str) -> None:
    script, go_on = paused()
    async with gateway(script, redis_url=any_redis_url, **TIMES) as (gate, upstream):
        page = Page(gate, new_id())
        for _ in range(2):
            left = await page.ask(enough=has("text-delta"))
        go_on.set()
        back = await page.resume()
        assert back.events[: len(left.events)] == left.events
        assert kinds(back)[-1] == "finish"
        assert len(upstream.calls) == 1
        assert (await page.resume()).status == 204

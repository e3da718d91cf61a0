"""Users: what an app's server asks on behalf of one, and a log-out."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from starlette.types import Receive, Scope, Send

from gateway import Settings
from gateway.config.settings import load
from gateway.errors import SettingsError
from gateway.limits.subjects import Most
from gateway.runs.records import Records
from gateway.store.client import RedisClient
from gateway.store.keys import control_channel, new_id, record_key
from tests.support import (
    OK,
    Call,
    RedisServer,
    ScriptedUpstream,
    Served,
    ask,
    chunk,
    gateway,
    running,
    scripted,
    sse,
    until,
)

TOKENS = ("the-newest-of-the-tokens", "an-older-one-of-the-tokens")
SERVICE = {"Authorization": f"Bearer {TOKENS[0]}"}
STREAM = {"Accept": "text/event-stream"}


async def hangs(call: Call) -> None:
    """Begin an answer, and never end it."""
    await call.send(OK, sse(chunk("Hel")))
    await call.left.wait()


def on_behalf(subject: str, *more: str) -> str:
    """Return the URL of a user's tickets."""
    return "/".join(["/users", quote(subject, safe=""), "tickets", *more])


async def make(gate: Served, subject: str = "alice", **headers: str) -> httpx.Response:
    """Ask for a ticket on behalf of a user."""
    return await gate.http.post(on_behalf(subject), json=ask(), headers={**SERVICE, **headers})


# POST /users/{subject}/tickets


async def test_a_server_makes_a_ticket_that_its_user_redeems(redis_url: str) -> None:
    async with gateway(redis_url=redis_url, service_tokens=TOKENS) as (gate, upstream):
        answer = await make(gate)
        told = answer.json()
        assert (answer.status_code, set(told)) == (201, {"ticket", "stream_url", "expires_in"})
        assert told["stream_url"] == answer.headers["location"]
        assert upstream.calls == []
        assert (await gate.read(told["stream_url"])).end["state"] == "done"
        other = await gate.http.get(told["stream_url"], headers=gate.cookie("bob"))
        assert other.json()["code"] == "ticket_not_found"
    assert len(upstream.calls) == 1


SUBJECTS = ["a/b", "auth0|17", "a b", "ü@example.org", "users", "tickets", "a%2Fb", "?&#;", "."]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("preset", [(), ("tickets",), ("streams",)], ids=str)
async def test_a_subject_in_a_url_is_who_the_cookie_names(
    subject: str, preset: tuple[str, ...]
) -> None:
    presets: dict[str, Any] = {"tickets": {}, "streams": {}}
    async with gateway(presets=presets, service_tokens=TOKENS) as (gate, _):
        # httpx tidies what has only dots.
        url = on_behalf(subject, *preset).replace("/./", "/%2E/")
        request = httpx.Request("POST", gate.url, json=ask(), headers=SERVICE)
        request.url = httpx.URL(gate.url).copy_with(raw_path=url.encode())
        answer = await gate.http.send(request)
        assert answer.status_code == 201, answer.text
        url = answer.json()["stream_url"]
        record = await gate.gateway.records.read(
            gate.gateway.tickets.verify(answer.json()["ticket"]).stream_id
        )
        assert record is not None
        assert (record.subject, record.preset) == (subject, preset[0] if preset else "default")


@pytest.mark.parametrize(
    "path",
    [
        *("/users/alice", "/users//", "/users/alice/", "/users/alice/tickets/"),
        *("/users/alice/tickets/a/b", "/users/alice/x", "/users", "/x/users/alice/tickets"),
    ],
)
async def test_there_is_no_other_url_of_a_user(path: str) -> None:
    async with running(service_tokens=TOKENS) as gate:
        answer = await gate.http.post(path, json=ask(), headers=SERVICE)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("subject", SUBJECTS)
async def test_a_server_that_shows_only_the_decoded_path_names_the_same_user(subject: str) -> None:
    async with running(service_tokens=TOKENS) as gate:

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await gate.gateway.with_routes([])({**scope, "raw_path": None}, receive, send)

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=gate.url) as http:
            url = on_behalf(subject).replace("/./", "/%2E/")
            answer = await http.post(url, json=ask(), headers=SERVICE)
        if "/" in subject:  # Where the name ends is not known.
            assert answer.json()["code"] == "not_found"
            return
        ticket = gate.gateway.tickets.verify(answer.json()["ticket"])
        assert ticket.belongs_to(subject)


@pytest.mark.parametrize("subject", ["", "%00", "%09", "%FF", "x" * 257, "%ED%A0%80"])
async def test_a_subject_that_no_cookie_could_name_is_refused(subject: str) -> None:
    async with running(service_tokens=TOKENS) as gate:
        for method, path in (("POST", "tickets"), ("DELETE", "streams")):
            url = f"/users/{subject}/{path}"
            answer = await gate.http.request(method, url, json=ask(), headers=SERVICE)
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_subject")


WRONG: dict[str, dict[str, str]] = {
    "none": {},
    "another": {"Authorization": "Bearer a-token-of-somebody-else"},
    "a part": {"Authorization": f"Bearer {TOKENS[0][:-1]}"},
    "more": {"Authorization": f"Bearer {TOKENS[0]}x"},
    "empty": {"Authorization": "Bearer"},
    "no scheme": {"Authorization": TOKENS[0]},
    "another scheme": {"Authorization": f"Basic {TOKENS[0]}"},
    "both": {"Authorization": f"Bearer {','.join(TOKENS)}"},
    "not ASCII": {"Authorization": "Bearer ü€"},
}


@pytest.mark.parametrize("given", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("tokens", [TOKENS, ()], ids=["tokens", "no tokens"])
async def test_without_a_token_nothing_is_stored_nor_cancelled(
    given: dict[str, str], tokens: tuple[str, ...]
) -> None:
    async with gateway(service_tokens=tokens) as (gate, upstream):
        every = {**gate.cookie(), **given}.items()
        headers = [(name.encode(), value.encode()) for name, value in every]
        url = await gate.ticket()
        for method, path in (("POST", "tickets"), ("POST", "tickets/x"), ("DELETE", "streams")):
            answer = await gate.http.request(
                method, f"/users/alice/{path}", json=ask(), headers=headers
            )
            assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert not any(token in answer.text for token in TOKENS)
        assert (await gate.completion(url))["state"] == "cached"
    assert upstream.calls == []


async def test_who_sends_two_different_tokens_is_refused_and_told_why() -> None:
    good, bad = f"Bearer {TOKENS[0]}", "Bearer a-token-of-somebody-else"
    given = {
        (): "no_cookie",
        (bad,): "bad_cookie",
        (good, bad): "bad_cookie",
        (bad, good): "bad_cookie",
        (good, f"Bearer {TOKENS[1]}"): "bad_cookie",
        (good, ""): "bad_cookie",
        (good, good): "",
    }
    async with running(service_tokens=TOKENS) as gate:
        for lines, reason in given.items():
            headers = [("Authorization", each) for each in lines]
            answer = await gate.http.post(on_behalf("alice"), json=ask(), headers=headers)
            assert (answer.status_code, answer.json().get("reason", "")) == (
                (401, reason) if reason else (201, "")
            )


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_each_token_of_the_list_is_taken_from_any_page_or_none(
    token: str, scheme: str
) -> None:
    async with running(service_tokens=",".join(TOKENS)) as gate:
        for page in ({}, {"Origin": "https://else.example", "Sec-Fetch-Site": "cross-site"}):
            answer = await make(gate, **page, Authorization=f"{scheme} {token}")
            assert answer.status_code == 201


async def test_a_preset_that_is_kept_from_pages_is_there_for_a_server() -> None:
    presets = {"inner": {"public": False, "force": {"model": "own"}}}
    async with gateway(presets=presets, service_tokens=TOKENS) as (gate, upstream):
        page = await gate.http.post("/tickets/inner", json=ask(), headers=gate.cookie())
        assert page.json()["code"] == "preset_not_found"
        url = on_behalf("alice", "inner")
        answer = await gate.http.post(url, json=ask(), headers=SERVICE)
        assert (await gate.read(answer.json()["stream_url"])).end["state"] == "done"
        url = on_behalf("alice", "none")
        answer = await gate.http.post(url, json=ask(), headers=SERVICE)
        assert answer.json()["code"] == "preset_not_found"
    assert upstream.calls[0].json["model"] == "own"


async def test_a_key_is_the_users_whoever_sends_it() -> None:
    async with running(service_tokens=TOKENS) as gate:
        first = await make(gate, **{"Idempotency-Key": "k"})
        again = await make(gate, **{"Idempotency-Key": "k"})
        other = await make(gate, "bob", **{"Idempotency-Key": "k"})
        own = await gate.post(**{"Idempotency-Key": "k"})
    assert [each.status_code for each in (first, again, other, own)] == [201, 200, 201, 200]
    assert first.json()["ticket"] == again.json()["ticket"] == own.json()["ticket"]


async def test_what_is_made_on_behalf_counts_as_the_users_own() -> None:
    async with running(service_tokens=TOKENS, subject_bytes=4096) as gate:
        answers = [await make(gate) for _ in range(4)]
        assert answers[-1].json()["code"] == "too_many_bytes"
        assert (await gate.post()).json()["code"] == "too_many_bytes"
        assert (await make(gate, "bob")).status_code == 201


async def test_a_server_may_have_the_stream_at_once() -> None:
    async with gateway(service_tokens=TOKENS) as (gate, upstream):
        answer = await make(gate, **STREAM)
        assert b"event: end" in answer.content
        assert answer.headers["content-location"].startswith("/stream?ticket=")
    assert len(upstream.calls) == 1


# The tokens


@pytest.mark.parametrize("token", ["short", "fifteen-letters", "sixteen letters!", "ü" * 16])
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"service_tokens": f"{TOKENS[0]},{token}"})
    assert str(caught.value).startswith("GATEWAY_SERVICE_TOKENS: number 2 is none")
    with pytest.raises(ValidationError) as told:
        Settings(service_tokens=[TOKENS[0], token])
    for words in (str(caught.value), str(told.value), repr(told.value)):
        assert token not in words
        assert TOKENS[0] not in words


def test_tokens_are_not_shown_by_whoever_prints_the_settings() -> None:
    given = Settings(service_tokens=TOKENS)
    assert Settings(service_tokens=[SecretStr(each) for each in TOKENS]) == given
    for words in (repr(given), str(given), f"{given.model_dump()}"):
        assert not any(token in words for token in TOKENS)


# DELETE /users/{subject}/streams


@asynccontextmanager
async def two(upstream: ScriptedUpstream, url: str) -> AsyncIterator[tuple[Served, Served]]:
    """Run two replicas."""
    given: dict[str, Any] = {"redis_url": url, "upstream_url": upstream.url, "drain": 0.2}
    async with (
        running(service_tokens=TOKENS, **given) as a,
        running(service_tokens=TOKENS, **given) as b,
    ):
        yield a, b


async def log_out(gate: Served, subject: str = "alice") -> int:
    """Log a user out; return how many streams were cancelled."""
    path = f"/users/{subject}/streams"
    answer = await gate.http.delete(path, headers=SERVICE, timeout=100)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["cancelled"])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send nobody away who waits for the end: a slow machine needs longer than is left to it."""
    monkeypatch.setattr("gateway.runs.logout._LINGER", 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("store", ["redis", "cluster"])
async def test_a_log_out_ends_all_of_a_users_streams_on_every_replica(
    store: str, request: pytest.FixtureRequest
) -> None:
    redis = request.getfixturevalue(f"shared_{store}")
    async with scripted(hangs) as upstream, two(upstream, redis.url) as (a, b):
        user = new_id()
        urls = [await each.ticket(subject=user) for each in (a, a, b, b)]
        unredeemed = await a.ticket(subject=user)
        stranger = await a.ticket(subject="stranger")
        async with AsyncExitStack() as stack:
            viewers = []
            for number, url in enumerate([*urls, stranger]):
                whose = a.cookie(user if url != stranger else "stranger")
                for gate in (a, b):  # Each stream is watched where it runs, and elsewhere.
                    at = (a, b)[number // 2 % 2] if gate is a else (b, a)[number // 2 % 2]
                    viewer = await stack.enter_async_context(
                        at.http.stream("GET", url, headers={**whose, **STREAM})
                    )
                    viewers.append(viewer.aiter_raw())
                    await _begun(viewers[-1])
            assert 1 <= await log_out(b, user) <= 5  # What had ended by then is not counted.
            texts = await asyncio.wait_for(asyncio.gather(*map(_rest, viewers[:-2])), 20)
            assert all('"state":"cancelled"' in text for text in texts)
            states = [await _state(a, url, user) for url in [*urls, unredeemed]]
            assert states == ["cancelled"] * 5
            assert await log_out(a, user) == 0
            assert await _state(a, stranger, "stranger") == "streaming"
            await until(lambda: sum(each.left.is_set() for each in upstream.calls) == 4)


@pytest.mark.usefixtures("patient")
async def test_a_log_out_cuts_what_runs_before_the_much_that_waits(
    shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.runs.logout._AT_ONCE", 1)  # That takes far longer than one end.
    async with scripted(hangs) as upstream, two(upstream, shared_redis.url) as (a, b):
        user = new_id()
        for _ in range(20):
            made = (
                b.gateway.records.create(new_id(), user, "default", b"{}", "digest")
                for _ in range(100)
            )
            await asyncio.gather(*made)
        async with AsyncExitStack() as stack:
            url = await b.ticket(subject=user)
            viewers = []
            for gate in (b, a):
                headers = {**gate.cookie(user), **STREAM}
                viewer = await stack.enter_async_context(
                    gate.http.stream("GET", url, headers=headers)
                )
                viewers.append(viewer.aiter_raw())
                await _begun(viewers[-1])
            all_of_it = asyncio.create_task(log_out(a, user))
            texts = await asyncio.gather(*map(_rest, viewers))
            await until(upstream.calls[0].left.is_set)
            assert not all_of_it.done()
            assert all('"state":"cancelled"' in text for text in texts)
            assert await all_of_it in {2000, 2001}  # Its own end may have come first.


async def _begun(came: AsyncIterator[bytes]) -> None:
    """Read until the upstream's first event is there."""
    while b"Hel" not in await anext(came):
        pass


async def _rest(came: AsyncIterator[bytes]) -> str:
    return b"".join([each async for each in came]).decode()


async def _state(gate: Served, url: str, subject: str) -> str:
    answer = await gate.http.get(
        url.replace("/stream", "/completion"), headers=gate.cookie(subject)
    )
    return str(answer.json()["state"])


@pytest.mark.usefixtures("patient")
async def test_a_log_out_finds_a_stream_that_outlived_its_counts_time(redis_url: str) -> None:
    times: dict[str, Any] = {"start_by": 3, "lease": 1, "subject_bytes": 0}
    async with gateway(hangs, redis_url=redis_url, service_tokens=TOKENS, **times) as (gate, up):
        user = new_id()
        url = await gate.ticket(subject=user)
        look = asyncio.create_task(
            gate.http.get(url, headers={**gate.cookie(user), **STREAM}, timeout=30)
        )
        await until(lambda: up.calls)
        await asyncio.sleep(6)  # Not for a state: its request counts for five seconds.
        assert await log_out(gate, user) == 1
        assert b"cancelled" in (await look).content


async def test_a_run_whose_record_redis_forgot_is_stopped_too(shared_redis: RedisServer) -> None:
    async with (
        scripted(hangs) as upstream,
        two(upstream, shared_redis.url) as (a, b),
    ):
        user = new_id()
        url = await a.ticket(subject=user)
        look = asyncio.create_task(a.http.get(url, headers={**a.cookie(user), **STREAM}))
        await until(lambda: upstream.calls)
        stream_id = a.gateway.tickets.verify(url.partition("=")[2]).stream_id
        await a.gateway.store.call("DEL", record_key(stream_id))
        await log_out(b, user)  # One that it counts if the owner has written it again meanwhile.
        await until(upstream.calls[0].left.is_set, "the run is stopped", 20)
        look.cancel()


async def test_a_stream_that_cannot_be_read_keeps_nothing_of_a_user_alive(
    shared_redis: RedisServer,
) -> None:
    async with (
        scripted(hangs) as upstream,
        two(upstream, shared_redis.url) as (a, b),
    ):
        user = new_id()
        url = await a.ticket(subject=user)
        look = asyncio.create_task(a.http.get(url, headers={**a.cookie(user), **STREAM}))
        await until(lambda: upstream.calls)
        waits = await b.ticket(subject=user)
        key = record_key(_id(a, url))
        await a.gateway.store.call("DEL", key)
        await a.gateway.store.call("SET", key, "no record")
        answer = await b.http.delete(f"/users/{user}/streams", headers=SERVICE)
        assert answer.status_code >= 500
        await until(upstream.calls[0].left.is_set, "the run is stopped", 20)
        assert await _state(b, waits, user) == "cancelled"
        await a.gateway.store.call("DEL", key)
        look.cancel()


async def test_a_log_out_leaves_alone_what_the_user_begins_after_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with gateway(hangs, service_tokens=TOKENS) as (gate, upstream):
        assert await log_out(gate) == 0
        before, own = await gate.gateway.records.now(), control_channel(gate.gateway.name)
        url = await gate.ticket()
        async with gate.http.stream("GET", url, headers={**gate.cookie(), **STREAM}) as viewer:
            came = viewer.aiter_raw()
            await anext(came)
            # A replica that was held up hears it so late; and some that nobody could mean.
            odd = ("logout", "logout alice", "logout alice soon", f"logout alice {'9' * 5000}")
            for word in (*odd, f"logout alice {before}"):
                assert await gate.gateway.store.call("PUBLISH", own, word)
            with pytest.raises(TimeoutError):  # Longer than older viewers may stay.
                async with asyncio.timeout(1.2):
                    await _rest(came)
            assert not upstream.calls[0].left.is_set()
            assert "broke" not in caplog.text  # Else no word is heard for a while.


async def test_who_still_watches_an_ended_stream_is_sent_away(shared_redis: RedisServer) -> None:
    async def long(call: Call) -> None:
        await call.send(OK, *(sse(chunk("x" * 60_000)) for _ in range(200)))
        await call.send(sse(chunk("", finish="stop"), b"[DONE]"))

    async with scripted(long) as upstream, two(upstream, shared_redis.url) as (a, b):
        url = await a.ticket()
        assert (await a.read(url)).end["state"] == "done"
        async with b.http.stream("GET", url, headers={**a.cookie(), **STREAM}) as viewer:
            await until(lambda: b.gateway.fanout.viewers)
            await log_out(a)
            # It reads nothing more: what is left is not sent to it.
            await until(lambda: not b.gateway.fanout.get(_id(b, url)) or _all_gone(b, url))
            assert viewer.status_code == 200


def _id(gate: Served, url: str) -> str:
    return gate.gateway.tickets.verify(url.partition("=")[2]).stream_id


def _all_gone(gate: Served, url: str) -> bool:
    tail = gate.gateway.fanout.get(_id(gate, url))
    return tail is None or all(getattr(each, "gone", True) for each in tail.viewers)


async def test_a_log_out_while_the_store_is_away_is_to_be_asked_again(
    own_redis: RedisServer,
) -> None:
    async with running(redis_url=own_redis.url, service_tokens=TOKENS, lease=10) as gate:
        await gate.ticket()
        own_redis.kill()
        answer = await gate.http.delete("/users/alice/streams", headers=SERVICE)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        own_redis.start()


async def test_a_subjects_streams_are_those_that_wait_or_run(store: RedisClient) -> None:
    times: dict[str, Any] = {"start_by": 60.0, "log_ttl": 600.0, "lease": 10.0}
    records = Records(store, new_id(), **times, max_run=lambda: 600, most=Most(counted=True))
    user = new_id()
    ids = {new_id() for _ in range(3)}
    for each in ids:
        await records.create(each, user, "default", b"{}", "digest")
    assert {*await records.limits.streams_of(user)} == ids
    assert await records.limits.streams_of(new_id()) == []


# A stream outlives its cookie, but not its user


@pytest.mark.usefixtures("patient")
async def test_a_stream_outlives_its_cookie_but_not_its_user() -> None:
    async with gateway(hangs, service_tokens=TOKENS, cookie_max_age=1) as (gate, upstream):
        url, old = await gate.ticket(), gate.cookie()
        async with gate.http.stream("GET", url, headers={**old, **STREAM}) as viewer:
            came = viewer.aiter_raw()
            first = await anext(came)
            await until(lambda: _is_too_old(gate, url, old), "the cookie is too old", 20)
            again = await gate.http.get(url, headers={**old, **STREAM})
            assert (again.status_code, again.json()["code"]) == (401, "not_authenticated")
            assert not upstream.calls[0].left.is_set()
            assert await log_out(gate) == 1
            rest = first + b"".join([each async for each in came])
    assert json.loads(rest.rpartition(b"data: ")[2].partition(b"\n")[0])["state"] == "cancelled"


async def _is_too_old(gate: Served, url: str, old: dict[str, str]) -> bool:
    answer = await gate.http.get(url.replace("/stream", "/completion"), headers=old)
    return answer.status_code == 401

"""No end is left untold because of what a Redis forgot, nor a stream without its end because of a
webhook."""

import asyncio

import pytest

from gateway.store.keys import log_key, record_key, webhook_key
from gateway.webhooks import courier, post
from gateway.webhooks.queues import AT_ONCE
from tests.receivers import answers, hears, receiver
from tests.support import OK, Call, RedisServer, ask, chunk, running, scripted, sse, until, whole

pytestmark = pytest.mark.timeout(150)

PATIENCE = 50.0  # Seconds.


async def test_a_stream_whose_end_is_lost_is_ended_though_its_receiver_is_down(
    own_redis: RedisServer,
) -> None:
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await call.send(OK, sse(chunk("Hel")))
        await go.wait()
        await call.send(sse(chunk("lo", finish="stop"), b"[DONE]"))

    async with scripted(waits) as upstream, receiver(answers("503 Later")) as app:
        presets = {"default": {**app.preset, "url": upstream.url}}
        async with running(redis_url=own_redis.url, presets=presets, lease=1) as served:
            gateway = served.gateway
            supervisor, store = gateway.supervisor, gateway.store
            answer = await served.http.post("/tickets", json=ask(), headers=served.cookie())
            url = answer.json()["stream_url"]
            stream_id = gateway.tickets.verify(url.partition("=")[2]).stream_id
            key = record_key(stream_id)
            reading = asyncio.create_task(served.read(url))
            await until(lambda: upstream.calls)
            await until(lambda: store.call("EXISTS", log_key(stream_id)))
            await store.call("SAVE")
            go.set()
            assert (await reading).end["state"] == "done"
            runs = supervisor._registry.values
            await until(lambda: app.told and not runs(), "its run is forgotten", PATIENCE)
            own_redis.kill()
            own_redis.start()

            async def has_ended() -> bool:
                return bool(await store.call("HEXISTS", key, "end_id"))

            await until(has_ended, "it has ended again", PATIENCE)


async def test_ends_that_find_no_room_are_told_once_there_is_some(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "_MOST", 2)
    async with scripted(whole) as upstream, receiver(answers("503 Later")) as app:
        presets = {"default": {**app.preset, "url": upstream.url}}
        async with running(redis_url=own_redis.url, presets=presets, lease=1) as served:
            for _ in range(4):
                answer = await served.http.post("/tickets", json=ask(), headers=served.cookie())
                await served.read(answer.json()["stream_url"])
            app.turns[:] = [hears]
            await until(
                lambda: len({each.id for each in app.heard}) == 4, "all are heard", PATIENCE
            )


async def test_the_text_outlives_the_log_also_of_ends_that_a_slow_receiver_lets_wait(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(call: Call) -> None:
        await call.left.wait()

    monkeypatch.setattr(post, "_TIMEOUT", 1000.0)  # None of these tries is over in this test.
    monkeypatch.setattr(courier, "_SHELVED", 0.0)
    monkeypatch.setattr(courier, "_LOOK", 0.05)
    async with scripted(whole) as upstream, receiver(hangs) as app:
        presets = {"default": {**app.preset, "url": upstream.url}}
        async with running(redis_url=own_redis.url, presets=presets, drain=0.2) as served:
            for _ in range(AT_ONCE + 2):
                answer = await served.http.post("/tickets", json=ask(), headers=served.cookie())
                await served.read(answer.json()["stream_url"])
            last = served.gateway.tickets.verify(answer.json()["ticket"]).stream_id
            asked = served.gateway.store.call
            await until(lambda: asked("HEXISTS", webhook_key(last), "body"), "it is kept", PATIENCE)
            assert len(app.told) <= AT_ONCE
            assert await asked("HGET", webhook_key(last), "tries") == b"0"

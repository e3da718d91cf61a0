"""What tells that a Redis lost all that it had."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.store.client import RedisClient
from gateway.store.data_loss import DataLossDetector

LEASE = 1.0


@pytest.fixture
async def store(any_redis_url: str) -> AsyncIterator[RedisClient]:
    """Both stores, one after the other."""
    opened = RedisClient(any_redis_url)
    await opened.call("PING")  # Of a Cluster it is known from then on which servers there are.
    yield opened
    await opened.close()


async def test_a_redis_that_forgot_is_noticed_once(store: RedisClient) -> None:
    detector = DataLossDetector(store, LEASE)
    assert await detector.renew() == []
    await store.calls(["DEL", key] for key in store.dataset_keys)
    await asyncio.sleep(0.002)  # The dataset id is a time in milliseconds, and must be another one.
    assert sorted(await detector.renew()) == sorted(store.dataset_keys)
    assert await detector.renew() == []
    await detector.stop()


async def test_who_comes_after_a_loss_knows_of_none(store: RedisClient) -> None:
    await store.calls(["DEL", key] for key in store.dataset_keys)
    for detector in (DataLossDetector(store, LEASE), DataLossDetector(store, LEASE)):
        assert await detector.renew() == []
        assert await detector.renew() == []
        await detector.stop()


async def test_a_dataset_id_lives_as_long_as_somebody_renews_it(store: RedisClient) -> None:
    detector = DataLossDetector(store, LEASE)
    await detector.renew()
    before = await store.calls(["GET", key] for key in store.dataset_keys)
    await store.calls(["PERSIST", key] for key in store.dataset_keys)
    await detector.renew()
    assert await store.calls(["GET", key] for key in store.dataset_keys) == before
    for key in store.dataset_keys:
        assert await store.call("PTTL", key) > 0, key
    await detector.stop()

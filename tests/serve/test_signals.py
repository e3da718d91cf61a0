"""Signals: hearing the end of a server that is not ours."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from gateway.serve.signals import heard

ENDS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def server() -> Iterator[list[int]]:
    """What the handlers of a server heard that was there before."""
    told: list[int] = []
    before = {each: signal.signal(each, lambda number, _: told.append(number)) for each in ENDS}
    yield told
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", ENDS)
async def test_the_gateway_hears_the_end_and_so_does_its_server(
    number: signal.Signals, server: list[int]
) -> None:
    leaves = asyncio.Event()
    with heard(leaves.set):
        signal.raise_signal(number)
        await asyncio.wait_for(leaves.wait(), 20)
    assert server == [number]
    leaves.clear()
    signal.raise_signal(number)
    await asyncio.sleep(0)
    assert (server, leaves.is_set()) == ([number, number], False)


async def test_a_handler_that_somebody_set_meanwhile_is_left_alone(server: list[int]) -> None:
    later: list[int] = []
    with heard(lambda: None):
        signal.signal(signal.SIGTERM, lambda number, _: later.append(number))
    signal.raise_signal(signal.SIGTERM)
    assert (server, later) == ([], [signal.SIGTERM])


async def test_in_a_thread_nothing_is_heard_and_nothing_breaks(server: list[int]) -> None:
    async def inside() -> None:
        with heard(lambda: None):
            pass

    await asyncio.to_thread(asyncio.run, inside())
    signal.raise_signal(signal.SIGTERM)
    assert server == [signal.SIGTERM]


def test_a_loop_that_broke_off_keeps_no_signal_from_its_server(server: list[int]) -> None:
    loop = asyncio.new_event_loop()
    listens = heard(lambda: None)

    async def begin() -> None:
        listens.__enter__()

    loop.run_until_complete(begin())
    loop.close()
    signal.raise_signal(signal.SIGTERM)
    listens.__exit__(None, None, None)
    assert server == [signal.SIGTERM]


async def test_an_end_that_nobody_handles_stays_what_it_is() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with heard(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)

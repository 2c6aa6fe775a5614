from __future__ import annotations

import asyncio

import pytest

from sovereign_ai.gateway.flight import Flight, Interruption
from tests.gateway.running import in_loop


async def never() -> None:
    await asyncio.Event().wait()


@in_loop
async def test_an_interruption_cancels_and_landing_takes_it_back() -> None:
    flight = Flight()
    asyncio.get_running_loop().call_soon(flight.interrupt, Interruption.STOPPING)
    with pytest.raises(asyncio.CancelledError):
        await never()
    flight.land()
    assert flight.interruption is Interruption.STOPPING
    async with asyncio.timeout(1):
        await asyncio.sleep(0)  # would raise, were the cancellation still counted
    flight.land()


@in_loop
async def test_the_end_of_the_watched_interrupts() -> None:
    flight = Flight()
    flight.interrupt_after(lambda: asyncio.sleep(0))
    with pytest.raises(asyncio.CancelledError):
        await never()
    flight.land()
    assert flight.interruption is Interruption.CLIENT_GONE


@in_loop
async def test_only_the_first_cause_counts() -> None:
    flight = Flight()
    loop = asyncio.get_running_loop()
    loop.call_soon(flight.interrupt, Interruption.CLIENT_GONE)
    loop.call_soon(flight.interrupt, Interruption.STOPPING)
    with pytest.raises(asyncio.CancelledError):
        await never()
    flight.land()
    assert flight.interruption is Interruption.CLIENT_GONE


@in_loop
async def test_after_landing_nothing_interrupts() -> None:
    flight = Flight()
    gone = asyncio.Event()

    async def leave() -> None:
        await gone.wait()

    flight.interrupt_after(leave)
    await asyncio.sleep(0)
    flight.land()
    gone.set()
    flight.interrupt(Interruption.STOPPING)
    await asyncio.sleep(0)
    assert flight.interruption is None

"""The worker's end of the way to the door. The coordinator's is written by hand here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sovereign_ai.errors import RateLimited, TokensLimited
from sovereign_ai.gateway.journal import Journal, RequestRecord
from sovereign_ai.gateway.limits import Rate
from sovereign_ai.gateway.link import Link
from sovereign_ai.gateway.messages import (
    Admit,
    Admitted,
    Enter,
    Entered,
    Leave,
    Look,
    Message,
    Numbers,
    Ready,
    Refusal,
    Refused,
    Release,
    Scrape,
    ToCoordinator,
    Totals,
    Used,
    from_worker,
)
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.outpost import Outpost
from sovereign_ai.gateway.visit import Visit
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import NOW, in_loop, routes_to, until
from tests.gateway.test_desk import key

RATES = [Rate("requests", 10, 4, 60.0)]


class Coordinator:
    """What the worker said, and whether it noticed the end."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.lost = False
        self.outpost = Outpost(self._lose, clock=lambda: NOW)
        fake = FakeTriton()
        fake.url = "http://127.0.0.1:1"
        self.pool = self.outpost.share(routes_to(fake), Metrics(), Journal(lambda line: None, lambda: NOW))
        self.link: Link[ToCoordinator] = Link(from_worker, self.heard.append, lambda: None)

    def _lose(self) -> None:
        self.lost = True

    async def of(self, kind: type[Message], count: int = 1) -> Any:
        await until(lambda: sum(isinstance(one, kind) for one in self.heard) >= count)
        return [one for one in self.heard if isinstance(one, kind)][-1]


@asynccontextmanager
async def connected() -> AsyncIterator[Coordinator]:
    one, other = socket.socketpair()
    there = Coordinator()
    await there.outpost.connect(one)
    await asyncio.get_running_loop().create_unix_connection(lambda: there.link, sock=other)
    yield there
    await there.link.close()


def visit(**limits: int) -> Visit:
    return Visit(RequestRecord(method="POST", path="/", started=0.0), key(**limits), 60.0)


@in_loop
async def test_a_request_from_its_key_to_its_end() -> None:
    async with connected() as there:
        outpost, guest = there.outpost, visit()
        entering = asyncio.create_task(outpost.enter(guest))
        number = (await there.of(Enter)).visit
        assert outpost.rates(guest) == []
        there.link.send(Entered(number, RATES))
        await entering
        (rate,) = outpost.rates(guest)
        assert (rate.kind, rate.limit, rate.left) == ("requests", 10, 4)
        assert 0 < rate.reset_s <= 60
        admitting = asyncio.create_task(outpost.admit(guest, "smol", 9))
        asked = await there.of(Admit)
        assert (asked.visit, asked.model, asked.tokens, asked.deadline) == (number, "smol", 9, 60.0)
        assert guest.reserved, "other parts must know at once"
        there.link.send(Admitted(number, asked.part, [], {"smol-up-0": 3}))
        ticket = await admitting
        assert there.pool._by_model["smol"][0].outstanding == 3
        assert guest.record.queue_s > 0
        outpost.release("smol", ticket)
        guest.record.answered, guest.record.prompt_tokens = True, 5
        outpost.leave(guest)
        outpost.leave(guest)
        outpost.add(guest.record, 2.0)
        assert (await there.of(Used)).row[0] == NOW - 2.0
        assert there.heard[-3:-1] == [Release(number, asked.part), Leave(number, 5)]


@in_loop
async def test_refusals_are_raised() -> None:
    async with connected() as there:
        outpost, guest = there.outpost, visit()
        entering = asyncio.create_task(outpost.enter(guest))
        number = (await there.of(Enter)).visit
        there.link.send(Refused(number, 0, Refusal("RateLimited", "no", "concurrency", 1.0), False, RATES))
        with pytest.raises(RateLimited, match="no"):
            await entering
        assert outpost.rates(guest)
        for count, reserved in enumerate((False, True)):
            admitting = asyncio.create_task(outpost.admit(guest, "smol", 9))
            asked = await there.of(Admit, count + 1)
            refusal = Refusal("TokensLimited", "no", "tokens_per_minute", None)
            there.link.send(Refused(number, asked.part, refusal, reserved, RATES))
            with pytest.raises(TokensLimited):
                await admitting
            assert bool(guest.reserved) == reserved
        outpost.leave(guest)
        await there.of(Leave)
        assert not any(isinstance(one, Release) for one in there.heard)


@in_loop
async def test_who_gives_up_waiting_says_so() -> None:
    async with connected() as there:
        outpost, guest = there.outpost, visit()
        admitting = asyncio.create_task(outpost.admit(guest, "smol", 9))
        asked = await there.of(Admit)
        admitting.cancel()
        assert await there.of(Release) == Release(asked.visit, asked.part)
        there.link.send(Admitted(asked.visit, asked.part, [], {}))  # was on its way
        outpost.leave(guest)
        await there.of(Leave)


@in_loop
async def test_only_a_key_with_limits_is_asked_for() -> None:
    async with connected() as there:
        await there.outpost.look(visit())
        looking = asyncio.create_task(there.outpost.look(visit(tokens_per_minute=9)))
        there.link.send(Entered((await there.of(Look)).visit, RATES))
        await looking
        assert len(there.heard) == 1


@in_loop
async def test_metrics_both_ways_and_the_last_words() -> None:
    async with connected() as there:
        there.outpost.ready()
        await there.of(Ready)
        reading = asyncio.create_task(there.outpost.metrics_text())
        there.link.send(Totals((await there.of(Scrape)).scrape, b"all"))
        there.link.send(Totals(99, b"nobody asked"))
        assert await reading == b"all"
        there.link.send(Scrape(7))
        assert (await there.of(Numbers)).scrape == 7
        await there.outpost.farewell()
        assert (await there.of(Numbers, 2)).scrape == 0
        assert not there.lost


@in_loop
async def test_the_end_of_the_coordinator_is_noticed() -> None:
    async with connected() as there:
        await there.link.close()
        await until(lambda: there.lost)

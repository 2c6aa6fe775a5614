from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sovereign_ai.gateway.link import Link
from sovereign_ai.gateway.messages import (
    Busy,
    Leave,
    Message,
    Scrape,
    ToCoordinator,
    ToWorker,
    from_coordinator,
    from_worker,
)
from tests.gateway.running import in_loop, until


class Ends:
    """Both ends of a link, what came to each, and who lost the other."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.lost: list[str] = []
        self.more: list[Message] = []
        self.worker: Link[ToWorker] = Link(
            from_coordinator, self.heard.append, lambda: self.lost.append("worker"), self._more
        )
        self.coordinator: Link[ToCoordinator] = Link(
            from_worker, self.heard.append, lambda: self.lost.append("coordinator")
        )

    def _more(self) -> list[Message]:
        more, self.more = self.more, []
        return more


@asynccontextmanager
async def linked() -> AsyncIterator[Ends]:
    one, other = socket.socketpair()
    ends, loop = Ends(), asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: ends.worker, sock=one)
    await loop.create_unix_connection(lambda: ends.coordinator, sock=other)
    yield ends
    await ends.worker.close()
    await ends.coordinator.close()


@in_loop
async def test_both_ways_and_in_order() -> None:
    async with linked() as ends:
        ends.worker.send(Leave(1, 2))
        ends.worker.send(Leave(2, 3))
        await until(lambda: ends.heard == [Leave(1, 2), Leave(2, 3)])
        ends.coordinator.send(Scrape(1))
        await until(lambda: ends.heard[2:] == [Scrape(1)])


@in_loop
async def test_what_there_is_to_say_goes_along() -> None:
    async with linked() as ends:
        ends.more = [Busy("m", "up", 1)]
        ends.worker.send(Leave(1, 2))
        await until(lambda: ends.heard == [Leave(1, 2), Busy("m", "up", 1)])
        ends.more = [Busy("m", "up", 0)]
        ends.worker.hurry()
        await until(lambda: ends.heard[2:] == [Busy("m", "up", 0)])


@in_loop
async def test_the_last_words_arrive_and_then_the_end() -> None:
    async with linked() as ends:
        ends.worker.send(Leave(1, 2))
        await ends.worker.close()
        await ends.coordinator.closed
        assert ends.heard == [Leave(1, 2)]
        assert sorted(ends.lost) == ["coordinator", "worker"]
        ends.coordinator.send(Scrape(1))  # to nobody

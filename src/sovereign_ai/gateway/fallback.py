"""Another model answers where the asked one cannot, as far as factory.yaml allows it.

A chain is the list of the asked model alone: what its members would fall back to is not looked at. Once an
engine has begun to answer, the answer stays with its model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sovereign_ai.errors import ApiError, InvalidRequest, UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.door import LOOK_INTERVAL_S
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.gateway.visit import CURRENT, Visit

if TYPE_CHECKING:
    from sovereign_ai.gateway.proxy import Served

UNREACHABLE = "engine_unreachable"
QUEUE_TIMEOUT = "queue_timeout"
"""A model that had no place in time is busy, not broken: others would be flooded by what it cannot take."""

Ask = Callable[["Served"], Awaitable[None]]


class TurnAway(Exception):
    """Nobody can answer for this model now, but another model can."""


class Fallback:
    """`served`: the models by name. `ready` tells whether an endpoint of a model may be asked now,
    `take_back` gives back what a request reserved at a model that did not answer it."""

    def __init__(
        self,
        served: Mapping[str, Served],
        ready: Callable[[str], bool],
        take_back: Callable[[Visit], None],
    ) -> None:
        self._served, self._ready, self._take_back = served, ready, take_back

    async def ask(self, asked: Served, ask: Ask) -> None:
        """`ask` the model, or the next of its chain that is ready; or the model again once it is there, where
        no engine has heard of the request. Raises ApiError: that of the asked model where others failed too.
        """
        visit = CURRENT.get()
        if visit is None:
            await ask(asked)
            return
        chain = self._chain(asked, visit) if asked.route.fallback else []
        visit.elsewhere = (lambda: any(map(self._is_ready, chain))) if chain else None
        try:
            await self._ask_in_turn(visit, asked, chain, ask)
        finally:
            visit.elsewhere = None

    async def _ask_in_turn(self, visit: Visit, asked: Served, chain: list[Served], ask: Ask) -> None:
        failure = await self._failure(visit, asked, ask)
        while failure is not None:
            other = next(filter(self._is_ready, chain), None)
            if other is not None:
                chain.remove(other)  # nobody is asked twice
                _name(visit.record, other, asked)
                if await self._answers(visit, other, ask):
                    return
                continue
            _name(visit.record, asked, asked)
            if isinstance(failure, ApiError) and not self._may_wait(asked, failure):
                raise failure
            # it was turned away, and nobody else would have it; or its engine was gone before anybody knew:
            # it waits like everybody
            failure = await self._failure(visit, asked, ask)

    def _may_wait(self, asked: Served, failure: ApiError) -> bool:
        """Nothing was sent where there was no connection, so the request is not the cause. The endpoints that
        were tried count as down: only where there are others does it not wait for one to come back."""
        return failure.code == UNREACHABLE and not self._is_ready(asked)

    def _chain(self, asked: Served, visit: Visit) -> list[Served]:
        """Those that the key may use and that do the same. Of routes.json only its form was checked."""
        names = [name for name in dict.fromkeys(asked.route.fallback) if visit.key.allows(name)]
        found = [one for name in names if (one := self._served.get(name)) is not None]
        return [one for one in found if one.route.task == asked.route.task and one is not asked]

    def _is_ready(self, served: Served) -> bool:
        return self._ready(served.route.model)

    async def _answers(self, visit: Visit, other: Served, ask: Ask) -> bool:
        """Whether `other` took the request. One that has no room for it is passed over like one that fails:
        the client asked for nothing wrong of the model that it named."""
        try:
            return await self._failure(visit, other, ask) is None
        except InvalidRequest:
            if visit.record.answered:
                raise
            self._take_back(visit)
            return False

    async def _failure(self, visit: Visit, served: Served, ask: Ask) -> ApiError | TurnAway | None:
        """Why it did not answer, and somebody else may; None where it did."""
        try:
            await ask(served)
        except (UpstreamFailed, UpstreamUnavailable, TurnAway) as error:
            if visit.record.answered or (isinstance(error, ApiError) and error.code == QUEUE_TIMEOUT):
                raise
            self._take_back(visit)
            return error
        return None


@asynccontextmanager
async def turned_away_once(condition: Callable[[], bool]) -> AsyncIterator[None]:
    """Raises TurnAway in the block when `condition` comes to hold."""
    loop = asyncio.get_running_loop()
    watch: asyncio.Handle
    try:
        async with asyncio.timeout(None) as block:

            def look() -> None:
                nonlocal watch
                if condition():
                    block.reschedule(loop.time())
                else:
                    watch = loop.call_later(LOOK_INTERVAL_S, look)

            watch = loop.call_soon(look)
            try:
                yield
            finally:
                watch.cancel()
    except TimeoutError as error:
        raise TurnAway from error


def _name(record: RequestRecord, answering: Served, asked: Served) -> None:
    record.model = answering.route.model
    record.asked = None if answering is asked else asked.route.model

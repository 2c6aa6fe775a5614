"""Between the formats and the engines: nothing goes to an engine that the door has not let in, and what
happens there is written into the request's record.

It stands before TritonClient and Pool and has their calls: formats are written as if it were not here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from sovereign_ai.errors import UpstreamUnavailable
from sovereign_ai.gateway.admission import check_model
from sovereign_ai.gateway.continuation import Answer, Order
from sovereign_ai.gateway.door import Entrance
from sovereign_ai.gateway.journal import Clock, Journal
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.pool import Pool, Upstream
from sovereign_ai.gateway.proxy import Served
from sovereign_ai.gateway.upstream import TritonClient
from sovereign_ai.gateway.visit import CURRENT, Visit
from sovereign_ai.gateway.wire import triton
from sovereign_ai.spec import Route, Routes

DEFAULT_PLACES = 256
"""Requests that an endpoint computes at once where its route does not say: vLLM's own default."""

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly: only what is reserved for embeddings; they are billed by the engine's count."""


class CountedPool(Pool):
    """A pool that knows how many requests each endpoint holds, and tells the record where they went."""

    def __init__(self, routes: Routes, metrics: Metrics, journal: Journal, *, clock: Clock) -> None:
        super().__init__(routes, metrics, journal, clock=clock)
        self._places = _places(routes)

    def capacity(self, model: str) -> int:
        """Requests that the endpoints of `model` hold that may be asked now. One on trial holds one."""
        upstreams = self._by_model.get(model, ())
        return sum(1 if one.breaker.is_open else self._places_of(one) for one in upstreams if one.available)

    async def replace(self, routes: Routes) -> None:
        self._places.update(_places(routes))
        await super().replace(routes)
        self._places = _places(routes)

    def choose(
        self, model: str, *, text: str = "", tokens: int = 0, but: Collection[Upstream] = ()
    ) -> Upstream:
        full = [one for one in self._by_model[model] if one.outstanding >= self._places_of(one)]
        try:
            chosen = super().choose(model, text=text, tokens=tokens, but=[*but, *full])
        except UpstreamUnavailable:
            # where only a full one has a context that is long enough, the request waits in that engine
            chosen = super().choose(model, text=text, tokens=tokens, but=but)
        if (visit := CURRENT.get()) is not None:
            _note_choice(visit, chosen, again=bool(but))
        return chosen

    def failed(self, upstream: Upstream) -> None:
        super().failed(upstream)
        if (visit := CURRENT.get()) is not None:
            visit.failed = True

    def _places_of(self, upstream: Upstream) -> int:
        return self._places.get((upstream.route_model, upstream.name), DEFAULT_PLACES)


class WayToDoor(Entrance, Protocol):
    """From one of several processes to the door in another one (see outpost)."""

    def share(self, routes: Routes, metrics: Metrics, journal: Journal) -> CountedPool: ...
    async def metrics_text(self) -> bytes: ...


class AdmittingClient(TritonClient):
    """TritonClient behind the door."""

    def __init__(self, pool: Pool, metrics: Metrics, journal: Journal, door: Entrance) -> None:
        super().__init__(pool, metrics, journal)
        self._door = door

    @asynccontextmanager
    async def answer(self, route: Route, order: Order, *, tokens: int) -> AsyncIterator[Answer]:
        visit = _current()
        # further choices read the same prompt, and it is billed once
        prompt = 0 if visit.reserved else visit.record.prompt_tokens
        ticket = await self._door.admit(visit, route.model, prompt + order.max_tokens)
        try:
            async with super().answer(route, order, tokens=tokens) as answer:
                visit.record.answered = True
                yield answer
        finally:
            self._door.release(route.model, ticket)

    async def embed(self, model: str, texts: Sequence[str]) -> triton.Embeddings:
        visit = _current()
        tokens = sum(len(text) // CHARACTERS_PER_TOKEN + 1 for text in texts)
        ticket = await self._door.admit(visit, model, tokens)
        try:
            found = await super().embed(model, texts)
        finally:
            self._door.release(model, ticket)
        visit.record.answered = True
        return found


class PermittedModels(Mapping[str, Served]):
    """The models, of which a request finds only those that its key may ask. Raises Forbidden for others."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._served = served

    def __getitem__(self, model: str) -> Served:
        found = self._served[model]
        if (visit := CURRENT.get()) is not None:
            check_model(visit.key, model)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)


def _current() -> Visit:
    visit = CURRENT.get()
    assert visit is not None, "only a request with a key gets here"  # noqa: S101 - for the type checker
    return visit


def _note_choice(visit: Visit, chosen: Upstream, *, again: bool) -> None:
    """A second try follows a failure that the client has not seen; a continuation a beginning that it has."""
    record = visit.record
    record.endpoint = chosen.name
    if again and visit.failed:
        record.retries += 1
    elif again:
        record.continuations += 1
    visit.failed = False


def _places(routes: Routes) -> dict[tuple[str, str], int]:
    return {
        (route.model, endpoint.name): endpoint.max_num_seqs or DEFAULT_PLACES
        for route in routes.routes
        for endpoint in route.endpoints
    }

"""Between the formats and the engines: nothing goes to an engine that the door has not let in, and what
happens there is written into the request's record.

It stands before TritonClient and Pool and has their calls: formats are written as if it were not here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar

from sovereign_ai.errors import UpstreamUnavailable
from sovereign_ai.gateway.admission import check_model
from sovereign_ai.gateway.client import JSON_HEADERS
from sovereign_ai.gateway.continuation import Answer, Order
from sovereign_ai.gateway.door import Entrance
from sovereign_ai.gateway.fallback import TurnAway, turned_away_once
from sovereign_ai.gateway.journal import Clock, Journal
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.pool import Pool, Upstream
from sovereign_ai.gateway.queueing import Ticket
from sovereign_ai.gateway.upstream import TokenStream, TritonClient
from sovereign_ai.gateway.visit import CURRENT, Visit
from sovereign_ai.gateway.wire import triton
from sovereign_ai.spec import Route, Routes

DEFAULT_PLACES = 256
"""Requests that an endpoint computes at once where its route does not say: vLLM's own default."""

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly: only what is reserved for embeddings; they are billed by the engine's count."""

_T = TypeVar("_T")


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

    def __init__(self, pool: CountedPool, metrics: Metrics, journal: Journal, door: Entrance) -> None:
        super().__init__(pool, metrics, journal)
        self._door, self._capacity = door, pool.capacity

    @asynccontextmanager
    async def place(self, model: str, tokens: int) -> AsyncIterator[None]:
        ticket = await self._admit(_current(), model, tokens)
        try:
            yield
        finally:
            self._door.release(model, ticket)

    @asynccontextmanager
    async def answer(self, route: Route, order: Order, *, tokens: int) -> AsyncIterator[Answer]:
        visit = _current()
        # further choices read the same prompt, and it is billed once
        prompt = 0 if visit.reserved else visit.record.prompt_tokens
        if visit.trace is not None:
            visit.trace.order(order.sampling)
        async with (
            self.place(route.model, prompt + order.max_tokens),
            super().answer(route, order, tokens=tokens) as answer,
        ):
            visit.record.answered = True
            yield answer

    async def embed(self, model: str, texts: Sequence[str]) -> triton.Embeddings:
        visit = _current()
        tokens = sum(len(text) // CHARACTERS_PER_TOKEN + 1 for text in texts)
        async with self.place(model, tokens):
            found = await super().embed(model, texts)
        visit.record.answered = True
        return found

    async def _tried(self, upstream: Upstream, attempt: Callable[[Upstream], Awaitable[_T]]) -> _T:
        trace = _current().trace
        if trace is None:
            return await super()._tried(upstream, attempt)
        with trace.attempt(upstream) as span:
            result = await super()._tried(upstream, attempt)
        if isinstance(result, TokenStream):
            result.on_close = span.end
        else:
            span.end()
        return result

    def headers(self) -> bytes:
        trace = _current().trace
        return JSON_HEADERS if trace is None else JSON_HEADERS + trace.headers()

    async def _admit(self, visit: Visit, model: str, tokens: int) -> Ticket:
        if visit.trace is None:
            return await self._place(visit, model, tokens)
        with visit.trace.queue(model):
            return await self._place(visit, model, tokens)

    async def _place(self, visit: Visit, model: str, tokens: int) -> Ticket:
        """A place, as the door gives it. Raises TurnAway once nobody is there who could answer, and another
        model can: without one the request waits."""
        if visit.elsewhere is None:
            return await self._door.admit(visit, model, tokens)
        is_better = partial(self._is_better_elsewhere, visit, model)
        if is_better():
            raise TurnAway
        async with turned_away_once(is_better):
            return await self._door.admit(visit, model, tokens)

    def _is_better_elsewhere(self, visit: Visit, model: str) -> bool:
        return (
            self._capacity(model) == 0
            and not visit.record.answered
            and visit.elsewhere is not None
            and visit.elsewhere()
        )


class PermittedModels(Mapping[str, _T]):
    """The models, of which a request finds only those that its key may ask. Raises Forbidden for others."""

    def __init__(self, served: Mapping[str, _T]) -> None:
        self._served = served

    def __getitem__(self, model: str) -> _T:
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

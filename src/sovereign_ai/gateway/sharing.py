"""A pool whose endpoints several processes ask: what one learns of an endpoint, all know.

Each process asks every endpoint for its health by itself. What only requests show (a connection refused,
failures in a row, a trial after them, a model process that died) is told to the others, so that all breakers
are in the same state, the coordinator's too, which counts places by them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from sovereign_ai.gateway.journal import Clock, Journal
from sovereign_ai.gateway.messages import Busy, Happened, Message
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.pool import Upstream
from sovereign_ai.gateway.usher import CountedPool
from sovereign_ai.spec import Routes

Tell = Callable[[Happened], None]


class SharedPool(CountedPool):
    """`tell` is told of what others have to know, `chosen` that a request begins somewhere."""

    def __init__(
        self,
        routes: Routes,
        metrics: Metrics,
        journal: Journal,
        *,
        clock: Clock,
        tell: Tell,
        chosen: Callable[[], None],
    ) -> None:
        super().__init__(routes, metrics, journal, clock=clock)
        self._tell, self._chosen = tell, chosen
        self._told: dict[Upstream, int] = {}

    def choose(
        self, model: str, *, text: str = "", tokens: int = 0, but: Collection[Upstream] = ()
    ) -> Upstream:
        upstream = super().choose(model, text=text, tokens=tokens, but=but)
        if upstream.breaker.is_open:
            self._tell(Happened(model, upstream.name, "trying"))
        self._chosen()
        return upstream

    def succeeded(self, upstream: Upstream) -> None:
        if upstream.breaker.is_troubled:
            self._tell(Happened(upstream.route_model, upstream.name, "answered"))
        super().succeeded(upstream)

    def failed(self, upstream: Upstream) -> None:
        self._tell(Happened(upstream.route_model, upstream.name, "failed"))
        super().failed(upstream)

    def mark_down(self, upstream: Upstream) -> None:
        self._tell(Happened(upstream.route_model, upstream.name, "down"))
        super().mark_down(upstream)

    def mark_dead(self, upstream: Upstream) -> None:
        self._tell(Happened(upstream.route_model, upstream.name, "dead"))
        super().mark_dead(upstream)

    def take(self, told: Happened) -> None:
        """Another process has seen this. It has counted and logged it already."""
        for upstream in self._by_model.get(told.model, ()):
            if upstream.name == told.endpoint:
                self._apply(upstream, told)

    def _apply(self, upstream: Upstream, told: Happened) -> None:
        now = self._clock()
        if told.change == "answered":
            upstream.breaker.success()
        elif told.change == "failed":
            upstream.breaker.failure(now)
        elif told.change == "trying":
            upstream.breaker.began(now)
        elif told.change == "down":
            super().mark_down(upstream)
        else:
            super().mark_dead(upstream)

    def busy_elsewhere(self, model: str, elsewhere: Mapping[str, int]) -> None:
        for upstream in self._by_model.get(model, ()):
            upstream.elsewhere = elsewhere.get(upstream.name, 0)

    def changes(self) -> list[Message]:
        """How busy endpoints are that were not so when this was last asked."""
        found: list[Message] = []
        for upstream in (*self._all(), *self._draining):
            if self._told.get(upstream, 0) != upstream.running:
                self._told[upstream] = upstream.running
                found.append(Busy(upstream.route_model, upstream.name, upstream.running))
        if len(self._told) > len(self._probes) + len(self._draining):
            self._told = {one: count for one, count in self._told.items() if count}
        return found

"""Pools whose endpoints several processes ask: what one of them learns, all know.

The coordinator alone asks endpoints for their health, and tells the workers. What only requests show (a
connection refused, failures in a row, a trial after them, a model process that died) workers tell it, and it
tells the others. So all are in the same state when the coordinator, which counts places by its own, lets a
request in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

from sovereign_ai.gateway.journal import Clock, Journal
from sovereign_ai.gateway.messages import Busy, Happened, Health, Message
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.pool import Upstream
from sovereign_ai.gateway.usher import CountedPool
from sovereign_ai.spec import Routes


class MirrorPool(CountedPool):
    """A pool that takes what others have seen."""

    def take(self, told: Happened) -> None:
        """Another process has seen this. It has counted and logged it already."""
        for upstream in self._by_model.get(told.model, ()):
            if upstream.name == told.endpoint:
                self._apply(upstream, told)

    def _apply(self, upstream: Upstream, told: Happened) -> None:
        now, breaker = self._clock(), upstream.breaker
        does: dict[str, Callable[[], object]] = {
            "answered": breaker.success,
            "failed": partial(breaker.failure, now),
            "trying": partial(breaker.began, now),
            # not its own, which might tell it on
            "down": partial(CountedPool.mark_down, self, upstream),
            "dead": partial(CountedPool.mark_dead, self, upstream),
        }
        does[told.change]()


class LeadingPool(MirrorPool):
    """The coordinator's. `changed` is called when an endpoint's health has changed."""

    def __init__(
        self,
        routes: Routes,
        metrics: Metrics,
        journal: Journal,
        *,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(routes, metrics, journal, clock=clock)
        self._changed = changed

    def health(self) -> Health:
        """Of all endpoints."""
        return Health([(one.route_model, one.name, one.healthy) for one in self._all()])

    def _set_health(self, upstream: Upstream, healthy: bool) -> None:
        before = upstream.healthy
        super()._set_health(upstream, healthy)
        if before != healthy:
            self._changed()


class SharedPool(MirrorPool):
    """A worker's. `tell` is told of what others have to know, `chosen` that a request begins somewhere."""

    def __init__(
        self,
        routes: Routes,
        metrics: Metrics,
        journal: Journal,
        *,
        clock: Clock,
        tell: Callable[[Happened], None],
        chosen: Callable[[], None],
    ) -> None:
        super().__init__(routes, metrics, journal, clock=clock)
        self._tell, self._chosen = tell, chosen
        self._told: dict[Upstream, int] = {}

    async def probe(self, upstream: Upstream) -> None:
        """Once, for an endpoint that is new here; from then on the coordinator tells."""
        if upstream not in self._probes:
            await super().probe(upstream)

    def take_health(self, health: Health) -> None:
        known = {(model, name): healthy for model, name, healthy in health.endpoints}
        for upstream in self._all():
            healthy = known.get((upstream.route_model, upstream.name))
            if healthy is not None:
                self._set_health(upstream, healthy)

    def _set_health(self, upstream: Upstream, healthy: bool) -> None:
        """Without a word to the log: the coordinator writes it, once."""
        upstream.healthy = healthy
        self._metrics.endpoint_up.labels(upstream.route_model, upstream.name).set(healthy)

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

    def busy_elsewhere(self, model: str, elsewhere: Mapping[str, int]) -> None:
        for upstream in self._by_model.get(model, ()):
            upstream.elsewhere = elsewhere.get(upstream.name, 0)

    def changes(self) -> list[Message]:
        """How busy endpoints are that were not so when this was last asked."""
        every = (*self._all(), *self._draining)
        changed = [one for one in every if self._told.get(one, 0) != one.running]
        self._told.update({one: one.running for one in changed})
        if len(self._told) > len(every):
            self._told = {one: self._told.get(one, 0) for one in every}
        return [Busy(one.route_model, one.name, one.running) for one in changed]

"""Lets requests in: counts them against the limits of their key and model, and has them wait for a place.

What decides is in limits and queueing; here are the clocks, and those who wait. The door is in one event
loop of one process, also where several processes answer (see coordinator): between a check and what it allows
nothing else runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from sovereign_ai.config import GatewaySettings
from sovereign_ai.errors import RateLimited, UpstreamUnavailable
from sovereign_ai.gateway.admission import KeyRecord, Limits
from sovereign_ai.gateway.journal import Clock
from sovereign_ai.gateway.limits import Meter, Rate, Window
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.queueing import Line, Ticket
from sovereign_ai.gateway.visit import Visit

LOOK_INTERVAL_S = 0.05
"""How often those who wait are looked after where nothing tells that a place is free: an endpoint that became
healthy, or whose pause after failures is over."""

_THIS_KEY = "this key"


class Spent(msgspec.Struct, frozen=True):
    """Tokens that a key has spent: by day, by month."""

    days: Mapping[str, int] = {}
    months: Mapping[str, int] = {}


class Entrance(Protocol):
    """What a request goes through: the door itself, or the way to it from another process."""

    async def look(self, visit: Visit) -> None:
        """For a request that is not counted: see to it that `rates` knows of its key."""
        ...

    async def enter(self, visit: Visit) -> None: ...
    def leave(self, visit: Visit) -> None: ...
    def take_back(self, visit: Visit) -> None: ...
    async def admit(self, visit: Visit, model: str, tokens: int) -> Ticket: ...
    def release(self, model: str, ticket: Ticket) -> None: ...
    def rates(self, visit: Visit) -> list[Rate]: ...
    def close(self) -> None: ...


class Door:
    """`capacity` tells how many requests the healthy endpoints of a model hold. `spent`: key id → what the
    ledger has of this month. `clock` gives unix seconds."""

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        capacity: Callable[[str], int],
        spent: Mapping[str, Spent],
        *,
        clock: Clock,
        monotonic: Clock,
    ) -> None:
        self._settings, self._metrics, self._capacity_of = settings, metrics, capacity
        self._spent, self._clock, self._monotonic = spent, clock, monotonic
        self._route_limits = {one.model: one for one in settings.limits}
        self._keys: dict[str, Meter] = {}
        self._models: dict[str, Meter] = {}
        self._lines: dict[str, Line] = {}
        self._turns: dict[Ticket, asyncio.Future[None]] = {}
        self._looker: asyncio.Task[None] | None = None

    async def look(self, visit: Visit) -> None:
        """Nothing to do: `rates` knows of every key."""

    async def enter(self, visit: Visit) -> None:
        self.count_in(visit)

    def count_in(self, visit: Visit) -> None:
        """Count the request against its key. Raises RateLimited. To be called before its body is read; then
        `leave` follows, however it ends."""
        now, meter = self._monotonic(), self._key_meter(visit.key)
        meter.check_request(visit.key.limits, now, _THIS_KEY)
        meter.begin(now)
        visit.begun.append(meter)

    def leave(self, visit: Visit) -> None:
        """The request has ended: settle what it was allowed by what it took."""
        tokens = visit.record.billed_tokens
        for part in visit.reserved:
            for meter, reservation in part:
                meter.settle(reservation, tokens)
            tokens = 0
        for meter in visit.begun:
            meter.end()

    def take_back(self, visit: Visit) -> None:
        """Nothing came of what was reserved: it is as if it had not been asked for."""
        for part in visit.reserved:
            for meter, reservation in part:
                meter.settle(reservation, 0)
        visit.reserved.clear()

    def abandon(self, visit: Visit) -> None:
        """The process that answered the request has died: what was reserved is taken for spent."""
        for meter in visit.begun:
            meter.end()

    async def admit(self, visit: Visit, model: str, tokens: int) -> Ticket:
        """A place in an engine, until `release`, for a part of the request that may take `tokens`. Raises
        RateLimited, or UpstreamUnavailable at the deadline."""
        self._reserve(visit, model, tokens)
        line = self._line(model)
        ticket = Ticket(visit.key.id, visit.key.priority, visit.deadline)
        try:
            await self._turn(visit, model, line, ticket)
        except BaseException:
            self.release(model, ticket)
            raise
        return ticket

    def release(self, model: str, ticket: Ticket) -> None:
        """The place is free: the next one's turn."""
        line = self._line(model)
        line.leave(ticket)
        if len(line):
            self._admit(model, line)

    def close(self) -> None:
        if self._looker is not None:
            self._looker.cancel()

    def rates(self, visit: Visit) -> list[Rate]:
        """What the limits per minute still allow; of key and model the one with less left."""
        limited, model = [(self._key_meter(visit.key), visit.key.limits)], visit.record.model
        if model in self._route_limits:
            limited.append((self._model_meter(model), self._limits_of(model)))
        requests = [(meter.requests, limits.requests_per_minute) for meter, limits in limited]
        tokens = [(meter.tokens, limits.tokens_per_minute) for meter, limits in limited]
        now = self._monotonic()
        return [*_rate("requests", requests, now), *_rate("tokens", tokens, now)]

    def _reserve(self, visit: Visit, model: str, tokens: int) -> None:
        """Check everything first, so that a refusal takes nothing."""
        now, wall = self._monotonic(), self._clock()
        meters = [self._key_meter(visit.key)]
        meters[0].check_tokens(visit.key.limits, tokens, now, wall, _THIS_KEY)
        if model in self._route_limits:
            self._enter_model(visit, model, tokens, now, wall)
            meters.append(self._model_meter(model))
        visit.reserved.append([(meter, meter.reserve(tokens, now, wall)) for meter in meters])

    def _enter_model(self, visit: Visit, model: str, tokens: int, now: float, wall: float) -> None:
        limits, meter, whose = self._limits_of(model), self._model_meter(model), f"the model `{model}`"
        meter.check_tokens(limits, tokens, now, wall, whose)
        if meter not in visit.begun:
            meter.check_request(limits, now, whose)
            meter.begin(now)
            visit.begun.append(meter)

    async def _turn(self, visit: Visit, model: str, line: Line, ticket: Ticket) -> None:
        gone = line.join(ticket, self._capacity(model))
        if gone is ticket:
            raise _full(model)
        if gone is not None and not (turn := self._turns[gone]).done():
            turn.set_exception(_full(model))
        if not line.is_running(ticket):
            await self._wait(visit, model, ticket)

    async def _wait(self, visit: Visit, model: str, ticket: Ticket) -> None:
        began = self._monotonic()
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(visit.deadline - began):
                await turn
        except TimeoutError as error:
            raise self._too_late(model) from error
        finally:
            del self._turns[ticket]
            visit.record.queue_s += self._monotonic() - began

    async def _look(self) -> None:
        while self._turns:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for model, line in self._lines.items():
                if len(line):
                    self._admit(model, line)

    def _admit(self, model: str, line: Line) -> None:
        for ticket in line.admit(self._capacity(model), self._monotonic()):
            turn = self._turns.get(ticket)
            if turn is not None and not turn.done():
                turn.set_result(None)

    def _capacity(self, model: str) -> int:
        here = self._capacity_of(model)
        limits = self._route_limits.get(model)
        return here if limits is None or limits.concurrency is None else min(here, limits.concurrency)

    def _too_late(self, model: str) -> UpstreamUnavailable:
        if self._capacity(model) == 0:
            return UpstreamUnavailable(
                f"No engine for `{model}` is ready: try again later", code="engine_unavailable"
            )
        return UpstreamUnavailable(
            f"No engine for `{model}` had a place in time: try again later", code="queue_timeout"
        )

    def _line(self, model: str) -> Line:
        if (line := self._lines.get(model)) is None:
            limits = self._route_limits.get(model)
            places = None if limits is None else limits.queue
            line = self._lines[model] = Line(self._settings.queue if places is None else places)
            self._metrics.queue_depth.labels(model).set_function(line.__len__)
        return line

    def _limits_of(self, model: str) -> Limits:
        """What a model refuses. Its concurrency is not among it: who is too many there waits."""
        found = self._route_limits[model]
        return Limits(
            requests_per_minute=found.requests_per_minute, tokens_per_minute=found.tokens_per_minute
        )

    def _key_meter(self, key: KeyRecord) -> Meter:
        if (meter := self._keys.get(key.id)) is None:
            spent = self._spent.get(key.id, Spent())
            meter = self._keys[key.id] = Meter(spent.days, spent.months)
        return meter

    def _model_meter(self, model: str) -> Meter:
        return self._models.setdefault(model, Meter())


def _rate(kind: str, windows: Sequence[tuple[Window, int | None]], now: float) -> list[Rate]:
    rates = [
        Rate(kind, most, max(0, most - window.total(now)), window.reset_s(now))
        for window, most in windows
        if most is not None
    ]
    return sorted(rates, key=lambda rate: rate.left)[:1]


def _full(model: str) -> RateLimited:
    return RateLimited(
        f"Too many requests wait for `{model}`: try again later", reason="queue_full", retry_after_s=1.0
    )

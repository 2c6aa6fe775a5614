from __future__ import annotations

from typing import Any

from sovereign_ai.gateway.breaker import LEAST_FAILURES
from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.messages import Busy, Happened, Health
from sovereign_ai.gateway.metrics import Metrics
from sovereign_ai.gateway.sharing import LeadingPool, SharedPool
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import in_loop, routes_to


class Processes:
    """A coordinator's pool and two workers', each of which hears what another says. Nothing is asked."""

    def __init__(self) -> None:
        fakes = FakeTriton(), FakeTriton()
        for number, fake in enumerate(fakes):
            fake.url = f"http://127.0.0.1:{number + 1}"
        self.now, self.lines = 100.0, [b""]
        journal = Journal(self.lines.append, lambda: 0.0)
        self.lead = LeadingPool(
            routes_to(*fakes), Metrics(), journal, clock=lambda: self.now, changed=self._told_health
        )
        self.workers = [self._worker(number, routes_to(*fakes), journal) for number in (0, 1)]
        self.said: list[Any] = []
        for upstream in self.lead._all():
            self.lead._set_health(upstream, True)

    def _worker(self, number: int, routes: Any, journal: Journal) -> SharedPool:
        def tell(told: Happened) -> None:
            self.said.append(told)
            self.lead.take(told)
            self.workers[1 - number].take(told)

        return SharedPool(
            routes,
            Metrics(),
            journal,
            clock=lambda: self.now,
            tell=tell,
            chosen=lambda: self.said.append("chosen"),
        )

    def _told_health(self) -> None:
        for worker in self.workers:
            worker.take_health(self.lead.health())


@in_loop
async def test_health_comes_from_the_coordinator() -> None:
    here = Processes()
    one = here.workers[0]
    assert one.capacity("smol") == here.lead.capacity("smol") == 512
    one.take_health(Health([("smol", "smol-up-0", False), ("gone", "x", True)]))
    assert one.capacity("smol") == 256
    assert not any(b"endpoint_health" in line and b"false" in line for line in here.lines)


@in_loop
async def test_failures_anywhere_count_everywhere() -> None:
    """In a row over both workers, and so does the success that ends it."""
    here = Processes()
    for number in range(LEAST_FAILURES):
        pool = here.workers[number % 2]
        pool.failed(pool._by_model["smol"][0])
    assert [pool.capacity("smol") for pool in (here.lead, *here.workers)] == [256] * 3
    assert sum(b"endpoint_ejected" in line for line in here.lines) == 1
    here.now += 3
    assert [pool.capacity("smol") for pool in (here.lead, *here.workers)] == [257] * 3
    one, other = here.workers
    chosen = one.choose("smol", but=[one._by_model["smol"][1]])
    chosen.begin()
    assert [pool.capacity("smol") for pool in (here.lead, other)] == [256] * 2, "its trial is under way"
    one.succeeded(chosen)
    assert [pool.capacity("smol") for pool in (here.lead, *here.workers)] == [512] * 3
    told = len(here.said)
    one.succeeded(chosen)
    assert len(here.said) == told, "a success without trouble is no news"


@in_loop
async def test_an_endpoint_that_cannot_be_reached_or_is_dead() -> None:
    here = Processes()
    one = here.workers[0]
    one.mark_down(one._by_model["smol"][0])
    assert [pool.capacity("smol") for pool in (here.lead, *here.workers)] == [256] * 3
    one.mark_dead(one._by_model["smol"][1])
    assert [pool.capacity("smol") for pool in (here.lead, *here.workers)] == [0] * 3
    assert here.lead._by_model["smol"][1].held_until > here.now


@in_loop
async def test_how_busy_endpoints_are() -> None:
    here = Processes()
    one, other = here.workers
    chosen = one.choose("smol")
    assert here.said == ["chosen"]
    chosen.begin()
    assert one.changes() == [Busy("smol", "smol-up-0", 1)]
    assert one.changes() == []
    other.busy_elsewhere("smol", {"smol-up-0": 1})
    assert other.choose("smol").name == "smol-up-1"
    other.busy_elsewhere("smol", {})
    assert other.choose("smol").name == "smol-up-0"
    chosen.end()
    assert one.changes() == [Busy("smol", "smol-up-0", 0)]

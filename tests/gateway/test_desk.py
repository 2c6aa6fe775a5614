"""Desk and Outpost, the two ends of the way to the door, without a socket between them."""

from __future__ import annotations

from typing import Any

import msgspec

from sovereign_ai.config import GatewaySettings, RouteLimits
from sovereign_ai.errors import ApiError
from sovereign_ai.gateway.admission import KeyRecord, Limits, digest
from sovereign_ai.gateway.desk import Desk
from sovereign_ai.gateway.door import Door
from sovereign_ai.gateway.journal import Journal, UsageRow
from sovereign_ai.gateway.messages import (
    Admit,
    Admitted,
    Broken,
    Busy,
    Enter,
    Entered,
    Happened,
    Leave,
    Look,
    Message,
    Numbers,
    Ready,
    Refused,
    Release,
    Scrape,
    TakeBack,
    Used,
)
from sovereign_ai.gateway.metrics import Metrics
from tests.gateway.running import KEY, NOW, in_loop, key_table, until
from tests.gateway.test_messages import ROW

FOREVER = 1e12


class House:
    """A coordinator that only remembers; also a book of usage."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.desks: list[Desk] = []

    def ready(self, desk: Desk) -> None:
        self.told.append("ready")

    def broken(self, desk: Desk, why: Broken) -> None:
        self.told.append(why)

    def happened(self, desk: Desk, told: Happened) -> None:
        self.told.append(told)

    def numbers(self, desk: Desk, scrape: int, families: list[Any]) -> None:
        self.told.append((scrape, families))

    def scrape(self, desk: Desk, scrape: int) -> None:
        self.told.append(scrape)

    def elsewhere(self, desk: Desk, model: str) -> dict[str, int]:
        others = [one.busy(model) for one in self.desks if one is not desk]
        return {name: count for busy in others for name, count in busy.items()}

    def add_row(self, row: UsageRow) -> None:
        self.told.append(row)


class Scene:
    """A door with `places` per model, and desks of two workers."""

    def __init__(self, places: int = 1, **limits: Any) -> None:
        self.lines: list[bytes] = []
        self.house, journal = House(), Journal(self.lines.append, lambda: NOW)
        settings = GatewaySettings(limits=(RouteLimits(model="m", **limits),))
        self.door = Door(
            settings, Metrics(), lambda model: places, {}, clock=lambda: NOW, monotonic=lambda: 0.0
        )
        self.said: dict[int, list[Message]] = {1: [], 2: []}
        self.one, self.other = (
            Desk(n, self.door, self.house, self.house, journal, self.said[n].append) for n in (1, 2)
        )
        self.house.desks = [self.one, self.other]


def key(**limits: int) -> KeyRecord:
    return msgspec.structs.replace(key_table().records[digest(KEY)], limits=Limits(**limits))


async def heard(scene: Scene, worker: int, kind: type[Message], count: int = 1) -> Any:
    await until(lambda: sum(isinstance(one, kind) for one in scene.said[worker]) >= count)
    return [one for one in scene.said[worker] if isinstance(one, kind)][-1]


@in_loop
async def test_one_limit_for_two_workers() -> None:
    scene = Scene(places=9)
    scene.one.take(Enter(1, key(concurrency=1, requests_per_minute=5)))
    entered = await heard(scene, 1, Entered)
    assert [(rate.kind, rate.left) for rate in entered.rates] == [("requests", 4)]
    scene.other.take(Enter(1, key(concurrency=1, requests_per_minute=5)))
    refused = await heard(scene, 2, Refused)
    assert (refused.part, refused.refusal.word, refused.reserved) == (0, "concurrency", False)
    scene.other.take(Leave(1, 0))
    scene.one.take(Leave(1, 0))
    scene.other.take(Enter(2, key(concurrency=1)))
    await heard(scene, 2, Entered)
    scene.other.take(Look(3, key(requests_per_minute=5)))
    assert (await heard(scene, 2, Entered, 2)).rates[0].left == 3


@in_loop
async def test_the_place_of_one_worker_goes_to_the_next() -> None:
    scene = Scene()
    for desk in (scene.one, scene.other):
        desk.take(Enter(1, key()))
        desk.take(Admit(1, 1, "m", 10, FOREVER))
    await heard(scene, 1, Admitted)
    scene.one.take(Busy("m", "up", 2))
    assert not any(isinstance(one, Admitted) for one in scene.said[2])
    scene.one.take(Release(1, 1))
    assert (await heard(scene, 2, Admitted)).elsewhere == {"up": 2}
    scene.one.take(Busy("m", "up", 0))
    assert not scene.one.busy("m")


@in_loop
async def test_a_worker_that_dies_frees_what_it_had() -> None:
    """Its places and those that it waited for; its tokens stay spent."""
    scene = Scene()
    limited = key(concurrency=2, tokens_per_minute=100)
    scene.one.take(Enter(1, limited))
    scene.one.take(Admit(1, 1, "m", 30, FOREVER))
    scene.one.take(Admit(1, 2, "m", 20, FOREVER))
    await heard(scene, 1, Admitted)
    scene.one.abandon()
    scene.other.take(Enter(1, limited))
    scene.other.take(Enter(2, limited))
    scene.other.take(Admit(1, 1, "m", 10, FOREVER))
    admitted = await heard(scene, 2, Admitted)
    assert admitted.rates[0].left == 100 - 30 - 20 - 10
    assert not any(isinstance(one, Refused) for one in scene.said[2])
    assert scene.door._line("m").running == 1


@in_loop
async def test_what_nothing_came_of_is_given_back() -> None:
    """Another model answers: what was reserved at the first is as if it had not been asked for."""
    scene = Scene(places=9)
    scene.one.take(Enter(1, key(tokens_per_minute=100)))
    scene.one.take(Admit(1, 1, "m", 60, FOREVER))
    await heard(scene, 1, Admitted)
    scene.one.take(Release(1, 1))
    scene.one.take(TakeBack(1))
    scene.one.take(Admit(1, 2, "other", 90, FOREVER))
    assert (await heard(scene, 1, Admitted, 2)).rates[0].left == 10
    scene.one.take(TakeBack(77))


@in_loop
async def test_who_leaves_before_it_was_let_in_takes_nothing() -> None:
    """Even where its place was asked for in the same breath."""
    scene = Scene()
    scene.one.take(Enter(1, key(tokens_per_minute=100)))
    scene.one.take(Admit(1, 1, "m", 60, FOREVER))
    scene.one.take(Leave(1, 0))
    scene.one.take(Release(1, 1))
    scene.one.take(Leave(1, 0))
    scene.other.take(Enter(1, key(tokens_per_minute=100)))
    scene.other.take(Admit(1, 1, "m", 60, FOREVER))
    assert (await heard(scene, 2, Admitted)).rates[0].left == 40


@in_loop
async def test_tokens_are_settled_by_what_it_took() -> None:
    scene = Scene(places=9)
    limited = key(tokens_per_minute=100)
    scene.one.take(Enter(1, limited))
    scene.one.take(Admit(1, 1, "m", 60, FOREVER))
    await heard(scene, 1, Admitted)
    scene.one.take(Release(1, 1))
    scene.one.take(Leave(1, 7))
    scene.one.take(Look(2, limited))
    assert (await heard(scene, 1, Entered, 2)).rates[0].left == 93


@in_loop
async def test_a_refusal_says_whether_tokens_stay_reserved() -> None:
    scene = Scene(queue=0)
    scene.one.take(Enter(1, key(tokens_per_minute=100)))
    scene.one.take(Admit(1, 1, "m", 30, FOREVER))
    await heard(scene, 1, Admitted)
    scene.one.take(Admit(1, 2, "m", 30, FOREVER))
    refused = await heard(scene, 1, Refused)
    assert (refused.part, refused.refusal.word, refused.reserved) == (2, "queue_full", True)
    scene.one.take(Admit(1, 3, "m", 90, FOREVER))
    refused = await heard(scene, 1, Refused, 2)
    assert (refused.part, refused.refusal.kind, refused.reserved) == (3, "TokensLimited", False)


@in_loop
async def test_a_fault_is_told_and_ends_one_request_only() -> None:
    scene = Scene()
    scene.one.take(Enter(1, key()))
    scene.door._capacity_of = lambda model: 1 // 0
    scene.one.take(Admit(1, 1, "m", 1, FOREVER))
    refused = await heard(scene, 1, Refused)
    assert (refused.refusal.kind, refused.refusal.word) == (ApiError.__name__, "internal_error")
    assert b"ZeroDivisionError" in scene.lines[0]


def test_what_is_not_for_the_door() -> None:
    scene, broken, happened = Scene(), Broken("UsageError", "a", "b"), Happened("m", "up", "dead")
    for message in (Used(ROW), Ready(), broken, happened, Numbers(3, []), Scrape(4)):
        scene.one.take(message)
    assert scene.house.told == [ROW, "ready", broken, happened, (3, []), 4]

"""Which cards could work together on one deployment, and how. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import msgspec

from sovereign_ai.planner.layout import Layout
from sovereign_ai.planner.rooms import Pool, Room, Site
from sovereign_ai.spec import LinkKind

MOST_CARDS = 8
"""Cards of one deployment: TP and PP beyond one server's eight are for clusters that match."""

MOST_KINDS = 3
"""Kinds of cards in one pipeline. More would be paced by the worst of four."""

MOST_GROUPS = 400
"""Groups tried on one node; only nodes with dozens of different cards have more."""

Group = tuple[tuple[Pool, int], ...]
"""How many cards of each pool."""


def like_groups(pools: Sequence[Pool], most: int | None = None) -> Iterator[Group]:
    """Cards of one kind: one, two, … up to `most`. A CPU is one device.

    Pools of one kind differ by what their cards have free, by bridges, or by who holds them now. A group
    takes cards from neighbouring pools, beginning at each of them; not every choice among equal cards is
    one of its own."""
    limit = min(sum(len(pool.rooms) for pool in pools), MOST_CARDS, most or MOST_CARDS)
    order = {id(pool): at for at, pool in enumerate(pools)}
    found: dict[tuple[tuple[int, int], ...], Group] = {}
    for count in range(1, limit + 1):
        for start in range(len(pools)):
            taken = _taken([*pools[start:], *pools[:start]], count)
            group = tuple(sorted(taken, key=lambda part: order[id(part[0])]))
            found.setdefault(tuple((order[id(pool)], number) for pool, number in group), group)
    yield from found.values()


def _taken(pools: Sequence[Pool], count: int) -> Iterator[tuple[Pool, int]]:
    for pool in pools:
        number = min(count, len(pool.rooms))
        if number:
            yield pool, number
        count -= number


def mixed_groups(kinds: Sequence[Sequence[Pool]]) -> Iterator[Group]:
    """Cards of two or three kinds, fewest cards first."""
    cards = [list(like_groups(pools)) for pools in kinds if pools[0].first.device.kind == "gpu"]
    found = [
        tuple(part for group in some for part in group)
        for number in range(2, MOST_KINDS + 1)
        for several in combinations(cards, number)
        for some in product(*several)
        if sum(count for group in some for _, count in group) <= MOST_CARDS
    ]
    yield from sorted(found, key=lambda group: (sum(count for _, count in group), len(group)))[:MOST_GROUPS]


def pinned_group(site: Site, pinned: frozenset[tuple[str, str]]) -> Group:
    """The pinned cards exactly; they are pools of their own. Empty where one of them is elsewhere or at
    fault."""
    group = tuple((pool, len(pool.rooms)) for pool in site.pools if pool.first.key in pinned)
    return group if sum(count for _, count in group) == len(pinned) else ()


def layouts(group: Group, link: LinkKind, *, pipelines: bool = True) -> Iterator[Layout]:
    """Tensor parallelism over all of them; pipelines whose stages are alike in themselves."""
    rooms = [_like_the_least(room, pool) for pool, count in group for room in pool.rooms[:count]]
    # Rank 0 has the embedding and the fastest cards; where all are alike this is the order of slots.
    ordered = tuple(sorted(rooms, key=lambda room: -room.card.bandwidth))
    total = len(ordered)
    kinds = Counter(room.card.key for room in ordered)
    for tp in (1, 2, 4, 8):
        if tp == total:
            yield Layout(rooms=ordered, tp=tp, link=link)
        elif pipelines and tp < total and all(count % tp == 0 for count in kinds.values()):
            yield Layout(rooms=ordered, tp=tp, pp=total // tp, link=link)


def _like_the_least(room: Room, pool: Pool) -> Room:
    """Any card of a pool must do: each is planned with the memory that the fullest of them has free."""
    return msgspec.structs.replace(room, usable_bytes=pool.usable_bytes)

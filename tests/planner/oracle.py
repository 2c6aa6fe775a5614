"""The best objective of a small packing problem, by trying everything: what the solver is measured against.

Nothing of the solver is used, only the nouns. Devices are concrete, one by one, without any thought for
those that are interchangeable. Copies are placed one after the other, demand by demand; the best of the rest
depends only on what each device holds, and is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations, product

from sovereign_ai.planner.packing import Option, Problem

Sharing = frozenset[tuple[int, int]]
"""(demand, bytes) of the copies that share a device."""

Content = Sharing | None
"""Of a device: None where a copy has it alone, nobody shares one that is unused."""

State = tuple[Content, ...]
UNUSED: Sharing = frozenset()


def best_objective(problem: Problem) -> tuple[int, ...]:
    rooms = [pool.capacity_bytes for pool in problem.pools for _ in range(pool.count)]
    priorities = sorted({demand.priority for demand in problem.demands})
    total = {
        priority: sum(demand.copies for demand in problem.demands if demand.priority == priority)
        for priority in priorities
    }
    places = [
        [
            (option, taken)
            for option in problem.options
            if option.demand == demand
            for taken in _places(problem, option)
        ]
        for demand in range(len(problem.demands))
    ]

    def ways(demand: int, state: State) -> Iterator[tuple[State, int]]:
        """What devices hold with a copy more, and the copy's score."""
        for option, taken in places[demand]:
            if all(state[at] == UNUSED for at in taken) and all(
                option.need_bytes <= rooms[at] for at in taken
            ):
                yield tuple(None if at in taken else old for at, old in enumerate(state)), option.score
            there = state[taken[0]]
            if option.shared_score is None or there is None:
                continue
            after = there | {(demand, option.need_bytes)}
            different = demand not in {other for other, _ in there}
            if different and sum(need for _, need in after) <= rooms[taken[0]]:
                yield (*state[: taken[0]], after, *state[taken[0] + 1 :]), option.shared_score

    @cache
    def rest(demand: int, placed: int, state: State) -> tuple[int, ...]:
        """The most that copies of `demand` after the first `placed`, and demands after it, can add."""
        if demand == len(problem.demands):
            return (0,) * (len(priorities) + 1)
        wanted = problem.demands[demand]
        best = rest(demand + 1, 0, state)
        if placed == wanted.copies:
            return best
        for after, score in set(ways(demand, state)):
            more = list(rest(demand, placed + 1, after))
            more[priorities.index(wanted.priority)] += 1 if placed else 2 + total[wanted.priority]
            more[-1] += score
            best = max(best, tuple(more))
        return best

    return rest(0, 0, (UNUSED,) * len(rooms))


def _places(problem: Problem, option: Option) -> list[tuple[int, ...]]:
    """All choices of devices that an option can use, by number over all pools."""
    pools = [at for at, pool in enumerate(problem.pools) for _ in range(pool.count)]
    of_pools = [
        combinations([device for device, pool in enumerate(pools) if pool == wanted], count)
        for wanted, count in option.uses
    ]
    return [tuple(device for some in chosen for device in some) for chosen in product(*of_pools)]

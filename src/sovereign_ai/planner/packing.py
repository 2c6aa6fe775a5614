"""Who gets which devices, as a set-packing problem: its nouns, its objective, its rules. Pure.

A device is unused, or one copy has it alone, or copies of different demands share it within its memory.
`solver.solve` finds the best packing; `check` here verifies one against every rule, with exact integers.
Memory is in bytes; demands, pools and options are named by their index in the problem.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from sovereign_ai.spec import Noun

STEPS = 5_000
"""Attempts beyond one an item that `assign` makes before it gives up: some milliseconds."""

Item = TypeVar("Item")
State = TypeVar("State", bound=Hashable)


class Pool(Noun, frozen=True, kw_only=True):
    """Interchangeable devices of one node. `capacity_bytes` is what each of them has to give."""

    node: str
    count: int
    capacity_bytes: int


class Demand(Noun, frozen=True, kw_only=True):
    """One model, wanted `copies` times. Priority 1 is served before priority 2."""

    name: str
    copies: int = 1
    priority: int = 1


class Option(Noun, frozen=True, kw_only=True):
    """One way to run one copy of a demand.

    `uses` are (pool, how many of its devices), all pools of one node. `score` is what a copy is worth with
    its devices for itself, `shared_score` what it is worth where it shares its one device with others: None
    where it never does. `need_bytes` is taken on each of its devices. `key` is unique: of packings that are
    as good, keys decide, never the order of options.
    """

    demand: int
    uses: tuple[tuple[int, int], ...]
    score: int
    need_bytes: int
    key: str
    shared_score: int | None = None

    @property
    def devices(self) -> int:
        return sum(count for _, count in self.uses)


class Problem(Noun, frozen=True, kw_only=True):
    pools: tuple[Pool, ...]
    demands: tuple[Demand, ...]
    options: tuple[Option, ...]


class Placement(Noun, frozen=True, kw_only=True):
    """One copy: its option, whether it shares its device, and (pool, number in the pool) of its devices."""

    option: int
    shared: bool
    devices: tuple[tuple[int, int], ...]


class Packing(Noun, frozen=True, kw_only=True):
    """`objective` as the function of that name gives it. No packing that serves the levels as well has a sum
    of scores above `bound`; `gap` is how far that is above this one's, as a share of it. `proved`: the search
    came to its end, so that no packing serves a level better and `gap` is within what was asked for. Not so
    where time ran out.
    """

    placements: tuple[Placement, ...]
    objective: tuple[int, ...]
    bound: int
    gap: float
    proved: bool


def levels(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """The demands of each priority, the first priority first."""
    by_priority: defaultdict[int, list[int]] = defaultdict(list)
    for index, demand in enumerate(problem.demands):
        by_priority[demand.priority].append(index)
    return tuple(tuple(by_priority[priority]) for priority in sorted(by_priority))


def weight(problem: Problem, level: Iterable[int]) -> int:
    """What the first copy of a demand counts for beside its 1: more than all copies of its level."""
    return 1 + sum(problem.demands[demand].copies for demand in level)


def objective(problem: Problem, placements: Iterable[Placement]) -> tuple[int, ...]:
    """What is maximised, the first entry first: each level's value, then the sum of the scores.

    A level is worth `weight` for each of its demands with a copy, and 1 for each copy.
    """
    placed = list(placements)
    copies = Counter(problem.options[placement.option].demand for placement in placed)
    values = [_level_value(problem, level, copies) for level in levels(problem)]
    return (*values, sum(value(problem, placement) for placement in placed))


def _level_value(problem: Problem, level: Sequence[int], copies: Mapping[int, int]) -> int:
    served = sum(1 for demand in level if copies.get(demand))
    return weight(problem, level) * served + sum(copies.get(demand, 0) for demand in level)


def value(problem: Problem, placement: Placement) -> int:
    """The score of one copy where it is."""
    option = problem.options[placement.option]
    return (option.shared_score or 0) if placement.shared else option.score


def validate(problem: Problem) -> None:
    """Raises ValueError where the problem contradicts itself. An option that fits nowhere does not."""
    _require_unique((demand.name for demand in problem.demands), "demand")
    _require_unique((option.key for option in problem.options), "option")
    for pool in problem.pools:
        _require(
            pool.count >= 0 and pool.capacity_bytes >= 0, f"a pool of `{pool.node}` has less than nothing"
        )
    for demand in problem.demands:
        _require(demand.copies >= 1, f"`{demand.name}` is wanted {demand.copies} times")
    for option in problem.options:
        fault = _fault(problem, option)
        if fault:
            raise ValueError(f"option `{option.key}` {fault}")


def _fault(problem: Problem, option: Option) -> str:
    if not 0 <= option.demand < len(problem.demands):
        return "is of no demand"
    if not option.uses or min(count for _, count in option.uses) < 1:
        return "uses no device"
    if not all(0 <= pool < len(problem.pools) for pool, _ in option.uses):
        return "uses a pool that is not there"
    if min(option.score, option.shared_score or 0, option.need_bytes) < 0:
        return "has a number below 0"
    if option.devices == 1:
        return ""
    if option.shared_score is not None:
        return "shares more than one device"
    if len({pool for pool, _ in option.uses}) < len(option.uses):
        return "names a pool twice"
    nodes = {problem.pools[pool].node for pool, _ in option.uses}
    return "uses more than one node" if len(nodes) > 1 else ""


def check(problem: Problem, packing: Packing) -> None:
    """Raises ValueError where the packing breaks a rule or claims an objective that it does not have."""
    for placement in packing.placements:
        _check_placement(problem, placement)
    copies = Counter(problem.options[placement.option].demand for placement in packing.placements)
    for demand, count in copies.items():
        wanted = problem.demands[demand]
        _require(count <= wanted.copies, f"{count} copies of `{wanted.name}`, {wanted.copies} are wanted")
    _check_devices(problem, packing.placements)
    found = objective(problem, packing.placements)
    _require(packing.objective == found, f"objective {packing.objective} is claimed, {found} reached")
    _require(packing.bound >= found[-1] and packing.gap >= 0, f"bound {packing.bound} is below the score")


def _check_placement(problem: Problem, placement: Placement) -> None:
    option = problem.options[placement.option]
    _require(not placement.shared or option.shared_score is not None, f"`{option.key}` shares a device")
    taken = Counter(pool for pool, _ in placement.devices)
    _require(taken == dict(option.uses), f"`{option.key}` does not have the devices that it uses")
    _require(len(set(placement.devices)) == len(placement.devices), f"`{option.key}` has a device twice")
    for index, number in placement.devices:
        pool = problem.pools[index]
        _require(0 <= number < pool.count, f"`{option.key}` is on device {number} of {pool.count}")
        _require(option.need_bytes <= pool.capacity_bytes, f"`{option.key}` is larger than its device")


def _check_devices(problem: Problem, placements: Iterable[Placement]) -> None:
    """What copies on one device owe each other."""
    tenants: defaultdict[tuple[int, int], list[Placement]] = defaultdict(list)
    for placement in placements:
        for device in placement.devices:
            tenants[device].append(placement)
    for device, there in tenants.items():
        options = [problem.options[placement.option] for placement in there]
        alone = len(there) == 1 or all(placement.shared for placement in there)
        _require(alone, f"device {device} is taken by one alone and by others")
        needed = sum(option.need_bytes for option in options)
        _require(needed <= problem.pools[device[0]].capacity_bytes, f"device {device} holds {needed} bytes")
        _require(
            len({option.demand for option in options}) == len(options), f"device {device}: a demand twice"
        )


def _require_unique(names: Iterable[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    _require(not twice, f"{what} names are there twice: {', '.join(twice)}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def assign(
    items: Sequence[Item], bins: Sequence[State], put: Callable[[State, Item], State | None]
) -> list[int | None]:
    """The bin of each item. None for some, where not all find one or STEPS attempts are not enough.

    `put` gives a bin's state with an item more, None where it does not fit. Each item goes into the first bin
    that takes it; where none does, the item before it tries its next. Of bins in equal states one is tried.
    """
    states, chosen, before = list(bins), list[int](), list[State]()
    untried = [_distinct(states)]
    for _ in range(len(items) + STEPS):
        if len(chosen) == len(items):
            return list(chosen)
        found = _first_fit(untried[-1], states, items[len(chosen)], put)
        if found is not None:
            before.append(states[found[0]])
            chosen.append(found[0])
            states[found[0]] = found[1]
            untried.append(_distinct(states))
        elif chosen:
            untried.pop()
            states[chosen.pop()] = before.pop()
        else:
            break
    return _assign_some(items, bins, put)


def _assign_some(
    items: Iterable[Item], bins: Iterable[State], put: Callable[[State, Item], State | None]
) -> list[int | None]:
    states, chosen = list(bins), list[int | None]()
    for item in items:
        found = _first_fit(_distinct(states), states, item, put)
        chosen.append(found[0] if found else None)
        if found:
            states[found[0]] = found[1]
    return chosen


def _first_fit(
    bins: Iterator[int], states: Sequence[State], item: Item, put: Callable[[State, Item], State | None]
) -> tuple[int, State] | None:
    for index in bins:
        after = put(states[index], item)
        if after is not None:
            return index, after
    return None


def _distinct(states: Sequence[State]) -> Iterator[int]:
    """Lazy: what has changed in `states` is back as it was when the next is asked for."""
    seen: set[State] = set()
    for index, state in enumerate(states):
        if state not in seen:
            seen.add(state)
            yield index

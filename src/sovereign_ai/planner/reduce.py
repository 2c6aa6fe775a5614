"""A packing problem made small without losing its optimum, and the way back to devices. Pure.

1. Options become `Mode`s: an option alone, and an option on a device that it shares. What fits nowhere goes.
2. Nodes that are alike become one `Group`: the solver counts copies as if it were one big node.
3. Modes go that another beats in every packing (`undominated`, `sociable`), or that are so poor that a better
   one of the same demand is always free (`unblockable`).
4. `hand_out` gives the copies of a group the devices of its nodes, or says what has to be modelled finer.

Each step has its proof in a docstring. Priorities and names of demands, names of nodes and keys of options
order everything, so that the result does not depend on how demands and options are listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from operator import itemgetter
from typing import NamedTuple

from sovereign_ai.planner.packing import Option, Placement, Problem, assign

Uses = tuple[tuple[int, int], ...]
"""(position of the pool in the group, devices of it), by position."""

Covers = tuple[frozenset[int], ...]
"""Sets of modes that do not fit on one device together."""


class Mode(NamedTuple):
    """An option, alone or sharing, on every node of a group. `rank` is its demand's; `options` has its index
    in the problem, node by node. `need_bytes` is 0 alone, where it does not matter."""

    rank: int
    shared: bool
    uses: Uses
    value: int
    need_bytes: int
    options: tuple[int, ...]

    @property
    def devices(self) -> int:
        return sum(count for _, count in self.uses)

    @property
    def position(self) -> int:
        """Of the one pool of a shared mode."""
        return self.uses[0][0]


class Group(NamedTuple):
    """Nodes that are alike. `nodes` has the indexes of each node's pools by position; `counts` and
    `capacities` are of one node's pools. `covers` has, by position, None where sharing is modelled for all
    devices of the group together; else it is modelled device by device, and the covers are kept.
    """

    nodes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    capacities: tuple[int, ...]
    modes: tuple[Mode, ...]
    covers: tuple[Covers | None, ...]

    def sharing(self, position: int) -> Iterator[int]:
        """The modes that share devices of a pool."""
        return (at for at, mode in enumerate(self.modes) if mode.shared and mode.position == position)


class Reduced(NamedTuple):
    """`ranked` are the demands by rank."""

    ranked: tuple[int, ...]
    groups: tuple[Group, ...]


def reduce(problem: Problem) -> Reduced:
    ranked = _ranked(problem)
    groups = [sociable(undominated(group)) for group in alike(problem, ranked)]
    copies = [problem.demands[demand].copies for demand in ranked]
    return Reduced(ranked, tuple(unblockable(groups, copies)))


def _ranked(problem: Problem) -> tuple[int, ...]:
    numbered = enumerate(problem.demands)
    return tuple(at for at, _ in sorted(numbered, key=lambda one: (one[1].priority, one[1].name)))


_Bare = tuple[int, bool, Uses, int, int]
"""A mode without its options."""

_Node = tuple[tuple[int, ...], list[tuple[_Bare, int]]]
"""(pools by position, modes with their option, sorted) of one node."""


def alike(problem: Problem, ranked: Sequence[int]) -> list[Group]:
    """Groups of nodes that differ in their names only: same pools by position, same modes.

    To solve a group as one node with all its devices is a relaxation: whatever fits on the nodes fits on
    that. So the best packing of groups is a bound, and where its copies find devices on the nodes, it is the
    best packing of the nodes.
    """
    groups: defaultdict[tuple[Uses, tuple[_Bare, ...]], list[_Node]] = defaultdict(list)
    for pools, modes in _by_node(problem, ranked):
        bare = tuple(mode for mode, _ in modes)
        groups[_sizes(problem, pools, bare), bare].append((pools, modes))
    return [_group(sizes, bare, nodes) for (sizes, bare), nodes in groups.items()]


def _sizes(problem: Problem, pools: Sequence[int], modes: Iterable[_Bare]) -> Uses:
    """(devices, capacity) of each pool; 0 for a capacity that does not matter, as nothing shares."""
    sharing = {uses[0][0] for _, shared, uses, _, _ in modes if shared}
    there = [problem.pools[pool] for pool in pools]
    return tuple((pool.count, pool.capacity_bytes * (at in sharing)) for at, pool in enumerate(there))


def _group(sizes: Uses, bare: Sequence[_Bare], nodes: Sequence[_Node]) -> Group:
    options = zip(*([option for _, option in modes] for _, modes in nodes), strict=True)
    return Group(
        nodes=tuple(pools for pools, _ in nodes),
        counts=tuple(count for count, _ in sizes),
        capacities=tuple(capacity for _, capacity in sizes),
        modes=tuple(Mode(*mode, of_nodes) for mode, of_nodes in zip(bare, options, strict=True)),
        covers=(None,) * len(sizes),
    )


def _by_node(problem: Problem, ranked: Sequence[int]) -> Iterator[_Node]:
    """The nodes that have modes, by name."""
    rank = {demand: at for at, demand in enumerate(ranked)}
    pools, options = problem.pools, problem.options
    by_node: defaultdict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(options)), key=lambda index: options[index].key):
        by_node[pools[options[index].uses[0][0]].node].append(index)
    for _, indexes in sorted(by_node.items()):
        positions = _positions(problem, indexes)
        modes = [
            (mode, index) for index in indexes for mode in _modes(problem, options[index], rank, positions)
        ]
        if modes:
            yield tuple(positions), sorted(modes, key=itemgetter(0))


def _positions(problem: Problem, indexes: Iterable[int]) -> dict[int, int]:
    """The pools that a node's options use and their positions, like before like: by what the options on them
    are worth, by size, then as listed."""
    worth: defaultdict[int, int] = defaultdict(int)
    for option in (problem.options[index] for index in indexes):
        for pool, count in option.uses:
            worth[pool] += option.score * count
    pools = problem.pools
    order = sorted(worth, key=lambda at: (worth[at], pools[at].count, pools[at].capacity_bytes, at))
    return {pool: position for position, pool in enumerate(order)}


def _modes(
    problem: Problem, option: Option, rank: Mapping[int, int], positions: Mapping[int, int]
) -> Iterator[_Bare]:
    """None where the option does not fit on empty devices."""
    for pool, count in option.uses:
        if count > problem.pools[pool].count or option.need_bytes > problem.pools[pool].capacity_bytes:
            return
    uses = tuple(sorted([(positions[pool], count) for pool, count in option.uses]))
    yield rank[option.demand], False, uses, option.score, 0
    if option.shared_score is not None:
        yield rank[option.demand], True, uses, option.shared_score, option.need_bytes


def undominated(group: Group) -> Group:
    """Without the modes that another of the same demand makes needless, which is worth as much and

    - for a mode alone: uses a subset of its devices. A copy moves to that subset, which it had for itself;
      where the better mode shares, it shares a device with nobody.
    - for a mode that shares: shares a device of the same pool and needs no more memory. A copy stays on its
      device, where the other copies still fit and are of other demands.

    The packing stays one and is worth as much, so that some best packing uses none of the modes dropped. They
    are compared best first: whatever a dropped one would beat, the one that beat it beats, too.
    """
    best_first = sorted(group.modes, key=lambda mode: (mode.rank, -mode.value, mode.devices, *mode[1:5]))
    kept: list[Mode] = []
    for _, of_demand in groupby(best_first, key=lambda mode: mode.rank):
        better: list[Mode] = []
        for mode in of_demand:
            if not any(_dominates(one, mode) for one in better):
                better.append(mode)
        kept += better
    return group._replace(modes=tuple(kept))


def _dominates(better: Mode, mode: Mode) -> bool:
    """Given that `better` is of the same demand and worth as much."""
    if mode.shared:
        return better.shared and better.position == mode.position and better.need_bytes <= mode.need_bytes
    uses = dict(mode.uses)
    return all(count <= uses.get(position, 0) for position, count in better.uses)


def sociable(group: Group) -> Group:
    """Without the shared modes beside which no mode of another demand fits, where the same demand is worth as
    much alone on such a device: a copy is by itself on its device in every packing, and may have it alone."""
    alone = {(mode.rank, mode.uses): mode.value for mode in reversed(group.modes) if not mode.shared}
    least: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for mode in (mode for mode in group.modes if mode.shared):
        there = least[mode.position]
        there[mode.rank] = min(mode.need_bytes, there.get(mode.rank, mode.need_bytes))

    def needless(mode: Mode) -> bool:
        if not mode.shared or alone.get((mode.rank, mode.uses), -1) < mode.value:
            return False
        others = [need for rank, need in least[mode.position].items() if rank != mode.rank]
        return not others or mode.need_bytes + min(others) > group.capacities[mode.position]

    return group._replace(modes=tuple(mode for mode in group.modes if not needless(mode)))


def unblockable(groups: Sequence[Group], copies: Sequence[int]) -> list[Group]:
    """Of each demand only the best modes, as many as all other copies together cannot block.

    A mode on a node is free where enough devices are unused. Let b be the minimum over its pools of (devices
    of the pool - devices used + 1): where the other copies touch fewer than b devices of the node, the mode
    is free there. To block all modes of a set H on all nodes, they have to touch b(node) devices of each node
    at least, where b(node) is the largest b of H's modes there. Take any cap, and count no more than cap and
    b(node) of the devices touched on a node: to block H takes Σ over nodes of min(b(node), cap). A copy is on
    one node and touches no more devices than its demand's largest mode does, so that it adds no more than
    min(that, cap). Where all other copies together add less than the sum, one of H is free in every packing.

    Let H be the best modes of a demand, until that is so, and let a best packing use as few modes outside H
    (of each demand its own H) as any does. If a copy used one, a mode of its demand's H, worth as much, would
    be free, and moving the copy there would give a packing as good that uses fewer. So it uses none.
    """
    kept: list[list[Mode]] = [[] for _ in groups]
    for at, mode in _needed(groups, copies):
        kept[at].append(mode)
    return [group._replace(modes=tuple(modes)) for group, modes in zip(groups, kept, strict=True)]


def _needed(groups: Sequence[Group], copies: Sequence[int]) -> Iterator[tuple[int, Mode]]:
    """(group, mode), demand by demand, best first."""
    ranked: list[list[tuple[int, Mode]]] = [[] for _ in copies]
    for at, group in enumerate(groups):
        for mode in group.modes:
            ranked[mode.rank].append((at, mode))
    touched = [max((mode.devices for _, mode in modes), default=0) for modes in ranked]
    caps = range(1, 1 + max((count for group in groups for count in group.counts), default=0))
    all_add = [
        sum(count * min(most, cap) for count, most in zip(copies, touched, strict=True)) for cap in caps
    ]
    for modes, most in zip(ranked, touched, strict=True):
        others_add = [add - min(most, cap) for add, cap in zip(all_add, caps, strict=True)]
        yield from _until_free(groups, modes, others_add)


def _until_free(
    groups: Sequence[Group], modes: Iterable[tuple[int, Mode]], others_add: Sequence[int]
) -> Iterator[tuple[int, Mode]]:
    """The best modes of a demand; `others_add` is what the other copies add by cap, from 1."""
    to_block, needed = dict[int, int](), [0] * len(others_add)
    for at, mode in sorted(modes, key=lambda found: -found[1].value):
        yield at, mode
        before = to_block.get(at, 0)
        blocks = min(groups[at].counts[position] - count + 1 for position, count in mode.uses)
        to_block[at] = max(before, blocks)
        for cap in range(before, blocks):
            needed[cap:] = [more + len(groups[at].nodes) for more in needed[cap:]]
        if any(add < more for add, more in zip(others_add, needed, strict=True)):
            return


Counts = Sequence[Sequence[int]]
"""Copies of each mode of a group; device by device where sharing is modelled so."""

_Tenancy = tuple[Uses, tuple[int, ...]]
"""Devices of one node and the modes of the copies on them: one mode, or several that share a device."""


class Handed(NamedTuple):
    """What becomes of the copies that the solver counts in a group. `finer` is empty where all found devices;
    else it is the group, modelled so that this answer is not given again."""

    placements: list[Placement]
    finer: list[Group]


def hand_out(group: Group, counts: Counts, shared: Mapping[int, int], copies: int) -> Handed:
    """`shared` is the number of devices shared in each pool, `copies` the number of all copies wanted."""
    tenancies, covers = _alone(group, counts), list(group.covers)
    for position, devices in shared.items():
        together, covers[position] = _together(group, counts, position, devices)
        tenancies += [(((position, 1),), modes) for modes in together]
    tenancies.sort(key=_largest_first)
    nodes = assign([uses for uses, _ in tenancies], [group.counts] * len(group.nodes), _put)
    placements = _placements(group, tenancies, nodes)
    if tuple(covers) != group.covers:
        return Handed(placements, [group._replace(covers=tuple(covers))])
    return Handed(placements, _split(group, copies) if None in nodes else [])


def _split(group: Group, copies: int) -> list[Group]:
    """Each node by itself. A copy is on one node and the nodes are alike, so that as many of them as there
    are copies are enough: what is on one beyond those moves to one that is empty."""
    return [
        Group(
            nodes=(pools,),
            counts=group.counts,
            capacities=group.capacities,
            modes=tuple(mode._replace(options=(mode.options[at],)) for mode in group.modes),
            covers=(None,) * len(group.counts),
        )
        for at, pools in enumerate(group.nodes[:copies])
    ]


def _alone(group: Group, counts: Counts) -> list[_Tenancy]:
    alone = [(at, mode) for at, mode in enumerate(group.modes) if not mode.shared]
    return [(mode.uses, (at,)) for at, mode in alone for _ in range(counts[at][0])]


def _largest_first(tenancy: _Tenancy) -> tuple[int, tuple[int, ...]]:
    uses, modes = tenancy
    return -sum(count for _, count in uses), modes


def _together(
    group: Group, counts: Counts, position: int, devices: int
) -> tuple[list[tuple[int, ...]], Covers | None]:
    """(modes on each shared device of a pool, covers that are to be modelled). Where the copies do not fit,
    sharing is modelled device by device; where it was already, each device that is too full gives a cover:
    HiGHS lets memory be exceeded by its tolerance, one part in a million."""
    modes, before = _copies(group, counts, position), group.covers[position]
    empty = (group.capacities[position], frozenset[int]())
    chosen = assign(modes, [empty] * devices, partial(_share, group))
    if None not in chosen or before is None:
        return _gather(modes, chosen), before if None not in chosen else ()
    given = _by_device(group, counts, position)
    found = [cover for cover in (_cover(group, position, there) for there in given) if cover]
    return (_gather(modes, chosen) if found else given), (*before, *dict.fromkeys(found))


def _by_device(group: Group, counts: Counts, position: int) -> list[tuple[int, ...]]:
    sharing = list(group.sharing(position))
    by_device = zip(*(counts[at] for at in sharing), strict=True)
    there = [tuple(at for at, count in zip(sharing, device, strict=True) if count) for device in by_device]
    return [modes for modes in there if modes]


def _cover(group: Group, position: int, modes: Iterable[int]) -> frozenset[int]:
    """The largest of the modes that do not fit on one device together; empty where all fit."""
    largest = sorted(modes, key=lambda at: -group.modes[at].need_bytes)
    for end, needed in enumerate(accumulate(group.modes[at].need_bytes for at in largest), 1):
        if needed > group.capacities[position]:
            return frozenset(largest[:end])
    return frozenset()


def _copies(group: Group, counts: Counts, position: int) -> list[int]:
    """The mode of each copy that shares, those first that need most memory."""
    largest = sorted(group.sharing(position), key=lambda at: -group.modes[at].need_bytes)
    return [at for at in largest for _ in range(sum(counts[at]))]


_Room = tuple[int, frozenset[int]]
"""Bytes left on a device and the ranks of the demands on it."""


def _share(group: Group, room: _Room, at: int) -> _Room | None:
    mode, (left, ranks) = group.modes[at], room
    fits = mode.need_bytes <= left and mode.rank not in ranks
    return (left - mode.need_bytes, ranks | {mode.rank}) if fits else None


def _put(left: tuple[int, ...], uses: Uses) -> tuple[int, ...] | None:
    after = list(left)
    for position, count in uses:
        after[position] -= count
    return None if min(after) < 0 else tuple(after)


def _gather(modes: Iterable[int], chosen: Iterable[int | None]) -> list[tuple[int, ...]]:
    there: defaultdict[int, list[int]] = defaultdict(list)
    for at, device in zip(modes, chosen, strict=True):
        if device is not None:
            there[device].append(at)
    return [tuple(modes) for modes in there.values()]


def _placements(group: Group, tenancies: Iterable[_Tenancy], nodes: Iterable[int | None]) -> list[Placement]:
    """Numbers within a pool are given lowest first."""
    free: defaultdict[int, int] = defaultdict(int)
    placements: list[Placement] = []
    for (uses, modes), node in zip(tenancies, nodes, strict=True):
        if node is None:
            continue
        pools = [(group.nodes[node][position], count) for position, count in uses]
        devices = tuple((pool, free[pool] + more) for pool, count in pools for more in range(count))
        free.update({pool: free[pool] + count for pool, count in pools})
        for mode in (group.modes[at] for at in modes):
            placements.append(Placement(option=mode.options[node], shared=mode.shared, devices=devices))
    return placements

"""The best packing, by integer programming with HiGHS (https://highs.dev). Pure.

What HiGHS gets is a small relaxation: nodes that are alike are one big node, and the devices of a pool that
copies share are one big device. Its best answer is a bound for the real problem. `hand_out` then gives the
copies their devices; in most cases it can, so that the bound is reached and the packing is the best. Where it
cannot, only what failed is modelled finer, and the model is solved again: shared devices one by one, covers
where HiGHS' tolerance hides that memory is missing, nodes one by one. Refining has an end, so that the answer
is exact in any case.

Levels are lexicographic. The first attempt asks for everything wanted and maximises the scores, in one run;
only where that cannot be had, each level is maximised in turn and held.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from sovereign_ai.planner import packing
from sovereign_ai.planner.packing import Packing, Placement, Problem
from sovereign_ai.planner.reduce import Group, Handed, Mode, hand_out, reduce

MAX_TOTAL_SCORE = 1_000_000_000
"""HiGHS computes in 64-bit floats: up to here two sums of scores that differ by 1 stay apart. Up to 1e7 they
do so even where every tolerance of HiGHS is used to its end."""

FLOAT_ERROR = 0.01
"""By so much a bound on integers that HiGHS gives as a float may be too low."""

CUTS = (1, 2, 3)
"""Rows that tighten sharing: see `_Model._share`."""

SLICE = 0.5
"""Of the time left, what one run may take: there is always some for the next."""

LEAST_TIME = 0.05
"""Of the time limit: with less of it left, nothing is modelled finer."""

OPTIONS: Mapping[str, bool | int | float | str] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "random_seed": 0,
    "mip_abs_gap": 0.5,
    "presolve": "off",
    "mip_heuristic_run_feasibility_jump": False,
    "mip_heuristic_effort": 0.3,
}
"""One thread and one seed: the same model has the same answer. Objectives are sums of integers: half of one
is no gap. HiGHS' presolve finds little that `reduce` left, and takes three times as long as the rest of HiGHS
for a thousand cards (that of 1.16 is wrong at times: it calls models infeasible that are not). Feasibility
jump costs 7 ms at every infeasible model, however small. More effort for heuristics than 0.05 finds better
packings in time where much more is wanted than there is."""

Term = tuple[int, float]
"""(column, factor)"""

Reached = tuple[int, int]
"""(demands with a copy, copies) of a level."""


def solve(problem: Problem, *, gap: float = 0.0, time_limit_s: float | None = None) -> Packing:
    """The best packing, as `packing.objective` compares them: the levels exactly, the sum of scores to within
    `gap` of the best (0.01: one percent).

    `time_limit_s` is for the time that HiGHS computes, without building the model. When it is over, the best
    packing found is returned, with `proved` False. Without a time limit the same problem gives the same
    packing, whatever the order of its demands and options.

    Raises ValueError where the problem contradicts itself, or where scores can sum up to more than
    MAX_TOTAL_SCORE.
    """
    packing.validate(problem)
    most = _most(problem)
    if most > MAX_TOTAL_SCORE:
        raise ValueError(f"scores can sum up to {most}: beyond {MAX_TOTAL_SCORE} they cannot be told apart")
    ranked, groups = reduce(problem)
    found = _search(problem, ranked, groups, gap, _Clock(time_limit_s))
    best = _packing(problem, ranked, found, most)
    packing.check(problem, best)
    return best


def _most(problem: Problem) -> int:
    """No packing has a higher sum of scores."""
    best = [0] * len(problem.demands)
    for option in problem.options:
        best[option.demand] = max(best[option.demand], option.score, option.shared_score or 0)
    return sum(demand.copies * score for demand, score in zip(problem.demands, best, strict=True))


class _Found(NamedTuple):
    """`bound` is of the scores, math.inf where nothing is known."""

    placements: list[Placement]
    bound: float
    proved: bool


def _packing(problem: Problem, ranked: Sequence[int], found: _Found, most: int) -> Packing:
    rank = {demand: at for at, demand in enumerate(ranked)}

    def order(placement: Placement) -> tuple[int, str, tuple[tuple[int, int], ...]]:
        option = problem.options[placement.option]
        return rank[option.demand], option.key, placement.devices

    placements = tuple(sorted(found.placements, key=order))
    reached = packing.objective(problem, placements)
    bound = max(reached[-1], math.floor(min(found.bound, most) + FLOAT_ERROR))
    gap = (bound - reached[-1]) / max(1, reached[-1])
    return Packing(placements=placements, objective=reached, bound=bound, gap=gap, proved=found.proved)


class _Clock:
    """Seconds that are left to HiGHS."""

    def __init__(self, limit_s: float | None) -> None:
        self.left = math.inf if limit_s is None else limit_s
        self._least = 0.0 if limit_s is None else limit_s * LEAST_TIME

    @property
    def over(self) -> bool:
        return self.left <= self._least


def _search(
    problem: Problem, ranked: Sequence[int], groups: Sequence[Group], gap: float, clock: _Clock
) -> _Found:
    """What levels reach in a relaxation is a bound as well: the next, finer one tries for that first."""
    levels = packing.levels(problem)
    reached = [(len(level), sum(problem.demands[at].copies for at in level)) for level in levels]
    best, proved = list[Placement](), True
    while groups:
        model = _Model(problem, ranked, groups)
        answer = _maximise(_Highs(model, clock), model, reached, gap)
        handed = list(_hand_out(model, groups, answer.values))
        found = [placement for of_group in handed for placement in of_group.placements]
        best = max(found, best, key=partial(packing.objective, problem))
        proved = proved and answer.proved
        if not any(of_group.finer for of_group in handed):
            return _Found(best, answer.bound, proved)
        if clock.over:
            return _Found(best, math.inf, False)
        groups = [
            one for group, of_group in zip(groups, handed, strict=True) for one in of_group.finer or [group]
        ]
        reached = answer.reached
    return _Found([], 0.0, proved)


def _hand_out(model: _Model, groups: Iterable[Group], values: Sequence[int]) -> Iterator[Handed]:
    for group, modes, devices in zip(groups, model.modes, model.devices, strict=True):
        counts = [[values[column] for column in columns] for columns in modes]
        shared = {
            position: sum(values[column] for column in columns) for position, columns in devices.items()
        }
        yield hand_out(group, counts, shared, sum(model.copies))


class _Answer(NamedTuple):
    """Whole numbers by column; while levels reach `reached`, no scores sum up to more than `bound`."""

    values: list[int]
    reached: list[Reached]
    bound: float
    proved: bool


def _maximise(highs: _Highs, model: _Model, reached: list[Reached], gap: float) -> _Answer:
    """The best scores with levels that reach `reached`, or else as much as they can."""
    highs.hold(model.levels, reached)
    run = highs.run(enumerate(model.scores), gap)
    if run.values is not None:
        return _Answer(run.values, reached, run.bound, run.proved)
    reached, values, proved = [(0, 0)] * len(reached), [0] * len(model.upper), True
    for at, level in enumerate(model.levels):
        highs.hold(model.levels, reached)
        run = highs.run(level.worth(), 0.0, values)
        values, proved = run.values or values, proved and run.proved
        reached[at] = level.reached(values)
    highs.hold(model.levels, reached)
    run = highs.run(enumerate(model.scores), gap, values)
    return _Answer(run.values or values, reached, run.bound, proved and run.proved)


class _Level(NamedTuple):
    """By demand: the column that is 1 where it has a copy, and those that count its copies. The two rows hold
    the sums of both."""

    weight: int
    served: list[int]
    copies: list[list[int]]
    rows: tuple[int, int]

    def reached(self, values: Sequence[int]) -> Reached:
        counts = [sum(values[column] for column in columns) for columns in self.copies]
        return sum(1 for count in counts if count), sum(counts)

    def worth(self) -> Iterator[Term]:
        yield from ((column, self.weight) for column in self.served)
        yield from ((column, 1) for columns in self.copies for column in columns)


class _Model:
    """Columns are integers from 0 to `upper`. Rows are laid out one after the other, as HiGHS takes them.

    `modes` has the columns of each group's modes, several for one where sharing is modelled by device;
    `devices` has those that count shared devices, by group and position.
    """

    def __init__(self, problem: Problem, ranked: Sequence[int], groups: Iterable[Group]) -> None:
        self.upper, self.scores = list[int](), list[int]()
        self.starts, self.columns, self.factors = [0], list[int](), list[float]()
        self.low, self.high = list[float](), list[float]()
        self.copies = [problem.demands[demand].copies for demand in ranked]
        self.by_rank: list[list[int]] = [[] for _ in ranked]
        self.modes, self.devices = list[list[list[int]]](), list[dict[int, list[int]]]()
        for group in groups:
            self._group(group)
        rank = {demand: at for at, demand in enumerate(ranked)}
        self.levels = [
            self._level(packing.weight(problem, level), sorted(rank[demand] for demand in level))
            for level in packing.levels(problem)
        ]

    def _column(self, upper: int, score: int = 0) -> int:
        self.upper.append(upper)
        self.scores.append(score)
        return len(self.upper) - 1

    def _row(self, terms: Iterable[Term], high: float) -> int:
        for column, factor in terms:
            self.columns.append(column)
            self.factors.append(factor)
        self.starts.append(len(self.columns))
        self.low.append(-math.inf)
        self.high.append(high)
        return len(self.low) - 1

    def _group(self, group: Group) -> None:
        sharing, alone = defaultdict[int, list[int]](list), defaultdict[int, list[Term]](list)
        for at, mode in enumerate(group.modes):
            if mode.shared:
                sharing[mode.position].append(at)
        devices = {position: self._devices(group, position, modes) for position, modes in sharing.items()}
        columns = [self._mode(group, mode, devices) for mode in group.modes]
        for mode, of_mode in zip(group.modes, columns, strict=True):
            for position, count in () if mode.shared else mode.uses:
                alone[position].append((of_mode[0], count))
        for position, modes in sharing.items():
            self._sharing(group, position, devices[position], {at: columns[at] for at in modes})
        for position, count in enumerate(group.counts):
            self._pool(count, len(group.nodes), alone[position], devices.get(position, []))
        self.modes.append(columns)
        self.devices.append(devices)

    def _devices(self, group: Group, position: int, modes: Iterable[int]) -> list[int]:
        """No more devices are shared than there are copies that share."""
        copies = sum(self.copies[rank] for rank in {group.modes[at].rank for at in modes})
        most = min(copies, group.counts[position] * len(group.nodes))
        one_by_one = group.covers[position] is not None
        return [self._column(1) for _ in range(most)] if one_by_one else [self._column(most)]

    def _mode(self, group: Group, mode: Mode, devices: Mapping[int, Sequence[int]]) -> list[int]:
        one_by_one = mode.shared and group.covers[mode.position] is not None
        number, upper = (len(devices[mode.position]), 1) if one_by_one else (1, self.copies[mode.rank])
        columns = [self._column(upper, mode.value) for _ in range(number)]
        self.by_rank[mode.rank] += columns
        return columns

    def _pool(self, count: int, nodes: int, alone: Sequence[Term], shared: Iterable[int]) -> None:
        """No more devices are used than there are. And for groups: a node has `count // size` times `size`
        devices, and a copy that uses `used` of them takes `used // size` of those."""
        self._row([*alone, *((column, 1) for column in shared)], count * nodes)
        for size in sorted({int(used) for _, used in alone}):
            if count % size:
                blocks = [(column, used // size) for column, used in alone if used >= size]
                self._row(blocks, count // size * nodes)

    def _sharing(
        self, group: Group, position: int, devices: Sequence[int], columns: Mapping[int, Sequence[int]]
    ) -> None:
        for number, device in enumerate(devices):
            there = {at: of_mode[number] for at, of_mode in columns.items()}
            self._share(group, position, device, there)
            for cover in group.covers[position] or ():
                self._row([(there[at], 1) for at in sorted(cover)], len(cover) - 1)
        for device, following in pairwise(devices):
            self._row([(following, 1), (device, -1)], 0)

    def _share(self, group: Group, position: int, device: int, columns: Mapping[int, int]) -> None:
        """The copies on as many devices as `device` counts: no demand more than once a device, no more memory
        than there is. And cuts, with x the share of a device that a copy needs: on one device the sum of
        (cut + 1) x is cut + 1 at most. So the sum of the largest whole numbers below (cut + 1) x is less than
        cut + 1, which makes it cut at most.
        """
        by_rank = defaultdict[int, list[Term]](list)
        for at, column in columns.items():
            by_rank[group.modes[at].rank].append((column, 1))
        for terms in by_rank.values():
            self._row([*terms, (device, -1)], 0)
        capacity = max(1, group.capacities[position])
        needs = [(column, group.modes[at].need_bytes) for at, column in columns.items()]
        self._row([*((column, need / capacity) for column, need in needs), (device, -1)], 0)
        for cut in CUTS:
            below = [(column, -(-(cut + 1) * need // capacity) - 1) for column, need in needs]
            large = [(column, count) for column, count in below if count > 0]
            if large:
                self._row([*large, (device, -cut)], 0)

    def _level(self, weight: int, ranks: Sequence[int]) -> _Level:
        served = [self._column(1) for _ in ranks]
        copies = [self.by_rank[rank] for rank in ranks]
        for rank, column, columns in zip(ranks, served, copies, strict=True):
            self._row([(copy, 1) for copy in columns], self.copies[rank])
            self._row([(column, 1), *((copy, -1) for copy in columns)], 0)
        served_row = self._row([(column, 1) for column in served], math.inf)
        copies_row = self._row([(column, 1) for columns in copies for column in columns], math.inf)
        return _Level(weight, served, copies, (served_row, copies_row))


class _Run(NamedTuple):
    """`values` by column: None where there are none, or none was found in time. No values are worth more than
    `bound`."""

    values: list[int] | None
    bound: float
    proved: bool


class _Highs:
    """HiGHS with one model."""

    def __init__(self, model: _Model, clock: _Clock) -> None:
        import highspy
        import numpy as np

        size = len(model.upper)
        self._highs = highspy.Highs()  # type: ignore[no-untyped-call]
        self._clock, self._columns = clock, np.arange(size, dtype=np.int32)
        for name, value in OPTIONS.items():
            self._highs.setOptionValue(name, value)
        self._highs.passModel(
            size,
            len(model.low),
            len(model.columns),
            int(highspy.MatrixFormat.kRowwise),
            int(highspy.ObjSense.kMaximize),
            0.0,
            np.zeros(size),
            np.zeros(size),
            np.array(model.upper, dtype=np.float64),
            np.array(model.low, dtype=np.float64),
            np.array(model.high, dtype=np.float64),
            np.array(model.starts, dtype=np.int32),
            np.array(model.columns, dtype=np.int32),
            np.array(model.factors, dtype=np.float64),
            np.full(size, int(highspy.HighsVarType.kInteger), dtype=np.int32),
        )

    def hold(self, levels: Iterable[_Level], reached: Iterable[Reached]) -> None:
        """From now on each level reaches at least so much."""
        for level, least in zip(levels, reached, strict=True):
            for row, low in zip(level.rows, least, strict=True):
                self._highs.changeRowBounds(row, low, math.inf)

    def run(self, worth: Iterable[Term], gap: float, start: Sequence[int] = ()) -> _Run:
        """Maximises the sum of columns by their worth; `start` are values to begin with."""
        import highspy
        import numpy as np

        costs = np.zeros(len(self._columns))
        for column, factor in worth:
            costs[column] = factor
        self._highs.changeColsCost(len(costs), self._columns, costs)
        self._highs.clearSolver()
        if start:
            self._highs.setSolution(len(costs), self._columns, np.array(start, dtype=np.float64))
        self._highs.setOptionValue("mip_rel_gap", gap)
        self._highs.setOptionValue("time_limit", self._clock.left * SLICE)
        before = self._highs.getRunTime()
        self._highs.run()
        self._clock.left -= self._highs.getRunTime() - before
        info = self._highs.getInfo()
        found = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
        values = [round(value) for value in self._highs.getSolution().col_value] if found else None
        optimal = self._highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return _Run(values, info.mip_dual_bound, optimal)

"""How long the solver takes, by itself: random but plausible problems of 6 to 1,000 cards.

    .venv/bin/python benchmarks/solver_scale.py            (or: --cards 1000 --seeds 5 --wanted 0.5)

Nodes hold about four cards, of one kind or of two. Models run on one card, on 2, 4 or 8 cards of a kind, or
across two kinds; small ones may share a card. `--wanted` is the share of all cards that models want, about:
at 4 not everything finds a place. `--uneven` gives each node a little less memory, so that no two are alike.
Columns and rows are of the last model that HiGHS gets, runs the times that it is started; build is all that
is not HiGHS. Importing HiGHS is not measured.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

from sovereign_ai.planner import solver
from sovereign_ai.planner.packing import Demand, Option, Packing, Pool, Problem

GIB = 1 << 30
KINDS = (
    ("3060 Ti", 8, 448),
    ("3070", 8, 448),
    ("3080", 10, 760),
    ("3060", 12, 360),
    ("4070 Ti", 12, 504),
    ("4060 Ti", 16, 288),
    ("3090", 24, 936),
    ("4090", 24, 1008),
    ("A6000", 48, 768),
    ("L40S", 48, 864),
)
"""(name, GiB, GB/s)"""

WEIGHTS_GIB = (0.4, 0.8, 1.5, 3, 4, 6, 8, 8, 14, 16, 28, 40, 64, 140)
CURVE = (6, 12, 25, 50, 100, 250, 500, 1000)


class Measured(NamedTuple):
    """`runs` of HiGHS on `models`; columns and rows of the last."""

    seconds: float
    in_highs: float
    runs: int
    models: int
    columns: int
    rows: int
    packing: Packing


def problem(cards: int, seed: int, *, wanted: float, uneven: bool, models: int = 40) -> Problem:
    dice = random.Random(seed)  # noqa: S311  a benchmark
    pools = [
        pool
        for node in range(-(-cards // 4))
        for pool in _node(f"node-{node:03}", min(4, cards), dice, uneven)
    ]
    number = min(models, max(3, cards // 3))
    wishes = _models(number, wanted * sum(pool.count for pool, _ in pools), dice)
    options = [option for at, (_, weights) in enumerate(wishes) for option in _options(at, weights, pools)]
    demands = tuple(demand for demand, _ in wishes)
    return Problem(pools=tuple(pool for pool, _ in pools), demands=demands, options=tuple(options))


Kind = tuple[str, int, int]


def _node(name: str, cards: int, dice: random.Random, uneven: bool) -> Iterator[tuple[Pool, Kind]]:
    cards = dice.choice((cards, cards, cards, 2 * cards, cards // 2))
    first = dice.choice((cards, cards, cards // 2, cards // 4)) or cards
    for count in (first, cards - first):
        if count:
            kind = dice.choice(KINDS)
            less = dice.randrange(1 << 28) if uneven else 0
            yield Pool(node=name, count=count, capacity_bytes=kind[1] * GIB - less), kind


def _models(number: int, cards: float, dice: random.Random) -> list[tuple[Demand, float]]:
    """(demand, GiB of weights). Once models want about so many cards, others get one copy."""
    found, left = [], cards
    for at in range(number):
        weights = dice.choice(WEIGHTS_GIB)
        each = max(0.3, weights / 12)
        copies = max(1, min(dice.randint(1, 6), round(left / each))) if cards > 12 else dice.randint(1, 2)
        left -= copies * each
        found.append((Demand(name=f"model-{at:02}", copies=copies, priority=dice.randint(1, 3)), weights))
    return found


def _options(at: int, weights: float, pools: list[tuple[Pool, Kind]]) -> Iterator[Option]:
    """Where cards of a node match, or one of each of its two kinds."""
    by_node: dict[str, list[int]] = {}
    for index, (pool, _) in enumerate(pools):
        by_node.setdefault(pool.node, []).append(index)
    for node, indexes in by_node.items():
        sizes = [(index, size) for index in indexes for size in (1, 2, 4, 8) if size <= pools[index][0].count]
        pairs = [tuple((index, 1) for index in indexes)] if len(indexes) == 2 else []
        for uses in [*((one,) for one in sizes), *pairs]:
            yield from _option(at, node, weights, uses, pools)


def _option(
    at: int, node: str, weights: float, uses: tuple[tuple[int, int], ...], pools: list[tuple[Pool, Kind]]
) -> Iterator[Option]:
    """At 16 bit and at half of that, which is worth a tenth less. The score is tokens a second, about: it
    grows with bandwidth over weights, but cards that work together wait for each other."""
    devices = sum(count for _, count in uses)
    for bits, value in (("16", 1.0), ("8", 0.9)):
        gib = weights * (1 if bits == "16" else 0.55)
        need = round((gib / devices + min(1.5, 0.4 + gib / 10)) * GIB)
        if need > min(pools[index][0].capacity_bytes for index, _ in uses):
            continue
        speed = min(pools[index][1][2] for index, _ in uses) * devices**0.6 / gib
        score = round(value * 400 * speed / (speed + 200))
        key = f"{at}/{node}/{uses}/{bits}"
        shared = round(score * 0.8) if devices == 1 and weights <= 4 else None
        yield Option(demand=at, uses=uses, score=score, shared_score=shared, need_bytes=need, key=key)


def measure(case: Problem, *, gap: float, time_limit_s: float | None) -> Measured:
    """Watches the solver build its models and run HiGHS."""
    sizes: list[tuple[int, int]] = []
    in_highs: list[float] = []
    build, run = solver._Model.__init__, solver._Highs.run

    def built(model: solver._Model, *parts: Any) -> None:
        build(model, *parts)
        sizes.append((len(model.upper), len(model.low)))

    def ran(highs: solver._Highs, *parts: Any) -> solver._Run:
        began = time.perf_counter()
        try:
            return run(highs, *parts)
        finally:
            in_highs.append(time.perf_counter() - began)

    start = time.perf_counter()
    with patch.object(solver._Model, "__init__", built), patch.object(solver._Highs, "run", ran):
        packing = solver.solve(case, gap=gap, time_limit_s=time_limit_s)
    seconds = time.perf_counter() - start
    return Measured(seconds, sum(in_highs), len(in_highs), len(sizes), *sizes[-1], packing)


HEADER = (
    "cards",
    "seed",
    "copies",
    "placed",
    "options",
    "columns",
    "rows",
    "models",
    "runs",
    "build s",
    "HiGHS s",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cards", type=int, nargs="*", default=CURVE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--wanted", type=float, default=0.7)
    parser.add_argument("--models", type=int, default=40, help="at most")
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument(
        "--gap", type=float, default=0.01, help="for 64 cards and more; fewer are solved exactly"
    )
    parser.add_argument("--limit", type=float, default=None, help="seconds for HiGHS")
    chosen = parser.parse_args()
    measure(problem(6, 0, wanted=0.7, uneven=False), gap=0.0, time_limit_s=None)  # imports HiGHS
    print("".join(f"{name:>9}" for name in (*HEADER, "total s", "gap %")))
    for cards in chosen.cards:
        totals = [_line(cards, seed, chosen) for seed in range(chosen.seeds)]
        print(f"{cards:>9}   median {statistics.median(totals):.3f} s, most {max(totals):.3f} s")


def _line(cards: int, seed: int, chosen: argparse.Namespace) -> float:
    case = problem(cards, seed, wanted=chosen.wanted, uneven=chosen.uneven, models=chosen.models)
    found = measure(case, gap=chosen.gap if cards >= 64 else 0.0, time_limit_s=chosen.limit)
    copies = sum(demand.copies for demand in case.demands)
    placed = len(found.packing.placements)
    sizes = (
        cards,
        seed,
        copies,
        placed,
        len(case.options),
        found.columns,
        found.rows,
        found.models,
        found.runs,
    )
    building = found.seconds - found.in_highs
    times = f"{building:>9.3f}{found.in_highs:>9.3f}{found.seconds:>9.3f}"
    mark = "" if found.packing.proved else "  time is over"
    print(
        "".join(f"{size:>9}" for size in sizes) + f"{times}{100 * found.packing.gap:>9.2f}{mark}", flush=True
    )
    return found.seconds


if __name__ == "__main__":
    main()

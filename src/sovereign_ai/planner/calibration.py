"""Constants from measured points: what the catalog ships, and what one's own cards add. Pure.

A point is a decode speed that somebody measured. Its time is linear in the constants, so that fitting is
least squares with no negative constant; relative errors, with outliers weighing less, because public tables
hold mistakes and throttled cards."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from sovereign_ai.catalog.speed import Constants
from sovereign_ai.planner import memory
from sovereign_ai.planner.memory import Rank
from sovereign_ai.planner.performance import (
    CLOCK_HZ,
    Card,
    Stage,
    decode_one,
    prefill_s,
    read_key,
    stage_step_s,
    weights_read_bytes,
)
from sovereign_ai.spec import Noun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROUNDS = 12
"""Rounds of re-weighting; the constants stand still to four digits after about eight."""

SWEEPS = 400
"""Sweeps of coordinate descent a round; with a dozen constants it has converged long before."""

GOOD_ERROR = 0.03
"""Relative error up to which a point has full weight: what repeated runs of one card differ by."""

READ_KEYS = ("gddr-16", "gddr-8", "gddr-4", "hbm-16", "hbm-8", "hbm-4")


class Point(Noun, frozen=True, kw_only=True):
    """One measured decode speed: `tokens_per_s` of `batch` sequences together, of `context` tokens each on
    average. With `cards` above 1 the layers are split over so many equal cards, one after the other.

    `weights_bytes` replaces what the formulas say of the weights, where the file's size is known.
    """

    name: str
    card: Card
    rank: Rank
    engine: str
    context: float
    tokens_per_s: float
    batch: int = 1
    cards: int = 1
    weights_bytes: float | None = None
    source: str = ""

    @property
    def read_bytes(self) -> float:
        """Weights that one token reads: the embedding table is not, except one row."""
        if self.weights_bytes is None:
            return weights_read_bytes(self.rank, self.batch)
        shape = self.rank.shape
        table = 0 if shape.tied_head else shape.vocabulary * shape.hidden
        return self.weights_bytes * (1 - table / shape.parameters) / self.rank.tp

    @property
    def seconds(self) -> float:
        """Of one step."""
        return self.batch / self.tokens_per_s


class PromptPoint(Noun, frozen=True, kw_only=True):
    """One measured prefill speed: prompt tokens a second of a prompt of `length` tokens alone."""

    name: str
    card: Card
    rank: Rank
    engine: str
    length: int
    tokens_per_s: float


def _terms(point: Point) -> dict[str, float]:
    """What each constant is multiplied with: seconds are the sum of constant · term."""
    rank, card, shape = point.rank, point.card, point.rank.shape
    clock = CLOCK_HZ / card.clock_hz
    cached = point.batch * memory.kv_bytes_of_sequence(rank, max(1, round(point.context)), block=1)
    terms = {
        "layer_s": shape.layers * clock,
        "attention_s": shape.layers * point.context * clock,
        "split_layer_s": shape.layers * clock * (point.cards > 1),
        "hop_s": point.cards / rank.tp - 1.0,
        read_key(card.kind, rank.format): point.read_bytes / card.bandwidth,
    }
    wide = f"{card.kind}-16"
    terms[wide] = terms.get(wide, 0.0) + cached / card.bandwidth
    return terms


def seconds(constants: Constants, point: Point) -> float:
    """Predicted seconds of one step."""
    known = {
        "layer_s": constants.layer_s,
        "attention_s": constants.attention_s,
        "split_layer_s": constants.split_layer_s,
        "hop_s": constants.hop_s,
        **constants.read,
    }
    fixed = constants.step_s + constants.sequence_s * point.batch
    return fixed + sum(known[name] * term for name, term in _terms(point).items())


def error(constants: Constants, point: Point) -> float:
    """Relative error of the predicted tokens a second: 0.05 is 5 % too fast."""
    return point.seconds / seconds(constants, point) - 1.0


def fit(engine: str, points: Sequence[Point], *, source: str = "") -> Constants:
    """Constants that fit `points` best. What no point tells of is taken from its neighbour: other widths from
    the nearest width of the same memory, a kind of memory without points from the other kind.

    Raises ValueError without points.
    """
    if not points:
        raise ValueError("nothing to fit: no points")
    import numpy as np  # 0.1 s, and only fitting needs it

    names = ("layer_s", "attention_s", "split_layer_s", "hop_s", *READ_KEYS)
    matrix = np.array([[_terms(point).get(name, 0.0) for name in names] for point in points])
    found = _robust(matrix / np.array([[point.seconds] for point in points]))
    values = dict(zip(names, (float(value) for value in found), strict=True))
    seen = {name for name, column in zip(names, matrix.T, strict=True) if column.any()}
    read = _fill({key: values[key] for key in READ_KEYS if key in seen})
    return Constants(
        engine=engine,
        layer_s=values["layer_s"],
        attention_s=values["attention_s"],
        split_layer_s=values["split_layer_s"],
        hop_s=values["hop_s"],
        read=read,
        source=source or f"fitted on {len(points)} points",
    )


def _robust(relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative least squares of relative · x = 1, re-weighted so that it becomes least absolute error for
    the points that fit badly (iteratively re-weighted least squares)."""
    import numpy as np

    weights = np.ones(len(relative))
    found = np.zeros(relative.shape[1])
    for _ in range(ROUNDS):
        found = _nonnegative(relative * weights[:, None], weights, found)
        miss = np.abs(relative @ found - 1.0)
        weights = np.sqrt(1.0 / np.maximum(miss, GOOD_ERROR))
    return found


def _nonnegative(
    matrix: NDArray[np.float64], target: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """min |matrix · x - target| with x ≥ 0, by coordinate descent (Franc, Hlaváč, Navara 2005)."""
    import numpy as np

    gram, goal = matrix.T @ matrix, matrix.T @ target
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    gram, goal, found = gram / np.outer(scale, scale), goal / scale, start * scale
    gradient = gram @ found - goal
    for _ in range(SWEEPS):
        for at in range(len(found)):
            if gram[at, at] > 0.5:  # 1 after scaling, 0 for a constant that no point tells of
                new = max(0.0, found[at] - gradient[at])
                gradient += (new - found[at]) * gram[at]
                found[at] = new
    return np.asarray(found / scale)


def _fill(read: dict[str, float]) -> dict[str, float]:
    """Every kind of memory and every width, from the nearest that was measured."""
    filled = dict(read)
    for kind, other in (("gddr", "hbm"), ("hbm", "gddr")):
        for width, nearest in (("16", ("8", "4")), ("8", ("16", "4")), ("4", ("8", "16"))):
            keys = (f"{kind}-{width}", *(f"{kind}-{near}" for near in nearest), f"{other}-{width}")
            keys += tuple(f"{other}-{near}" for near in nearest)
            filled[f"{kind}-{width}"] = next(read[key] for key in keys if key in read)
    return filled


def adjust(constants: Constants, points: Sequence[Point], *, source: str) -> Constants:
    """Constants moved to one's own `points`: latencies, what a sequence costs, and read factors are scaled
    by a factor each; by fewer where the points cannot tell them apart (too few, or too much alike)."""
    if not points:
        return constants
    import numpy as np

    target = np.array([point.seconds for point in points])
    parts = np.array([_parts(constants, point) for point in points]) / target[:, None]
    # All columns in one are always told apart.
    groups = next(groups for groups in GROUPINGS if _told_apart(_columns(parts, groups)))
    found = _robust(_columns(parts, groups))
    factors = {part: float(found[at]) for at, group in enumerate(groups) for part in group}
    return _scaled(constants, factors[0], factors[1], factors[2], source)


GROUPINGS = (([0], [1], [2]), ([0, 1], [2]), ([0, 1, 2],))
"""Which of latencies, sequences and reading share a factor: all apart where that can be told."""

MAX_CONDITION = 30.0
"""Above it two factors would be told apart by noise: the points are too much alike."""


def _columns(parts: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    import numpy as np

    return np.stack([parts[:, group].sum(axis=1) for group in groups], axis=1)


def _told_apart(columns: NDArray[np.float64]) -> bool:
    """Whether there are as many points as columns, none of them empty or too much like another."""
    import numpy as np

    rows, number = columns.shape
    sizes = np.linalg.norm(columns, axis=0)
    return number == 1 or (
        rows >= number and bool(sizes.all()) and float(np.linalg.cond(columns / sizes)) < MAX_CONDITION
    )


def _parts(constants: Constants, point: Point) -> tuple[float, float, float]:
    """Seconds of a step that are latency, that sequences cost, and that reading takes."""
    sequences = constants.sequence_s * point.batch
    latency = seconds(_scaled(constants, 1.0, 0.0, 0.0, ""), point)
    return latency, sequences, seconds(constants, point) - latency - sequences


def _scaled(constants: Constants, latency: float, sequences: float, reading: float, source: str) -> Constants:
    return msgspec.structs.replace(
        constants,
        layer_s=constants.layer_s * latency,
        attention_s=constants.attention_s * latency,
        split_layer_s=constants.split_layer_s * latency,
        hop_s=constants.hop_s * latency,
        step_s=constants.step_s * latency,
        sequence_s=constants.sequence_s * sequences,
        read={key: value * reading for key, value in constants.read.items()},
        source=source,
    )


def with_batch(
    constants: Constants, stage: Stage, batch: int, context: float, tokens_per_s: float
) -> Constants:
    """Constants whose `sequence_s` explains the speed of one of `batch` streams, the speed alone
    unchanged."""
    alone = 1.0 / decode_one(constants, [stage], context)
    fixed = constants.step_s + constants.sequence_s
    step = stage_step_s(constants, stage, batch, context) - stage_step_s(constants, stage, 1, context)
    each = (1.0 / tokens_per_s - alone - step) / (batch - 1)
    sequence = min(max(0.0, each), fixed)
    return msgspec.structs.replace(constants, sequence_s=sequence, step_s=fixed - sequence)


def with_prompt(constants: Constants, stage: Stage, prompt: int, first_token_s: float) -> Constants:
    """Constants whose `compute` explains the seconds to the first token of a prompt of `prompt` tokens."""
    predicted = prefill_s(constants, [stage], prompt)
    compute = min(MOST_COMPUTE, max(LEAST_COMPUTE, constants.compute * predicted / first_token_s))
    return msgspec.structs.replace(constants, compute=compute)


LEAST_COMPUTE, MOST_COMPUTE = 0.01, 1.0
"""Nothing computes above its peak; far below it something else is slow, which this cannot mend."""


def with_prompts(constants: Constants, points: Sequence[PromptPoint]) -> Constants:
    """Constants whose `compute` explains the middle one of measured prompts. Prompts that are not bound by
    arithmetic, of tiny models say, tell nothing of it and must not pull it. Repeated, since what else a
    prompt takes does not scale."""
    for _ in range(ROUNDS if points else 0):
        ratios = [
            point.tokens_per_s
            * prefill_s(constants, [Stage(rank=point.rank, card=point.card)], point.length)
            / point.length
            for point in points
        ]
        compute = min(MOST_COMPUTE, max(LEAST_COMPUTE, constants.compute * statistics.median(ratios)))
        constants = msgspec.structs.replace(constants, compute=compute)
    return constants

"""Splitting a model's layers over pipeline stages that differ. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.spec import Noun


class StageBound(Noun, frozen=True, kw_only=True):
    """One stage: `seconds` for a layer (in any unit), bytes that it takes without layers and for each
    layer, and the bytes that it has."""

    seconds: float
    fixed_bytes: int
    layer_bytes: int
    room_bytes: int

    @property
    def most(self) -> int:
        """Layers that fit."""
        return max(0, (self.room_bytes - self.fixed_bytes) // max(1, self.layer_bytes))


def split_layers(layers: int, stages: Sequence[StageBound]) -> tuple[int, ...]:
    """Layers of each stage, at least one each: none gets more than it holds, and the slowest stage is as
    fast as can be, because it sets the pace of all.

    Handing out one layer after the other, each to the stage that will be done with its layers first, is
    optimal: the layers are alike. Where they do not fit at all, stages get layers in proportion to their
    room, so that what is missing is spread. Needs as many layers as stages."""
    if sum(stage.most for stage in stages) < layers or any(stage.most < 1 for stage in stages):
        return _in_proportion(layers, [max(1, stage.most) for stage in stages])
    split = [1] * len(stages)
    for _ in range(layers - len(stages)):
        open_stages = [at for at, stage in enumerate(stages) if split[at] < stage.most]
        next_one = min(open_stages, key=lambda at: ((split[at] + 1) * stages[at].seconds, at))
        split[next_one] += 1
    return tuple(split)


def _in_proportion(layers: int, parts: Sequence[int]) -> tuple[int, ...]:
    split = [1] * len(parts)
    for _ in range(layers - len(parts)):
        next_one = min(range(len(parts)), key=lambda at: ((split[at] + 1) / parts[at], at))
        split[next_one] += 1
    return tuple(split)

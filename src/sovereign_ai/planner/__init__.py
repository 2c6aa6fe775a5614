"""Which model goes where, at which context, with how much memory, and why every other option lost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sovereign_ai.errors import PlanError
from sovereign_ai.planner.cpu import place_on_cpu
from sovereign_ai.planner.gpu import place_on_gpus
from sovereign_ai.planner.wish import spots, wishes
from sovereign_ai.spec import Inventory, Model, Plan, Tier

__all__ = ["make_plan"]

NO_WISHES: Mapping[str, int] = MappingProxyType({})


def make_plan(
    inventory: Inventory,
    tiers: Sequence[Tier],
    models: Sequence[Model],
    *,
    contexts: Mapping[str, int] = NO_WISHES,
) -> Plan:
    """A place for every model, in the order of `models`; the same inputs give the same plan, byte for byte.

    `contexts` maps a model's name to the tokens that factory.yaml wishes for it; without a wish a model gets
    the longest context it was made for. Where there is a GPU, GPUs serve; else the CPU does.

    Raises PlanError where a wish cannot be met, with the numbers.
    """
    wanted = wishes(models, contexts)
    there = spots(inventory, tiers)
    if not there:
        raise PlanError("the inventory has no device", "take the inventory again")
    gpus = [spot for spot in there if spot.device.kind == "gpu"]
    deployments, rejected = place_on_gpus(gpus, wanted) if gpus else place_on_cpu(there[0], wanted)
    return Plan(tiers=tuple(tiers), deployments=deployments, rejected=rejected)

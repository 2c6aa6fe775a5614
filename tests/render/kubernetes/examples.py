"""The example rigs, planned once, and stacks of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from sovereign_ai import catalog
from sovereign_ai.cli.planning import plan_of
from sovereign_ai.cli.survey import look
from sovereign_ai.cli.wanted import wishes_for
from sovereign_ai.config import ClusterSettings, Factory, Paths, load_factory
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.render.kubernetes import Stack
from sovereign_ai.spec import Inventory, Plan
from sovereign_ai.store import Store

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/inventory.json"))


class Planned(msgspec.Struct):
    factory: Factory
    inventory: Inventory
    plan: Plan


@cache
def planned(name: str) -> Planned:
    folder = EXAMPLES / name
    factory, inventory = load_factory(folder / "factory.yaml"), look(folder / "inventory.json")
    nowhere = Paths(home=Path("/nowhere"), storage=Path("/nowhere"))
    entries = factory.models or catalog.default_entries()
    tiers = form_tiers(inventory, factory.tiers, catalog_bandwidths(inventory))
    wishes = wishes_for(entries, Store(nowhere.models, nowhere.cache))
    return Planned(factory, inventory, plan_of(factory, nowhere, inventory, tiers, wishes))


def stack(name: str, *, cluster: dict[str, Any] | None = None, **more: Any) -> Stack:
    """An example's stack. A CPU needs an engine image of its own."""
    one = planned(name)
    settings = replace(ClusterSettings(), **(cluster or {}))
    if any(device.kind == "cpu" for device in one.inventory.devices) and settings.engine_image is None:
        settings = replace(settings, engine_image="localhost/engine:1.0")
    backends = {"embedding": "# a backend\n"}
    fields = {"gateway": one.factory.gateway, "backends": backends, "created": 1_700_000_000, **more}
    return Stack(plan=one.plan, inventory=one.inventory, cluster=settings, **fields)

"""`sovereign inventory` and `sovereign tiers`: what there is, and what it is good for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sovereign_ai.cli import tables
from sovereign_ai.config import Factory
from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError
from sovereign_ai.inventory import (
    catalog_bandwidths,
    form_tiers,
    load_inventory,
    save_inventory,
    take_inventory,
)
from sovereign_ai.spec import Inventory


class Source(NamedTuple):
    """Where an inventory is to come from: a file, a cluster, or else this machine."""

    file: Path | None = None
    cluster: bool = False
    kubeconfig: Path | None = None
    context: str | None = None


def look(file: Path | None) -> Inventory:
    """The inventory of `file`, or of this machine. Raises InventoryError."""
    return load_inventory(file) if file else take_inventory()


def survey(console: Console, source: Source) -> Inventory:
    """The inventory of any source; what a cluster's cannot be relied on for is told as notes.

    Raises InventoryError, and UsageError for options that exclude each other.
    """
    if not source.cluster:
        if source.kubeconfig or source.context:
            raise UsageError("--kubeconfig and --context say which cluster: add --cluster")
        return look(source.file)
    if source.file:
        raise UsageError("--inventory and --cluster are two inventories: choose one")
    from sovereign_ai.inventory.cluster import read_cluster

    found = read_cluster(source.kubeconfig, source.context)
    for name, age_s in found.ages.items():
        console.note(f"node {name}: measured {age_s:.0f} s ago")
    for warning in found.warnings:
        console.note(f"warning: {warning}")
    return found.inventory


def show_inventory(console: Console, source: Source, save: Path | None) -> None:
    found = survey(console, source)
    if save:
        save_inventory(save, found)
    if console.json:
        console.data(found)
    else:
        tables.show_inventory(console, found)
        tables.show_slots(console, found)
    if save:
        console.note(f"saved to {save}")


def show_tiers(console: Console, factory: Factory, source: Source) -> None:
    found = survey(console, source)
    tiers = form_tiers(found, factory.tiers, catalog_bandwidths(found))
    if console.json:
        console.data(tiers)
    else:
        tables.show_tiers(console, tiers)
        tables.show_reasons(console, tiers)
    for device in found.devices:
        if device.fault:
            console.note(f"in no tier: {device.id} ({device.name}): {device.fault}")

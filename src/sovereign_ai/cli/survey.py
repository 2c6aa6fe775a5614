"""`sovereign inventory` and `sovereign tiers`: what there is, and what it is good for."""

from __future__ import annotations

from pathlib import Path

from sovereign_ai.cli import tables
from sovereign_ai.config import Factory
from sovereign_ai.console import Console
from sovereign_ai.inventory import (
    catalog_bandwidths,
    form_tiers,
    load_inventory,
    save_inventory,
    take_inventory,
)
from sovereign_ai.spec import Inventory


def look(file: Path | None) -> Inventory:
    """The inventory of `file`, or of this machine. Raises InventoryError."""
    return load_inventory(file) if file else take_inventory()


def show_inventory(console: Console, file: Path | None, save: Path | None) -> None:
    found = look(file)
    if save:
        save_inventory(save, found)
    if console.json:
        console.data(found)
    else:
        tables.show_inventory(console, found)
        tables.show_slots(console, found)
    if save:
        console.note(f"saved to {save}")


def show_tiers(console: Console, factory: Factory, file: Path | None) -> None:
    found = look(file)
    tiers = form_tiers(found, factory.tiers, catalog_bandwidths(found))
    if console.json:
        console.data(tiers)
    else:
        tables.show_tiers(console, tiers)
        tables.show_reasons(console, tiers)
    for device in found.devices:
        if device.fault:
            console.note(f"in no tier: {device.id} ({device.name}): {device.fault}")

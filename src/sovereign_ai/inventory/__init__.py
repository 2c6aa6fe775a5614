"""What there is: nodes and devices as measured, and the tiers they form."""

from __future__ import annotations

from sovereign_ai.inventory.cards import catalog_bandwidths
from sovereign_ai.inventory.document import load_inventory, save_inventory
from sovereign_ai.inventory.host import Host, read_host
from sovereign_ai.inventory.nvml import Gpus, read_gpus
from sovereign_ai.inventory.tiers import form_tiers
from sovereign_ai.spec import Device, Inventory, Node

__all__ = ["catalog_bandwidths", "form_tiers", "load_inventory", "save_inventory", "take_inventory"]


def take_inventory(*, cpu_only: bool = False, whole: bool = False) -> Inventory:
    """Measure this machine: one node with its GPUs, or with the device `cpu` where there is none.

    `cpu_only` does not ask the driver at all; `whole` leaves out the limits of this process's own container,
    which are not those of who will run here. Cards at fault are there, with their `fault`. Raises
    InventoryError where a driver is there but broken.
    """
    return Inventory(nodes=(_node(read_host(whole=whole), Gpus((), None) if cpu_only else read_gpus()),))


def _node(host: Host, gpus: Gpus) -> Node:
    return Node(
        name=host.name,
        devices=gpus.devices or (_cpu(host),),
        cores=host.cores,
        memory_bytes=host.memory_bytes,
        memory_free_bytes=host.memory_free_bytes,
        cpu=host.cpu_name,
        driver_version=gpus.driver_version,
        links=gpus.links,
    )


def _cpu(host: Host) -> Device:
    return Device(
        id="cpu",
        kind="cpu",
        name=host.cpu_name,
        memory_bytes=host.memory_bytes,
        memory_free_bytes=host.memory_free_bytes,
        cores=host.cores,
        instruction_sets=host.instruction_sets,
    )

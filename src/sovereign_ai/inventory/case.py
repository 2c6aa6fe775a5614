"""What the checks of one machine judge by: its condition, and what is to run on it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from sovereign_ai.catalog.releases import Release
from sovereign_ai.config import Pinning
from sovereign_ai.inventory.condition import Condition
from sovereign_ai.spec import Device, Noun


class Demand(Noun, frozen=True, kw_only=True):
    """What is to run here. `limits_bytes` and `shared_bytes` are the sums of memory limits and of /dev/shm of
    the plan's pods on this node; None without a plan. `gateway_runs`: ours has its port already.
    `agent`: whether the node agent runs, which sees the cards by its runtime class and variable."""

    gateway_port: int = 8000
    gateway_runs: bool = False
    agent: bool = True
    pinning: Pinning = "tokens"
    limits_bytes: int | None = None
    shared_bytes: int | None = None


class Case(NamedTuple):
    condition: Condition
    release: Release
    demand: Demand

    @property
    def gpus(self) -> list[Device]:
        return [one for one in self.condition.inventory.devices if one.kind == "gpu"]

    @property
    def no_cluster(self) -> str:
        """Why nothing is asked of Kubernetes here; empty where it is there."""
        return "" if self.condition.system.kubernetes else "no Kubernetes on this machine"

    @property
    def no_runtime(self) -> str:
        """Why nothing is asked of what a runtime class needs."""
        claimed = self.demand.pinning == "dra" and not self.demand.agent
        return self.no_containers or ("pods get their cards by DRA" if claimed else "")

    @property
    def no_containers(self) -> str:
        """Why nothing is asked of NVIDIA's container runtime here."""
        return self.no_cluster or ("" if self.gpus else "no NVIDIA card here")


def title(device: Device) -> str:
    return f"card {device.index} ({device.name})"

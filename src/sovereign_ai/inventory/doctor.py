"""Is this machine fit to serve: one answer a question, with what was seen and what to do. Pure.

The questions are those behind the faults that people with GPUs at home report most: a driver that was updated
under a running kernel, a card that fell off the bus, a riser that trains at x1, a desktop on the best card;
and for Kubernetes a runtime that is configured where nobody reads it, a drive that is not mounted, a choice
of cards that does not reach the container.
"""

from __future__ import annotations

from sovereign_ai.catalog.releases import Release
from sovereign_ai.inventory.case import Case, Demand
from sovereign_ai.inventory.condition import Condition
from sovereign_ai.inventory.doctor_cards import CARD_CHECKS
from sovereign_ai.inventory.doctor_drive import DRIVE_CHECKS
from sovereign_ai.inventory.doctor_driver import DRIVER_CHECKS
from sovereign_ai.inventory.doctor_runtime import RUNTIME_CHECKS
from sovereign_ai.inventory.doctor_system import SYSTEM_CHECKS
from sovereign_ai.inventory.findings import Check, Finding, State, ask

__all__ = ["HOST_CHECKS", "Demand", "Finding", "State", "examine"]

HOST_CHECKS: tuple[Check[Case], ...] = (
    *DRIVER_CHECKS,
    *CARD_CHECKS,
    *SYSTEM_CHECKS,
    *RUNTIME_CHECKS,
    *DRIVE_CHECKS,
)
"""In the order of what a person should mend first."""


def examine(
    condition: Condition,
    release: Release,
    demand: Demand = Demand(),  # noqa: B008  frozen
) -> tuple[Finding, ...]:
    """At least one finding a check: what does not apply here is skipped, with the reason."""
    return ask(HOST_CHECKS, Case(condition, release, demand))

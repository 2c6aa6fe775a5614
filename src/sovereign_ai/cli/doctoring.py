"""`sovereign doctor`: what on this machine stands in the way of serving, and what to do about it."""

from __future__ import annotations

from sovereign_ai.cli.planning import engine_release
from sovereign_ai.config import Factory, Paths
from sovereign_ai.console import Console
from sovereign_ai.inventory import take_inventory
from sovereign_ai.inventory.condition import read_condition
from sovereign_ai.inventory.doctor import Finding, examine
from sovereign_ai.inventory.nvml import read_states

STYLES = {"fault": "bold red", "warning": "yellow", "skipped": "dim", "ok": ""}


def doctor(console: Console, factory: Factory, paths: Paths) -> bool:
    """Show every finding; whether nothing is at fault. Raises InventoryError for a driver that is broken as a
    whole."""
    condition = read_condition(
        take_inventory(), read_states(), {"engine": paths.engines, "models": paths.models}
    )
    findings = examine(condition, engine_release(factory))
    if console.json:
        console.data(findings)
    for finding in findings:
        _show(console, finding)
    return all(finding.state != "fault" for finding in findings)


def _show(console: Console, finding: Finding) -> None:
    console.say(f"{finding.state:<8} {finding.check}: {finding.what}", style=STYLES[finding.state])
    if finding.fix:
        console.say(f"         → {finding.fix}")

"""`sovereign doctor`: what on this machine or in the cluster stands in the way of serving, and what to do."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sovereign_ai.cli.expected import cluster_demand, host_demand
from sovereign_ai.cli.planning import engine_release, read_plan
from sovereign_ai.config import Factory, Paths, environment
from sovereign_ai.console import Console
from sovereign_ai.deploy import local
from sovereign_ai.inventory import take_inventory
from sovereign_ai.inventory.cluster_condition import read_cluster
from sovereign_ai.inventory.cluster_doctor import examine_cluster
from sovereign_ai.inventory.cluster_facts import rights
from sovereign_ai.inventory.condition import read_condition
from sovereign_ai.inventory.doctor import Finding, examine
from sovereign_ai.inventory.nvml import read_states
from sovereign_ai.render.kubernetes.labels import INVENTORY
from sovereign_ai.render.kubernetes.pinning import mode_of
from sovereign_ai.spec import Plan

STYLES = {"fault": "bold red", "warning": "yellow", "skipped": "dim", "ok": ""}


class Access(NamedTuple):
    """Which cluster is asked; None as kubectl has it."""

    kubeconfig: Path | None = None
    context: str | None = None


def doctor(
    console: Console,
    factory: Factory,
    paths: Paths,
    plan: Path | None = None,
    *,
    cluster: Access | None = None,
) -> bool:
    """Show every finding; whether nothing is at fault. Raises InventoryError for a driver that is broken as a
    whole, and for a cluster without its client; ConfigError for a plan that is none."""
    wanted = read_plan(plan) if plan else None
    findings = _host(factory, paths, wanted)
    if cluster:
        findings += _cluster(factory, wanted, cluster)
    if console.json:
        console.data(findings)
    for finding in findings:
        _show(console, finding)
    return all(finding.state != "fault" for finding in findings)


def _host(factory: Factory, paths: Paths, plan: Plan | None) -> tuple[Finding, ...]:
    inventory = take_inventory()
    folders = {"engine": paths.engines, "models": paths.models}
    condition = read_condition(inventory, read_states(), folders, drive=factory.kubernetes.storage.path)
    running = local.running(paths) is not None
    demand = host_demand(factory, plan, inventory.nodes[0].name, running=running)
    return examine(condition, engine_release(factory), demand)


def _cluster(factory: Factory, plan: Plan | None, access: Access) -> tuple[Finding, ...]:
    settings = factory.kubernetes
    asked = rights(dra=mode_of(settings) == "dra", monitoring=settings.monitoring)
    file = access.kubeconfig or _kubeconfig()
    found = read_cluster(file, settings.namespace, INVENTORY, asked, access.context)
    today = datetime.now(UTC).date()
    return examine_cluster(found, cluster_demand(factory, plan, engine_release(factory), today))


def _kubeconfig() -> Path | None:
    """The first of KUBECONFIG's files: kubectl merges them, we do not."""
    first = environment().get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first) if first else None


def _show(console: Console, finding: Finding) -> None:
    title = f"{finding.check}, {finding.subject}" if finding.subject else finding.check
    console.say(f"{finding.state:<8} {title}: {finding.what}", style=STYLES[finding.state])
    if finding.fix:
        console.say(f"         → {finding.fix}")

"""`sovereign diff`, `apply`, `rollback` and `delete`: a plan in a Kubernetes cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sovereign_ai.cli.clusters import ContextName, KubeconfigFile
from sovereign_ai.cli.home import home_paths
from sovereign_ai.config import Factory, Paths, load_factory
from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError

if TYPE_CHECKING:
    from sovereign_ai.deploy.kubernetes.manifests import Wanted

FactoryFile = Annotated[Path | None, Parameter(name=["--factory", "-f"], help="Your factory.yaml.")]
InventoryFile = Annotated[
    Path | None, Parameter(name=["--inventory", "-i"], help="A saved inventory, in place of this machine's.")
]
PlanFile = Annotated[Path | None, Parameter(name="--plan", help="A saved plan, in place of a new one.")]
Manifests = Annotated[
    Path | None, Parameter(name="--manifests", help="A file or folder of YAML, in place of a plan.")
]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="One JSON document on standard output.")]
Yes = Annotated[bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask.")]
Force = Annotated[
    bool, Parameter(name="--force-conflicts", negative="", help="Take over fields that others have set.")
]
Wait = Annotated[bool, Parameter(name="--wait", negative="--no-wait", help="Stay until all pods are ready.")]
Timeout = Annotated[
    float | None, Parameter(name="--timeout", help="Seconds to wait at most (default: told from the probes).")
]


def diff(
    *,
    factory: FactoryFile = None,
    inventory: InventoryFile = None,
    plan: PlanFile = None,
    manifests: Manifests = None,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    json: AsJson = False,
) -> None:
    """Show what `apply` would change in the cluster, and which pods it would restart. Changes nothing.

    Exits with 0 where nothing differs, 1 where something does, as diff.
    """
    from sovereign_ai.cli import rollout

    settings, wanted = _wanted(factory, inventory, plan, manifests)
    access = rollout.Access(kubeconfig, context)
    if rollout.diff(Console(json=json), access, wanted, _version(settings, manifests, factory)):
        sys.exit(1)


def apply(
    *,
    factory: FactoryFile = None,
    inventory: InventoryFile = None,
    plan: PlanFile = None,
    manifests: Manifests = None,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    yes: Yes = False,
    force_conflicts: Force = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Bring the plan into the cluster, after showing what changes; wait until it is ready.

    Objects of this stack that are not part of it any more are deleted; its storage never is.
    """
    from sovereign_ai.cli import rollout

    settings, wanted = _wanted(factory, inventory, plan, manifests)
    way = rollout.Way(yes, force_conflicts, wait, _positive(timeout), "sovereign apply")
    access = rollout.Access(kubeconfig, context)
    rollout.apply(Console(), access, wanted, _version(settings, manifests, factory), way)


def rollback(
    *,
    to: int | None = None,
    factory: FactoryFile = None,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    yes: Yes = False,
    force_conflicts: Force = False,
    wait: Wait = True,
    timeout: Timeout = None,
) -> None:
    """Bring back the last manifests that were ready and differ from what the cluster has now.

    Parameters
    ----------
    to
        This revision instead, as `sovereign status --cluster` numbers them.
    """
    from sovereign_ai.cli import rollout

    settings = load_factory(factory) if factory else Factory()
    way = rollout.Way(yes, force_conflicts, wait, _positive(timeout), "sovereign rollback")
    access = rollout.Access(kubeconfig, context)
    rollout.rollback(Console(), access, settings.kubernetes.namespace, to, way)


def delete(
    *,
    cluster: Annotated[bool, Parameter(negative="")] = False,
    factory: FactoryFile = None,
    kubeconfig: KubeconfigFile = None,
    context: ContextName = None,
    yes: Yes = False,
    with_storage: Annotated[bool, Parameter(negative="")] = False,
    timeout: Timeout = None,
) -> None:
    """Take the stack out of the cluster. Volumes, claims and the namespace stay unless asked for.

    Parameters
    ----------
    cluster
        That it is the cluster's that is meant (`sovereign down` is for this machine).
    with_storage
        Volumes, claims and the namespace with whatever else is in it, too. Files on the drives stay.
    """
    from sovereign_ai.cli import rollout

    if not cluster:
        raise UsageError("delete what: --cluster takes the stack out of the cluster", "here: sovereign down")
    settings = load_factory(factory) if factory else Factory()
    access = rollout.Access(kubeconfig, context)
    rollout.delete(
        Console(),
        access,
        settings.kubernetes.namespace,
        yes=yes,
        with_storage=with_storage,
        timeout_s=_positive(timeout),
    )


def show_status(factory: Path | None, kubeconfig: Path | None, context: str | None, *, json: bool) -> None:
    """Exits with 0 when everything is ready, 3 otherwise."""
    from sovereign_ai.cli import rollout

    settings = load_factory(factory) if factory else Factory()
    access = rollout.Access(kubeconfig, context)
    if not rollout.status(Console(json=json), access, settings.kubernetes.namespace):
        sys.exit(3)


def _wanted(
    factory: Path | None, inventory: Path | None, plan: Path | None, manifests: Path | None
) -> tuple[Factory, Wanted]:
    from sovereign_ai.deploy.kubernetes.manifests import read_manifests, wanted

    settings = load_factory(factory) if factory else Factory()
    if manifests:
        if inventory or plan:
            raise UsageError("--manifests are taken as they are: leave out --inventory and --plan")
        return settings, wanted(read_manifests(manifests))
    return settings, wanted(objects_for(settings, home_paths(settings), inventory=inventory, plan=plan))


def objects_for(
    factory: Factory, paths: Paths, *, inventory: Path | None = None, plan: Path | None = None
) -> tuple[dict[str, object], ...]:
    """What the plan renders to, in the order of its application."""
    from sovereign_ai.cli import manifests

    return manifests.objects_for(factory, paths, inventory=inventory, plan=plan)


def _version(settings: Factory, manifests: Path | None, factory: Path | None) -> str | None:
    """What the objects were made for; not known of manifests without their factory.yaml."""
    return None if manifests and not factory else settings.kubernetes.version


def _positive(timeout: float | None) -> float | None:
    if timeout is not None and not 0 < timeout < 1e6:
        raise UsageError(f"--timeout {timeout:g} is not a number of seconds")
    return timeout

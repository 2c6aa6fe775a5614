"""`sovereign render`: a plan as Kubernetes manifests, to be read before they are applied."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from sovereign_ai import catalog
from sovereign_ai.cli.planning import plan_of, read_plan
from sovereign_ai.cli.survey import look
from sovereign_ai.cli.wanted import wishes_for
from sovereign_ai.config import Factory, Paths
from sovereign_ai.console import Console
from sovereign_ai.errors import UsageError, disk_errors
from sovereign_ai.gateway.keyfile import encode_keys
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.render.kubernetes import Material, Object, Stack, render_stack, to_files, to_stack
from sovereign_ai.render.kubernetes.helm import to_chart
from sovereign_ai.render.kubernetes.text import STACK_FILE
from sovereign_ai.spec import Inventory, Plan
from sovereign_ai.store import Store

OWN_BACKENDS = ("embedding",)
"""Backends that no Triton image brings; vLLM's is the image's own."""

Format = Literal["yaml", "helm"]


def render(
    console: Console,
    factory: Factory,
    paths: Paths,
    *,
    inventory: Path | None,
    plan: Path | None,
    output: Path | None,
    form: Format,
) -> None:
    """Write the manifests into the folder `output`, or all of them to standard output."""
    objects = objects_for(factory, paths, inventory=inventory, plan=plan)
    if output is None:
        if form == "helm":
            raise UsageError("a chart is a folder", "name it: -o FOLDER")
        console.raw(to_stack(objects))
        return
    files = {**to_files(objects), STACK_FILE: to_stack(objects)} if form == "yaml" else to_chart(objects)
    _write(output, files)
    console.note(f"{len(objects)} objects in {len(files)} files below {output}")


def objects_for(
    factory: Factory, paths: Paths, *, inventory: Path | None = None, plan: Path | None = None
) -> tuple[Object, ...]:
    """What a cluster gets. Raises PlanError where not every model finds a place, ConfigError where the
    cluster cannot take the plan."""
    measured = look(inventory)
    made = read_plan(plan) if plan else _plan(factory, paths, measured)
    entries = factory.models or catalog.default_entries()
    stack = Stack(
        plan=made,
        inventory=measured,
        cluster=factory.kubernetes,
        gateway=factory.gateway,
        keys=_keys(paths),
        backends={name: _backend(name) for name in OWN_BACKENDS},
        material=_material(made, paths),
        fallbacks={entry.name: entry.fallback for entry in entries},
    )
    return render_stack(stack)


def _plan(factory: Factory, paths: Paths, inventory: Inventory) -> Plan:
    tiers = form_tiers(inventory, factory.tiers, catalog_bandwidths(inventory))
    entries = factory.models or catalog.default_entries()
    return plan_of(factory, paths, inventory, tiers, wishes_for(entries, Store(paths.models, paths.cache)))


def _keys(paths: Paths) -> str:
    """The digests of this home's keys. Without a ledger there are none, and none is made."""
    if not paths.ledger.exists():
        return "[]\n"
    with Ledger(paths.ledger) as ledger:
        return encode_keys(ledger.list_keys())


def _backend(name: str) -> str:
    folder = resources.files("sovereign_ai.engines").joinpath("backends")
    return folder.joinpath(name, "model.py").read_text(encoding="utf-8")


def _material(plan: Plan, paths: Paths) -> Mapping[str, Material]:
    """Of the models that this store has in the planned version; the others are checked by their drive's own
    manifest."""
    here = {(one.name, one.version): one for one in Store(paths.models, paths.cache).readable()}
    found = {}
    for one in plan.deployments:
        if manifest := here.get((one.model, one.version)):
            files = {file.path: (file.bytes, file.sha256) for file in manifest.files}
            found[one.model] = Material(files=files)
    return found


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """What was rendered before goes, once all that is new is written; what is not ours stays."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    try:
        with disk_errors("writing manifests", folder):
            for name, text in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            for old in _rendered_before(folder, files):
                old.unlink()
    except OSError as error:
        raise UsageError(f"{folder}: manifests cannot be written there: {error.strerror}") from error


def _rendered_before(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Numbered files of an earlier rendering, by their names."""
    numbered = [*folder.glob("[0-9]*-*.yaml"), *folder.glob("templates/[0-9]*-*.yaml")]
    return [path for path in numbered if str(path.relative_to(folder)) not in files]

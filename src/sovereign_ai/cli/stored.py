"""`sovereign models list, show, verify, use, remove, prune, export, import`: what the store holds."""

from __future__ import annotations

import difflib
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.cli.planning import plan_of
from sovereign_ai.cli.survey import look
from sovereign_ai.config import Factory, Paths
from sovereign_ai.console import Console, human_bytes
from sovereign_ai.deploy import local
from sovereign_ai.errors import DigestMismatch, PlanError, SovereignError, StoreError, UsageError, disk_errors
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.planner import wish_for
from sovereign_ai.spec import Deployment, Noun, Plan
from sovereign_ai.store import Manifest, Store, archive
from sovereign_ai.store.layout import regular_files, writer_lock

BILLION = 1e9


class TierFit(Noun, frozen=True, kw_only=True):
    """Whether a tier of this machine can hold a model: how, or why not."""

    tier: str
    fits: bool
    how: str


class Checked(Noun, frozen=True, kw_only=True):
    """What `verify` found of one version. `problem` is empty for a good one."""

    name: str
    version: str
    bytes: int
    problem: str = ""


class Removed(Noun, frozen=True, kw_only=True):
    """`bytes`: what removing it frees; content that other versions share is not counted."""

    what: str
    bytes: int


def _store(paths: Paths) -> Store:
    return Store(paths.models, paths.cache)


def found(store: Store, name: str, version: str | None = None) -> Manifest:
    """A version of a model: the named one, else the current one, else the newest.

    Raises UsageError, naming what there is, for one that is not in the store.
    """
    versions = store.versions(name)
    if not versions:
        names = sorted({manifest.name for manifest in store.list()})
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"in the store: {', '.join(names) or 'nothing yet'}"
        raise UsageError(f"the store has no model `{name}`", hint)
    wanted = version or store.current(name) or versions[-1].version
    for manifest in versions:
        if manifest.version == wanted:
            return manifest
    have = ", ".join(manifest.version for manifest in versions)
    raise UsageError(f"`{name}` has no version `{version}`", f"it has {have}")


def show_all(console: Console, factory: Factory, paths: Paths) -> None:
    store = _store(paths)
    users = _users(paths)
    rows = [_row(store, manifest, users) for manifest in store.list()]
    if console.json:
        console.data(rows)
        return
    if not rows:
        console.say(f"no models yet in {store.models}")
        return
    columns = ["model", "version", "current", "format", "parameters", "size", "in use by", "source"]
    console.table("Models", columns, [_cells(row) for row in rows])
    for error in store.damaged():
        console.note(error.message)


def _row(store: Store, manifest: Manifest, users: Sequence[Deployment]) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "current": store.current(manifest.name) == manifest.version,
        "format": manifest.model.given_format,
        "parameters": manifest.model.shape.parameters,
        "bytes": manifest.total_bytes,
        "task": manifest.task,
        "source": manifest.source,
        "created": manifest.created,
        "deployments": [_deployment(one) for one in users if _uses(one, manifest)],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        row["version"],
        "yes" if row["current"] else "",
        row["format"],
        human_count(row["parameters"]),
        human_bytes(row["bytes"]),
        ", ".join(row["deployments"]) or "–",
        row["source"],
    ]


def human_count(count: int) -> str:
    """134515008 → `135 M`."""
    return f"{count / BILLION:.1f} B" if count >= BILLION else f"{count / 1e6:.0f} M"


def _running_plan(paths: Paths) -> Plan | None:
    """The plan of the stack that runs now."""
    if local.running(paths) is None:
        return None
    try:
        return msgspec.json.decode((paths.run / "plan.json").read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError):
        return None


def _users(paths: Paths) -> tuple[Deployment, ...]:
    plan = _running_plan(paths)
    return plan.deployments if plan else ()


def _uses(deployment: Deployment, manifest: Manifest) -> bool:
    base = manifest.quantization.base if manifest.quantization else manifest.version
    same_format = manifest.quantization is None or manifest.model.format == deployment.format
    return (deployment.model, deployment.version) == (manifest.name, base) and same_format


def _deployment(one: Deployment) -> str:
    return f"{one.model}#{one.replica} on {one.node}"


def show(console: Console, factory: Factory, paths: Paths, name: str, version: str | None) -> None:
    store = _store(paths)
    manifest = found(store, name, version)
    users = [_deployment(one) for one in _users(paths) if _uses(one, manifest)]
    fits = tier_fits(factory, paths, store, manifest)
    if console.json:
        console.data(
            {
                "manifest": manifest,
                "folder": str(store.folder(manifest)),
                "current": store.current(name) == manifest.version,
                "versions": [one.version for one in store.versions(name)],
                "formats": store.formats(manifest),
                "deployments": users,
                "tiers": fits,
            }
        )
        return
    console.say(f"{manifest.name} {manifest.version}", style="bold")
    for label, value in _facts(store, manifest, users):
        console.say(f"  {label:<14}{value}")
    files = [[file.path, human_bytes(file.bytes), file.sha256] for file in manifest.files]
    console.table("Files", ["file", "size", "SHA-256"], files)
    rows = [[one.tier, "yes" if one.fits else "no", one.how] for one in fits]
    console.table("Which tiers of this machine can hold it", ["tier", "fits", "how, or why not"], rows)


def _facts(store: Store, manifest: Manifest, users: Sequence[str]) -> Iterable[tuple[str, str]]:
    model, shape, origin = manifest.model, manifest.model.shape, manifest.origin
    others = [one.version for one in store.versions(manifest.name) if one.version != manifest.version]
    yield "architecture", f"{shape.architecture}, {shape.layers} layers of {shape.hidden}, {model.task}"
    yield "parameters", f"{human_count(shape.parameters)} ({shape.parameters})"
    yield "context", f"{shape.context_max} tokens at most"
    yield "formats", ", ".join(store.formats(manifest))
    yield "size", f"{human_bytes(manifest.total_bytes)}, of it weights {human_bytes(model.weights_bytes)}"
    yield "licence", manifest.license or "not stated"
    yield "source", manifest.source + (f" at {origin.revision}" if origin.revision else "")
    yield "from", f"{origin.file}, {human_bytes(origin.bytes)}, SHA-256 {origin.sha256}"
    if made := manifest.conversion:
        yield "converted", f"{made.file} to {made.dtype} with {_tools(manifest.tools)}"
    if quantized := manifest.quantization:
        yield "quantized", f"{quantized.scheme} from {quantized.base} with {_tools(quantized.tools)}"
    yield "brought in", time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))
    yield "folder", str(store.folder(manifest))
    yield "current", "yes" if store.current(manifest.name) == manifest.version else "no"
    yield "other versions", ", ".join(others) or "none"
    yield "used by", ", ".join(users) or "nothing that runs now"
    if manifest.remote_code:
        yield "code", "it brings Python code, which factory.yaml allows"


def _tools(tools: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tools.items())


def tier_fits(factory: Factory, paths: Paths, store: Store, manifest: Manifest) -> tuple[TierFit, ...]:
    """What the planner says of the model alone on each tier of this machine."""
    inventory = look(None)
    tiers = form_tiers(inventory, factory.tiers, catalog_bandwidths(inventory))
    wish = wish_for(manifest.model, stored=store.formats(manifest))
    fits = []
    for tier in tiers:
        try:
            plan = plan_of(factory, paths, inventory, tiers, [msgspec.structs.replace(wish, tier=tier.name)])
        except PlanError as error:
            fits.append(TierFit(tier=tier.name, fits=False, how=error.message))
            continue
        one = plan.deployments[0]
        made = " (to make: sovereign models quantize)" if one.to_make else ""
        how = f"{one.format}{made}, {one.context} tokens, on {len(one.devices)} device(s)"
        fits.append(TierFit(tier=tier.name, fits=True, how=how))
    return tuple(fits)


def verify(console: Console, paths: Paths, name: str | None) -> None:
    store = _store(paths)
    if name is not None:
        found(store, name)
    wanted = store.versions(name) if name else store.readable()
    results = [_verified(console, store, manifest) for manifest in wanted]
    if name is None:
        results += [_unreadable(error) for error in store.damaged()]
    if console.json:
        console.data(results)
    for one in results:
        console.say(f"{one.name} {one.version}: {one.problem or 'good, ' + human_bytes(one.bytes)}")
    if not results:
        console.say(f"no models in {store.models}")
    if any(one.problem for one in results):
        sys.exit(DigestMismatch.exit_code)


def _verified(console: Console, store: Store, manifest: Manifest) -> Checked:
    problem = ""
    what = f"Verifying {manifest.name} {manifest.version}"
    with console.progress(what, total=manifest.total_bytes) as progress:
        try:
            store.verify(manifest, progress)
        except StoreError as error:
            problem = error.message
    return Checked(name=manifest.name, version=manifest.version, bytes=manifest.total_bytes, problem=problem)


def _unreadable(error: SovereignError) -> Checked:
    return Checked(name="?", version="?", bytes=0, problem=error.message)


def use(console: Console, paths: Paths, name: str, version: str) -> None:
    store = _store(paths)
    manifest = found(store, name, version)
    if manifest.quantization:
        raise UsageError(
            f"`{version}` is a quantized variant of {manifest.quantization.base}",
            "plans choose among variants; `quantization:` in factory.yaml says which may be used",
        )
    with store.writing(console):
        store.switch(manifest)
    console.say(f"{name}: {version} is the current version")
    if console.json:
        console.data({"name": name, "current": version})


def remove(console: Console, paths: Paths, name: str, version: str | None) -> None:
    store = _store(paths)
    wanted = [found(store, name, version)] if version else list(_all_versions(store, name))
    users = _users(paths)
    for manifest in wanted:
        if mine := [_deployment(one) for one in users if _uses(one, manifest)]:
            raise UsageError(
                f"{name} {manifest.version} is in use by {', '.join(mine)}", "stop it first: sovereign down"
            )
    with store.writing(console):
        gone = [_remove(store, manifest) for manifest in wanted]
    _tell_removed(console, gone)


def _all_versions(store: Store, name: str) -> tuple[Manifest, ...]:
    found(store, name)
    return store.versions(name)


def _remove(store: Store, manifest: Manifest) -> Removed:
    freed = own_bytes(store.folder(manifest))
    store.remove(manifest)
    return Removed(what=f"{manifest.name} {manifest.version}", bytes=freed)


def own_bytes(folder: Path) -> int:
    """Bytes of the files below a folder that no other folder shares."""
    stats = [path.lstat() for path in regular_files(folder).values()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _tell_removed(console: Console, gone: Sequence[Removed], *, dry_run: bool = False) -> None:
    if console.json:
        console.data({"removed": gone, "bytes": sum(one.bytes for one in gone), "dry_run": dry_run})
    verb = "would remove" if dry_run else "removed"
    for one in gone:
        console.say(f"{verb} {one.what}, {human_bytes(one.bytes)}")
    if not gone:
        console.say("nothing to remove")


def prune(console: Console, paths: Paths, *, dry_run: bool) -> None:
    store = _store(paths)
    users = _users(paths)
    with store.writing(console), writer_lock(store.downloads, console):
        old = [manifest for manifest in store.list() if not _kept(store, manifest, users)]
        gone = [
            Removed(what=f"{one.name} {one.version}", bytes=own_bytes(store.folder(one)))
            if dry_run
            else _remove(store, one)
            for one in old
        ]
        gone += [_drop(path, dry_run=dry_run) for path in _leftovers(store.downloads)]
    _tell_removed(console, gone, dry_run=dry_run)


def _kept(store: Store, manifest: Manifest, users: Sequence[Deployment]) -> bool:
    """The current version and its variants, and what a running deployment uses."""
    base = manifest.quantization.base if manifest.quantization else manifest.version
    now = store.current(manifest.name)
    return base == now or now is None or any(_uses(one, manifest) for one in users)


class _Leftover(NamedTuple):
    path: Path
    bytes: int


def _leftovers(downloads: Path) -> list[_Leftover]:
    """Downloads that no writer works on: the lock on the folder is held."""
    with disk_errors("looking at downloads", downloads):
        entries = [path for path in sorted(downloads.iterdir()) if path.name != ".lock"]
        return [
            _Leftover(path, own_bytes(path) if path.is_dir() else path.stat().st_size) for path in entries
        ]


def _drop(left: _Leftover, *, dry_run: bool) -> Removed:
    if not dry_run:
        if left.path.is_dir():
            shutil.rmtree(left.path)
        else:
            left.path.unlink()
    return Removed(what=f"downloads waiting in {left.path}", bytes=left.bytes)


def export(
    console: Console, paths: Paths, name: str, target: Path, *, version: str | None, force: bool
) -> None:
    store = _store(paths)
    manifest = found(store, name, version)
    archive.export(store, manifest, target, console, force=force)
    size = target.stat().st_size
    console.say(f"{manifest.name} {manifest.version}: {target}, {human_bytes(size)}")
    if console.json:
        console.data({"manifest": manifest, "file": str(target), "bytes": size})


def import_model(console: Console, factory: Factory, paths: Paths, file: Path) -> None:
    store = _store(paths)
    allowed = frozenset(entry.name for entry in factory.models if entry.remote_code)
    manifest = archive.import_archive(store, file, console, code=allowed)
    console.say(f"{manifest.name} {manifest.version} is in the store: {store.folder(manifest)}")
    if console.json:
        console.data(manifest)


def say_more(console: Console, manifest: Manifest) -> None:
    """What a person should know of a model that has just come in."""
    if manifest.license:
        console.note(f"its licence: {manifest.license}")
    names = {file.path for file in manifest.files}
    if manifest.task == "chat" and not {"tokenizer.json", "tokenizer.model"} & names:
        console.note("it has no tokenizer.json: the gateway cannot count its tokens")

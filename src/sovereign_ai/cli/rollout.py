"""What the verbs of a cluster do: show, ask, apply, wait, remember."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sovereign_ai.cli import difference_tables as tables
from sovereign_ai.console import Console
from sovereign_ai.deploy.kubernetes import applying, deleting, history, marks, waiting
from sovereign_ai.deploy.kubernetes.diagnosis import of_workload, troubles
from sovereign_ai.deploy.kubernetes.difference import Difference, Found, difference
from sovereign_ai.deploy.kubernetes.door import Door, open_door
from sovereign_ai.deploy.kubernetes.kinds import POD, SECRET, WORKLOADS, is_record, title
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.deploy.kubernetes.readiness import readiness
from sovereign_ai.deploy.kubernetes.versions import compare_versions
from sovereign_ai.errors import ClusterRefused, DeployError, Interrupted, UsageError
from sovereign_ai.render.kubernetes.labels import Object, owned

DELETION_S = 300.0
"""Longest wait for what was deleted to be gone: pods end their requests, then claims and volumes follow."""


class Access(NamedTuple):
    """Which cluster; None as kubectl has it."""

    kubeconfig: Path | None = None
    context: str | None = None


class Way(NamedTuple):
    """How an apply goes."""

    yes: bool
    force: bool
    wait: bool
    timeout_s: float | None
    """None: told from the probes."""
    command: str
    """What continues it."""


def diff(console: Console, access: Access, wanted: Wanted, made_for: str | None) -> bool:
    """Whether anything differs. Raises ClusterRefused, after showing it, where an apply would be refused."""
    with open_door(access.kubeconfig, access.context) as door:
        version = _check_version(console, door, made_for)
        found = difference(door, wanted)
        if console.json:
            console.data(tables.as_data(found, wanted.namespace, version))
        else:
            tables.show(console, found, wanted.namespace, version)
        _tell_warnings(console, door)
    applying.refuse(found, force=True)
    return not found.is_empty


def apply(console: Console, access: Access, wanted: Wanted, made_for: str | None, way: Way) -> None:
    with open_door(access.kubeconfig, access.context) as door:
        version = _check_version(console, door, made_for)
        found = difference(door, wanted)
        tables.show(console, found, wanted.namespace, version, unchanged=False)
        _bring(console, door, wanted, found, way)


def rollback(console: Console, access: Access, namespace: str, to: int | None, way: Way) -> None:
    with open_door(access.kubeconfig, access.context) as door:
        version = _check_version(console, door, None)
        revision, wanted, found = _earlier(console, door, namespace, to)
        console.say(f"revision {revision.number}, ready since {revision.applied_at}")
        tables.show(console, found, namespace, version, unchanged=False)
        _bring(console, door, wanted, found, way)


def _earlier(
    console: Console, door: Door, namespace: str, to: int | None
) -> tuple[history.Revision, Wanted, Difference]:
    """The revision that was asked for, else the newest that the cluster does not have now."""
    known = history.revisions(door.ours(SECRET, namespace))
    if not known:
        raise DeployError(f"nothing of namespace {namespace} is kept: no apply has become ready yet")
    numbers = ", ".join(str(one.number) for one in known)
    if to is not None and to not in [one.number for one in known]:
        raise UsageError(f"there is no revision {to}", f"kept are {numbers}")
    for one in known:
        if to in (None, one.number):
            try:
                wanted = history.unpack(one)
            except DeployError as error:
                if to is not None:
                    raise
                console.note(error.message)
                continue
            found = difference(door, wanted)
            if to is not None or not found.is_empty:
                return one, wanted, found
    raise DeployError("the cluster has what was good last, and nothing else is kept", f"kept are {numbers}")


def _bring(console: Console, door: Door, wanted: Wanted, found: Difference, way: Way) -> None:
    """From a difference to a stack that is ready and remembered."""
    applying.refuse(found, force=way.force)
    if found.is_empty and not any(one.adopts for one in found.outcomes):
        console.say("nothing to change")
    else:
        _confirm(console, f"apply this to namespace {wanted.namespace}?", yes=way.yes)
        applying.apply(door, wanted, found, force=way.force, command=way.command, tell=console.say)
    _tell_warnings(console, door)
    if not way.wait:
        console.note("not waited for, so not remembered as good: `sovereign status --cluster` tells the rest")
        return
    _wait(console, door, wanted, way)
    number, is_new = history.remember(door, wanted)
    console.say(f"all ready; revision {number}" + (" is kept for rollback" if is_new else ", as before"))


def _wait(console: Console, door: Door, wanted: Wanted, way: Way) -> None:
    workloads = [one for one in wanted.objects if one["kind"] in [kind.name for kind in WORKLOADS]]
    with console.progress("ready", total=len(workloads), unit="workloads", even=False) as progress:
        wait = waiting.Wait(door, wanted, console.say, progress)
        try:
            wait.until_ready(way.timeout_s or waiting.timeout_s(wanted))
        except KeyboardInterrupt as error:
            raise Interrupted(
                "everything is applied; whether it became ready was not waited for",
                f"`{way.command}` again waits on",
            ) from error


def delete(
    console: Console,
    access: Access,
    namespace: str,
    *,
    yes: bool,
    with_storage: bool,
    timeout_s: float | None,
) -> None:
    with open_door(access.kubeconfig, access.context) as door:
        going, notes, is_alone = deleting.doomed(door, namespace, with_storage=with_storage)
        for note in notes:
            console.note(note)
        if not going:
            console.say(f"nothing of ours is in namespace {namespace}")
            return
        for one in going:
            console.say(f"deletes  {title(one)}")
        if any(one["kind"] == "Namespace" for one in going):
            console.note(f"with the namespace goes everything in it, what is not ours too: {namespace}")
        _confirm(console, f"delete these {len(going)} objects?", yes=yes)
        deleting.delete(door, going, console.say)
        with console.progress("gone", total=len(going), unit="objects", even=False) as progress:
            deleting.until_gone(door, going, progress, timeout_s or DELETION_S)
        if is_alone:
            marks.erase(door, console.say)
    kept = "" if with_storage else "; volumes, claims and the namespace stay (--with-storage)"
    console.say(f"gone{kept}. Files on the models' drives stay.")


def status(console: Console, access: Access, namespace: str) -> bool:
    """Whether there is something, and all of it is ready."""
    with open_door(access.kubeconfig, access.context) as door:
        found = Found(door, namespace)
        revisions = history.revisions(one for one in found.all if is_record(one))
        objects = [one for one in found.all if not is_record(one)]
        pods = _pods(door, namespace)
    rows = [_row(one, pods) for one in objects]
    counted = [row for row in rows if row.counts]
    ready = bool(counted) and all(row.ready for row in counted)
    tables.show_status(console, namespace, rows, revisions, is_ready=ready)
    for note in found.notes:
        console.note(note)
    return ready


def _pods(door: Door, namespace: str) -> list[Object]:
    """None where they may not be read: they only explain."""
    try:
        return door.listed(POD, namespace, owned(namespace))[0]
    except ClusterRefused:
        return []


def _row(one: Object, pods: Sequence[Object]) -> tables.Row:
    found, is_workload = readiness(one), one["kind"] in [kind.name for kind in WORKLOADS]
    trouble = ""
    if is_workload and found and not found.ready:
        trouble = "; ".join(each.words for each in troubles(of_workload(one, pods))) or found.failed
    return tables.Row(
        title(one), found.ready if found else None, found.words if found else "", trouble, is_workload
    )


def _check_version(console: Console, door: Door, made_for: str | None) -> str:
    version = door.version()
    if note := compare_versions(version, made_for):
        console.note(note)
    return version


def _tell_warnings(console: Console, door: Door) -> None:
    for warning in door.warnings:
        console.note(f"the API server warns: {warning}")
    door.warnings.clear()


def _confirm(console: Console, question: str, *, yes: bool) -> None:
    """Raises UsageError where nobody can be asked, Interrupted where the answer is no."""
    if not yes and not console.confirm(question):
        raise Interrupted("nothing was changed")

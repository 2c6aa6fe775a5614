"""What an apply would do, asked of the API server: a dry run of every object, and what would be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from sovereign_ai.deploy.kubernetes.comparing import Change, differences, owned_fields
from sovereign_ai.deploy.kubernetes.connection import CONFLICT, FORBIDDEN, NOT_FOUND
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import KINDS, NAMESPACE, NODE, Kind, kind_of, name_of, title
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.deploy.kubernetes.placing import Nodes, by_hostname, misplaced
from sovereign_ai.deploy.kubernetes.pruning import other_stacks, to_prune
from sovereign_ai.deploy.kubernetes.restarts import Restart, restart, stop
from sovereign_ai.errors import ClusterRefused, DeployError
from sovereign_ai.render.kubernetes.labels import MANAGED_BY, MANAGER, Object

State = Literal["new", "changed", "unchanged", "refused"]

MANAGER_CONFLICT = "FieldManagerConflict"
REMEDIES = {
    "webhook": "the webhook's owner says what it wants; it is none of ours",
    "immutable": "Kubernetes never changes that field: delete the object, then apply again",
    "missing kind": "install what brings the kind, or render without (kubernetes.monitoring, pinning)",
    "forbidden": "`sovereign doctor --cluster` tells all rights that are needed",
}
IMMUTABLE = ("immutable", "may not be changed", "cannot change")


class Conflict(NamedTuple):
    manager: str
    """Who the field belongs to: `kubectl-edit`."""
    field: str


class Outcome(NamedTuple):
    """Of one object."""

    object: Object
    state: State
    changes: tuple[Change, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    """Fields that an apply would take from others."""
    refusal: str = ""
    restart: Restart | None = None
    adopts: bool = False
    """Nothing changes but that fields become ours, and go when they are no longer rendered."""
    unchecked: bool = False
    """Its namespace is not there yet, without which the server tries nothing."""


class Difference(NamedTuple):
    outcomes: tuple[Outcome, ...]
    pruned: tuple[Object, ...]
    notes: tuple[str, ...] = ()
    """What could not be looked at."""

    @property
    def restarts(self) -> tuple[Restart, ...]:
        stopped = (stop(one) for one in self.pruned)
        return tuple(one for one in (*(each.restart for each in self.outcomes), *stopped) if one)

    @property
    def is_empty(self) -> bool:
        return not self.pruned and all(one.state == "unchanged" for one in self.outcomes)

    @property
    def refused(self) -> tuple[Outcome, ...]:
        return tuple(one for one in self.outcomes if one.state == "refused")

    @property
    def conflicts(self) -> tuple[tuple[str, Conflict], ...]:
        return tuple((title(one.object), conflict) for one in self.outcomes for conflict in one.conflicts)


def difference(door: Door, wanted: Wanted) -> Difference:
    """Nothing is changed. Raises DeployError where the namespace is on its way out, and what the door
    raises; what the server refuses of single objects stands in their outcomes."""
    namespace = door.read(NAMESPACE, "", wanted.namespace)
    if namespace is not None:
        refuse_going(namespace)
    found = Found(door, wanted.namespace)
    outcomes = [
        _outcome(door, one, found.live(one), is_namespace_there=namespace is not None)
        for one in wanted.objects
    ]
    if (nodes := found.nodes()) is not None:
        outcomes = [_placed(one, nodes) for one in outcomes]
    pruned = to_prune(wanted, found.all, alone=found.is_alone)
    return Difference(tuple(outcomes), pruned, found.notes)


def _placed(one: Outcome, nodes: Nodes) -> Outcome:
    """The server takes a pod for any node, and for cards that somebody else hands out too."""
    why = "" if one.state == "refused" else misplaced(one.object, nodes)
    return one._replace(state="refused", refusal=why, restart=None) if why else one


def refuse_going(namespace: Object) -> None:
    """Raises DeployError for a namespace that is being deleted: nothing can be made in it."""
    since = namespace["metadata"].get("deletionTimestamp")
    if not since:
        return
    conditions = (namespace.get("status") or {}).get("conditions") or ()
    waits = [str(one.get("message")) for one in conditions if one.get("status") == "True"]
    why = f"; it waits: {'; '.join(waits)}" if waits else ""
    raise DeployError(
        f"namespace {name_of(namespace)} is being deleted since {since}{why}",
        "apply again when it is gone; what holds a finalizer in it has to be taken care of by its owner",
    )


class Found:
    """What the cluster has of a stack. Of a kind that may not be listed, only what is asked for by name."""

    def __init__(self, door: Door, namespace: str) -> None:
        self._door, self._namespace = door, namespace
        self.notes: tuple[str, ...] = ()
        self.all: tuple[Object, ...] = tuple(one for kind in KINDS for one in self._look(kind))
        self._by_title = {title(one): one for one in self.all}

    def _look(self, kind: Kind) -> list[Object]:
        try:
            return self._door.ours(kind, self._namespace)
        except ClusterRefused as error:
            if error.code != FORBIDDEN:
                raise
            note = f"{kind.plural} may not be listed: what is no longer wanted of them would stay"
            self.notes += (f"{note} ({error.message})",)
            return []

    def live(self, one: Object) -> Object | None:
        """Also where it lacks our labels."""
        if found := self._by_title.get(title(one)):
            return found
        return self._door.read(kind_of(one), self._namespace, name_of(one))

    def nodes(self) -> Nodes | None:
        """None where they may not be listed."""
        try:
            return by_hostname(self._door.listed(NODE, "", {})[0])
        except ClusterRefused as error:
            if error.code != FORBIDDEN:
                raise
            note = "nodes may not be listed: whether the plan's are in the cluster is not known"
            self.notes += (f"{note} ({error.message})",)
            return None

    @property
    def is_alone(self) -> bool:
        """Whether no other stack is in the cluster; where namespaces may not be listed, there may be one."""
        try:
            namespaces, _ = self._door.listed(NAMESPACE, "", {MANAGED_BY: MANAGER})
        except ClusterRefused:
            return False
        return not other_stacks(namespaces, self._namespace)


def _outcome(door: Door, one: Object, live: Object | None, *, is_namespace_there: bool) -> Outcome:
    if kind_of(one).namespaced and not is_namespace_there:
        return Outcome(one, "new", restart=restart(None, one), unchecked=True)
    conflicts: tuple[Conflict, ...] = ()
    try:
        try:
            after = door.apply(one, dry_run=True)
        except ClusterRefused as error:
            conflicts = tuple(conflicts_of(error))
            if not conflicts:
                raise
            after = door.apply(one, dry_run=True, force=True)
    except ClusterRefused as error:
        return Outcome(one, "refused", conflicts=conflicts, refusal=said(error))
    if live is None:
        return Outcome(one, "new", conflicts=conflicts, restart=restart(None, after))
    changes = differences(live, after)
    return Outcome(
        one,
        "changed" if changes else "unchanged",
        changes,
        conflicts,
        restart=restart(live, after),
        adopts=not changes and owned_fields(live) != owned_fields(after),
    )


def conflicts_of(error: ClusterRefused) -> Iterator[Conflict]:
    """The server says `conflict with "kubectl-edit" using apps/v1: .spec.replicas`."""
    if error.code != CONFLICT:
        return
    for reason, field, message in error.causes:
        if reason == MANAGER_CONFLICT:
            _, _, rest = message.partition('conflict with "')
            yield Conflict(rest.partition('"')[0] or message, field)


def said(error: ClusterRefused) -> str:
    """What the server said, and where that is a known case, what to do."""
    message, remedy = error.message.partition("\n@@")[0], REMEDIES.get(_case(error))  # a diff of Go's structs
    return f"{message} → {remedy}" if remedy else message


def _case(error: ClusterRefused) -> str:
    if "admission webhook" in error.message or "failed calling webhook" in error.message:
        return "webhook"
    if error.code == FORBIDDEN:
        return "forbidden"
    if error.code == NOT_FOUND and error.reason != "NotFound":
        return "missing kind"
    return "immutable" if any(words in error.message for words in IMMUTABLE) else ""

"""Which objects of a stack go: those that are no longer rendered, or all but the storage. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sovereign_ai.deploy.kubernetes.kinds import KINDS, SHARED, STORAGE, is_ours, is_record, title
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.render.kubernetes.labels import Object

_PLACE = {kind.name: place for place, kind in enumerate(KINDS)}


def to_prune(wanted: Wanted, found: Iterable[Object], *, alone: bool) -> tuple[Object, ...]:
    """Of `found`, what is ours and not wanted any more, in the order of deletion. Never storage, never the
    records of what was good. `alone`: whether no other stack is in the cluster."""
    kept = {title(one) for one in wanted.objects}
    going = [
        one
        for one in _ours(wanted.namespace, found, alone=alone)
        if title(one) not in kept and one["kind"] not in STORAGE and not is_record(one)
    ]
    return in_order_of_deletion(going)


def to_delete(
    namespace: str, found: Iterable[Object], *, alone: bool, with_storage: bool
) -> tuple[Object, ...]:
    """Everything that is ours, records too; storage only where it is asked for."""
    going = [
        one for one in _ours(namespace, found, alone=alone) if with_storage or one["kind"] not in STORAGE
    ]
    return in_order_of_deletion(going)


def _ours(namespace: str, found: Iterable[Object], *, alone: bool) -> list[Object]:
    """What has an owner goes with it, and what is being deleted needs no second word."""
    return [
        one
        for one in found
        if is_ours(one, namespace)
        and one["kind"] in _PLACE
        and not one["metadata"].get("ownerReferences")
        and not one["metadata"].get("deletionTimestamp")
        and (alone or one["kind"] not in SHARED)
    ]


def in_order_of_deletion(objects: Iterable[Object]) -> tuple[Object, ...]:
    """The other way round than applied, so that nothing runs without what it stands on."""
    return tuple(sorted(objects, key=lambda one: (-_PLACE[one["kind"]], title(one))))


def other_stacks(namespaces: Sequence[Object], namespace: str) -> bool:
    """Whether one of the namespaces that we manage is another stack's."""
    return any(
        is_ours(one, one["metadata"]["name"]) and one["metadata"]["name"] != namespace for one in namespaces
    )

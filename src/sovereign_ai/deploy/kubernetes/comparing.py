"""What differs between two states of an object, as a person reads it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from sovereign_ai.deploy.kubernetes.kinds import SECRET
from sovereign_ai.render.kubernetes.labels import FIELD_MANAGER, Object

SET_BY_SERVER = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
"""Of the metadata."""

ITEM_KEYS = ("name", "mountPath", "containerPort", "port", "key", "namespace", "ip")
"""By which items of a list are told apart, the first that all of them have and no two share: that of
containers, mounts, ports and tolerations."""


class Change(NamedTuple):
    """`old` and `new`: JSON values, None where there is nothing."""

    path: str
    old: Any
    new: Any


def normal(one: Object) -> Object:
    """Without what the server sets, and without secrets: their values become digests."""
    metadata = {key: value for key, value in one["metadata"].items() if key not in SET_BY_SERVER}
    kept = {key: value for key, value in one.items() if key not in ("status", "metadata")}
    if kept.get("kind") == SECRET.name:
        kept["data"] = {key: _sealed(value) for key, value in (kept.get("data") or {}).items()}
    return {**kept, "metadata": metadata}


def _sealed(value: Any) -> str:
    return f"secret, digest {hashlib.sha256(str(value).encode()).hexdigest()[:8]}"


def differences(old: Object, new: Object) -> tuple[Change, ...]:
    """Between two states of an object, without what the server sets."""
    return tuple(_between("", normal(old), normal(new)))


def owned_fields(one: Object) -> Any:
    """What the server has noted as ours. None: nothing."""
    for entry in one["metadata"].get("managedFields") or ():
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        if ours and not entry.get("subresource"):
            return entry.get("fieldsV1")
    return None


def _between(path: str, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _between(below(path, key), old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list):
        yield from _lists(path, old, new)
    else:
        yield Change(path, old, new)


def below(path: str, key: str) -> str:
    if "." in key or "/" in key:
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _lists(path: str, old: list[Any], new: list[Any]) -> Iterator[Change]:
    key = _item_key(old, new)
    if key is None:
        yield from _plain_lists(path, old, new)
        return
    before, after = ({item[key]: item for item in items} for items in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        yield from _between(f"{path}[{name}]", before.get(name), after.get(name))
    kept_before, kept_after = [n for n in before if n in after], [n for n in after if n in before]
    if kept_before != kept_after:
        yield Change(f"{path} (order)", kept_before, kept_after)


def _plain_lists(path: str, old: list[Any], new: list[Any]) -> Iterator[Change]:
    """Of the same length: item by item; else as a whole, since what moved cannot be told."""
    if len(old) != len(new):
        yield Change(path, old, new)
        return
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        yield from _between(f"{path}[{index}]", before, after)


def _item_key(old: list[Any], new: list[Any]) -> str | None:
    if not all(isinstance(item, dict) for item in [*old, *new]):
        return None
    return next((key for key in ITEM_KEYS if _tells(key, old) and _tells(key, new)), None)


def _tells(key: str, items: list[Any]) -> bool:
    values = [item.get(key) for item in items]
    return all(isinstance(value, str | int) for value in values) and len(set(values)) == len(values)

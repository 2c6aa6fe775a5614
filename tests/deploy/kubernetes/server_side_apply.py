"""The least of server-side apply that our apply can be tried against: whose fields are whose.

Fields are paths; a path that ends in a list is owned as a whole, but for lists of items with names that no
two share, whose items are owned one by one. Kubernetes goes by its schemas instead, where ports and mounts
have keys of their own and some mappings are atomic: of those this proves nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

Object = dict[str, Any]
Path = tuple[str, ...]

NOT_FIELDS = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


class Conflict(NamedTuple):
    manager: str
    path: Path


def is_named(items: Any) -> bool:
    if not isinstance(items, list) or not items:
        return False
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    return None not in names and len(set(names)) == len(names)


def leaves(value: Any, at: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from leaves(below, (*at, key))
    elif is_named(value):
        for item in value:
            yield from leaves(item, (*at, f"[{item['name']}]"))
    elif at not in NOT_FIELDS:
        yield at


def get(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif is_named(value):
            value = next((item for item in value if f"[{item['name']}]" == step), None)
        else:
            return None
    return value


def merge(into: Any, new: Any) -> Any:
    if isinstance(into, dict) and isinstance(new, dict):
        gone = {key for key, value in new.items() if value is None}
        merged = {**into, **{key: merge(into.get(key), value) for key, value in new.items()}}
        return {key: value for key, value in merged.items() if key not in gone}
    if is_named(into) and is_named(new):
        old = {item["name"]: item for item in into}
        mine = [merge(old.get(item["name"]), item) for item in new]
        names = {item["name"] for item in new}
        return [*mine, *(item for item in into if item["name"] not in names)]
    return copy.deepcopy(new)


def without(value: Any, path: Path) -> Any:
    """Empty parents go too, and so do items of which nothing is left but the name."""
    step, rest = path[0], path[1:]
    if isinstance(value, dict) and step in value:
        below = without(value[step], rest) if rest else None
        kept = {key: each for key, each in value.items() if key != step}
        return {**kept, step: below} if below else kept
    if is_named(value):
        items = [
            without(item, rest) if rest and f"[{item['name']}]" == step else item
            for item in value
            if rest or f"[{item['name']}]" != step
        ]
        return [item for item in items if item]
    return value


def owners(one: Object) -> dict[str, set[Path]]:
    return {
        entry["manager"]: {tuple(path) for path in entry["fieldsV1"]["paths"]}
        for entry in one["metadata"].get("managedFields", ())
    }


def with_owners(one: Object, owned: dict[str, set[Path]], applied: str) -> Object:
    """`applied`: the manager that applies; the others update."""
    entries = [
        {
            "manager": manager,
            "operation": "Apply" if manager == applied else "Update",
            "fieldsV1": {"paths": sorted(map(list, paths))},
        }
        for manager, paths in sorted(owned.items())
        if paths
    ]
    return {**one, "metadata": {**one["metadata"], "managedFields": entries}}


def apply(live: Object | None, config: Object, manager: str, *, force: bool) -> tuple[Object, list[Conflict]]:
    """The object as it is then; nothing of it counts where there are conflicts."""
    fields = set(leaves(config))
    if live is None:
        return with_owners(copy.deepcopy(config), {manager: fields}, manager), []
    owned = owners(live)
    conflicts = [
        Conflict(other, path)
        for other, paths in owned.items()
        for path in sorted(paths & fields)
        if other != manager and get(live, path) != get(config, path)
    ]
    if conflicts and not force:
        return live, conflicts
    for conflict in conflicts:
        owned[conflict.manager].discard(conflict.path)
    kept = set().union(*(paths for other, paths in owned.items() if other != manager))
    made = live
    for path in sorted(owned.get(manager, set()) - fields - kept):
        made = without(made, path)
    return with_owners(merge(made, config), {**owned, manager: fields}, manager), []


def update(live: Object, patch: Object, manager: str) -> Object:
    """A merge patch of somebody else's."""
    fields, owned = set(leaves(patch)), owners(live)
    for paths in owned.values():
        paths -= {path for path in paths & fields if get(live, path) != get(patch, path)}
    owned[manager] = owned.get(manager, set()) | fields
    return with_owners(merge(live, patch), owned, "sovereign")

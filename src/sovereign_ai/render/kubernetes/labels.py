"""Names that all objects of a stack share, and by which they are found again."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from sovereign_ai.inventory.published import DOMAIN as DOMAIN
from sovereign_ai.inventory.published import GPU_DOMAIN as GPU_DOMAIN
from sovereign_ai.inventory.published import INVENTORY as INVENTORY
from sovereign_ai.inventory.published import token as token

Object = dict[str, Any]
"""One Kubernetes object, as it stands in YAML."""

FIELD_MANAGER = "sovereign"
"""Of server-side apply: the one owner of all fields that we set."""

NAME, COMPONENT, VERSION = (f"app.kubernetes.io/{word}" for word in ("name", "component", "version"))
INSTANCE = "app.kubernetes.io/instance"
PART_OF, MANAGED_BY = "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"
STACK = f"{DOMAIN}/stack"
"""The stack's name, which is its namespace: nothing is pruned that does not carry it."""
TIER = f"{DOMAIN}/tier"
PLAN_HASH = f"{DOMAIN}/plan-hash"
"""Annotation: which plan an object was rendered from."""

PROJECT = "sovereign-ai-factory"
MANAGER = "sovereign"

SENTINEL = ".sovereign-storage"
"""A file at the root of the models' drive: where it is missing, the drive is not mounted."""

HOSTNAME = "kubernetes.io/hostname"

LABEL_LENGTH = 63
_HASH_LENGTH = 10


def owned(namespace: str) -> dict[str, str]:
    """The labels of everything that is ours."""
    return {PART_OF: PROJECT, MANAGED_BY: MANAGER, STACK: namespace}


def digest(value: object) -> str:
    """Ten hex digits of anything that JSON can hold: of names that change with what they name."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def dns_label(text: str, most: int = LABEL_LENGTH) -> str:
    """A name that Kubernetes takes (RFC 1123), the text itself where it is one. Another text gives another
    name: what cannot be kept is replaced by a hash."""
    kept = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if kept == text and len(kept) <= most:
        return kept
    return f"{kept[: most - _HASH_LENGTH - 1].strip('-') or 'x'}-{digest(text)}"


def label_value(text: str) -> str:
    """A value that a label may have, the text itself where it is one."""
    if re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", text):
        return text
    return dns_label(text)


def described(
    kind: str, name: str, namespace: str | None, labels: dict[str, str], *, api: str = "v1", **fields: Any
) -> Object:
    """An object with its head. `namespace` None: of the cluster."""
    metadata: Object = {"name": name, "labels": labels}
    if namespace is not None:
        metadata["namespace"] = namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}

"""Names that all objects of a stack share, and by which they are found again."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
"""One Kubernetes object, as it stands in YAML."""

DOMAIN = "sovereign.ai"
FIELD_MANAGER = "sovereign"
"""Of server-side apply: the one owner of all fields that we set."""

PART_OF, MANAGED_BY = "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"
STACK = f"{DOMAIN}/stack"
"""The stack's name, which is its namespace: nothing is pruned that does not carry it."""
PLAN_HASH = f"{DOMAIN}/plan-hash"
"""Annotation: which plan an object was rendered from."""

PROJECT = "sovereign-ai-factory"
MANAGER = "sovereign"

INVENTORY = f"{DOMAIN}/inventory"
"""Annotation of a node: what its agent measured, as inventory.json has a node."""

GPU_DOMAIN = f"gpu.{DOMAIN}"


def token(device: str) -> str:
    """The extended resource of one card, of which its node has 1, or 0 while it is lost or sick."""
    return f"{GPU_DOMAIN}/{device}"


def owned(namespace: str) -> dict[str, str]:
    """The labels of everything that is ours."""
    return {PART_OF: PROJECT, MANAGED_BY: MANAGER, STACK: namespace}

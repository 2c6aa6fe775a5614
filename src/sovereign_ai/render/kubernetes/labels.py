"""Names that all objects of a stack share, and by which they are found again."""

from __future__ import annotations

from typing import Any

from sovereign_ai.inventory.published import DOMAIN as DOMAIN
from sovereign_ai.inventory.published import GPU_DOMAIN as GPU_DOMAIN
from sovereign_ai.inventory.published import INVENTORY as INVENTORY
from sovereign_ai.inventory.published import token as token

Object = dict[str, Any]
"""One Kubernetes object, as it stands in YAML."""

FIELD_MANAGER = "sovereign"
"""Of server-side apply: the one owner of all fields that we set."""

PART_OF, MANAGED_BY = "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"
STACK = f"{DOMAIN}/stack"
"""The stack's name, which is its namespace: nothing is pruned that does not carry it."""
PLAN_HASH = f"{DOMAIN}/plan-hash"
"""Annotation: which plan an object was rendered from."""

PROJECT = "sovereign-ai-factory"
MANAGER = "sovereign"


def owned(namespace: str) -> dict[str, str]:
    """The labels of everything that is ours."""
    return {PART_OF: PROJECT, MANAGED_BY: MANAGER, STACK: namespace}

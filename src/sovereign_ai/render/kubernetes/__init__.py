"""A plan → Kubernetes objects, as plain dicts in the order in which they are applied. Pure."""

from sovereign_ai.render.kubernetes.labels import Object

__all__ = ["Object"]

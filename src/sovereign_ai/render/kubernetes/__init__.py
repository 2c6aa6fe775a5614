"""A plan → Kubernetes objects, as plain dicts in the order in which they are applied. Pure."""

from sovereign_ai.render.kubernetes.engine import Material
from sovereign_ai.render.kubernetes.labels import Object
from sovereign_ai.render.kubernetes.stack import Stack, render_stack
from sovereign_ai.render.kubernetes.text import to_files, to_stack

__all__ = ["Material", "Object", "Stack", "render_stack", "to_files", "to_stack"]

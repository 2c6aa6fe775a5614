"""A plan becomes what engines and gateway read: Triton model repositories and routes. Pure."""

from __future__ import annotations

from sovereign_ai.render.routes import render_routes
from sovereign_ai.render.triton import TritonProcess, triton_processes

__all__ = ["TritonProcess", "render_routes", "triton_processes"]

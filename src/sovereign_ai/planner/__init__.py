"""Which model goes where, at which context, with how much memory, and why every other option lost. Pure."""

from __future__ import annotations

from sovereign_ai.planner.arrange import make_plan
from sovereign_ai.planner.wish import Wish, wish_for

__all__ = ["Wish", "make_plan", "wish_for"]

"""Where a verb finds everything: the home folder, checked."""

from __future__ import annotations

from sovereign_ai.config import Factory, Paths, environment, paths
from sovereign_ai.errors import UsageError


def home_paths(factory: Factory | None = None) -> Paths:
    """Raises UsageError where the home folder is something else than a folder."""
    where = paths(environment(), factory or Factory())
    if where.home.exists() and not where.home.is_dir():
        raise UsageError(f"{where.home} is not a folder", "choose another with SOVEREIGN_HOME")
    return where

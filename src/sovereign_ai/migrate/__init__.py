"""docker-compose.yml of a v1.0 stack → factory.yaml, and a report of every decision on the way.

The old file is read, never written. Only `compose.py` and `migration.py` touch the disk; all else is pure.
"""

from __future__ import annotations

from sovereign_ai.migrate.book import Kind, Line
from sovereign_ai.migrate.cards import View
from sovereign_ai.migrate.migration import Migration, migrate

__all__ = ["Kind", "Line", "Migration", "View", "migrate"]

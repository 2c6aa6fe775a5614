"""How many files, which includes connections, this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress

from sovereign_ai.gateway.journal import Journal

LEAST_FILES = 4096
"""A stream takes two, one to its client and one to its engine; idle clients take one each."""


def raise_limit() -> int | None:
    """Raise the soft limit to the hard one, as any process may. What holds then; None: no limit.

    Soft limits are 1024 on many machines for the sake of programs that use select(); this one does not.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # some systems have hard limits that they do not grant
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def warn_if_few(limit: int | None, journal: Journal) -> None:
    if limit is not None and limit < LEAST_FILES:
        fix = f"ulimit -Hn {LEAST_FILES * 4}, or LimitNOFILE= of the service"
        journal.event("few_open_files", limit=limit, least=LEAST_FILES, fix=fix)

"""Usage on disk: a row per request that an engine answered, and sums by day of what is older.

The gateway's event loop hands rows over and goes on; one thread with a connection of its own writes them,
once a second, all of a second in one transaction. A gateway that is killed loses the last second at most; one
whose disk is full keeps what it can hold and tries again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from sovereign_ai.errors import SovereignError
from sovereign_ai.gateway.database import (
    Connection,
    DatabaseError,
    open_database,
    sqlite_errors,
    transaction,
)
from sovereign_ai.gateway.door import Spent
from sovereign_ai.gateway.journal import Clock, RequestRecord, UsageRow, usage_row
from sovereign_ai.gateway.limits import DAY_S, month_of

INTERVAL_S = 1.0
MAX_PENDING = 100_000
"""Rows that wait for a disk that takes none: about 50 MB."""
PRUNE_INTERVAL_S = 3600.0

By = Literal["key", "model", "day"]

_INSERT = "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SUM_UP = """
INSERT INTO usage_days
SELECT strftime('%Y-%m-%d', time, 'unixepoch') AS day, key, model,
       count(*), sum(prompt_tokens), sum(completion_tokens), sum(status >= 500)
FROM usage WHERE time < ? GROUP BY day, key, model
ON CONFLICT (day, key, model) DO UPDATE SET
    requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    failed = failed + excluded.failed
"""
_ALL = """
SELECT strftime('%Y-%m-%d', time, 'unixepoch') AS day, key, model,
       1 AS requests, prompt_tokens, completion_tokens, status >= 500 AS failed
FROM usage WHERE time >= CAST(strftime('%s', ?1) AS INTEGER)
UNION ALL
SELECT day, key, model, requests, prompt_tokens, completion_tokens, failed FROM usage_days WHERE day >= ?1
"""
_REPORT = (
    "SELECT {by}, sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(failed)"
    " FROM ({all}) GROUP BY {by} ORDER BY {by}"
)
_SPENT = (
    "SELECT key, day, sum(prompt_tokens + completion_tokens) FROM ({all}) GROUP BY key, day ORDER BY key, day"
)
_EVER = "1970-01-01"


class Usage(msgspec.Struct, frozen=True):
    """Sums of one key, model or day. `failed`: requests that an engine began and did not end well."""

    name: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    failed: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class UsageWriter:
    """Writes usage into the ledger at `path`. `start` and `close` it in any one thread.

    `keep_days`: how long single requests are kept. `lost` is told how many rows were given up, `failed` why
    rows have to wait; both in the writer's thread.
    """

    def __init__(
        self,
        path: Path,
        *,
        keep_days: int,
        clock: Clock = time.time,
        lost: Callable[[int], object] = lambda count: None,
        failed: Callable[[str], object] = lambda reason: None,
        written: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._path, self._keep_days, self._clock = path, keep_days, clock
        self._lost, self._failed, self._written = lost, failed, written
        self._pending: deque[UsageRow] = deque()
        self._batch: list[UsageRow] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, record: RequestRecord, duration_s: float) -> None:
        """Hand a finished request over: microseconds."""
        self.add_row(usage_row(record, duration_s, self._clock()))

    def add_row(self, row: UsageRow) -> None:
        self._pending.append(row)

    def close(self) -> None:
        """Write what is left, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        db: Connection | None = None
        pruned: float | None = None
        ended = False
        while not ended:
            ended = self._stop.wait(INTERVAL_S)
            while self._pending:
                self._batch.append(self._pending.popleft())
            try:
                db = db or open_database(self._path)
                self._flush(db)
                if pruned is None or time.monotonic() - pruned >= PRUNE_INTERVAL_S:
                    pruned = time.monotonic()
                    prune(db, self._clock() - self._keep_days * DAY_S)
            except (DatabaseError, SovereignError, OSError) as error:
                self._failed(str(error))
                self._drop_excess()
        if db is not None:
            db.close()
        if self._batch:
            self._lost(len(self._batch))

    def _flush(self, db: Connection) -> None:
        """What cannot be written now is tried again with what comes until then."""
        if not self._batch:
            return
        with transaction(db):
            db.executemany(_INSERT, self._batch)
        self._written(len(self._batch))
        self._batch.clear()

    def _drop_excess(self) -> None:
        excess = len(self._batch) - MAX_PENDING
        if excess > 0:
            del self._batch[:excess]
            self._lost(excess)


def prune(db: Connection, before: float) -> None:
    """Whole days that ended before the unix time `before` become sums."""
    midnight = before // DAY_S * DAY_S
    with transaction(db):
        db.execute(_SUM_UP, (midnight,))
        db.execute("DELETE FROM usage WHERE time < ?", (midnight,))


def report(path: Path, by: By, since: str | None = None) -> list[Usage]:
    """Sums by key id, model or day, from the day `since` (YYYY-MM-DD, UTC) on. Raises UsageError."""
    statement = _REPORT.format(by=by, all=_ALL)
    db = open_database(path)
    try:
        with sqlite_errors(path):
            return [Usage(*row) for row in db.execute(statement, (since or _EVER,))]
    finally:
        db.close()


def spent_this_month(path: Path, now: float) -> dict[str, Spent]:
    """Key id → tokens by day and month, as budgets count them. Raises UsageError."""
    month = month_of(now)
    days: dict[str, dict[str, int]] = {}
    db = open_database(path)
    try:
        with sqlite_errors(path):
            for key, day, tokens in db.execute(_SPENT.format(all=_ALL), (f"{month}-01",)):
                days.setdefault(key, {})[day] = tokens
    finally:
        db.close()
    return {key: _spent(found, month) for key, found in days.items()}


def _spent(days: dict[str, int], month: str) -> Spent:
    """Of the days only the last three: budgets look at no other."""
    total = sum(tokens for day, tokens in days.items() if day.startswith(month))
    return Spent(dict(sorted(days.items())[-3:]), {month: total})

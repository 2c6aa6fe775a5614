"""The gateway's SQLite file: how it is opened, and its tables. Only this, ledger and usage know SQLite.

It is in WAL mode: readers never wait for a writer. The command line writes keys while the gateway reads them
and writes usage.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sovereign_ai.errors import UsageError, disk_errors

Connection = sqlite3.Connection
DatabaseError = sqlite3.DatabaseError

SCHEMA_VERSION = 3
BUSY_PAUSE_S = 0.02
BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another one; writes take milliseconds."""

_VERSION_1 = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
    created REAL NOT NULL, expires REAL, revoked REAL
) STRICT;
"""

# `changes` tells apart what the gateway has to read again (keys) from what it writes itself once a second.
_VERSION_2 = """
ALTER TABLE keys ADD COLUMN previous_digest TEXT;
ALTER TABLE keys ADD COLUMN previous_until REAL NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN grants TEXT NOT NULL DEFAULT '{}';
CREATE TABLE changes (keys INTEGER NOT NULL) STRICT;
INSERT INTO changes (keys) VALUES (0);
CREATE TRIGGER keys_insert AFTER INSERT ON keys BEGIN UPDATE changes SET keys = keys + 1; END;
CREATE TRIGGER keys_update AFTER UPDATE ON keys BEGIN UPDATE changes SET keys = keys + 1; END;
CREATE TRIGGER keys_delete AFTER DELETE ON keys BEGIN UPDATE changes SET keys = keys + 1; END;
CREATE TABLE usage (
    time REAL NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT, status INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, ttft_s REAL, duration_s REAL NOT NULL,
    queue_s REAL NOT NULL, retries INTEGER NOT NULL, continuations INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_by_time ON usage (time);
CREATE TABLE usage_days (
    day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, failed INTEGER NOT NULL,
    PRIMARY KEY (day, key, model)
) STRICT;
"""
# The model that the client named, where another one answered for it.
_VERSION_3 = """
ALTER TABLE usage ADD COLUMN asked TEXT;
"""
_STEPS = (_VERSION_1, _VERSION_2, _VERSION_3)


def open_database(path: Path) -> Connection:
    """The file at `path`, made readable by its owner only when it does not exist, with today's tables.

    Use the connection in the thread that opened it. Raises UsageError for a file that is no ledger, NoSpace
    or NoPermission when the disk refuses.
    """
    with disk_errors("opening the key ledger", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives its side files the mode of the main one, which must be right before SQLite sees it. A
        # file that is there is not touched: closing it would drop the locks that other connections of this
        # process hold on it (POSIX), and the next process to leave would take itself for the last one.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with sqlite_errors(path):
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """All of the block or nothing of it. IMMEDIATE: it waits for other writers at its beginning only."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{path} cannot be used as the key ledger: {error}", "move the file away") from error


def _prepare(db: Connection, path: Path) -> None:
    version = _version(db)
    if version > SCHEMA_VERSION:
        raise UsageError(f"{path} was written by a newer version of this program", "upgrade this one")
    _use_wal(db)
    # FULL: a revocation that was reported as done must survive a power cut
    db.execute("PRAGMA synchronous = FULL")
    if version < SCHEMA_VERSION:
        with transaction(db):
            _migrate(db)


def _use_wal(db: Connection) -> None:
    """SQLite does not wait for others when it changes the journal's mode: two that open a ledger for the
    first time at once would get in each other's way."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(BUSY_PAUSE_S)


def _migrate(db: Connection) -> None:
    """Inside a transaction: another process may have done it while this one waited."""
    for step in _STEPS[_version(db) :]:
        for statement in _statements(step):
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """executescript would commit the transaction that it is called in."""
    collected = ""
    for line in script.splitlines(keepends=True):
        collected += line
        if sqlite3.complete_statement(collected):
            yield collected
            collected = ""


def _version(db: Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version

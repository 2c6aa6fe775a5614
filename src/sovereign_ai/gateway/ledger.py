"""API keys on disk: the only place that knows SQLite.

The command line writes while the gateway reads, so the file is in WAL mode: readers never wait for a writer.
The gateway keeps all keys in memory and asks before every request whether another process has changed the
file (`PRAGMA data_version`, a few microseconds). A revoked key therefore fails at its very next request; an
answer that is already streaming with it is allowed to end.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from sovereign_ai.errors import UsageError, disk_errors
from sovereign_ai.gateway.admission import KeyRecord, digest

SECRET_BYTES = 32
"""256 bits: more than can be guessed, so that a plain digest is enough to store."""

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another one; writes take milliseconds."""

MAX_NAME_CHARACTERS = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, prefix TEXT NOT NULL, digest TEXT NOT NULL UNIQUE,
    created REAL NOT NULL, expires REAL, revoked REAL
) STRICT
"""
_INSERT = (
    "INSERT INTO keys (id, name, prefix, digest, created, expires, revoked) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_SELECT = "SELECT id, name, prefix, digest, created, expires, revoked FROM keys ORDER BY created, id"


class Ledger:
    """The keys in the file at `path`, which is created, readable by its owner only, when it does not exist.

    Use it in the thread that made it. Raises UsageError for a file that is no ledger, NoSpace or NoPermission
    when the disk refuses.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._keys: dict[str, KeyRecord] = {}
        self._version: int | None = None
        self._db = _open(path)

    def create_key(self, name: str, *, expires_s: float | None = None) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is not kept and cannot be shown again.

        `expires_s`: seconds from now; None: never. Raises UsageError for a name or a time that cannot be.
        """
        if not name.strip() or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise UsageError(f"a key's name needs 1 to {MAX_NAME_CHARACTERS} printable characters")
        if expires_s is not None and not expires_s > 0:
            raise UsageError("a key cannot expire before it is made")
        now = self._clock()
        secret = f"sk-{secrets.token_hex(SECRET_BYTES)}"
        record = KeyRecord(
            id=f"key-{secrets.token_hex(6)}",
            name=name.strip(),
            prefix=f"sk-…{secret[-4:]}",
            digest=digest(secret),
            created=now,
            expires=None if expires_s is None else now + expires_s,
        )
        self._write(_INSERT, _row(record))
        return record, secret

    def list_keys(self) -> list[KeyRecord]:
        """All keys, oldest first."""
        self._refresh()
        return list(self._keys.values())

    def lookup(self, digest: str) -> KeyRecord | None:
        """The key with this digest, as the file has it now."""
        self._refresh()
        return self._keys.get(digest)

    def revoke_key(self, reference: str) -> KeyRecord:
        """Refuse the key from its next request on. A key that is revoked already stays as it is.

        `reference`: id, name, the last four characters, or the whole secret. Raises UsageError when no key or
        more than one is meant.
        """
        found = self._find(reference)
        if found.revoked is None:
            self._write("UPDATE keys SET revoked = ? WHERE id = ?", (self._clock(), found.id))
        return self._find(found.id)

    def delete_key(self, reference: str) -> KeyRecord:
        """Forget the key; `reference` as in revoke_key. Raises UsageError likewise."""
        found = self._find(reference)
        self._write("DELETE FROM keys WHERE id = ?", (found.id,))
        return found

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, reference: str) -> KeyRecord:
        matching = [key for key in self.list_keys() if _means(reference, key)]
        # a name may be given again after its first key was revoked: then the live one is meant
        candidates = [key for key in matching if key.revoked is None] or matching
        if not candidates:
            raise UsageError(f"no key `{reference}`", "list the keys to see their ids and names")
        if len(candidates) > 1:
            ids = ", ".join(f"{key.id} ({key.name}, {key.prefix})" for key in candidates)
            raise UsageError(f"`{reference}` means {len(candidates)} keys: {ids}", "give the id")
        return candidates[0]

    def _refresh(self) -> None:
        version: int = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            rows = self._db.execute(_SELECT)
            self._keys = {record.digest: record for record in map(_record, rows)}
            self._version = version

    def _write(self, statement: str, values: tuple[str | float | None, ...]) -> None:
        with disk_errors("writing the key ledger", self.path), _sqlite_errors(self.path):
            self._db.execute(statement, values)
        # data_version tells of other connections' changes only
        self._version = None


def _open(path: Path) -> sqlite3.Connection:
    with disk_errors("opening the key ledger", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite gives its side files the mode of the main one, which must be right before SQLite sees it
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    with _sqlite_errors(path):
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise UsageError(f"{path} was written by a newer version of this program", "upgrade this one")
    db.execute("PRAGMA journal_mode = WAL")
    # FULL: a revocation that was reported as done must survive a power cut
    db.execute("PRAGMA synchronous = FULL")
    if version < SCHEMA_VERSION:
        db.execute(_SCHEMA)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{path} cannot be used as the key ledger: {error}", "move the file away") from error


def _means(reference: str, key: KeyRecord) -> bool:
    shown = key.prefix.removeprefix("sk-…")
    return reference in (key.id, key.name, key.prefix, shown) or digest(reference) == key.digest


def _row(record: KeyRecord) -> tuple[str | float | None, ...]:
    return (
        record.id, record.name, record.prefix, record.digest, record.created, record.expires, record.revoked
    )  # fmt: skip


def _record(row: tuple[str, str, str, str, float, float | None, float | None]) -> KeyRecord:
    id_, name, prefix, digest_, created, expires, revoked = row
    return KeyRecord(
        id=id_, name=name, prefix=prefix, digest=digest_, created=created, expires=expires, revoked=revoked
    )

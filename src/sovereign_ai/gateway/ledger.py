"""API keys on disk.

The gateway keeps all keys in memory and asks before every request whether another process has changed the
file (`PRAGMA data_version`, a few microseconds), and then whether it was the keys that changed. A revoked key
therefore fails at its very next request, and new limits hold for it; an answer that is already streaming is
allowed to end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from sovereign_ai.errors import UsageError, disk_errors
from sovereign_ai.gateway.admission import KeyRecord, Limits, Priority, Scope, digest
from sovereign_ai.gateway.database import open_database, sqlite_errors

SECRET_BYTES = 32
"""256 bits: more than can be guessed, so that a plain digest is enough to store."""

MAX_NAME_CHARACTERS = 64
DEFAULT_GRACE_S = 24 * 3600.0
"""How long the old secret works after a rotation: a day to take the new one everywhere."""

_COLUMNS = "id, name, prefix, digest, created, expires, revoked, previous_digest, previous_until, grants"
_INSERT = f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own names
_UPDATE = (
    "UPDATE keys SET prefix = ?, digest = ?, expires = ?, previous_digest = ?, previous_until = ?, grants = ?"
    " WHERE id = ?"
)
_SELECT = f"SELECT {_COLUMNS} FROM keys ORDER BY created, id"  # noqa: S608 - our own names

Row = tuple[Any, ...]


class Grants(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key may do: one column, as JSON, so that a new limit needs no new column."""

    scopes: tuple[Scope, ...] = ("inference",)
    models: tuple[str, ...] = ()
    priority: Priority = "interactive"
    limits: Limits = Limits()


class Ledger:
    """The keys in the file at `path`, which is created, readable by its owner only, when it does not exist.

    Use it in the thread that made it. Raises UsageError for a file that is no ledger, NoSpace or NoPermission
    when the disk refuses.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._keys: dict[str, KeyRecord] = {}
        self._by_digest: dict[str, KeyRecord] = {}
        self._version: int | None = None
        self._changes: int | None = None
        self._db = open_database(path)

    def create_key(
        self, name: str, *, expires_s: float | None = None, grants: Grants | None = None
    ) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is not kept and cannot be shown again.

        `expires_s`: seconds from now; None: never. Raises UsageError for a name or a time that cannot be.
        """
        if not name.strip() or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise UsageError(f"a key's name needs 1 to {MAX_NAME_CHARACTERS} printable characters")
        now = self._clock()
        secret = new_secret()
        record = KeyRecord(
            id=f"key-{secrets.token_hex(6)}",
            name=name.strip(),
            prefix=_shown(secret),
            digest=digest(secret),
            created=now,
            expires=_expiry(now, expires_s),
            **_fields(grants or Grants()),
        )
        self._write(_INSERT, _row(record))
        return record, secret

    def list_keys(self) -> list[KeyRecord]:
        """All keys, oldest first."""
        self._refresh()
        return list(self._keys.values())

    def lookup(self, digest: str) -> KeyRecord | None:
        """The key with this digest, as the file has it now; the digest of a secret that was replaced finds
        its key too."""
        self._refresh()
        return self._by_digest.get(digest)

    def set_key(
        self, reference: str, change: Callable[[Grants], Grants], *, expires_s: float | None = None
    ) -> KeyRecord:
        """Let the key do what `change` makes of what it may do now, from its next request on. `expires_s`:
        seconds from now, None: as it was. Raises UsageError as revoke_key does."""
        found = self._find(reference)
        expires = found.expires if expires_s is None else _expiry(self._clock(), expires_s)
        grants = change(grants_of(found))
        return self._update(msgspec.structs.replace(found, expires=expires, **_fields(grants)))

    def rotate_key(self, reference: str, *, grace_s: float = DEFAULT_GRACE_S) -> tuple[KeyRecord, str]:
        """A new secret for the same key; the old one works for `grace_s` seconds more, one that was replaced
        before it no longer. Raises UsageError as revoke_key does, and for a key that was revoked."""
        found = self._find(reference)
        if found.revoked is not None:
            raise UsageError(f"{found.id} `{found.name}` has been revoked", "create a new key")
        if not grace_s >= 0:
            raise UsageError("the grace of a rotation cannot be less than nothing")
        secret = new_secret()
        changed = msgspec.structs.replace(
            found,
            prefix=_shown(secret),
            digest=digest(secret),
            previous_digest=found.digest,
            previous_until=self._clock() + grace_s,
        )
        return self._update(changed), secret

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
        if version == self._version:
            return
        self._version = version
        changes: int = self._db.execute("SELECT keys FROM changes").fetchone()[0]
        if changes != self._changes:
            self._changes = changes
            self._read()

    def _read(self) -> None:
        records = [_record(row) for row in self._db.execute(_SELECT)]
        self._keys = {record.id: record for record in records}
        replaced = {record.previous_digest: record for record in records if record.previous_digest}
        self._by_digest = {**replaced, **{record.digest: record for record in records}}

    def _update(self, record: KeyRecord) -> KeyRecord:
        *_, grants = _row(record)
        changed = (record.prefix, record.digest, record.expires, record.previous_digest)
        self._write(_UPDATE, (*changed, record.previous_until, grants, record.id))
        return record

    def _write(self, statement: str, values: Row) -> None:
        with disk_errors("writing the key ledger", self.path), sqlite_errors(self.path):
            self._db.execute(statement, values)
        # data_version tells of other connections' changes only
        self._version = None


def new_secret() -> str:
    return f"sk-{secrets.token_hex(SECRET_BYTES)}"


def grants_of(record: KeyRecord) -> Grants:
    """What the key may do."""
    return Grants(**{name: getattr(record, name) for name in Grants.__struct_fields__})


def _fields(grants: Grants) -> dict[str, Any]:
    return {name: getattr(grants, name) for name in Grants.__struct_fields__}


def _expiry(now: float, seconds: float | None) -> float | None:
    if seconds is not None and not seconds > 0:
        raise UsageError("a key cannot expire before it is made")
    return None if seconds is None else now + seconds


def _shown(secret: str) -> str:
    return f"sk-…{secret[-4:]}"


def _means(reference: str, key: KeyRecord) -> bool:
    shown = key.prefix.removeprefix("sk-…")
    return reference in (key.id, key.name, key.prefix, shown) or digest(reference) == key.digest


def _row(record: KeyRecord) -> Row:
    return (
        record.id, record.name, record.prefix, record.digest, record.created, record.expires, record.revoked,
        record.previous_digest, record.previous_until, msgspec.json.encode(grants_of(record)).decode(),
    )  # fmt: skip


def _record(row: Row) -> KeyRecord:
    *plain, grants = row
    names = _COLUMNS.split(", ")[:-1]
    return KeyRecord(
        **dict(zip(names, plain, strict=True)), **_fields(msgspec.json.decode(grants, type=Grants))
    )

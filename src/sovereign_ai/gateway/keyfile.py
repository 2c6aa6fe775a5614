"""API keys from a file: digests that somebody else manages, as a cluster's Secret brings them.

A file that changes is taken over within a second; one that is broken changes nothing, and is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from sovereign_ai.errors import UsageError, disk_errors
from sovereign_ai.gateway.admission import KeyRecord

LOOK_INTERVAL_S = 1.0

Tell = Callable[..., object]


def encode_keys(records: Iterable[KeyRecord]) -> str:
    """What KeyFile reads: never a key itself."""
    return msgspec.json.format(msgspec.json.encode(list(records)), indent=2).decode() + "\n"


class KeyFile:
    """`tell` is the journal's `event`. Raises UsageError where the file cannot be read at first."""

    def __init__(self, path: Path, tell: Tell, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._tell, self._monotonic = path, tell, monotonic
        self._stamp = self._look()
        self._records = _read(path)
        self._looked = monotonic()

    def lookup(self, digest: str) -> KeyRecord | None:
        if self._monotonic() - self._looked >= LOOK_INTERVAL_S:
            self._reload()
        return self._records.get(digest)

    def _reload(self) -> None:
        self._looked = self._monotonic()
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._records = _read(self._path)
        except UsageError as error:
            self._tell("keys_broken", error=error.message)
        else:
            self._tell("keys_loaded", count=len(self._records))

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: Path) -> dict[str, KeyRecord]:
    """Digest → record, also of the secret that a rotation replaced."""
    try:
        with disk_errors("reading the keys", path):
            records = msgspec.json.decode(path.read_bytes(), type=list[KeyRecord])
    except OSError as error:
        raise UsageError(f"{path}: the keys cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} does not hold keys: {error}") from error
    found = {record.previous_digest: record for record in records if record.previous_digest}
    return {**found, **{record.digest: record for record in records}}

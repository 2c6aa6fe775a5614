"""SHA-256 of many files at once, with progress."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from sovereign_ai.console import Progress

THREADS = 4
"""Hashing releases the interpreter lock and one core does 0.5 to 2 GB/s, so a few threads meet what one
NVMe drive reads."""


class _Stopped(Exception):
    """Ends the other threads when one has failed or Ctrl-C was pressed."""


class _Meter:
    """Counts what all threads have read, and lets them be stopped between two reads."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock, self._done = progress, threading.Lock(), 0
        self.stopped = False

    def add(self, count: int) -> None:
        if self.stopped:
            raise _Stopped
        with self._lock:
            self._done += count
            self._progress.update(self._done)

    def sha256(self, path: Path) -> str:
        with path.open("rb", buffering=0) as file:
            return hashlib.file_digest(_Counted(file, self), "sha256").hexdigest()


class _Counted:
    """A file that reports each read."""

    def __init__(self, file: BinaryIO, meter: _Meter) -> None:
        self._file, self._meter = file, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray, /) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]  # typeshed has it on RawIOBase only
        self._meter.add(count)
        return count


def list_digest(names: Sequence[str], digests: Sequence[str]) -> str:
    """One digest for several files: the SHA-256 of the sorted list of their digests and names."""
    lines = sorted(f"{digest}  {name}\n" for name, digest in zip(names, digests, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_files(paths: Sequence[Path], progress: Progress) -> tuple[str, ...]:
    """The digests in hex, in the order of `paths`. Progress in bytes read."""
    meter = _Meter(progress)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sha256") as pool:
        try:
            return tuple(pool.map(meter.sha256, paths))
        finally:
            meter.stopped = True

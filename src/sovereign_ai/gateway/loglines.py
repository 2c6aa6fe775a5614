"""A log that several processes write to, whose lines stay whole."""

from __future__ import annotations

import fcntl
import os
import threading


class LogLines:
    """Writes to the file descriptor `output`, one process at a time. `lock`: a file that they all have open.

    A single write would do for a file, and for a pipe up to 4,096 bytes; longer lines are those with a
    traceback or with a request's content. The kernel takes the lock from a process that dies.
    """

    def __init__(self, output: int, lock: int) -> None:
        self._output, self._lock = output, lock
        self._threads = threading.Lock()  # the kernel's is one for all threads of a process

    def write(self, line: bytes) -> None:
        with self._threads:
            fcntl.lockf(self._lock, fcntl.LOCK_EX)
            try:
                while line:
                    line = line[os.write(self._output, line) :]
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)

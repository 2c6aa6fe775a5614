"""Shared memory that a killed engine leaves in /dev/shm.

Triton's regions carry a prefix of ours. vLLM's and OpenMP's have random names, so they are noted while the
processes that map them live; a segment is removed once none of its mappers is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sovereign_ai.deploy.processes import all_entries

SHM = Path("/dev/shm")  # noqa: S108  the kernel's folder for POSIX shared memory, not a temporary file
_MAPPED = re.compile(r"^\S+ \S+ \S+ \S+ (\d+) +/dev/shm/", re.M)
_OPENMP = re.compile(r"__KMP_REGISTERED_LIB_(\d+)_\d+")


def mapped_by(pids: Iterable[int]) -> set[str]:
    """Names of the segments in /dev/shm that the processes map now, and of their OpenMP registrations, which
    are theirs by name alone.

    Told by inode: the C library makes a semaphore under another name than it ends up with.
    """
    owners = set(pids)
    inodes: set[int] = set()
    for pid in owners:
        try:
            inodes.update(int(inode) for inode in _MAPPED.findall(Path(f"/proc/{pid}/maps").read_text()))
        except OSError:
            continue
    present = _present()
    registered = {name for name in present if (found := _OPENMP.fullmatch(name)) and int(found[1]) in owners}
    return registered | {name for name in present if inodes and _inode(name) in inodes}


def _inode(name: str) -> int | None:
    try:
        return (SHM / name).stat().st_ino
    except FileNotFoundError:
        return None


def remove_left_over(noted: Iterable[str], prefixes: Iterable[str], dead: Iterable[int]) -> list[str]:
    """Remove segments that were noted, carry one of the prefixes or belong to a dead process's OpenMP.

    A segment that a living process still maps is kept. Returns what was removed.
    """
    starts = tuple(prefixes)
    candidates = {name for name in noted if (SHM / name).exists()}
    candidates |= {name for name in _present() if starts and name.startswith(starts)}
    gone = set(dead)
    candidates |= {name for name in _present() if (m := _OPENMP.fullmatch(name)) and int(m[1]) in gone}
    living = (entry.pid for entry in all_entries() if entry.alive)
    in_use = mapped_by(living) if candidates else set()
    removed = sorted(candidates - in_use)
    for name in removed:
        (SHM / name).unlink(missing_ok=True)
    return removed


def _present() -> list[str]:
    try:
        return [path.name for path in SHM.iterdir()]
    except FileNotFoundError:
        return []

"""What runs on this machine, read from /proc: who is alive, who is ours, who listens, who maps what.

A stack's processes are found by two marks. Every process that a supervisor starts, and all their
descendants, inherit SOVEREIGN_RUN_HOME; and each service leads a session of its own. The second is needed
because a program that sets its title (vLLM's workers do) overwrites its environment in /proc.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

HOME_MARK = "SOVEREIGN_RUN_HOME"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05


class ProcessId(msgspec.Struct, frozen=True):
    """A process that cannot be confused with a later one of the same number.

    `started` is the start time in clock ticks since boot (field 22 of /proc/PID/stat).
    """

    pid: int
    started: int


class Entry(msgspec.Struct, frozen=True):
    """One line of the process table."""

    pid: int
    parent: int
    session: int
    state: str
    threads: int
    started: int

    @property
    def alive(self) -> bool:
        """False once all of it has ended; a zombie that still has threads holds its memory."""
        return self.state not in ("Z", "X") or self.threads > 1


def read_entry(pid: int) -> Entry | None:
    """The process's entry, None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may contain anything, so count from the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return Entry(pid, int(fields[1]), int(fields[3]), fields[0], int(fields[17]), int(fields[19]))


def identify(pid: int) -> ProcessId:
    """The running process `pid`; `started` 0 where it is already gone."""
    entry = read_entry(pid)
    return ProcessId(pid, entry.started if entry else 0)


def is_alive(process: ProcessId) -> bool:
    """True while that very process runs (a zombie does not)."""
    entry = read_entry(process.pid)
    return entry is not None and entry.alive and entry.started == process.started


def all_pids() -> Iterator[int]:
    """Numbers of all processes of this machine, zombies included."""
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def all_entries() -> Iterator[Entry]:
    return (entry for pid in all_pids() if (entry := read_entry(pid)))


def marked(home: Path) -> set[int]:
    """Living processes that carry the mark of a stack of this home folder."""
    mark = f"{HOME_MARK}={home}".encode()
    return {entry.pid for entry in all_entries() if entry.alive and mark in _environment(entry.pid)}


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def in_sessions(leaders: Iterable[ProcessId]) -> set[int]:
    """Living members of the sessions that the given processes lead or led.

    A session's number is not reused while it has members; the start time keeps out a session that took the
    number after all members had gone.
    """
    started = {leader.pid: leader.started for leader in leaders}
    return {
        entry.pid
        for entry in all_entries()
        if entry.alive and entry.session in started and entry.started >= started[entry.session]
    }


def descendants(root: int) -> set[ProcessId]:
    """Living processes below `root` (without it)."""
    entries = [entry for entry in all_entries() if entry.alive]
    children: dict[int, list[Entry]] = {}
    for entry in entries:
        children.setdefault(entry.parent, []).append(entry)
    found: set[ProcessId] = set()
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(ProcessId(child.pid, child.started))
            waiting.append(child.pid)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal every process that still exists and is ours to signal."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def wait_gone(pids: Iterable[int], timeout_s: float) -> set[int]:
    """Wait until the processes are gone; those still alive after `timeout_s` are returned."""
    deadline = time.monotonic() + timeout_s
    left = set(pids)
    while left:
        left = {pid for pid in left if (entry := read_entry(pid)) and entry.alive}
        if not left or time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    return left


def reap(pids: Iterable[int]) -> None:
    """Collect those of the given processes that were orphans handed to this one and have ended."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def reap_orphans(own: Collection[int]) -> None:
    """Collect every child that has ended, except `own`: those belong to whoever started them."""
    while (ended := _ended_child()) and ended not in own:
        reap([ended])


def _ended_child() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found else None


def become_subreaper() -> None:
    """Orphaned descendants come to this process instead of init, so that they can be found and reaped."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: signal.Signals) -> None:
    """Ask for a signal when the parent ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def listener(port: int) -> str | None:
    """Who listens on a TCP port of this machine, as `name (pid N)`; None where it cannot be told."""
    inodes = _listening_inodes(port)
    for pid in all_pids():
        try:
            if any(_link(fd) in inodes for fd in Path(f"/proc/{pid}/fd").iterdir()):
                return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
        except OSError:
            continue
    return None


def _link(file: Path) -> str:
    """Where an open file leads; empty once it is closed."""
    try:
        return str(file.readlink())
    except OSError:
        return ""


def _listening_inodes(port: int) -> set[str]:
    wanted, listening = f":{port:04X}", "0A"
    rows: list[list[str]] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows += [line.split() for line in Path(table).read_text().splitlines()[1:]]
        except OSError:
            continue
    return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(wanted) and row[3] == listening}

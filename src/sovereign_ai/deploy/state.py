"""What a running stack writes down in SOVEREIGN_HOME/run: enough to see it, stop it and clean up.

`state.json` belongs to the supervisor and is replaced whole, so a reader never sees half of it. `lock` is
held by `up` while it prepares and by the supervisor while it lives; the kernel frees it when they die.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from sovereign_ai.deploy.processes import ProcessId, identify
from sovereign_ai.errors import disk_errors

ServiceState = Literal["starting", "ready", "unhealthy", "restarting", "failed", "stopped"]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A process to run. `ready_urls` all answer 200 once it serves; `watch_descendants`: it is broken as soon
    as one of the processes that it had when it became ready ends."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    log: str
    ready_urls: tuple[str, ...]
    grace_s: float
    watch_descendants: bool = False
    shm_prefix: str = ""


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The order to a supervisor (run/spec.json). Services stop in this order, the gateway first."""

    run_id: str
    home: str
    services: tuple[Service, ...]
    gateway_url: str


class ServiceStatus(msgspec.Struct, kw_only=True):
    """`since` and `ready_at` are Unix times; `load_s` how long the last start took until ready."""

    name: str
    state: ServiceState
    process: ProcessId | None = None
    restarts: int = 0
    since: float = 0.0
    load_s: float | None = None
    error: str = ""
    log: str = ""
    sessions: list[ProcessId] = []
    segments: list[str] = []


class RunState(msgspec.Struct, kw_only=True):
    """The whole of state.json."""

    run_id: str
    supervisor: ProcessId
    gateway_url: str
    started_at: float
    stopping: bool = False
    services: list[ServiceStatus] = []

    def service(self, name: str) -> ServiceStatus:
        return next(service for service in self.services if service.name == name)


def write_json(path: Path, value: object) -> None:
    """Replace a file whole."""
    with disk_errors("writing the run state", path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
        temporary.replace(path)


def read_state(run: Path) -> RunState | None:
    """The last state written, None where no stack ran (or the file is not readable as one)."""
    try:
        return msgspec.json.decode((run / "state.json").read_bytes(), type=RunState)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock, as it wrote itself down."""

    process: ProcessId
    since: float


class RunLock:
    """The lock of a home folder. Not held until `acquire()` says so."""

    def __init__(self, run: Path) -> None:
        self._path = run / "lock"
        self.descriptor: int | None = None

    def acquire(self) -> bool:
        """Try to take it, without waiting."""
        with disk_errors("taking the run lock", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        holder = Holder(identify(os.getpid()), time.time())
        os.pwrite(descriptor, msgspec.json.encode(holder), 0)
        self.descriptor = descriptor
        return True

    def release(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def holder(self) -> Holder | None:
        """Who holds it now; None where it is free."""
        if self.descriptor is None and self.acquire():
            self.release()
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Holder)
        except (OSError, msgspec.MsgspecError):
            return None


def last_load_seconds(path: Path) -> dict[str, float]:
    """How long each service took to become ready the last time (run/loads.json)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float])
    except (OSError, msgspec.MsgspecError):
        return {}


def remember_loads(path: Path, loads: Mapping[str, float]) -> None:
    write_json(path, {**last_load_seconds(path), **loads})

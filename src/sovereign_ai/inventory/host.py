"""What this machine has besides GPUs: cores, instruction sets and memory that this process may use.

The `parse_*` functions take the text of the kernel's files; the others read those files below `root`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from sovereign_ai.errors import InventoryError

INSTRUCTION_SETS = (
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "avx512_bf16",
    "avx512_vnni",
    "avx512f",
    "avx2",
    "fma",
    "f16c",
    "sse4_2",
    "sve",
    "bf16",
    "asimd",
)
"""The flags of /proc/cpuinfo that decide an engine's speed, widest first (x86, then ARM)."""

UNLIMITED_BYTES = 1 << 62
"""cgroup v1 writes "no limit" as the largest multiple of the page size below 2^63."""


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One machine as this process sees it: affinity and cgroup limits are taken off. Memory in bytes."""

    name: str
    cpu_name: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    memory_free_bytes: int


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """(model name, instruction sets of interest that every core has). The name is "" where none is given."""
    name, common = "", None
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = name or value
        elif key in ("flags", "Features"):
            flags = frozenset(value.split())
            common = flags if common is None else common & flags
    return name, tuple(flag for flag in INSTRUCTION_SETS if flag in (common or ()))


def parse_meminfo(text: str) -> tuple[int, int]:
    """(total, available) in bytes. Raises InventoryError where the kernel gives neither."""
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        number = value.removesuffix("kB").strip()
        if number.isdecimal():
            values[key] = int(number) * 1024
    if "MemTotal" not in values or "MemAvailable" not in values:
        raise InventoryError("/proc/meminfo names no MemTotal and MemAvailable", "this needs Linux ≥ 3.14")
    return values["MemTotal"], values["MemAvailable"]


def parse_cgroups(text: str) -> dict[str, str]:
    """Controller → this process's group, from /proc/self/cgroup; the v2 group under "" ."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def parse_cpu_max(text: str) -> float | None:
    """Cores that a v2 `cpu.max` ("150000 100000") allows; None for no limit."""
    quota, _, period = text.strip().partition(" ")
    return None if quota == "max" else _cores(quota, period or "100000")


def parse_cfs_quota(quota: str, period: str) -> float | None:
    """Cores that v1's `cpu.cfs_quota_us` and `cpu.cfs_period_us` allow; None for no limit (-1)."""
    return None if quota.strip().startswith("-") else _cores(quota, period)


def _cores(quota: str, period: str) -> float | None:
    quota, period = quota.strip(), period.strip()
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return None
    return int(quota) / int(period)


def parse_limit(text: str) -> int | None:
    """Bytes of `memory.max` or `memory.limit_in_bytes`; None for no limit."""
    number = text.strip()
    limit = int(number) if number.isdecimal() else UNLIMITED_BYTES
    return limit if limit < UNLIMITED_BYTES else None


def parse_reclaimable(text: str) -> int:
    """Bytes of file pages that the kernel would give up, from `memory.stat`: used, yet free to take."""
    values = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    number = values.get("total_inactive_file", values.get("inactive_file", "0"))
    return int(number) if number.isdecimal() else 0


def whole_cores(affinity: int, quotas: Iterable[float]) -> int:
    """Cores to plan with: the smallest limit, rounded down.

    With one thread more than the quota, the kernel stops all of them for the rest of each period.
    """
    return max(1, int(min([float(affinity), *quotas])))


def capped_memory(total: int, available: int, limits: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """(total, available) in bytes under cgroup `limits`, each (limit, used beyond what is reclaimable)."""
    for limit, used in limits:
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return total, available


def read_host(root: Path = Path("/"), *, whole: bool = False) -> Host:
    """Measure this machine. Raises InventoryError where /proc cannot be read (Linux only).

    `whole`: without the limits of this process's own container, for a report on the machine for others.
    """
    cpu_name, instruction_sets = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    total, available = parse_meminfo(_read(root / "proc/meminfo"))
    groups = parse_cgroups(_read_if_there(root / "proc/self/cgroup"))
    total, available = capped_memory(total, available, () if whole else _memory_limits(root, groups))
    cores = (os.cpu_count() or 1) if whole else len(os.sched_getaffinity(0))
    return Host(
        name=platform.node() or "localhost",
        cpu_name=cpu_name or platform.machine(),
        cores=whole_cores(cores, () if whole else _cpu_quotas(root, groups)),
        instruction_sets=instruction_sets,
        memory_bytes=total,
        memory_free_bytes=available,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InventoryError(f"cannot read {path}: {error.strerror}", "only Linux is measured") from error


def _read_if_there(path: Path) -> str:
    """Cgroup files come and go with the kernel's version and the container's mounts: absent is no limit."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _folders(root: Path, controller: str, group: str | None) -> Iterator[Path]:
    """Where limits of `group` stand: its own folder and every one above it, as each of them binds.

    In a container the group's path may be the host's, which is not mounted; the mount's root is then the
    container's own group.
    """
    if group is None:
        return
    mounts = [root / "sys/fs/cgroup" / controller] if controller else []
    mounts = mounts or [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
    relative = PurePosixPath(*(part for part in PurePosixPath(group).parts if part not in ("/", "..")))
    for mount in mounts:
        yield from (mount / part for part in (relative, *relative.parents))


def _cpu_quotas(root: Path, groups: dict[str, str]) -> list[float]:
    found = [parse_cpu_max(_read_if_there(at / "cpu.max")) for at in _folders(root, "", groups.get(""))]
    for at in _folders(root, "cpu", groups.get("cpu")):
        quota, period = at / "cpu.cfs_quota_us", at / "cpu.cfs_period_us"
        found.append(parse_cfs_quota(_read_if_there(quota), _read_if_there(period)))
    return [cores for cores in found if cores is not None]


def _memory_limits(root: Path, groups: dict[str, str]) -> list[tuple[int, int]]:
    v2 = [(at, "memory.max", "memory.current") for at in _folders(root, "", groups.get(""))]
    v1 = [
        (at, "memory.limit_in_bytes", "memory.usage_in_bytes")
        for at in _folders(root, "memory", groups.get("memory"))
    ]
    limits = []
    for at, limit_name, used_name in (*v2, *v1):
        limit = parse_limit(_read_if_there(at / limit_name))
        if limit is not None:
            used = parse_limit(_read_if_there(at / used_name)) or 0
            reclaimable = parse_reclaimable(_read_if_there(at / "memory.stat"))
            limits.append((limit, max(0, used - reclaimable)))
    return limits

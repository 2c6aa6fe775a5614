"""What a machine's health is told from, beyond its inventory: the kernel's files, limits, disks, and what the
driver says of the cards' state now. Reading only; doctor.py judges.

`root` stands for `/` in tests. What cannot be read is None: then its check is skipped and says so.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sovereign_ai.inventory.drive import Drive, read_drive
from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.inventory.runtime import Runtime, read_runtime
from sovereign_ai.inventory.system import System, read_system
from sovereign_ai.spec import Inventory, Noun

NVIDIA_VENDOR, DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")
"""PCI ids: NVIDIA; a VGA controller and a 3D controller."""
XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


class Xid(Noun, frozen=True, kw_only=True):
    """A fault that the driver reported to the kernel's log: where, and its number."""

    address: str
    number: int


class Condition(Noun, frozen=True, kw_only=True):
    """Facts of one machine. Bytes; `free_bytes` and `file_system` by folder of interest."""

    inventory: Inventory
    states: tuple[CardState, ...] = ()
    kernel_driver: str | None = None
    pci_gpus: int | None = None
    nouveau: bool | None = None
    xids: tuple[Xid, ...] | None = None
    iommu: str | None = None
    swap_bytes: int | None = None
    shm_bytes: int | None = None
    open_files: int | None = None
    cgroup_v2: bool | None = None
    free_bytes: Mapping[str, int] = {}
    system: System = System()
    runtime: Runtime = Runtime()
    drive: Drive = Drive()


def read_condition(
    inventory: Inventory,
    states: tuple[CardState, ...],
    folders: Mapping[str, Path],
    *,
    drive: Path = Path("/mnt/sovereign-storage"),
    root: Path = Path("/"),
    log: Callable[[], str | None] = lambda: kernel_log(),
) -> Condition:
    """`folders`: what they are for → where they are or will be. `drive`: where a cluster's models lie."""
    return Condition(
        inventory=inventory,
        states=states,
        kernel_driver=_match(root / "proc/driver/nvidia/version", r"Kernel Module(?: for \S+)?\s+([\d.]+)"),
        pci_gpus=_pci_gpus(root / "sys/bus/pci/devices"),
        nouveau=_has_line(root / "proc/modules", "nouveau "),
        xids=_xids(log()),
        iommu=_match(root / "proc/cmdline", r"\b(?:intel|amd)?_?iommu=(\S+)"),
        swap_bytes=_swap(root / "proc/swaps"),
        shm_bytes=_size(root / "dev/shm"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cgroup_v2=(root / "sys/fs/cgroup/cgroup.controllers").exists() if (root / "sys").exists() else None,
        free_bytes={what: _free(folder) for what, folder in folders.items()},
        system=read_system(root, inventory.nodes[0].name),
        runtime=read_runtime(root),
        drive=read_drive(root, drive),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _match(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, _text(path) or "")
    return found[1] if found else None


def _has_line(path: Path, beginning: str) -> bool | None:
    text = _text(path)
    return None if text is None else any(line.startswith(beginning) for line in text.splitlines())


def _pci_gpus(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    return sum(
        (_text(device / "vendor") or "").strip() == NVIDIA_VENDOR
        and (_text(device / "class") or "").startswith(DISPLAY_CLASSES)
        for device in folder.iterdir()
    )


def _swap(path: Path) -> int | None:
    """Bytes: the third column is in KiB."""
    text = _text(path)
    if text is None:
        return None
    rows = [line.split() for line in text.splitlines()[1:]]
    return sum(int(row[2]) * 1024 for row in rows if len(row) > 2 and row[2].isdigit())


def _size(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _free(folder: Path) -> int:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def kernel_log() -> str | None:
    """The kernel's ring buffer, without waiting for more; None where this user may not read it."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    records: list[bytes] = []
    try:
        while True:
            try:
                records.append(os.read(descriptor, 8192))
            except BrokenPipeError:
                continue  # this record was overwritten meanwhile
            except OSError:
                break  # no more now, or not allowed after all
    finally:
        os.close(descriptor)
    return b"".join(records).decode(errors="replace")


def _xids(log: str | None) -> tuple[Xid, ...] | None:
    if log is None:
        return None
    found = (Xid(address=address, number=int(number)) for address, number in XID.findall(log))
    return tuple(dict.fromkeys(found))

"""What the kernel and its files say of a machine beside its GPUs. Reading only; doctor_system.py judges.

`root` stands for `/` in tests. What cannot be read is None.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sovereign_ai.spec import Noun

KUBERNETES = (
    "var/lib/kubelet/config.yaml",
    "etc/kubernetes",
    "var/lib/rancher",
    "etc/rancher",
    "var/snap/microk8s",
)
"""Any of them means that a cluster's node runs here: kubeadm, k3s and RKE2, MicroK8s."""
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Four bytes of attributes, then 1 where it is on (UEFI specification, global variables)."""
LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
UNSYNCHRONISED = 0x40
"""STA_UNSYNC of adjtimex(2)."""
UNITS = ("usr/lib/systemd/system", "lib/systemd/system", "etc/systemd/system")
"""Where units are, the later over the earlier."""


class Clock(Noun, frozen=True, kw_only=True):
    """`error_s`: the largest error that the kernel reckons with."""

    synchronised: bool
    error_s: float


class Limits(Noun, frozen=True, kw_only=True):
    """Of a process or a unit; -1 is unlimited, None not said. `source` says where that stands."""

    memlock_bytes: int | None
    files: int | None
    source: str


class System(Noun, frozen=True, kw_only=True):
    """`kernels`: of every installed kernel, whether it has NVIDIA's module. `iommu_groups` by PCI address.
    `card_nodes`: PCI address → NUMA node, -1 where the firmware does not say. `names`: host name → whether
    this machine resolves it alone."""

    kubernetes: bool = False
    kernel: str | None = None
    kernels: Mapping[str, bool] = {}
    secure_boot: bool | None = None
    module_unsigned: bool | None = None
    iommu_groups: Mapping[str, str] | None = None
    zram_bytes: int | None = None
    huge_bytes: int | None = None
    map_count: int | None = None
    numa_nodes: int | None = None
    card_nodes: Mapping[str, int] = {}
    ip_forward: bool | None = None
    bridge_filter: bool | None = None
    listening: tuple[int, ...] | None = None
    names: Mapping[str, bool] | None = None
    clock: Clock | None = None
    containerd: Limits | None = None


def read_system(
    root: Path, node: str, clock: Callable[[], Clock | None] = lambda: kernel_clock(), kernel: str = ""
) -> System:
    """`node`: the machine's own name. `kernel`: its release, default the running one."""
    release = kernel or platform.release()
    return System(
        kubernetes=any((root / path).exists() for path in KUBERNETES),
        kernel=release,
        kernels=_kernels(root / "lib/modules"),
        secure_boot=_secure_boot(root / SECURE_BOOT, root / "sys/firmware"),
        module_unsigned=_unsigned(root / "sys/module/nvidia/taint"),
        iommu_groups=_iommu_groups(root / "sys/bus/pci/devices"),
        zram_bytes=_zram(root / "proc/swaps"),
        huge_bytes=_huge(root / "proc/meminfo"),
        map_count=_number(root / "proc/sys/vm/max_map_count"),
        numa_nodes=_numa_nodes(root / "sys/devices/system/node"),
        card_nodes=_card_nodes(root / "sys/bus/pci/devices"),
        ip_forward=_flag(root / "proc/sys/net/ipv4/ip_forward"),
        bridge_filter=_flag(root / "proc/sys/net/bridge/bridge-nf-call-iptables"),
        listening=_listening(root / "proc/net"),
        names=_names(root, ("localhost", node)),
        clock=clock(),
        containerd=_process_limits(root / "proc", "containerd") or _unit_limits(root, "containerd.service"),
    )


def text_of(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (text_of(path) or "").strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _flag(path: Path) -> bool | None:
    number = _number(path)
    return None if number is None else number == 1


def _kernels(folder: Path) -> dict[str, bool]:
    """Kernels that can be booted, by their modules' index."""
    found = {}
    for index in sorted(folder.glob("*/modules.dep")):
        found[index.parent.name] = (
            re.search(r"(^|/)nvidia\.ko", text_of(index) or "", re.MULTILINE) is not None
        )
    return found


def _secure_boot(path: Path, firmware: Path) -> bool | None:
    try:
        return path.read_bytes()[4:5] == b"\x01"
    except OSError:
        # a machine without UEFI has no Secure Boot; with it, the variable may be hidden from this user
        return False if firmware.is_dir() and not (firmware / "efi").exists() else None


def _unsigned(path: Path) -> bool | None:
    """`E` in a module's taint: it has no signature that this kernel knows."""
    text = text_of(path)
    return None if text is None else "E" in text


def _iommu_groups(devices: Path) -> dict[str, str] | None:
    if not devices.is_dir():
        return None
    links = {device.name: device / "iommu_group" for device in devices.iterdir()}
    return {name: link.readlink().name for name, link in links.items() if link.is_symlink()}


def _zram(path: Path) -> int | None:
    text = text_of(path)
    if text is None:
        return None
    rows = [line.split() for line in text.splitlines()[1:] if line.startswith("/dev/zram")]
    return sum(int(row[2]) * 1024 for row in rows if len(row) > 2 and row[2].isdigit())


def _huge(path: Path) -> int | None:
    """Bytes reserved for huge pages of all sizes."""
    text = text_of(path)
    if text is None:
        return None
    found = re.search(r"^Hugetlb:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _numa_nodes(folder: Path) -> int | None:
    return len(list(folder.glob("node[0-9]*"))) or None if folder.is_dir() else None


def _card_nodes(devices: Path) -> dict[str, int]:
    found = {}
    for vendor in sorted(devices.glob("*/vendor")):
        node = _number(vendor.parent / "numa_node")
        if (text_of(vendor) or "").strip() == "0x10de" and node is not None:
            found[vendor.parent.name] = node
    return found


def _listening(net: Path) -> tuple[int, ...] | None:
    """TCP ports that somebody listens on in this network namespace."""
    texts = [text for name in ("tcp", "tcp6") if (text := text_of(net / name)) is not None]
    rows = [line.split() for text in texts for line in text.splitlines()[1:]]
    ports = {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == LISTENING}
    return tuple(sorted(ports)) if texts else None


def _names(root: Path, wanted: tuple[str, ...]) -> dict[str, bool] | None:
    """From the files alone: nothing is asked of a name server."""
    hosts = text_of(root / "etc/hosts")
    if hosts is None:
        return None
    lines = [line.partition("#")[0].split() for line in hosts.splitlines()]
    known = {name.lower() for line in lines for name in line[1:]}
    services = re.search(r"^hosts:(.*)$", text_of(root / "etc/nsswitch.conf") or "", re.MULTILINE)
    own = services is not None and "myhostname" in services[1].split()
    return {name: own or name.lower() in known for name in wanted}


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as we read it; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("error_us", ctypes.c_long),
        ("estimate_us", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_clock() -> Clock | None:
    """Mode 0 only reads, which any user may. None where the C library has no such call."""
    state = _Timex()
    call = getattr(ctypes.CDLL(None), "adjtimex", None)
    if call is None or call(ctypes.byref(state)) < 0:
        return None
    return Clock(synchronised=not state.status & UNSYNCHRONISED, error_s=state.error_us / 1e6)


def _process_limits(proc: Path, name: str) -> Limits | None:
    """Of the running process: what its containers inherit."""
    for comm in sorted(proc.glob("[0-9]*/comm")):
        if (text_of(comm) or "").strip() == name and (text := text_of(comm.parent / "limits")):
            rows = {row[1]: row[2] for row in re.finditer(r"^Max (.+?)\s{2,}(\S+)", text, re.MULTILINE)}
            memlock, files = (_limit(rows.get(key, "")) for key in ("locked memory", "open files"))
            return Limits(memlock_bytes=memlock, files=files, source=f"the running {name}")
    return None


def _unit_limits(root: Path, unit: str) -> Limits | None:
    """Of the unit's files and their drop-ins, where the process does not run or cannot be seen."""
    paths = [root / folder / unit for folder in UNITS]
    drop_ins = [path for folder in UNITS for path in sorted((root / folder / f"{unit}.d").glob("*.conf"))]
    texts = [text for path in (*paths, *drop_ins) if (text := text_of(path))]
    if not texts:
        return None
    values = dict(re.findall(r"^(Limit[A-Z]+)=(\S+)$", "\n".join(texts), re.MULTILINE))
    memlock, files = _limit(values.get("LimitMEMLOCK", "")), _limit(values.get("LimitNOFILE", ""))
    return Limits(memlock_bytes=memlock, files=files, source=unit)


def _limit(text: str) -> int | None:
    """systemd's `infinity`, `1M` and `soft:hard`; the kernel's `unlimited`."""
    value = text.partition(":")[0]
    if value in ("infinity", "unlimited"):
        return -1
    found = re.fullmatch(r"(\d+)([KMG]?)", value)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else None

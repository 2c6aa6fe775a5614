"""A cluster's node in health, and machines that differ from it in one fact. They prove what our judgement
makes of facts, not that a machine has them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from sovereign_ai.catalog.releases import Release, release
from sovereign_ai.inventory.condition import Condition
from sovereign_ai.inventory.doctor import HOST_CHECKS, Demand, Finding
from sovereign_ai.inventory.doctor import examine as examine_for
from sovereign_ai.inventory.drive import Drive, Mount
from sovereign_ai.inventory.runtime import Cdi, ContainerdFile, Handler, Kubelet, Runtime, Toolkit
from sovereign_ai.inventory.system import Clock, Limits, System
from sovereign_ai.spec import Device, Inventory, Node, Pcie
from tests.inventory.fakes import GIB

Facts = TypeVar("Facts", bound=msgspec.Struct)

TRITON = release("24.12")
CARD = Device(
    id="GPU-1",
    kind="gpu",
    name="RTX 3080",
    memory_bytes=10 * GIB,
    memory_free_bytes=10 * GIB,
    pcie=Pcie(generation=1, generation_max=4, width=16, width_max=16),
    display_attached=False,
)

KERNEL = System(
    kubernetes=True,
    kernel="6.8.0-60",
    kernels={"6.8.0-60": True},
    secure_boot=False,
    module_unsigned=False,
    iommu_groups={},
    zram_bytes=0,
    huge_bytes=0,
    map_count=1 << 20,
    numa_nodes=1,
    ip_forward=True,
    bridge_filter=True,
    listening=(22, 6443, 10250),
    names={"localhost": True, "rig": True},
    clock=Clock(synchronised=True, error_s=0.02),
    containerd=Limits(memlock_bytes=-1, files=1 << 20, source="the running containerd"),
)
"""A node of a cluster in health."""
RUNC, NVIDIA = (
    Handler(name=name, key_version=3, systemd_cgroup=True, binary=f"/usr/bin/{name}")
    for name in ("runc", "nvidia")
)
RUNTIME = Runtime(
    containerd=(
        ContainerdFile(path="/etc/containerd/config.toml", version=3, handlers=(RUNC,)),
        ContainerdFile(path="/etc/containerd/conf.d/99-nvidia.toml", version=3, handlers=(NVIDIA,)),
    ),
    kubelet=Kubelet(cgroup_driver="systemd"),
    toolkit=Toolkit(
        path="/usr/bin/nvidia-ctk",
        version="1.18.0",
        config="/etc/nvidia-container-runtime/config.toml",
        ldconfig="@/sbin/ldconfig.real",
        ldconfig_there=True,
    ),
    cdi=(Cdi(path="/var/run/cdi/nvidia.yaml", devices=("all", "0", "GPU-1"), drivers=("560.35.03",)),),
    images_free_bytes=200 * GIB,
    images_total_bytes=400 * GIB,
)
ROOT, DISK = (
    Mount(point=point, device=device, part="/", kind="ext4", source=source, read_only=False)
    for point, device, source in (("/", "8:1", "/dev/sda1"), ("/mnt/models", "259:1", "/dev/nvme0n1"))
)
OLD_CDI = msgspec.structs.replace(RUNTIME, cdi=(msgspec.structs.replace(RUNTIME.cdi[0], drivers=()),))
DRIVE = Drive(path="/mnt/models", there=True, mounts=(ROOT, DISK), sentinel=True, free_bytes=500 * GIB)
DEMAND = Demand(limits_bytes=8 * GIB, shared_bytes=4 * GIB)


def machine(*devices: Device, driver: str | None = "560.35.03", **facts: Any) -> Condition:
    node = Node(
        name="rig",
        devices=devices,
        cores=8,
        memory_bytes=64 * GIB,
        memory_free_bytes=GIB,
        driver_version=driver,
    )
    usual: dict[str, Any] = {
        "kernel_driver": driver,
        "pci_gpus": len(devices),
        "nouveau": False,
        "xids": (),
        "swap_bytes": 0,
        "shm_bytes": 8 * GIB,
        "open_files": 65536,
        "cgroup_v2": True,
        "free_bytes": {"engine": 50 * GIB, "models": 50 * GIB},
    }
    usual |= {"system": KERNEL, "runtime": RUNTIME, "drive": DRIVE}
    return Condition(inventory=Inventory(nodes=(node,)), **{**usual, **facts})


def changed(facts: Facts, **changes: Any) -> Facts:
    return msgspec.structs.replace(facts, **changes)


def examine(condition: Condition, triton: Release = TRITON, demand: Demand = DEMAND) -> tuple[Finding, ...]:
    return examine_for(condition, triton, demand)


def with_card(**changes: Any) -> Condition:
    return machine(msgspec.structs.replace(CARD, **changes))


def bad(condition: Condition, demand: Demand = DEMAND) -> list[Finding]:
    found = examine(condition, TRITON, demand)
    assert list(dict.fromkeys(one.check for one in found)) == [check.name for check in HOST_CHECKS]
    return [one for one in found if one.state in ("fault", "warning")]

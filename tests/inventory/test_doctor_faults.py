"""One machine at fault for every check of Kubernetes' node: what is seen, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.inventory.condition import Condition
from sovereign_ai.inventory.doctor import Demand
from sovereign_ai.inventory.drive import Mount
from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.inventory.runtime import ContainerdFile, Kubelet
from sovereign_ai.inventory.system import Clock, Limits
from sovereign_ai.spec import Link
from tests.inventory.fakes import GIB
from tests.inventory.machines import (
    CARD,
    DEMAND,
    DISK,
    DRIVE,
    KERNEL,
    NVIDIA,
    ROOT,
    RUNC,
    RUNTIME,
    bad,
    changed,
    examine,
    machine,
)


def kernel(**facts: Any) -> Condition:
    return machine(CARD, system=changed(KERNEL, **facts))


def runtime(**facts: Any) -> Condition:
    return machine(CARD, runtime=changed(RUNTIME, **facts))


def toolkit(**facts: Any) -> Condition:
    return runtime(toolkit=changed(RUNTIME.toolkit, **facts))


def cdi(**facts: Any) -> Condition:
    return runtime(cdi=(changed(RUNTIME.cdi[0], **facts),))


def drive(**facts: Any) -> Condition:
    return machine(CARD, drive=changed(DRIVE, **facts))


def state(**facts: Any) -> Condition:
    return machine(changed(CARD, power_limit_w=200.0), states=(CardState(id="GPU-1", **facts),))


def pair(**facts: Any) -> Condition:
    """Two cards that reach each other over PCIe."""
    two = machine(CARD, changed(CARD, id="GPU-2", index=1), **facts)
    names = ("GPU-1", "GPU-2")
    found = changed(two.inventory.nodes[0], links=(Link(a=names[0], b=names[1], kind="p2p"),))
    specification = changed(RUNTIME, cdi=(changed(RUNTIME.cdi[0], devices=names),))
    return changed(two, inventory=changed(two.inventory, nodes=(found,)), runtime=specification)


def mounted(*mounts: Mount) -> Condition:
    return drive(mounts=mounts)


def config(version: int, key_version: int) -> ContainerdFile:
    handlers = tuple(changed(one, key_version=key_version) for one in (RUNC, NVIDIA))
    return ContainerdFile(path="/etc/containerd/config.toml", version=version, handlers=handlers)


NO_CGROUP = changed(RUNTIME.containerd[1], handlers=(changed(NVIDIA, systemd_cgroup=None),))
SECURE = changed(KERNEL, secure_boot=True)
GROUPED = changed(KERNEL, iommu_groups={"0000:0a:00.0": "7"})


@pytest.mark.parametrize(
    ("check", "condition", "state", "what", "fix"),
    [
        ("driver for every kernel", kernel(kernels={"6.8.0": True, "6.11.0": False}), "warning",
         "no driver for kernel 6.11.0", "dkms autoinstall -k 6.11.0"),
        ("Secure Boot", kernel(secure_boot=True, module_unsigned=True), "warning", "no signature", "mokutil"),
        ("power limit", state(power_default_w=320.0), "warning", "limit is 200 W, 320 W by",
         "-pl 320"),
        ("ECC", state(ecc=False, ecc_pending=True), "warning", "off until the next start, on then", "-e 0"),
        ("peer to peer", pair(iommu="on", system=GROUPED), "warning",
         "1 pairs", "iommu=pt"),
        ("NUMA", kernel(numa_nodes=2, card_nodes={"0000:0a:00.0": -1}), "warning", "does not say", "SRAT"),
        ("memory maps", kernel(map_count=4096), "warning", "vm.max_map_count is 4096", "sysctl"),
        ("huge pages", kernel(huge_bytes=4 * GIB), "warning", "4.0 GiB are reserved", "vm.nr_hugepages=0"),
        ("swap", machine(CARD, swap_bytes=GIB), "fault", "the kubelet refuses", "swapoff -a"),
        ("compressed swap", kernel(zram_bytes=8 * GIB), "warning", "8.0 GiB of zram", "swapoff /dev/zram0"),
        ("clock", kernel(clock=Clock(synchronised=False, error_s=16)), "warning", "nothing keeps", "set-ntp"),
        ("clock", kernel(clock=Clock(synchronised=True, error_s=4.2)), "warning", "by 4.2 s", "chronyc"),
        ("own names", kernel(names={"localhost": True, "rig": False}), "warning", "rig is not known",
         "`127.0.1.1 rig`"),
        ("own names", kernel(names={"localhost": False, "rig": True}), "warning", "localhost",
         "`127.0.0.1 localhost`"),
        ("gateway's port", kernel(listening=(8000,)), "warning", "listens on 8000", "sport = :8000"),
        ("forwarding", kernel(ip_forward=False), "fault", "pods reach nothing", "net.ipv4.ip_forward=1"),
        ("bridge filter", kernel(bridge_filter=None), "warning", "br_netfilter is not loaded", "modprobe"),
        ("bridge filter", kernel(bridge_filter=False), "warning", "pass the filter by", "call-iptables=1"),
        ("limits of containers", kernel(containerd=Limits(memlock_bytes=65536, files=1024, source="it")),
         "warning", "it: 65536 locked bytes, 1024 open files",
         "LimitMEMLOCK=infinity and LimitNOFILE=1048576"),
        ("containerd's imports", runtime(stray=("/etc/containerd/conf.d/99-nvidia.toml",)), "warning",
         "does not read /etc/containerd/conf.d/99-nvidia.toml", "imports = ["),
        ("nvidia runtime", runtime(containerd=RUNTIME.containerd[:1]), "fault", "no runtime `nvidia`",
         "nvidia-ctk runtime configure"),
        ("nvidia runtime", runtime(containerd=(config(3, 2),)), "fault", "under the key of version 2",
         "io.containerd.cri.v1.runtime"),
        ("nvidia runtime", runtime(containerd=(config(2, 3),)), "fault", "is of version 2",
         "io.containerd.grpc.v1.cri"),
        ("cgroup driver", runtime(containerd=(RUNTIME.containerd[0], NO_CGROUP)), "fault",
         "containerd's runtime `nvidia` does not", "SystemdCgroup = true in the options of runtimes.nvidia"),
        ("container toolkit", toolkit(path=""), "fault", "not installed", "nvidia-container-toolkit"),
        ("container toolkit", toolkit(version=""), "warning", "does not tell its version", "anew"),
        ("container toolkit", toolkit(version="1.17.7"), "fault", "CVE-2025-23266", "1.17.8 or later"),
        ("cards by variable", toolkit(by_variable=False), "fault", "is false", "set it to true"),
        ("cards by variable", toolkit(problem="is not TOML"), "fault", "is not TOML", "correct it"),
        ("ldconfig", toolkit(ldconfig="/sbin/ldconfig"), "fault", "from the container", '"@/sbin/ldconfig"'),
        ("ldconfig", toolkit(ldconfig_there=False), "fault", "/sbin/ldconfig.real is not", "elsewhere"),
        ("CDI specification", runtime(cdi=()), "warning", "no specification", "nvidia-ctk cdi generate"),
        ("CDI specification", cdi(problem="is not YAML"), "fault", "is not YAML", "nvidia-ctk cdi generate"),
        ("CDI cards", cdi(devices=("all",)), "fault", "it lacks GPU-1", "strategy=uuid"),
        ("CDI cards", cdi(devices=("all", "0")), "warning", "by number alone", "strategy=uuid"),
        ("CDI driver", cdi(drivers=("555.42.02",)), "fault", "555.42.02, 560.35.03 is loaded", "cdi-refresh"),
        ("room for images", runtime(images_free_bytes=20 * GIB), "warning", "20.0 GiB free", "crictl rmi"),
        ("room for images", runtime(images_free_bytes=60 * GIB), "warning", "more than 85%",
         "kubelet removes"),
        ("model drive", mounted(ROOT), "fault", "the root file system", "/etc/fstab"),
        ("model drive mounted once", mounted(ROOT, DISK, changed(DISK, point="/mnt/models/models")), "fault",
         "inside itself", "umount /mnt/models/models"),
        ("model drive mounted once", mounted(ROOT, DISK, DISK), "warning", "2 mounts are stacked", "umount"),
        ("model drive mounted once", mounted(ROOT, DISK, changed(DISK, point="/mnt/models/b", device="8:9")),
         "warning", "/mnt/models/b is mounted inside", "elsewhere"),
        ("model drive's sentinel", drive(sentinel=False), "fault", ".sovereign-storage is missing", "touch"),
        ("model drive's mode", mounted(ROOT, changed(DISK, read_only=True)), "warning", "read-only",
         "remount"),
        ("model drive's space", drive(free_bytes=GIB), "warning", "1.0 GiB free", "models remove"),
    ],
)  # fmt: skip
def test_one_thing_wrong(check: str, condition: Condition, state: str, what: str, fix: str) -> None:
    (finding,) = bad(condition)
    assert (finding.check, finding.state) == (check, state)
    assert what in finding.what
    assert fix in finding.fix


def test_a_drive_that_is_not_there() -> None:
    (finding,) = bad(drive(there=False))
    assert (finding.check, finding.state) == ("model drive", "fault")
    assert "mkdir -p /mnt/models" in finding.fix


def test_a_drive_that_no_pod_needs_yet() -> None:
    alone = changed(drive(sentinel=False, mounts=(ROOT,)), system=changed(KERNEL, kubernetes=False))
    assert [one.state for one in bad(alone)] == ["warning", "warning"]


def test_room_that_cannot_be_read() -> None:
    assert bad(drive(free_bytes=None)) == []


def test_a_configuration_that_cannot_be_read_hides_its_runtimes() -> None:
    broken = (changed(RUNTIME.containerd[0], problem="is not TOML", handlers=()),)
    assert [(one.check, one.state) for one in bad(runtime(containerd=broken))] == [
        ("containerd's configuration", "fault"),
        ("nvidia runtime", "fault"),
    ]


def test_a_driver_that_secure_boot_refused() -> None:
    found = bad(machine(driver=None, pci_gpus=1, kernel_driver=None, system=SECURE))
    assert [(one.check, one.state) for one in found] == [
        ("cards on the bus", "warning"),
        ("Secure Boot", "fault"),
    ]


@pytest.mark.parametrize(
    ("demand", "check", "what"),
    [
        (Demand(limits_bytes=63 * GIB, shared_bytes=GIB), "memory for the plan", "63.0 GiB together"),
        (Demand(limits_bytes=GIB, shared_bytes=40 * GIB), "shared memory for the plan", "grow to 40.0 GiB"),
    ],
)
def test_a_plan_that_is_too_large(demand: Demand, check: str, what: str) -> None:
    (finding,) = bad(machine(CARD), demand)
    assert finding.check == check
    assert what in finding.what


def test_without_a_plan_its_memory_is_not_judged() -> None:
    skipped = [one.check for one in examine(machine(CARD), demand=Demand()) if one.state == "skipped"]
    assert {"memory for the plan", "shared memory for the plan"} <= set(skipped)


def test_claims_alone_need_neither_runtime_class_nor_variable() -> None:
    """The agent needs both."""
    closed = changed(
        RUNTIME, containerd=RUNTIME.containerd[:1], toolkit=changed(RUNTIME.toolkit, by_variable=False)
    )
    condition = machine(CARD, runtime=closed)
    claimed = changed(DEMAND, pinning="dra")
    assert bad(condition, changed(claimed, agent=False)) == []
    assert [one.check for one in bad(condition, claimed)] == ["nvidia runtime", "cards by variable"]


@pytest.mark.parametrize(
    ("kubelet", "what"),
    [
        (Kubelet(cgroup_driver="systemd", fail_swap_on=False), "which no pod uses"),
        (
            Kubelet(cgroup_driver="systemd", fail_swap_on=False, swap_behavior="LimitedSwap"),
            "1.0 GiB of swap",
        ),
    ],
)
def test_swap_that_the_kubelet_knows_of(kubelet: Kubelet, what: str) -> None:
    condition = machine(CARD, swap_bytes=GIB, runtime=changed(RUNTIME, kubelet=kubelet))
    assert bad(condition) == []
    assert any(what in one.what for one in examine(condition))


def test_the_port_of_a_gateway_that_runs() -> None:
    taken = kernel(listening=(8000,))
    assert bad(taken, changed(DEMAND, gateway_runs=True)) == []


def test_cards_at_known_places() -> None:
    condition = kernel(numa_nodes=2, card_nodes={"0000:0a:00.0": 1})
    assert "2 nodes: 0000:0a:00.0 at 1" in [one.what for one in examine(condition)]


def test_what_secure_boot_and_peers_are_in_health() -> None:
    assert bad(kernel(secure_boot=True)) == []
    assert bad(pair(iommu="pt", system=GROUPED)) == []

from __future__ import annotations

from pathlib import Path

from sovereign_ai.inventory import condition
from sovereign_ai.inventory.condition import Xid, read_condition
from tests.inventory.fakes import six_card_rig as rig

LOG = """
6,1,1,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  560.35.03
3,2,2,-;NVRM: Xid (PCI:0000:0a:00): 79, pid='<unknown>', GPU has fallen off the bus.
3,3,3,-;NVRM: Xid (PCI:0000:0a:00): 79, pid='<unknown>', GPU has fallen off the bus.
3,4,4,-;NVRM: Xid (PCI:0000:0b:00): 119, Timeout waiting for RPC from GSP
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_the_kernels_files_say(tmp_path: Path) -> None:
    nvrm = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16 21:39:15 UTC 2024\n"
    write(tmp_path, "proc/driver/nvidia/version", nvrm)
    write(tmp_path, "proc/modules", "nvidia 1 0 - Live\nnouveau 2 0 - Live\n")
    write(tmp_path, "proc/cmdline", "root=/dev/sda1 quiet intel_iommu=on")
    swaps = "Filename Type Size Used Priority\n/swap file 1048576 0 -2\n/dev/zram0 partition 1024 0 100\n"
    write(tmp_path, "proc/swaps", swaps)
    write(tmp_path, "sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    for number, (vendor, kind) in enumerate(
        [("0x10de", "0x030000"), ("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000")]
    ):
        write(tmp_path, f"sys/bus/pci/devices/{number}/vendor", f"{vendor}\n")
        write(tmp_path, f"sys/bus/pci/devices/{number}/class", f"{kind}\n")
    found = read_condition(rig(), (), {"models": tmp_path / "not" / "yet"}, root=tmp_path, log=lambda: LOG)
    assert found.kernel_driver == "560.35.03"
    assert found.pci_gpus == 2
    assert found.nouveau is True
    assert found.iommu == "on"
    assert found.swap_bytes == (1048576 + 1024) * 1024
    assert found.cgroup_v2 is True
    assert found.xids == (
        Xid(address="0000:0a:00", number=79),
        Xid(address="0000:0b:00", number=119),
    )
    assert found.free_bytes["models"] > 0
    assert found.shm_bytes is None


def test_the_open_kernel_modules_name_themselves_otherwise(tmp_path: Path) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    write(tmp_path, "proc/driver/nvidia/version", text)
    found = read_condition(rig(), (), {}, root=tmp_path, log=lambda: "")
    assert found.kernel_driver == "580.159.04"


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    found = read_condition(rig(), (), {}, root=tmp_path / "nothing", log=lambda: None)
    assert (found.kernel_driver, found.pci_gpus, found.nouveau, found.xids) == (None, None, None, None)
    assert (found.swap_bytes, found.cgroup_v2, found.iommu) == (None, None, None)


def test_this_machine_can_be_read() -> None:
    found = read_condition(rig(), (), {"engine": Path("/tmp")})
    assert found.open_files
    assert found.free_bytes["engine"] < 1 << 60


def test_a_log_that_may_not_be_read() -> None:
    log = condition.kernel_log()
    assert log is None or isinstance(log, str)

from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_ai.inventory.system import Clock, Limits, System, kernel_clock, read_system

TCP = """  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000
   1: 0100007F:0016 0100007F:9999 01 00000000:00000000
"""
TCP6 = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:280A 00000000000000000000000000000000:0000 0A 0
"""
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max open files            1048576              1048576              files
Max locked memory         unlimited            unlimited            bytes
"""
KEPT = Clock(synchronised=True, error_s=0.01)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(root: Path) -> System:
    return read_system(root, "Rig", lambda: KEPT, "6.8.0")


def test_what_the_files_say(tmp_path: Path) -> None:
    for name, text in {
        "var/lib/kubelet/config.yaml": "kind: KubeletConfiguration",
        "lib/modules/6.8.0/modules.dep": "kernel/a.ko:\nupdates/dkms/nvidia.ko.zst: kernel/b.ko",
        "lib/modules/6.11.0/modules.dep": "kernel/drivers/nvidia_peermem.ko:",
        "sys/module/nvidia/taint": "POE\n",
        "sys/bus/pci/devices/0000:0a:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:0a:00.0/numa_node": "-1\n",
        "sys/bus/pci/devices/0000:00:01.0/vendor": "0x8086\n",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1024 0 100\n/x file 9 0 1\n",
        "proc/meminfo": "MemTotal: 9 kB\nHugetlb:         2048 kB\n",
        "proc/sys/vm/max_map_count": "65530\n",
        "sys/devices/system/node/node0/x": "",
        "sys/devices/system/node/node1/x": "",
        "proc/sys/net/ipv4/ip_forward": "1\n",
        "proc/sys/net/bridge/bridge-nf-call-iptables": "0\n",
        "proc/net/tcp": TCP,
        "proc/net/tcp6": TCP6,
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 other rig # Rig\n",
        "proc/77/comm": "containerd\n",
        "proc/77/limits": LIMITS,
    }.items():
        write(tmp_path, name, text)
    secure = tmp_path / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    secure.parent.mkdir(parents=True)
    secure.write_bytes(b"\x06\0\0\0\x01")
    (tmp_path / "sys/bus/pci/devices/0000:0a:00.0/iommu_group").symlink_to("../../../kernel/iommu_groups/17")
    assert read(tmp_path) == System(
        kubernetes=True,
        kernel="6.8.0",
        kernels={"6.8.0": True, "6.11.0": False},
        secure_boot=True,
        module_unsigned=True,
        iommu_groups={"0000:0a:00.0": "17"},
        zram_bytes=1 << 20,
        huge_bytes=2 << 20,
        map_count=65530,
        numa_nodes=2,
        card_nodes={"0000:0a:00.0": -1},
        ip_forward=True,
        bridge_filter=False,
        listening=(8000, 10250),
        names={"localhost": True, "Rig": True},
        clock=KEPT,
        containerd=Limits(memlock_bytes=-1, files=1 << 20, source="the running containerd"),
    )


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    assert read(tmp_path) == System(kernel="6.8.0", clock=KEPT)


def test_a_machine_without_uefi_has_no_secure_boot(tmp_path: Path) -> None:
    (tmp_path / "sys/firmware/acpi").mkdir(parents=True)
    assert read(tmp_path).secure_boot is False


def test_a_name_that_the_system_itself_answers_for(tmp_path: Path) -> None:
    write(tmp_path, "etc/hosts", "127.0.0.1 localhost\n")
    assert read(tmp_path).names == {"localhost": True, "Rig": False}
    write(tmp_path, "etc/nsswitch.conf", "passwd: files\nhosts: files myhostname dns\n")
    assert read(tmp_path).names == {"localhost": True, "Rig": True}


@pytest.mark.parametrize(
    ("text", "files", "memlock"),
    [("infinity", 1024, -1), ("64K", 1024, 65536), ("8M:infinity", 1024, 8 << 20), ("?", 1024, None)],
)
def test_limits_of_a_unit_that_does_not_run(
    tmp_path: Path, text: str, files: int, memlock: int | None
) -> None:
    write(tmp_path, "lib/systemd/system/containerd.service", "[Service]\nLimitNOFILE=infinity\n")
    drop_in = f"[Service]\nLimitNOFILE={files}\nLimitMEMLOCK={text}\n"
    write(tmp_path, "etc/systemd/system/containerd.service.d/limits.conf", drop_in)
    wanted = Limits(memlock_bytes=memlock, files=files, source="containerd.service")
    assert read(tmp_path).containerd == wanted


def test_this_machines_own_clock() -> None:
    clock = kernel_clock()
    assert clock is None or clock.error_s >= 0

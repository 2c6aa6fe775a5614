from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sovereign_ai.inventory.condition import Condition, Xid
from sovereign_ai.inventory.doctor import examine as examine_for
from sovereign_ai.inventory.doctor_drive import DRIVE_CHECKS
from sovereign_ai.inventory.doctor_runtime import RUNTIME_CHECKS
from sovereign_ai.inventory.drive import Drive
from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.inventory.runtime import Runtime
from sovereign_ai.inventory.system import System
from sovereign_ai.spec import Pcie
from tests.inventory.fakes import GIB
from tests.inventory.machines import (
    CARD,
    DRIVE,
    KERNEL,
    OLD_CDI,
    RUNTIME,
    TRITON,
    bad,
    changed,
    examine,
    machine,
    with_card,
)


def test_a_machine_in_health() -> None:
    findings = examine(machine(CARD, CARD), TRITON)
    assert {one.state for one in findings} == {"ok"}
    assert [one.check for one in findings][:3] == ["driver", "driver in the kernel", "cards on the bus"]


def test_a_machine_without_a_card() -> None:
    cpu = msgspec.structs.replace(CARD, kind="cpu", id="cpu")
    condition = machine(cpu, driver=None, pci_gpus=0, kernel_driver=None, runtime=Runtime())
    assert bad(condition) == []
    skipped = {one.check: one.what for one in examine(condition, TRITON) if one.state == "skipped"}
    assert skipped["driver"] == "no NVIDIA driver: the CPU serves"
    assert skipped["PCIe width"] == skipped["nvidia runtime"] == "no NVIDIA card here"


def test_without_kubernetes_nothing_is_asked_of_it() -> None:
    condition = machine(CARD, system=changed(KERNEL, kubernetes=False), drive=Drive(path="/mnt/models"))
    reasons = {one.check: one.what for one in examine(condition, TRITON) if one.state == "skipped"}
    assert reasons["model drive"] == "no Kubernetes on this machine and no /mnt/models"
    mine = {check.name for check in (*RUNTIME_CHECKS, *DRIVE_CHECKS)}
    assert mine | {"forwarding", "bridge filter", "limits of containers", "peer to peer"} == set(reasons)


def test_what_nobody_could_read() -> None:
    """Every check has something to say of a machine that tells nothing, and calls none of it a fault."""
    nothing = Condition(inventory=machine().inventory)
    assert {one.state for one in examine_for(nothing, TRITON)} <= {"ok", "skipped"}
    there = machine(
        CARD, system=System(kubernetes=True), runtime=Runtime(), drive=changed(DRIVE, mounts=None)
    )
    assert {one.check for one in bad(there)} == {"bridge filter", "container toolkit", "CDI specification"}


@pytest.mark.parametrize(
    ("condition", "state", "what", "fix"),
    [
        (machine(CARD, driver="535.1", runtime=OLD_CDI), "fault", "needs driver 560", "newer driver branch"),
        (machine(CARD, kernel_driver="560.28.03"), "fault", "the driver was updated under it", "reboot"),
        (machine(CARD, nouveau=True), "fault", "nouveau", "blacklist"),
        (machine(CARD, pci_gpus=2), "fault", "2 NVIDIA cards on the bus, the driver shows 1", "dmesg"),
        (machine(driver=None, pci_gpus=1, kernel_driver=None), "warning", "but no driver", "install"),
        (machine(CARD, xids=(Xid(address="0a:00", number=79),)), "warning", "fell off the bus", "xid"),
        (machine(CARD, xids=(Xid(address="0a:00", number=999),)), "warning", "Xid 999", "xid"),
        (with_card(fault="is lost; reboot"), "fault", "is lost", "own words"),
        (
            with_card(pcie=Pcie(generation=1, generation_max=4, width=1, width_max=16)),
            "warning",
            "runs at x1 of x16",
            "riser",
        ),
        (with_card(memory_free_bytes=9 * GIB), "warning", "others hold 1.0 GiB", "nvidia-smi"),
        (with_card(memory_free_bytes=9 * GIB, display_attached=True), "warning", "1.0 GiB", "a desktop"),
        (machine(CARD, shm_bytes=64 << 20), "fault", "0.1 GiB, 1.0 are needed", "/dev/shm"),
        (machine(CARD, free_bytes={"engine": GIB}), "fault", "1.0 GiB, 3.0 are needed", "free some"),
        (machine(CARD, open_files=1024), "warning", "1024 at most", "ulimit"),
        (machine(CARD, cgroup_v2=False), "warning", "cgroup v1", "1.35"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(condition: Condition, state: str, what: str, fix: str) -> None:
    (finding,) = bad(condition)
    assert finding.state == state
    assert what in finding.what
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"persistence": False}, "persistence mode is off"),
        ({"compute_mode": 3}, "not in the default compute mode"),
        ({"clock_reasons": 0x40}, "slows it down now"),
        ({"temperature_c": 91}, "91 °C"),
        ({"replays": 12}, "12 packets"),
    ],
)
def test_the_state_of_a_card(state: dict[str, Any], what: str) -> None:
    (finding,) = bad(machine(CARD, states=(CardState(id="GPU-1", **state),)))
    assert what in finding.what


def test_a_card_at_rest_is_in_health() -> None:
    """Idle is a reason for low clocks, and a link lowers its generation to save power."""
    state = CardState(
        id="GPU-1", persistence=True, compute_mode=0, clock_reasons=1, temperature_c=40, replays=0
    )
    assert bad(machine(CARD, states=(state,))) == []


def test_what_cannot_be_read_is_skipped_and_said_so() -> None:
    nothing = machine(CARD, kernel_driver=None, pci_gpus=None, xids=None, shm_bytes=None, open_files=None)
    skipped = [one.check for one in examine(nothing, TRITON) if one.state == "skipped"]
    assert skipped == [
        "driver in the kernel",
        "cards on the bus",
        "Secure Boot",
        "kernel's log",
        "peer to peer",
        "shared memory",
    ]


def test_swap_is_a_remark() -> None:
    """Where no kubelet minds."""
    alone = machine(CARD, swap_bytes=GIB, runtime=changed(RUNTIME, kubelet=None))
    (finding,) = [one for one in examine(alone, TRITON) if one.check == "swap"]
    assert (finding.state, "failSwapOn" in finding.fix) == ("ok", True)

"""Read through a fake NVML: these tests do not prove that a real driver answers so."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.nvml import CardState, read_gpus, read_states
from sovereign_ai.spec import Device, Link, Pcie
from tests.inventory.fakes import FUNCTION_NOT_FOUND, GIB, H100, MIB, FakeNvml, FakeNvmlError

NAMES = ["NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3070"]


def only(nvml: FakeNvml) -> Device:
    (device,) = read_gpus(nvml).devices
    return device


def test_reads_every_card() -> None:
    nvml = FakeNvml(NAMES)
    gpus = read_gpus(nvml)
    assert gpus.driver_version == "560.35.03"
    assert [device.name for device in gpus.devices] == NAMES
    assert gpus.devices[1] == Device(
        id="GPU-00000001",
        kind="gpu",
        name="NVIDIA GeForce RTX 3070",
        index=1,
        memory_bytes=10 * GIB,
        memory_free_bytes=9 * GIB,
        memory_reserved_bytes=242 * MIB,
        compute_capability="8.6",
        pci_address="00000000:0B:00.0",
        bandwidth_bytes_per_s=760.08e9,
        pcie=Pcie(generation=1, generation_max=4, width=8, width_max=16),
        display_attached=False,
        power_limit_w=320.0,
        power_limit_max_w=352.0,
    )
    assert gpus.devices[1].memory_others_bytes == GIB - 242 * MIB
    assert gpus.links == ()
    assert nvml.calls[-1] == "shutdown"


def test_two_h100_behind_a_switch() -> None:
    gpus = read_gpus(FakeNvml(["NVIDIA H100 80GB HBM3"] * 2, card=H100))
    assert gpus.devices[0].bandwidth_bytes_per_s == pytest.approx(3.35e12, rel=0.001)
    assert gpus.devices[0].display_attached is False
    assert [device.fault for device in gpus.devices] == ["", ""]
    assert gpus.links == (Link(a="GPU-00000000", b="GPU-00000001", kind="nvlink"),)


def test_a_driver_without_cards() -> None:
    assert read_gpus(FakeNvml([])) == ((), "560.35.03", ())


@pytest.mark.parametrize("code", [9, 12])
def test_no_driver_is_no_gpu(code: int) -> None:
    nvml = FakeNvml(NAMES, {"init": code})
    assert read_gpus(nvml) == ((), None, ())
    assert "shutdown" not in nvml.calls


@pytest.mark.parametrize(
    ("faults", "message", "hint"),
    [
        ({"init": 18}, "the NVIDIA driver does not answer", "updated while loaded: reboot"),
        ({"init": 4}, "the NVIDIA driver does not answer", "let this user open"),
        ({"count": 999}, "cannot count its GPUs: NVML says 999 (NVML code 999)", "run nvidia-smi"),
        ({"driver": 1}, "does not tell its version", "run nvidia-smi"),
    ],
)
def test_a_broken_driver_is_told(faults: dict[Any, int], message: str, hint: str) -> None:
    nvml = FakeNvml(NAMES, faults)
    with pytest.raises(InventoryError) as caught:
        read_gpus(nvml)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "--cpu" in caught.value.hint
    assert isinstance(caught.value.__cause__, FakeNvmlError)
    assert nvml.calls.count("shutdown") == ("init" not in faults)


@pytest.mark.parametrize(
    ("call", "code", "fault"),
    [
        ("uuid", 15, "does not tell its UUID: NVML says 15 (NVML code 15); the card fell off the bus"),
        ("name", 15, "does not tell its name: NVML says 15"),
        ("pci", 999, "does not tell its PCI address: NVML says 999 (NVML code 999); run nvidia-smi"),
        ("memory v2", 16, "does not tell its memory: NVML says 16 (NVML code 16); the card needs a reset"),
        ("capability", 3, "does not tell its compute capability"),
        ("clock", 15, "stopped answering"),
        ("p2p", 15, ""),
        ("ecc", 16, "stopped answering"),
    ],
)
def test_a_card_at_fault_does_not_hide_the_others(call: str, code: int, fault: str) -> None:
    gpus = read_gpus(FakeNvml([*NAMES, "NVIDIA L4"], {(call, 1): code}))
    first, broken, last = gpus.devices
    assert (first.fault, last.fault) == ("", "")
    assert broken.fault.startswith(fault)
    assert bool(broken.fault) == bool(fault)
    assert broken.id == ("lost-1" if call == "uuid" else "GPU-00000001")
    assert broken.name == ("GPU 1" if call == "name" else NAMES[1])


@pytest.mark.parametrize("code", [4, 15])
def test_a_card_that_cannot_even_be_opened(code: int) -> None:
    _, broken = read_gpus(FakeNvml(NAMES, {("card", 1): code})).devices
    assert (broken.id, broken.name, broken.index) == ("lost-1", "GPU 1", 1)
    assert (broken.memory_bytes, broken.memory_free_bytes) == (0, 0)
    assert broken.fault.startswith(f"does not answer: NVML says {code} (NVML code {code}); ")


def test_an_old_driver_does_not_tell_what_it_reserves() -> None:
    device = only(FakeNvml(["A"], {"memory v2": FUNCTION_NOT_FOUND}))
    assert (device.memory_bytes, device.memory_free_bytes) == (10 * GIB, 9 * GIB)
    assert (device.memory_reserved_bytes, device.fault) == (0, "")


def test_memory_that_no_version_tells() -> None:
    """As where GPU and CPU share their memory."""
    device = only(FakeNvml(["NVIDIA GB10"], {"memory v2": 3, "memory": 3}))
    assert device.memory_bytes == 0
    assert device.fault.startswith("does not tell its memory")


@pytest.mark.parametrize("code", [3, 13, 999])
def test_what_a_card_does_not_know_is_none(code: int) -> None:
    calls = ("bus width", "generation", "display active", "display mode", "power limit", "power limits")
    device = only(FakeNvml(["A"], dict.fromkeys(calls, code)))
    assert (device.bandwidth_bytes_per_s, device.pcie, device.display_attached) == (None, None, None)
    assert (device.power_limit_w, device.power_limit_max_w) == (None, None)
    assert device.fault == ""


def test_nothing_is_not_known_either() -> None:
    device = only(FakeNvml(["A"], answers={"clock": 0, "width": 0, "power limit": 0}))
    assert (device.bandwidth_bytes_per_s, device.pcie, device.power_limit_w) == (None, None, None)


def test_a_link_above_its_own_maximum() -> None:
    device = only(FakeNvml(["A"], answers={"generation max": 0x1, "generation": 4, "width max": 4}))
    assert device.pcie == Pcie(generation=4, generation_max=4, width=8, width_max=8)


@pytest.mark.parametrize(
    ("answers", "faults", "attached"),
    [({"display active": 1}, {}, True), ({}, {"display active": 3}, True), ({}, {}, False)],
)
def test_a_desktop_on_the_card(answers: dict[str, int], faults: dict[str, int], attached: bool) -> None:
    assert only(FakeNvml(["A"], faults, answers)).display_attached is attached


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ({"remapped rows": (1, 0, 0, 0)}, ""),
        ({"remapped rows": (0, 1, 1, 0)}, "waits to be taken out of use; the card needs a reset"),
        ({"remapped rows": (0, 1, 0, 1)}, "could not be remapped: the card has to be replaced"),
        ({"retired pages": 1}, "waits to be taken out of use"),
        ({"retired pages": 0}, ""),
        ({"ecc": 3}, "3 uncorrectable memory errors"),
        ({"mig": [1, 1]}, "MIG mode is on"),
    ],
)
def test_health(answers: dict[str, Any], fault: str) -> None:
    device = only(FakeNvml(["NVIDIA A100"], answers=answers, card=H100))
    assert fault in device.fault
    assert bool(device.fault) == bool(fault)


def test_a_bridge_between_two_cards() -> None:
    answers = {
        ("link state", 0): 1,
        ("link state", 1): 1,
        ("link remote", 0): "0000000b:0B:00.0",
        ("link remote", 1): "0A:00.0",
        ("pci", 1): "0000000B:0B:00.0",
    }
    links = read_gpus(FakeNvml(["A", "A", "A"], answers=answers)).links
    assert links == (Link(a="GPU-00000000", b="GPU-00000001", kind="nvlink"),)


def test_an_inactive_bridge_is_none() -> None:
    answers = {"link state": 0, "link remote": "00000000:0B:00.0"}
    assert read_gpus(FakeNvml(["A", "A"], answers=answers)).links == ()


def test_peer_to_peer_over_pcie() -> None:
    able = {("p2p", 0, 1, 0): 0, ("p2p", 0, 1, 1): 0, ("p2p", 0, 2, 0): 0}
    links = read_gpus(FakeNvml(["A", "A", "A"], answers=able)).links
    assert links == (Link(a="GPU-00000000", b="GPU-00000001", kind="p2p"),)


def test_a_card_at_fault_has_no_links() -> None:
    assert read_gpus(FakeNvml(["A", "A"], {("uuid", 1): 15}, card=H100)).links == ()


def test_the_library_of_this_machine_answers_or_is_absent() -> None:
    """Through the real pynvml: where there is no driver, that is not an error."""
    gpus = read_gpus()
    assert (gpus.driver_version is None) <= (gpus.devices == ())


def test_the_state_of_cards_is_what_they_tell() -> None:
    nvml = FakeNvml(
        NAMES,
        faults={("uuid", 1): 15},
        answers={
            "persistence": 1,
            "compute mode": 0,
            "clock reasons": 4,
            "temperature": 61,
            "replays": 2,
            "ecc mode": [1, 0],
            "power default": 320_000,
        },
    )
    assert read_states(nvml) == (
        CardState(
            id="GPU-00000000",
            persistence=True,
            compute_mode=0,
            clock_reasons=4,
            temperature_c=61,
            replays=2,
            ecc=True,
            ecc_pending=False,
            power_default_w=320.0,
        ),
    )
    assert read_states(FakeNvml(NAMES[:1])) == (CardState(id="GPU-00000000"),)
    assert read_states(FakeNvml(NAMES, faults={"init": 12})) == ()

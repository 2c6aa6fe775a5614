"""Is this machine fit to serve: one finding a question, with what was seen and what to do. Pure.

The questions are those behind the faults that people with GPUs at home report most: a driver that was updated
under a running kernel, a card that fell off the bus, a riser that trains at x1, a desktop on the best card.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sovereign_ai.catalog.releases import Release
from sovereign_ai.inventory.condition import Condition
from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.spec import Device, Noun

State = Literal["ok", "warning", "fault", "skipped"]

GIB = 1 << 30
LEAST_FREE_BYTES = {"engine": 3 * GIB, "models": 2 * GIB}
"""An engine environment takes 2.1 GiB and its downloads beside; the smallest useful models some hundred
MiB."""
LEAST_SHM_BYTES = 1 * GIB
"""Triton's stubs and vLLM's workers hand tensors over there."""
LEAST_FILES = 4096
"""Open files: one a stream at the gateway, one to the engine."""
OTHERS_BYTES = 256 << 20
"""Memory on a card that is not worth a word below."""
HOT_C = 88
"""Degrees Celsius from which GeForce cards begin to slow down."""

XIDS = {
    48: "an uncorrectable memory error",
    62: "an internal fault of the card",
    63: "a memory row was remapped",
    64: "a memory row could not be remapped",
    74: "an NVLink error",
    79: "the card fell off the bus: power, cable or riser",
    94: "a contained memory error",
    95: "an uncontained memory error",
    119: "the card's own processor (GSP) does not answer",
    120: "the card's own processor (GSP) failed",
}
"""https://docs.nvidia.com/deploy/xid-errors"""

POWER_BRAKE, HW_SLOWDOWN, HW_THERMAL = 0x80, 0x08, 0x40
"""nvmlClocksEventReason bits (nvml.h) that mean that hardware protects itself."""


class Finding(Noun, frozen=True, kw_only=True):
    """`what` was seen, `fix` what to do about it; `check` names the question."""

    check: str
    state: State
    what: str
    fix: str = ""


def examine(condition: Condition, release: Release) -> tuple[Finding, ...]:
    """All findings, in the order of what a person should mend first."""
    return (
        *_driver(condition, release),
        *_count(condition),
        *_faults(condition),
        *(finding for device in _gpus(condition) for finding in _card(device, condition)),
        *_host(condition),
    )


def _gpus(condition: Condition) -> list[Device]:
    return [one for one in condition.inventory.devices if one.kind == "gpu"]


def _ok(check: str, what: str) -> Finding:
    return Finding(check=check, state="ok", what=what)


def _skipped(check: str, what: str) -> Finding:
    return Finding(check=check, state="skipped", what=what)


def _driver(condition: Condition, release: Release) -> Iterator[Finding]:
    version = condition.inventory.nodes[0].driver_version
    if version is None:
        yield _skipped("driver", "no NVIDIA driver: the CPU serves")
    else:
        yield from _driver_versions(condition, release, version)
    if condition.nouveau:
        fix = "blacklist nouveau, rebuild the initramfs, reboot"
        yield Finding(check="nouveau", state="fault", what="the nouveau driver is loaded", fix=fix)


def _driver_versions(condition: Condition, release: Release, version: str) -> Iterator[Finding]:
    if reason := release.refuses_driver(version):
        yield Finding(check="driver", state="fault", what=reason, fix="install a newer driver branch")
    else:
        yield _ok("driver", f"{version}, good for Triton {release.name}")
    kernel = condition.kernel_driver
    if kernel is None:
        yield _skipped("driver in the kernel", "its version cannot be read")
    elif kernel != version:
        yield Finding(
            check="driver in the kernel",
            state="fault",
            what=f"the kernel runs {kernel}, the libraries are {version}: the driver was updated under it",
            fix="reboot",
        )
    else:
        yield _ok("driver in the kernel", kernel)


def _count(condition: Condition) -> Iterator[Finding]:
    seen, known = condition.pci_gpus, len(_gpus(condition))
    if seen is None:
        yield _skipped("cards on the bus", "the PCI bus cannot be read")
    elif seen != known and condition.inventory.nodes[0].driver_version is None:
        what, fix = f"{seen} NVIDIA cards on the bus, but no driver", "install the NVIDIA driver"
        yield Finding(check="cards on the bus", state="warning", what=what, fix=fix)
    elif seen > known:
        what = f"{seen} NVIDIA cards on the bus, the driver shows {known}"
        fix = "look for the missing card's line in `dmesg`; check its power and seating"
        yield Finding(check="cards on the bus", state="fault", what=what, fix=fix)
    else:
        what = f"{known} of {known} shown by the driver" if known else "none of NVIDIA's"
        yield _ok("cards on the bus", what)


def _faults(condition: Condition) -> Iterator[Finding]:
    if condition.xids is None:
        yield _skipped("kernel's log", "it cannot be read by this user: run it as root once")
        return
    for xid in condition.xids:
        yield Finding(
            check="kernel's log",
            state="warning",
            what=f"Xid {xid.number} of card {xid.address}: {XIDS.get(xid.number, 'see NVIDIA’s list')}",
            fix="https://docs.nvidia.com/deploy/xid-errors says what to do for this number",
        )
    if not condition.xids:
        yield _ok("kernel's log", "no fault of a card since the log begins")


def _card(device: Device, condition: Condition) -> Iterator[Finding]:
    check = f"card {device.index} ({device.name})"
    before = []
    if device.fault:
        before.append(Finding(check=check, state="fault", what=device.fault, fix="see its own words"))
    before += [*_link(check, device), *_company(check, device)]
    state = next((one for one in condition.states if one.id == device.id), None)
    before += [] if state is None else list(_state(check, state))
    yield from before or [_ok(check, f"in health, {device.memory_free_bytes / GIB:.1f} GiB free")]


def _link(check: str, device: Device) -> Iterator[Finding]:
    """The width does not change at rest; the generation does, and tells nothing then."""
    if device.pcie and device.pcie.width < device.pcie.width_max:
        what = f"runs at x{device.pcie.width} of x{device.pcie.width_max}"
        fix = "reseat it, or its riser; a slot that is wired narrower can stay so"
        yield Finding(check=check, state="warning", what=what, fix=fix)


def _company(check: str, device: Device) -> Iterator[Finding]:
    if device.memory_others_bytes > OTHERS_BYTES:
        what = f"others hold {device.memory_others_bytes / GIB:.1f} GiB of its memory"
        who = "a desktop is on it: put the display on another card" if device.display_attached else ""
        yield Finding(check=check, state="warning", what=what, fix=who or "see who: nvidia-smi")


def _state(check: str, state: CardState) -> Iterator[Finding]:
    if state.compute_mode not in (None, 0):
        fix = "nvidia-smi -c DEFAULT"
        yield Finding(check=check, state="warning", what="is not in the default compute mode", fix=fix)
    if state.persistence is False:
        fix = "enable nvidia-persistenced: the first start after idling is faster then"
        yield Finding(check=check, state="warning", what="persistence mode is off", fix=fix)
    if (state.clock_reasons or 0) & (HW_SLOWDOWN | HW_THERMAL | POWER_BRAKE):
        fix = "look at its cooling and its power supply"
        yield Finding(check=check, state="warning", what="its hardware slows it down now", fix=fix)
    if state.temperature_c is not None and state.temperature_c >= HOT_C:
        fix = "look at its cooling"
        yield Finding(check=check, state="warning", what=f"is {state.temperature_c} °C hot", fix=fix)
    if state.replays:
        what = f"{state.replays} packets were sent again over its PCIe link"
        fix = "a bad riser or slot; watch whether it grows"
        yield Finding(check=check, state="warning", what=what, fix=fix)


def _host(condition: Condition) -> Iterator[Finding]:
    yield from _disks(condition)
    yield _least("shared memory", condition.shm_bytes, LEAST_SHM_BYTES, "mount a larger /dev/shm")
    files = condition.open_files
    if files is not None and 0 <= files < LEAST_FILES:
        what, fix = f"{files} at most", f"ulimit -n {LEAST_FILES * 4}, or LimitNOFILE= of the service"
        yield Finding(check="open files", state="warning", what=what, fix=fix)
    else:
        yield _ok("open files", "unlimited" if files is None or files < 0 else f"{files} at most")
    if condition.swap_bytes:
        what = f"{condition.swap_bytes / GIB:.1f} GiB of swap"
        fix = "fine here; Kubernetes wants it off or configured (failSwapOn)"
        yield Finding(check="swap", state="ok", what=what, fix=fix)
    if condition.cgroup_v2 is False:
        what, fix = "cgroup v1", "Kubernetes from 1.35 on wants cgroup v2"
        yield Finding(check="cgroups", state="warning", what=what, fix=fix)


def _disks(condition: Condition) -> Iterator[Finding]:
    for what, free in condition.free_bytes.items():
        yield _least(f"disk for {what}", free, LEAST_FREE_BYTES.get(what, GIB), "free some space")


def _least(check: str, size: int | None, least: int, fix: str) -> Finding:
    if size is None:
        return _skipped(check, "cannot be read")
    if size < least:
        what = f"{size / GIB:.1f} GiB, {least / GIB:.1f} are needed"
        return Finding(check=check, state="fault", what=what, fix=fix)
    return _ok(check, f"{size / GIB:.1f} GiB")

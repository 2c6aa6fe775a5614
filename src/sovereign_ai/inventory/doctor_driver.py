"""The driver, the kernel under it, and whether it shows every card. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sovereign_ai.inventory.case import Case
from sovereign_ai.inventory.findings import Check, Seen, fault, ok, skipped, warning

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

MOST_XIDS = 20
"""Lines of the kernel's log that are shown: a dying card writes thousands."""


def _version(case: Case) -> str | None:
    return case.condition.inventory.nodes[0].driver_version


def _driver(case: Case) -> Iterator[Seen]:
    version = _version(case)
    if version is None:
        yield skipped("no NVIDIA driver: the CPU serves")
    elif reason := case.release.refuses_driver(version):
        yield fault(reason, "install a newer driver branch")
    else:
        yield ok(f"{version}, good for Triton {case.release.name}")


def _in_kernel(case: Case) -> Iterator[Seen]:
    version, kernel = _version(case), case.condition.kernel_driver
    if version is None:
        yield skipped("no NVIDIA driver")
    elif kernel is None:
        yield skipped("its version cannot be read")
    elif kernel != version:
        what = f"the kernel runs {kernel}, the libraries are {version}: the driver was updated under it"
        yield fault(what, "reboot")
    else:
        yield ok(kernel)


def _kernels(case: Case) -> Iterator[Seen]:
    """After an update of the kernel the next start may come up without the driver."""
    system = case.condition.system
    without = [name for name, has in system.kernels.items() if not has]
    if _version(case) is None:
        yield skipped("no NVIDIA driver")
    elif not any(system.kernels.values()):
        yield skipped("no installed kernel has the driver's module where it is looked for")
    elif without:
        what = f"no driver for kernel {', '.join(without)}: booting it leaves the cards dark"
        yield warning(what, f"dkms autoinstall -k {without[-1]}, or remove that kernel")
    else:
        yield ok(f"the driver is built for {', '.join(system.kernels)}")


def _nouveau(case: Case) -> Iterator[Seen]:
    if case.condition.nouveau is None:
        yield skipped("the kernel's modules cannot be read")
    elif case.condition.nouveau:
        yield fault("the nouveau driver is loaded", "blacklist nouveau, rebuild the initramfs, reboot")
    else:
        yield ok("not loaded")


def _secure_boot(case: Case) -> Iterator[Seen]:
    system = case.condition.system
    if not case.condition.pci_gpus:
        yield skipped("no NVIDIA card on the bus")
    elif system.secure_boot is None:
        yield skipped("its state cannot be read: mokutil --sb-state")
    elif not system.secure_boot:
        yield ok("off")
    elif _version(case) is None:
        what = "it is on and no driver is loaded: the kernel may have refused an unsigned module"
        yield fault(what, "sign the module and enrol the key (mokutil --import), or switch Secure Boot off")
    elif system.module_unsigned:
        what = "it is on, and the driver's module carries no signature that this kernel knows"
        yield warning(what, "sign it and enrol the key (mokutil --import) before the next reboot")
    else:
        yield ok("on, and the driver is loaded")


def _count(case: Case) -> Iterator[Seen]:
    seen, known = case.condition.pci_gpus, len(case.gpus)
    if seen is None:
        yield skipped("the PCI bus cannot be read")
    elif seen != known and _version(case) is None:
        yield warning(f"{seen} NVIDIA cards on the bus, but no driver", "install the NVIDIA driver")
    elif seen > known:
        fix = "look for the missing card's line in `dmesg`; check its power and seating"
        yield fault(f"{seen} NVIDIA cards on the bus, the driver shows {known}", fix)
    else:
        yield ok(f"{known} of {known} shown by the driver" if known else "none of NVIDIA's")


def _log(case: Case) -> Iterator[Seen]:
    xids = case.condition.xids
    if xids is None:
        yield skipped("it cannot be read by this user: run it as root once")
        return
    for xid in xids[:MOST_XIDS]:
        what = f"Xid {xid.number} of card {xid.address}: {XIDS.get(xid.number, 'see NVIDIA’s list')}"
        yield warning(what, "https://docs.nvidia.com/deploy/xid-errors says what to do for this number")
    if not xids:
        yield ok("no fault of a card since the log begins")


DRIVER_CHECKS = (
    Check("driver", _driver),
    Check("driver in the kernel", _in_kernel),
    Check("cards on the bus", _count),
    Check("driver for every kernel", _kernels),
    Check("nouveau", _nouveau),
    Check("Secure Boot", _secure_boot),
    Check("kernel's log", _log),
)
